//! The world: nodes, network, clients and oracles, and the one loop that takes an event and lets everybody concerned do
//! something about it. What goes wrong in it is decided in `faults`, how it ends in `heal`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use tidemark_controller::Command;
use tidemark_protocol::{NodeId, Offset, TopicId, TopicPartition, messages::VoterId};
use tidemark_storage::{Extent, disk::Faults, log_dir_owner};

use super::{
    client::{
        Reach, admin::Admin, consumer::Consumer, copier::Copier, member::Member,
        producer::Producer, reader::Reader, transactor::Transactor,
    },
    core::{Ambush, Core, Event, MS, Mend, Micros},
    network::{Address, Delivery, Network},
    node::{Boot, Input, Node, NodeTimer, Seen, root},
    shape::Shape,
    trace::{Trace, Who},
};
use crate::{
    history::History,
    oracle::{Ghost, Observed, Verdict, violation},
    random::Random,
};

/// Wall time at the beginning of every simulation.
pub const EPOCH_MS: u64 = 1_700_000_000_000;
/// How often the oracles that look at everything look.
const LOOK_US: Micros = 500 * MS;
/// Ids of the first client of each kind.
pub const FIRST_PRODUCER: u32 = 1;
pub const FIRST_CONSUMER: u32 = 100;
const ADMIN: u32 = 200;
pub const FIRST_TRANSACTOR: u32 = 300;
pub const FIRST_READER: u32 = 400;
pub const FIRST_MEMBER: u32 = 500;
pub const FIRST_COPIER: u32 = 600;

/// Everything there is.
pub struct World {
    pub core: Core,
    pub net: Network,
    pub shape: Shape,
    pub nodes: BTreeMap<NodeId, Node>,
    pub producers: BTreeMap<u32, Producer>,
    pub consumers: BTreeMap<u32, Consumer>,
    pub transactors: BTreeMap<u32, Transactor>,
    pub readers: BTreeMap<u32, Reader>,
    pub members: BTreeMap<u32, Member>,
    pub copiers: BTreeMap<u32, Copier>,
    pub admin: Admin,
    pub history: History,
    pub ghost: Ghost,
    /// The voters that the cluster began with.
    pub founders: Vec<VoterId>,
    pub disk_faults: BTreeMap<NodeId, Faults>,
    /// Nodes that have asked to be let go, and until when they wait.
    pub leaving: BTreeMap<NodeId, Micros>,
    /// Nodes whose metadata log may be damaged or gone.
    pub wiped: BTreeSet<NodeId>,
    pub are_faults_on: bool,
    /// What waits for the next replica that some leader lets in.
    pub ambush: Option<Ambush>,
    /// Partitions of which more may be committed since they were read.
    pub unscanned: Vec<TopicPartition>,
}

impl World {
    /// A cluster that is about to start.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let shape = Shape::draw(&mut random);
        let mut core = Core::new(random.fork(), trace);
        let net = Network::new(shape.delays);
        let mut nodes = BTreeMap::new();
        for (at, id) in shape.nodes.iter().enumerate() {
            let mut node = Node::new(*id, &mut core, shape.flush_us);
            node.wall_skew_ms = shape.skews_ms.get(at).copied().unwrap_or(0);
            nodes.insert(*id, node);
        }
        let founders = shape.controllers.iter().map(|id| nodes[id].voter()).collect();
        let mut producers = BTreeMap::new();
        for id in (FIRST_PRODUCER..).take(shape.producers as usize) {
            let mut producer = Producer::new(id, shape.nodes.clone(), shape.think_us, &mut core);
            for topic in &shape.topics {
                producer.expect(&topic.name, true);
            }
            producers.insert(id, producer);
        }
        let mut consumers = BTreeMap::new();
        for id in (FIRST_CONSUMER..).take(shape.consumers as usize) {
            let consumer = Consumer::new(id, shape.nodes.clone(), shape.fetch_bytes, &mut core);
            consumers.insert(id, consumer);
        }
        let admin = Admin::new(ADMIN, shape.controllers.clone());
        let mut world = Self {
            core,
            net,
            nodes,
            producers,
            consumers,
            transactors: BTreeMap::new(),
            readers: BTreeMap::new(),
            members: BTreeMap::new(),
            copiers: BTreeMap::new(),
            admin,
            history: History::default(),
            ghost: Ghost::default(),
            founders,
            disk_faults: BTreeMap::new(),
            leaving: BTreeMap::new(),
            wiped: BTreeSet::new(),
            are_faults_on: true,
            ambush: None,
            unscanned: Vec::new(),
            shape,
        };
        world.begin();
        world.begin_coordinated();
        world
    }

    fn begin(&mut self) {
        for id in self.shape.nodes.clone() {
            let delay_us = self.core.draw(0, 50 * MS);
            self.core.after(delay_us, Event::Mend { mend: Mend::Start { node: id } });
        }
        for topic in self.shape.topics.clone() {
            let command = Command::CreateTopic(topic.command(&mut self.core));
            self.wish(command);
        }
        self.core.after(LOOK_US, Event::Look);
        let pause_us = self.core.draw(500 * MS, self.shape.fault_pause_us + 500 * MS);
        self.core.after(pause_us, Event::Fault);
    }

    /// Puts a command on the administrator's list.
    pub fn wish(&mut self, command: Command) {
        let mut reach = Reach { core: &mut self.core, net: &mut self.net };
        self.admin.wish(command, &mut reach);
    }

    /// Lives until `until_us`, or until something is wrong.
    pub fn run(&mut self, until_us: Micros) -> Verdict {
        while let Some(event) = self.core.next(until_us) {
            self.step(event)?;
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> Verdict {
        match event {
            Event::Arrive { connection, lane } => {
                match self.net.arrive(&mut self.core, connection, lane) {
                    Some(delivery) => self.deliver(delivery),
                    None => Ok(()),
                }
            }
            Event::DialTimeout { connection } => {
                self.net.dial_timeout(&mut self.core, connection);
                Ok(())
            }
            Event::Unacknowledged { connection, lane, since_us } => {
                self.net.unacknowledged(&mut self.core, connection, lane, since_us);
                Ok(())
            }
            Event::Node { node, life, timer } => self.timer(node, life, timer),
            Event::Client { client, timer } => self.client_timer(client, timer),
            Event::Fault => self.fault(),
            Event::Mend { mend } => self.mend(mend),
            Event::Look => {
                self.core.after(LOOK_US, Event::Look);
                self.look()
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) -> Verdict {
        match delivery.to {
            Address::Node { node, life } => {
                if self.nodes.get(&node).is_some_and(|it| it.life == life) {
                    return self.give(node, Input::Delivery(delivery));
                }
                Ok(())
            }
            Address::Client(client) => {
                let mut reach = Reach { core: &mut self.core, net: &mut self.net };
                if let Some(producer) = self.producers.get_mut(&client) {
                    producer.deliver(delivery, &mut self.history, &mut reach);
                } else if let Some(consumer) = self.consumers.get_mut(&client) {
                    consumer.deliver(delivery, &mut self.history, &mut reach)?;
                } else if let Some(transactor) = self.transactors.get_mut(&client) {
                    transactor.deliver(delivery, &mut reach);
                } else if let Some(reader) = self.readers.get_mut(&client) {
                    reader.deliver(delivery, &mut reach)?;
                } else if let Some(member) = self.members.get_mut(&client) {
                    member.deliver(delivery, &mut reach);
                } else if let Some(copier) = self.copiers.get_mut(&client) {
                    copier.deliver(delivery, &mut reach)?;
                } else {
                    self.admin.deliver(delivery, &mut reach);
                }
                self.after_client(client)
            }
        }
    }

    fn client_timer(&mut self, client: u32, timer: u64) -> Verdict {
        let mut reach = Reach { core: &mut self.core, net: &mut self.net };
        if let Some(producer) = self.producers.get_mut(&client) {
            producer.timer(timer, &mut self.history, &mut reach);
        } else if let Some(consumer) = self.consumers.get_mut(&client) {
            consumer.timer(timer, &mut self.history, &mut reach)?;
        } else if let Some(transactor) = self.transactors.get_mut(&client) {
            transactor.timer(timer, &mut reach);
        } else if let Some(reader) = self.readers.get_mut(&client) {
            reader.timer(timer, &mut reach)?;
        } else if let Some(member) = self.members.get_mut(&client) {
            member.timer(timer, &mut reach);
        } else if let Some(copier) = self.copiers.get_mut(&client) {
            copier.timer(timer, &mut reach)?;
        } else {
            self.admin.timer(timer, &mut reach);
        }
        self.after_client(client)
    }

    fn timer(&mut self, node: NodeId, life: u64, timer: NodeTimer) -> Verdict {
        if self.nodes.get(&node).is_some_and(|it| it.life == life && it.is_up()) {
            return self.give(node, Input::Timer(timer));
        }
        Ok(())
    }

    /// Lets a node take something in, and looks at what has come of it.
    pub fn give(&mut self, id: NodeId, input: Input) -> Verdict {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.take_in(input, &mut self.core, &mut self.net, &self.shape);
        self.after_node(id)
    }

    /// Starts a node's process. One that does not start although its disk is in order is a violation.
    pub fn start(&mut self, id: NodeId) -> Verdict {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.is_up() {
            return Ok(());
        }
        let voter = node.voter();
        let boot = Boot {
            controllers: self.shape.controllers.clone(),
            voters: self.founders.contains(&voter).then(|| self.founders.clone()),
        };
        self.core.note(Who::Node(id), "start", [node.life, 0], String::new);
        self.note_truncations(id);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let mishaps = node.disk.mishaps();
        self.ghost.unsynced.remove(&id);
        match node.start(&mut self.core, &mut self.net, &self.shape, &boot) {
            Ok(()) => {
                if let Some(process) = node.process() {
                    self.ghost.loss.started(id, process.incarnation());
                }
                self.after_node(id)
            }
            Err(error) => {
                let was_in_order = self.nodes[&id].disk.mishaps() == mishaps;
                self.not_started(id, &error.to_string(), was_in_order)
            }
        }
    }

    /// Has the oracles know which truncations the process that starts next has to complete.
    fn note_truncations(&mut self, id: NodeId) {
        let disk = self.nodes[&id].disk.clone();
        for partition in self.ghost.kept_by(id) {
            let Some(dir) = self.log_dir(partition) else { continue };
            let is_its =
                matches!(log_dir_owner(&disk, &dir), Ok(Some(owner)) if owner == partition);
            if let Ok(Extent { cut: Some(cut), .. }) = Extent::read(&disk, &dir)
                && is_its
            {
                self.ghost.is_being_cut((id, partition), cut);
            }
        }
    }

    /// Where a partition's log is on every node that holds it.
    pub(super) fn log_dir(&self, partition: TopicPartition) -> Option<PathBuf> {
        let topic = self.ghost.metadata.image.topic_by_id(partition.topic_id)?;
        Some(root().join("topics").join(&*topic.name).join(partition.partition.to_string()))
    }

    fn not_started(&mut self, id: NodeId, error: &str, was_in_order: bool) -> Verdict {
        self.core.note(Who::Node(id), "not started", [0, 0], || error.to_owned());
        self.core.figures.happened("failed starts");
        let node = &self.nodes[&id];
        if was_in_order && !node.disk.is_stopped() {
            return Err(violation("start", format!("node {id} does not start: {error}")));
        }
        self.nodes.get_mut(&id).expect("it is there").disk.crash();
        self.core.after(1_000 * MS, Event::Mend { mend: Mend::Start { node: id } });
        Ok(())
    }

    /// Looks at what a step has made of a node: deaths, commits, logs.
    pub fn after_node(&mut self, id: NodeId) -> Verdict {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.count_mishaps(&mut self.core) {
            self.flush_failed(id);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (life, is_dead) = (node.life, node.disk.is_stopped());
        let Some(process) = node.process_mut() else { return Ok(()) };
        for seen in process.take_seen() {
            match seen {
                Seen::Committed(entry) => {
                    if entry.index >= self.ghost.metadata.end() {
                        let figures = [entry.index, entry.term];
                        self.core.note(Who::Node(id), "commits", figures, || {
                            format!(
                                "entry {} of term {}: {:?}",
                                entry.index, entry.term, entry.records
                            )
                        });
                    }
                    self.ghost.committed(id, life, &entry, &mut self.core.figures)?;
                }
                Seen::Restored(image) => self.ghost.restored(id, life, &image)?,
            }
        }
        if is_dead {
            return self.crashed_midway(id);
        }
        if let Some(status) = process.quorum() {
            self.ghost.quorum_seen(id, life, &status)?;
        }
        let has_followed = std::mem::take(&mut process.has_followed);
        if has_followed {
            let image = Arc::clone(process.followed());
            self.ghost.followed(id, life, &image)?;
        }
        for (replica, followers) in process.broker.observe() {
            let observed = Observed::of(id, &replica, &followers);
            let partition = observed.partition;
            if observed.led.is_some() {
                self.unscanned.push(partition);
            }
            if let Some(newcomer) = observed.newcomer()
                && let Some(ambush) = self.ambush.take()
            {
                let mend = Mend::Ambush { ambush, leader: id, newcomer };
                self.core.after(0, Event::Mend { mend });
            }
            let figures = [observed.log_end_offset, observed.high_watermark];
            self.core.note(Who::Node(id), "replica", figures, || observed.to_string());
            let broker = &process.broker;
            let read = |from: Offset, to: Offset| broker.read_log(partition, from, to);
            self.ghost.observe(id, life, &observed, read, &mut self.core.figures)?;
        }
        if has_followed {
            for partition in self.ghost.held_by(id) {
                if !process.broker.holds(partition) {
                    self.ghost.removed((id, partition));
                }
            }
        }
        self.scan(id)?;
        let Some(process) = self.nodes.get_mut(&id).and_then(Node::process_mut) else {
            return Ok(());
        };
        for (partition, end) in process.take_acknowledged() {
            self.ghost.acknowledged(partition, end)?;
        }
        self.react(id)
    }

    /// What an operator, or a supervisor, does about a process that says that it is done for.
    fn react(&mut self, id: NodeId) -> Verdict {
        let Some(process) = self.nodes.get(&id).and_then(Node::process) else { return Ok(()) };
        if self.leaving.contains_key(&id) && process.may_shut_down() {
            return self.stop(id);
        }
        Ok(())
    }

    /// Stops a process in order.
    pub fn stop(&mut self, id: NodeId) -> Verdict {
        self.leaving.remove(&id);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        self.core.note(Who::Node(id), "stop", [node.life, 0], String::new);
        node.stop(&mut self.core, &mut self.net);
        self.ghost.ended(id);
        if !node.has_stopped {
            self.ghost.loss.crashed(id);
        }
        self.start_later(id, 3_000 * MS);
        Ok(())
    }

    fn crashed_midway(&mut self, id: NodeId) -> Verdict {
        if let Some(process) = self.nodes.get_mut(&id).and_then(Node::process_mut) {
            for (replica, followers) in process.broker.observe() {
                self.ghost.died(id, &Observed::of(id, &replica, &followers))?;
            }
        }
        self.core.figures.fault("crash midway");
        self.crash(id);
        self.start_later(id, 3_000 * MS);
        Ok(())
    }

    /// Kills a process.
    pub fn crash(&mut self, id: NodeId) {
        self.leaving.remove(&id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.core.note(Who::Node(id), "crash", [node.life, 0], String::new);
        node.crash(&mut self.core, &mut self.net);
        self.ghost.ended(id);
        self.ghost.loss.crashed(id);
        self.judge_promises(id);
    }

    pub fn start_later(&mut self, id: NodeId, within_us: Micros) {
        let delay_us = self.core.draw(10 * MS, within_us);
        self.core.after(delay_us, Event::Mend { mend: Mend::Start { node: id } });
    }

    /// Looks at everything.
    fn look(&mut self) -> Verdict {
        self.ghost.check_no_loss()?;
        self.tend_voters();
        self.tend_leaving()?;
        self.tend_failed()
    }

    /// A node that has waited long enough to be let go stops all the same.
    fn tend_leaving(&mut self) -> Verdict {
        let now_us = self.core.now_us();
        let late: Vec<_> =
            self.leaving.iter().filter(|(_, until)| **until <= now_us).map(|(id, _)| *id).collect();
        for id in late {
            self.stop(id)?;
        }
        Ok(())
    }

    /// A node whose disk has failed is restarted.
    fn tend_failed(&mut self) -> Verdict {
        for id in self.shape.nodes.clone() {
            let process = self.nodes.get(&id).and_then(Node::process);
            let has_failed = process.is_some_and(|process| {
                process.broker.disk_failure().is_some() || process.has_controller_failed()
            });
            if has_failed && self.core.chance(300) {
                self.crash(id);
                self.start_later(id, 2_000 * MS);
            }
        }
        Ok(())
    }

    /// Names a topic's id, fresh and random.
    pub fn draw_topic_id(core: &mut Core) -> TopicId {
        let halves = [core.random.next_u64(), core.random.next_u64()];
        TopicId(halves.map(u64::to_be_bytes).concat().try_into().expect("twice eight bytes"))
    }
}

//! Three machines over the quorum that ships, on simulated disks and a network that delivers at once: a node that is
//! lost takes its leaderships with it for less than a second, whatever it was.

use std::{collections::BTreeMap, path::Path};

use tidemark_controller::{
    Answer, Command, ControllerConfig, ControllerEffect, ControllerEvent, ControllerMachine,
    QuorumConfig, QuorumEvent, RaftQuorum, Token,
};
use tidemark_protocol::{
    BrokerEpoch, DirectoryId, ErrorCode, Failure, NodeId,
    messages::{HeartbeatRequest, HeartbeatResponse, VoterId, WantedState},
};
use tidemark_storage::{
    Disk,
    testing::{Faults, SimDisk},
};

use crate::rig::{create, registration};

const DIR: &str = "/metadata";
const NODES: [NodeId; 3] = [1, 2, 3];
const TICK_MS: u64 = 20;

type Machine = ControllerMachine<RaftQuorum<SimDisk>>;

struct Cluster {
    disks: BTreeMap<NodeId, SimDisk>,
    nodes: BTreeMap<NodeId, Machine>,
    /// Brokers on the same nodes, in the runs they are registered with.
    epochs: BTreeMap<NodeId, BrokerEpoch>,
    now_ms: u64,
    tokens: Token,
    answers: BTreeMap<Token, Result<Answer, Failure>>,
    heartbeats: BTreeMap<Token, Result<HeartbeatResponse, Failure>>,
}

fn voter(node: NodeId) -> VoterId {
    VoterId { node, directory: DirectoryId([u8::try_from(node).unwrap(); 16]) }
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            disks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            epochs: BTreeMap::new(),
            now_ms: 1_000,
            tokens: 0,
            answers: BTreeMap::new(),
            heartbeats: BTreeMap::new(),
        };
        let voters = NODES.map(voter);
        for node in NODES {
            let disk = SimDisk::new(node.into());
            RaftQuorum::bootstrap(disk.clone(), Path::new(DIR), voter(node), &voters).unwrap();
            cluster.disks.insert(node, disk);
            cluster.start(node);
        }
        cluster
    }

    fn start(&mut self, node: NodeId) {
        let config = QuorumConfig { tick_ms: TICK_MS, seed: node.into(), ..Default::default() };
        let disk = self.disks[&node].clone();
        let (quorum, image) = RaftQuorum::open(disk, Path::new(DIR), voter(node), config).unwrap();
        let machine = ControllerMachine::new(quorum, image, ControllerConfig::default());
        self.nodes.insert(node, machine);
    }

    /// The process is gone, and its connections with it.
    fn kill(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.event(other, ControllerEvent::Quorum(QuorumEvent::PeerLost { node }));
            let connection = node.into();
            self.event(other, ControllerEvent::ConnectionClosed { connection });
        }
    }

    /// Gives an event to a node, and to the others whatever follows from it.
    fn event(&mut self, node: NodeId, event: ControllerEvent) {
        let mut waiting = vec![(node, event)];
        while let Some((node, event)) = waiting.pop() {
            let Some(machine) = self.nodes.get_mut(&node) else { continue };
            let mut effects = Vec::new();
            machine.step(self.now_ms, event, &mut effects);
            if machine.wants_flush() {
                let flush = ControllerEvent::Quorum(QuorumEvent::Flush);
                machine.step(self.now_ms, flush, &mut effects);
            }
            let mut sent = Vec::new();
            for effect in effects {
                match effect {
                    ControllerEffect::Send { to, message } => {
                        let event = QuorumEvent::Received { from: voter(node), message };
                        sent.push((to.node, ControllerEvent::Quorum(event)));
                    }
                    ControllerEffect::Answer { token, outcome } => {
                        self.answers.insert(token, outcome.map(|answered| answered.answer));
                    }
                    ControllerEffect::HeartbeatAnswer { token, outcome } => {
                        self.heartbeats.insert(token, outcome);
                    }
                    ControllerEffect::Failed { message } => panic!("{message}"),
                    _ => {}
                }
            }
            // What was sent first arrives first.
            waiting.extend(sent.into_iter().rev());
        }
    }

    /// Time passes, and the brokers of running nodes are heard.
    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        for node in NODES {
            self.event(node, ControllerEvent::Tick);
        }
        let running: Vec<_> = self.nodes.keys().copied().collect();
        for id in running {
            if self.active().is_some() && self.epochs.contains_key(&id) {
                // A broker that does not know its controller is refused, and tries again.
                drop(self.heartbeat(id));
            }
        }
    }

    /// How long it takes until something is so, in milliseconds.
    #[track_caller]
    fn until(&mut self, is_so: impl Fn(&Self) -> bool) -> u64 {
        let begun_ms = self.now_ms;
        while !is_so(self) {
            assert!(self.now_ms - begun_ms < 20_000, "it never is");
            self.tick();
        }
        self.now_ms - begun_ms
    }

    fn active(&self) -> Option<NodeId> {
        self.nodes.iter().find(|(_, machine)| machine.is_active()).map(|(node, _)| *node)
    }

    fn run(&mut self, command: Command) -> Result<Answer, Failure> {
        let node = self.active().unwrap();
        self.tokens += 1;
        let token = self.tokens;
        self.event(node, ControllerEvent::Command { token, command });
        self.answers.remove(&token).expect("the network delivers at once")
    }

    fn register(&mut self, id: NodeId, run: u8) {
        let answer = self.run(Command::RegisterBroker(registration(id, run))).unwrap();
        let Answer::BrokerRegistered { broker_epoch } = answer else { panic!() };
        self.epochs.insert(id, broker_epoch);
        self.heartbeat(id).unwrap();
    }

    fn heartbeat(&mut self, id: NodeId) -> Result<HeartbeatResponse, Failure> {
        let node = self.active().unwrap();
        self.tokens += 1;
        let (token, connection) = (self.tokens, id.into());
        let request = HeartbeatRequest {
            broker_id: id,
            broker_epoch: self.epochs[&id],
            metadata_index: self.nodes[&node].image().metadata_index(),
            wanted: WantedState::Active,
        };
        self.event(node, ControllerEvent::Heartbeat { token, connection, request });
        self.heartbeats.remove(&token).expect("the network delivers at once")
    }

    /// Whether every partition has a leader, and none of them is `node`.
    fn is_led_without(&self, node: NodeId) -> bool {
        let Some(active) = self.active() else { return false };
        let topic = self.nodes[&active].image().topic("orders").unwrap();
        topic.partitions.iter().all(|one| one.leader.is_some_and(|leader| leader != node))
    }

    fn has_agreed(&self) -> bool {
        let mut images = self.nodes.values().map(ControllerMachine::image);
        let first = images.next().unwrap();
        images.all(|image| image == first)
    }
}

fn with_topic() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.until(|cluster| cluster.active().is_some());
    for id in NODES {
        cluster.register(id, 1);
    }
    let Answer::TopicCreated(_) = cluster.run(create("orders", 6, 3)).unwrap() else { panic!() };
    cluster.until(Cluster::has_agreed);
    cluster
}

#[test]
fn a_lost_node_is_replaced_within_a_second_also_when_it_was_the_controller() {
    for was_controller in [true, false] {
        let mut cluster = with_topic();
        let controller = cluster.active().unwrap();
        let is_it = |node: &NodeId| (*node == controller) == was_controller;
        let lost = NODES.into_iter().find(is_it).unwrap();
        cluster.kill(lost);
        let took_ms = cluster.until(|cluster| cluster.is_led_without(lost));
        assert!(took_ms < if was_controller { 800 } else { 100 }, "{took_ms} ms");

        cluster.start(lost);
        cluster.register(lost, 2);
        cluster.until(Cluster::has_agreed);
        let image = cluster.nodes[&lost].image();
        assert!(!image.broker(lost).unwrap().fenced);
        for partition in &image.topic("orders").unwrap().partitions {
            assert!(!partition.isr.contains(&lost), "it was killed");
        }
    }
}

#[test]
fn whatever_was_answered_is_there_after_everybody_was_killed() {
    let mut cluster = with_topic();
    for round in 0..5 {
        let name = format!("topic-{round}");
        cluster.run(create(&name, 1, 1)).unwrap();
        for node in NODES {
            cluster.kill(node);
        }
        for node in NODES {
            cluster.start(node);
        }
        cluster.until(|cluster| cluster.active().is_some() && cluster.has_agreed());
        assert!(cluster.nodes[&1].image().topic(&name).is_some());
        for id in NODES {
            cluster.register(id, 10 + round);
        }
    }
}

#[test]
fn a_full_disk_keeps_no_broker_from_coming_back() {
    const PLENTY_BYTES: u64 = 1 << 40;
    let mut cluster = with_topic();
    for disk in cluster.disks.values() {
        disk.set_faults(Faults { capacity_bytes: Some(PLENTY_BYTES), ..Faults::default() });
        let used = PLENTY_BYTES - disk.space(Path::new("/")).unwrap().free_bytes;
        disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
    }
    // Large ones until they do not fit, then small ones into what is left.
    for partitions in [2_000, 1] {
        let refused = (0..2_000).find_map(|number| {
            let name = format!("{number}-of-{partitions}");
            cluster.run(create(&name, partitions, 3)).err()
        });
        assert_eq!(refused.expect("full in the end").code, ErrorCode::DiskFull);
    }
    let active = cluster.active().unwrap();
    cluster.event(active, ControllerEvent::ConnectionClosed { connection: 2 });
    assert!(cluster.nodes[&active].image().broker(2).unwrap().fenced);
    for run in 2..5 {
        for id in NODES {
            cluster.register(id, run);
            assert!(!cluster.nodes[&1].image().broker(id).unwrap().fenced, "{id} in run {run}");
        }
    }
}

//! One process of a node: starts, takes in what comes from outside and passes it on. The machines decide, it does not.

mod care;
mod coordinate;
mod isr;
mod outside;
mod start;

pub use self::start::StartError;
use std::{sync::Arc, time::Duration};

use tidemark_broker::{
    clock::ClockHands,
    steered::{PortEffect, Steered, SteeredConfig},
};
use tidemark_controller::{
    AlterPartition, AlterPartitions, Answer, Command, Image, IncarnationId, IsrMember,
    RegisterBroker,
};
use tidemark_protocol::{
    BrokerEpoch, DirectoryId, ErrorCode, Failure, NodeId, TopicPartition,
    messages::{VoterId, WantedState},
};
use tidemark_replication::{IsrChange, ReplicaId};
use tidemark_storage::DataDirIdentity;

use super::{
    Input, Io, Node, NodeTimer,
    commands::{Commands, Outcome, Wanted},
    controller::{Controller, Local, Seen},
    coordination::{self, Coordination, MarkersFor, NeedsIds},
    member::{Beat, Member},
    metadata::{Feed, Metadata},
    peers::{Answered, Peers, Purpose},
    root,
    serve::Serving,
    sessions::Sessions,
    streams::{PING_US, Streams},
};
use crate::sim::{
    core::{MS, Micros, SECOND},
    message::{Correlation, Message, Request, Response},
    network::{Address, ConnectionId, Delivery, Parcel},
    world::EPOCH_MS,
};

/// The name of every simulated cluster.
pub(super) const CLUSTER_ID: &str = "simulated";
/// How long one attempt to register may take.
const REGISTER_US: Micros = 5 * SECOND;
/// How long a change of in-sync replicas is pursued; the leader asks again by itself.
const ALTER_ISR_US: Micros = 2 * SECOND;
const UPKEEP_US: Micros = 700 * MS;
const CHECKPOINT_US: Micros = 2 * SECOND;

/// What a process is told when it starts.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The configured controllers.
    pub controllers: Vec<NodeId>,
    /// The voters a cluster begins with; nobody begins another once one has.
    pub voters: Option<Vec<VoterId>>,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    started_us: Micros,
    wall_skew_ms: i64,
    hands: Arc<ClockHands>,
    pub broker: Steered,
    controller: Option<Controller>,
    leader: Option<NodeId>,
    metadata: Metadata,
    /// The image that the broker has followed.
    followed: Arc<Image>,
    has_opened: bool,
    /// What interrupted deletions left has been cleared.
    has_cleared: bool,
    retry_at_us: Micros,
    /// What is to be told the oracles: the broker has followed to a new image.
    pub has_followed: bool,
    registration: RegisterBroker,
    member: Member,
    commands: Commands,
    peers: Peers,
    streams: Streams,
    sessions: Sessions,
    pub(super) serving: Serving,
    isr_changes: Vec<(TopicPartition, IsrChange)>,
    is_altering: bool,
    wake_at_us: Micros,
    coordination: Coordination,
    /// Where a coordinator and its log differ.
    pub differences: Vec<String>,
}

impl Process {
    pub(super) fn start(node: &Node, boot: &Boot, io: &mut Io<'_>) -> Result<Self, StartError> {
        let hands = Arc::<ClockHands>::default();
        hands.set(0, wall_ms(io.core.now_us(), node.wall_skew_ms));
        let identity = DataDirIdentity {
            cluster_id: CLUSTER_ID.to_owned(),
            node_id: node.id,
            directory_id: node.directory.0,
        };
        let config = SteeredConfig {
            broker_id: node.id,
            shards: io.shape.shards,
            queue_max: io.shape.queue_max,
            flush_interval: Duration::from_millis(200),
            disk_reserve_bytes: 0,
            open_files_max: 16,
            replica_lag_ms: io.shape.replica_lag_ms,
            coordinators: coordination::settings(io.shape),
        };
        let broker = Steered::open(&node.disk, root(), identity, Arc::clone(&hands), config)
            .map_err(|error| StartError(format!("cannot use the data directory: {error}")))?;
        let (controller, recovered) = start::open_controller(node, boot, &broker, io)?;
        let feed = controller.is_none().then(|| Feed::new(boot.controllers.clone()));
        let incarnation = [io.core.random.next_u64(), io.core.random.next_u64()];
        let incarnation = incarnation.map(u64::to_be_bytes).concat();
        let registration = RegisterBroker {
            broker_id: node.id,
            incarnation: IncarnationId(incarnation.try_into().expect("twice eight bytes")),
            directory: DirectoryId(node.directory.0),
            host: format!("node-{}", node.id),
            port: 9092,
            rack: None,
            // Known when the logs are open.
            previous_broker_epoch: None,
        };
        let mut process = Self {
            started_us: io.core.now_us(),
            wall_skew_ms: node.wall_skew_ms,
            hands,
            broker,
            controller,
            leader: None,
            metadata: Metadata::new(Arc::clone(&recovered), feed),
            followed: Arc::default(),
            has_opened: false,
            has_cleared: false,
            retry_at_us: 0,
            has_followed: false,
            registration,
            member: Member::new(),
            commands: Commands::default(),
            peers: Peers::default(),
            streams: Streams::default(),
            sessions: Sessions::default(),
            serving: Serving::default(),
            isr_changes: Vec::new(),
            is_altering: false,
            wake_at_us: Micros::MAX,
            coordination: Coordination::default(),
            differences: Vec::new(),
        };
        if recovered.metadata_index() > 0 {
            process.follow(&recovered, io);
        }
        io.timer(PING_US, NodeTimer::Ping);
        let upkeep_us = io.core.draw(MS, UPKEEP_US);
        io.timer(upkeep_us, NodeTimer::Upkeep);
        io.timer(CHECKPOINT_US, NodeTimer::Checkpoint);
        if let Some(feed) = &mut process.metadata.feed {
            feed.go_on(io);
        }
        process.pump(io);
        Ok(process)
    }

    /// Takes something in, and passes on whatever comes of it.
    pub(super) fn handle(&mut self, input: Input, io: &mut Io<'_>) {
        let now_us = io.core.now_us();
        self.hands.set((now_us - self.started_us) / MS, wall_ms(now_us, self.wall_skew_ms));
        match input {
            Input::Delivery(delivery) => self.deliver(delivery, io),
            Input::Timer(timer) => self.timer(timer, io),
        }
        self.pump(io);
    }

    /// Who it registers as.
    pub fn incarnation(&self) -> IncarnationId {
        self.registration.incarnation
    }

    fn now_ms(&self, io: &Io<'_>) -> u64 {
        (io.core.now_us() - self.started_us) / MS
    }

    fn deliver(&mut self, delivery: Delivery, io: &mut Io<'_>) {
        let connection = delivery.connection;
        match delivery.parcel {
            Parcel::Open => {}
            Parcel::Accepted => self.accepted(connection, io),
            Parcel::Message(message) => self.message(connection, delivery.from, message, io),
            Parcel::Closed => self.closed(connection, io),
        }
    }

    fn accepted(&mut self, connection: ConnectionId, io: &mut Io<'_>) {
        let epoch = self.member.epoch;
        let Self { peers, member, streams, metadata, .. } = self;
        let known = peers.accepted(connection, io)
            || member.accepted(connection, io)
            || streams.accepted(connection, epoch, peers, io)
            || metadata.feed.as_mut().is_some_and(|feed| feed.accepted(connection, peers, io));
        if !known {
            io.close(connection);
        }
    }

    fn closed(&mut self, connection: ConnectionId, io: &mut Io<'_>) {
        let now_ms = self.now_ms(io);
        let (lost, failed) = self.peers.closed(connection, io);
        for answered in failed {
            self.answered(answered, io);
        }
        self.member.closed(connection, io);
        self.streams.closed(connection, &mut self.broker, io);
        self.sessions.closed(connection, &mut self.broker);
        if let Some(feed) = &mut self.metadata.feed {
            feed.closed(connection, io);
        }
        if let Some(controller) = &mut self.controller {
            controller.connection_closed(now_ms, connection, io);
            if let Some(node) = lost {
                controller.peer_lost(now_ms, node, io);
            }
        }
    }

    fn message(
        &mut self,
        connection: ConnectionId,
        _from: Address,
        message: Message,
        io: &mut Io<'_>,
    ) {
        match message {
            Message::Quorum { from, to, message } => {
                let now_ms = self.now_ms(io);
                if let Some(controller) = &mut self.controller {
                    controller.received(now_ms, from, to, message, io);
                }
            }
            Message::Request(correlation, request) => {
                self.request((connection, correlation), *request, io);
            }
            Message::Answer(correlation, outcome) => {
                let answered = self.peers.answered(connection, correlation, *outcome);
                if let Some(answered) = answered {
                    self.answered(answered, io);
                }
            }
            Message::Positions(positions) => {
                self.sessions.positions(connection, positions, &mut self.broker, io);
            }
            Message::Push { header, payload } => {
                self.streams.pushed(connection, &header, payload, &mut self.broker, io);
            }
        }
    }

    fn request(&mut self, asker: (ConnectionId, Correlation), request: Request, io: &mut Io<'_>) {
        let now_ms = self.now_ms(io);
        let (connection, correlation) = asker;
        let refuse = |io: &mut Io<'_>, code: ErrorCode| {
            let failure = Failure::new(code, "not here");
            io.send(connection, Message::Answer(correlation, Box::new(Err(failure))));
        };
        match request {
            Request::Command(command) => match &mut self.controller {
                Some(controller) => controller.remote_command(now_ms, command, asker, io),
                None => refuse(io, ErrorCode::NotController),
            },
            Request::Heartbeat(request) => match &mut self.controller {
                Some(controller) => controller.remote_heartbeat(now_ms, request, asker, io),
                None => refuse(io, ErrorCode::NotController),
            },
            Request::FetchMetadata(request) => match &mut self.controller {
                Some(controller) => controller.follow(connection, correlation, request, io),
                None => refuse(io, ErrorCode::NotController),
            },
            Request::Replicate { broker_id, broker_epoch, leader_id } => {
                if leader_id != io.node() {
                    return refuse(io, ErrorCode::UnknownBroker);
                }
                let follower = ReplicaId { broker_id, broker_epoch };
                let answer = Message::Answer(correlation, Box::new(Ok(Response::Replicate)));
                io.send(connection, answer);
                self.sessions.begin(connection, follower, &mut self.broker);
            }
            Request::InitProducer => self.need_ids(NeedsIds::Client(asker), io),
            Request::Group(partition, request) => self.ask_groups(asker, partition, *request, io),
            Request::OffsetsInTransaction { partition, transactional_id, commit } => {
                self.commit_in_transaction(asker, partition, transactional_id, commit, io);
            }
            Request::Transaction { partition, request, metadata_index } => {
                self.ask_transactions(asker, partition, request, metadata_index, io);
            }
            Request::WriteMarkers { markers, partitions } => {
                self.write_markers(MarkersFor::Peer(asker), &markers, partitions, io);
            }
            request => {
                self.serving.serve(asker, request, &self.followed, &mut self.broker, io);
            }
        }
    }

    fn timer(&mut self, timer: NodeTimer, io: &mut Io<'_>) {
        let now_ms = self.now_ms(io);
        match timer {
            NodeTimer::Tick => {
                if let Some(controller) = &mut self.controller {
                    controller.tick(now_ms, io);
                }
            }
            NodeTimer::FlushQuorum => {
                if let Some(controller) = &mut self.controller {
                    controller.flush(now_ms, io);
                }
            }
            NodeTimer::Wake => {}
            NodeTimer::Flush(flush) => self.broker.run_flush(flush),
            NodeTimer::Image => {
                let image = self.metadata.arrived();
                self.follow(&image, io);
            }
            NodeTimer::Beat => self.beat(io),
            NodeTimer::Command(id) => {
                if let Some((wanted, outcome)) = self.commands.expired(id, io) {
                    self.carried_out(wanted, outcome, io);
                } else {
                    self.attempt(id, io);
                }
            }
            NodeTimer::AskTimeout { connection, correlation } => {
                if let Some(answered) = self.peers.timed_out(connection, correlation) {
                    self.answered(answered, io);
                }
            }
            NodeTimer::AlterIsr => self.alter_isr(io),
            NodeTimer::SendPositions { leader } => self.streams.send(leader, io),
            NodeTimer::Follow { leader } => self.streams.again(leader, io),
            NodeTimer::Push { follower } => self.sessions.push(follower, &mut self.broker, io),
            NodeTimer::Ping => {
                io.timer(PING_US, NodeTimer::Ping);
                self.streams.ping(&mut self.broker, io);
            }
            NodeTimer::Feed => {
                if let Some(feed) = &mut self.metadata.feed {
                    feed.go_on(io);
                }
            }
            NodeTimer::Upkeep => {
                io.timer(UPKEEP_US, NodeTimer::Upkeep);
                self.broker.upkeep();
                self.look_after_logs(io);
                self.relinquish(io);
            }
            NodeTimer::Checkpoint => {
                io.timer(CHECKPOINT_US, NodeTimer::Checkpoint);
                // One that was not written costs the next start some reading.
                self.broker.write_checkpoints().ok();
            }
            NodeTimer::Join(job) => self.join(job, io),
            NodeTimer::Ids(partition) => self.need_ids(NeedsIds::Coordinator(partition), io),
        }
    }

    /// Passes on what the parts have for each other, until nobody has anything.
    fn pump(&mut self, io: &mut Io<'_>) {
        loop {
            self.broker.wake();
            if io.is_dead() {
                return;
            }
            for flush in self.broker.take_flushes() {
                let takes_us = io.flush_takes_us();
                io.timer(takes_us, NodeTimer::Flush(flush));
            }
            let effects = self.broker.take_port_effects();
            let local = self.controller.as_mut().map(|it| std::mem::take(&mut it.local));
            let local = local.unwrap_or_default();
            let has_coordinated = self.coordinate(io);
            if effects.is_empty() && local.is_empty() && !has_coordinated {
                break;
            }
            for effect in effects {
                self.port_effect(effect, io);
            }
            for local in local {
                self.local(local, io);
            }
        }
        self.differences.append(&mut self.broker.compare_coordinators());
        self.wake_in_time(io);
    }

    /// Sees to it that the shards are woken when something is due.
    fn wake_in_time(&mut self, io: &mut Io<'_>) {
        let now_us = io.core.now_us();
        let in_us = u64::try_from(self.broker.wake_in().as_micros()).unwrap_or(u64::MAX);
        // The shards' clock counts in milliseconds: a wake that comes earlier finds nothing due.
        let at_us = now_us.saturating_add(in_us.max(MS));
        if at_us < self.wake_at_us || self.wake_at_us <= now_us {
            self.wake_at_us = at_us;
            io.timer(at_us - now_us, NodeTimer::Wake);
        }
    }

    fn port_effect(&mut self, effect: PortEffect, io: &mut Io<'_>) {
        match effect {
            PortEffect::Position { leader, partition, position } => {
                self.streams.position(leader, partition, position, io);
            }
            PortEffect::AlterIsr { partition, change } => {
                self.isr_changes.retain(|(id, _)| *id != partition);
                self.isr_changes.push((partition, change));
                io.timer(MS, NodeTimer::AlterIsr);
            }
            effect => self.sessions.due(effect, io),
        }
    }

    fn local(&mut self, local: Local, io: &mut Io<'_>) {
        match local {
            Local::Post(node, message) => self.peers.post(node, message, io),
            Local::Command(id, outcome) => {
                if let Some((wanted, outcome)) = self.commands.answered(id, outcome, io) {
                    self.carried_out(wanted, outcome, io);
                }
            }
            Local::Beat(outcome) => self.member.answered(outcome, io),
            Local::Image(image) => self.metadata.publish(image, io),
            Local::Leader(leader) => self.led_by(leader, io),
        }
    }

    fn led_by(&mut self, leader: Option<NodeId>, io: &mut Io<'_>) {
        if self.leader != leader {
            self.leader = leader;
            self.member.beat_in(0, io);
            for id in self.commands.idle() {
                self.attempt(id, io);
            }
        }
    }

    /// The broker goes on to an image: the first one that is new enough tells it which logs there are.
    fn follow(&mut self, image: &Arc<Image>, io: &mut Io<'_>) {
        if !self.has_opened {
            if image.metadata_index() < self.broker.opens_from() {
                return;
            }
            self.has_opened = true;
            self.broker.open_logs(image);
            self.registration.previous_broker_epoch = self.broker.previous_broker_epoch();
            self.member.beat_in(0, io);
        }
        // Until this run is registered, the metadata speaks of the one before.
        let known = image.broker(io.node()).map(|broker| broker.incarnation);
        if image.metadata_index() <= self.followed.metadata_index()
            || known != Some(self.registration.incarnation)
        {
            return;
        }
        self.broker.follow(image);
        self.followed = Arc::clone(image);
        self.has_followed = true;
        if !self.member.is_active {
            // A fenced broker waits for nothing but this.
            self.member.beat_in(0, io);
        }
    }

    fn beat(&mut self, io: &mut Io<'_>) {
        if !self.has_opened {
            return;
        }
        let index = self.followed.metadata_index();
        let failed = self.broker.disk_failure().is_some();
        let beat = self.member.beat(self.leader, index, failed, &mut self.peers, io);
        match beat {
            Beat::None => {}
            Beat::Register => {
                self.member.registering();
                let command = Command::RegisterBroker(self.registration.clone());
                let id = self.commands.add(command, Wanted::Register, REGISTER_US, io);
                self.attempt(id, io);
            }
            Beat::Local(request) => {
                let now_ms = self.now_ms(io);
                match &mut self.controller {
                    Some(controller) => controller.local_heartbeat(now_ms, request, io),
                    None => self.member.answered(Err(nobody()), io),
                }
            }
        }
    }

    fn attempt(&mut self, id: super::CommandId, io: &mut Io<'_>) {
        let Some(attempt) = self.commands.attempt(id, self.leader, io) else { return };
        let now_ms = self.now_ms(io);
        match &mut self.controller {
            Some(controller) if attempt.leader == io.node() => {
                controller.local_command(now_ms, attempt.command, id, io);
            }
            _ => {
                let request = Request::Command(attempt.command);
                let purpose = Purpose::Command(id);
                self.peers.ask(attempt.leader, request, purpose, attempt.wait_us, io);
            }
        }
    }

    fn answered(&mut self, (purpose, outcome): Answered, io: &mut Io<'_>) {
        match purpose {
            Purpose::Command(id) => {
                let outcome = outcome.and_then(|response| match response {
                    Response::Command(committed) => Ok(committed),
                    _ => Err(nobody()),
                });
                if let Some((wanted, outcome)) = self.commands.answered(id, outcome, io) {
                    self.carried_out(wanted, outcome, io);
                }
            }
            Purpose::Beat => {
                let outcome = outcome.and_then(|response| match response {
                    Response::Heartbeat(response) => Ok(response),
                    _ => Err(nobody()),
                });
                self.member.answered(outcome, io);
            }
            Purpose::OpenStream { leader } => {
                self.streams.opened(leader, outcome, &mut self.broker, io);
            }
            Purpose::Join(job) => self.joined(job, outcome, io),
            Purpose::Markers(job) => self.markers_answered(job, outcome),
            Purpose::Feed => {
                let Self { metadata, peers, .. } = self;
                let news = metadata.feed.as_mut().and_then(|it| it.answered(outcome, peers, io));
                let Some(news) = news else { return };
                self.led_by(news.leader, io);
                if let Some(image) = news.image {
                    self.metadata.publish(image, io);
                }
            }
        }
    }

    fn carried_out(&mut self, wanted: Wanted, outcome: Outcome, io: &mut Io<'_>) {
        match wanted {
            Wanted::Register => {
                let outcome = outcome.and_then(|committed| match committed.answer {
                    Answer::BrokerRegistered { broker_epoch } => Ok(broker_epoch),
                    _ => Err(nobody()),
                });
                if let Ok(broker_epoch) = outcome {
                    self.streams.superseded(&mut self.broker, io);
                    self.broker.registered(broker_epoch);
                }
                self.member.registered(outcome, io);
            }
            Wanted::Relinquish => {}
            Wanted::ProducerIds(needs) => self.got_ids(needs, outcome, io),
            Wanted::AlterIsr(changes) => {
                self.is_altering = false;
                if let Ok(committed) = outcome
                    && let Answer::PartitionsAltered(outcomes) = committed.answer
                {
                    for ((partition, change), outcome) in changes.into_iter().zip(outcomes) {
                        let outcome = outcome.map(|_state| ()).map_err(|failure| failure.code);
                        let epoch = change.partition_epoch;
                        self.broker.isr_answered(partition, epoch, outcome);
                    }
                }
                if !self.isr_changes.is_empty() {
                    io.timer(MS, NodeTimer::AlterIsr);
                }
            }
        }
    }

    /// Closes everything in order. The broker epoch, if that makes a clean shutdown.
    pub(super) fn close(self) -> (Option<BrokerEpoch>, bool) {
        (self.member.epoch, self.broker.close().unwrap_or(false))
    }
}

fn wall_ms(now_us: Micros, skew_ms: i64) -> i64 {
    i64::try_from(EPOCH_MS + now_us / MS).expect("not so far in the future") + skew_ms
}

fn nobody() -> Failure {
    Failure::new(ErrorCode::NotController, "there is no controller")
}

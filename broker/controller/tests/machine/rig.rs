//! A machine, the hold on its quorum, and short ways to say what happens and to see what comes of it.

use std::collections::BTreeMap;

use tidemark_controller::{
    AlterPartition, AlterPartitions, Answer, Answered, Command, ControllerConfig, ControllerEffect,
    ControllerEvent, ControllerMachine, CreateTopic, Image, IncarnationId, IsrMember, Partition,
    QuorumEvent, RegisterBroker, Token,
    quorum::testing::{Control, InstantQuorum},
};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, DirectoryId, Failure, NodeId, TopicId, TopicPartition,
    messages::{HeartbeatRequest, HeartbeatResponse, TopicSettings, WantedState},
};

pub(crate) const NODE: NodeId = 1;
pub(crate) const TIMEOUT_MS: u64 = 1_000;
pub(crate) const BALANCE_MS: u64 = 10_000;
pub(crate) const TICK_MS: u64 = 50;

pub(crate) struct Rig {
    pub(crate) machine: ControllerMachine<InstantQuorum>,
    pub(crate) control: Control,
    pub(crate) now_ms: u64,
    /// What has not been looked at yet.
    pub(crate) effects: Vec<ControllerEffect>,
    /// Followed from what was published, entry by entry.
    pub(crate) followed: Image,
    tokens: Token,
    pub(crate) epochs: BTreeMap<BrokerId, BrokerEpoch>,
}

impl Rig {
    /// The active controller of a cluster without brokers.
    pub(crate) fn new() -> Self {
        let mut rig = Self::passive();
        rig.tick();
        assert!(rig.machine.is_active());
        rig.effects.clear();
        rig
    }

    /// A node that has not been ticked yet.
    pub(crate) fn passive() -> Self {
        let (quorum, control) = InstantQuorum::new(NODE);
        let config = ControllerConfig {
            broker_session_timeout_ms: TIMEOUT_MS,
            leader_balance_interval_ms: BALANCE_MS,
        };
        Self {
            machine: ControllerMachine::new(quorum, Image::default(), config),
            control,
            now_ms: 1_000_000,
            effects: Vec::new(),
            followed: Image::default(),
            tokens: 0,
            epochs: BTreeMap::new(),
        }
    }

    /// With brokers from 1 on, all alive, each heard over the connection of its number.
    pub(crate) fn with_brokers(brokers: u32) -> Self {
        let mut rig = Self::new();
        for id in 1..=brokers {
            rig.start(id);
        }
        rig.effects.clear();
        rig
    }

    pub(crate) fn event(&mut self, event: ControllerEvent) {
        let before = self.effects.len();
        self.machine.step(self.now_ms, event, &mut self.effects);
        for effect in &self.effects[before..] {
            let ControllerEffect::Published { image, entries } = effect else { continue };
            for entry in entries {
                self.followed.apply(entry.index, &entry.records).unwrap();
            }
            if entries.is_empty() {
                self.followed = Image::clone(image);
            }
            assert_eq!(self.followed, **image, "what was published leads to the image");
        }
    }

    pub(crate) fn flush(&mut self) {
        self.event(ControllerEvent::Quorum(QuorumEvent::Flush));
    }

    pub(crate) fn tick(&mut self) {
        self.event(ControllerEvent::Tick);
        self.flush();
    }

    /// Ticks until time has passed, while the brokers named are heard.
    pub(crate) fn pass(&mut self, ms: u64, alive: &[BrokerId]) {
        for _ in 0..ms / TICK_MS {
            self.now_ms += TICK_MS;
            for id in alive {
                self.heartbeat(*id, WantedState::Active).unwrap();
            }
            self.tick();
        }
    }

    /// Proposes without a flush; the token is that of the answer.
    pub(crate) fn send(&mut self, command: Command) -> Token {
        self.tokens += 1;
        let token = self.tokens;
        self.event(ControllerEvent::Command { token, command });
        token
    }

    /// The answer, if there is one by now.
    pub(crate) fn answer(&mut self, wanted: Token) -> Option<Result<Answered, Failure>> {
        let is_it = |effect: &ControllerEffect| matches!(effect, ControllerEffect::Answer { token, .. } if *token == wanted);
        let place = self.effects.iter().position(is_it)?;
        match self.effects.remove(place) {
            ControllerEffect::Answer { outcome, .. } => Some(outcome),
            _ => unreachable!("just matched"),
        }
    }

    pub(crate) fn run(&mut self, command: Command) -> Result<Answered, Failure> {
        let token = self.send(command);
        self.flush();
        self.answer(token).expect("answered")
    }

    /// A new run of a broker, from registration until it is active.
    pub(crate) fn start(&mut self, id: BrokerId) {
        self.register(id, registration(id, u8::try_from(self.tokens % 200).unwrap())).unwrap();
        self.heartbeat(id, WantedState::Active).unwrap();
        assert!(!self.machine.image().broker(id).unwrap().fenced);
    }

    pub(crate) fn register(
        &mut self,
        id: BrokerId,
        command: RegisterBroker,
    ) -> Result<BrokerEpoch, Failure> {
        let answered = self.run(Command::RegisterBroker(command))?;
        let Answer::BrokerRegistered { broker_epoch } = answered.answer else { panic!() };
        self.epochs.insert(id, broker_epoch);
        Ok(broker_epoch)
    }

    /// As a broker that has followed everything.
    pub(crate) fn heartbeat(
        &mut self,
        id: BrokerId,
        wanted: WantedState,
    ) -> Result<HeartbeatResponse, Failure> {
        let metadata_index = self.machine.image().metadata_index();
        self.heartbeat_at(id, wanted, metadata_index)
    }

    pub(crate) fn heartbeat_at(
        &mut self,
        id: BrokerId,
        wanted: WantedState,
        metadata_index: u64,
    ) -> Result<HeartbeatResponse, Failure> {
        let token = self.send_heartbeat(id, wanted, metadata_index, id.into());
        self.flush();
        self.heartbeat_answer(token).expect("answered")
    }

    pub(crate) fn send_heartbeat(
        &mut self,
        id: BrokerId,
        wanted: WantedState,
        metadata_index: u64,
        connection: u64,
    ) -> Token {
        self.tokens += 1;
        let token = self.tokens;
        let broker_epoch = self.epochs[&id];
        let request = HeartbeatRequest { broker_id: id, broker_epoch, metadata_index, wanted };
        self.event(ControllerEvent::Heartbeat { token, connection, request });
        token
    }

    pub(crate) fn heartbeat_answer(
        &mut self,
        wanted: Token,
    ) -> Option<Result<HeartbeatResponse, Failure>> {
        let is_it = |effect: &ControllerEffect| matches!(effect, ControllerEffect::HeartbeatAnswer { token, .. } if *token == wanted);
        let place = self.effects.iter().position(is_it)?;
        match self.effects.remove(place) {
            ControllerEffect::HeartbeatAnswer { outcome, .. } => Some(outcome),
            _ => unreachable!("just matched"),
        }
    }

    pub(crate) fn create(&mut self, name: &str, partitions: u32, replication_factor: u16) {
        self.run(create(name, partitions, replication_factor)).unwrap();
    }

    pub(crate) fn ids(&self, topic: &str) -> Vec<TopicPartition> {
        let topic = self.machine.image().topic(topic).unwrap();
        (0..topic.partition_count())
            .map(|partition| TopicPartition { topic_id: topic.id, partition })
            .collect()
    }

    pub(crate) fn partition(&self, id: TopicPartition) -> &Partition {
        self.machine.image().partition(id).unwrap()
    }

    /// Its leader lets all live replicas in.
    pub(crate) fn catch_up(&mut self, id: TopicPartition) {
        let image = self.machine.image();
        let partition = image.partition(id).unwrap();
        let epoch = |id: BrokerId| image.broker(id).unwrap().epoch;
        let live = partition.replicas.iter().copied().filter(|id| image.is_eligible(*id));
        let leader = partition.leader.unwrap();
        let change = AlterPartition {
            topic_id: id.topic_id,
            partition: id.partition,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: live.map(|id| IsrMember { id, broker_epoch: epoch(id) }).collect(),
        };
        let command = AlterPartitions {
            broker_id: leader,
            broker_epoch: epoch(leader),
            changes: vec![change],
        };
        let answer = self.run(Command::AlterPartitions(command)).unwrap().answer;
        let Answer::PartitionsAltered(outcomes) = answer else { panic!() };
        assert!(outcomes[0].is_ok(), "{outcomes:?}");
    }

    pub(crate) fn is_fenced(&self, id: BrokerId) -> bool {
        self.machine.image().broker(id).unwrap().fenced
    }
}

pub(crate) fn registration(id: BrokerId, run: u8) -> RegisterBroker {
    RegisterBroker {
        broker_id: id,
        incarnation: IncarnationId([run; 16]),
        directory: DirectoryId([u8::try_from(id).unwrap(); 16]),
        host: "localhost".to_owned(),
        port: 9092,
        rack: None,
        previous_broker_epoch: None,
    }
}

pub(crate) fn create(name: &str, partitions: u32, replication_factor: u16) -> Command {
    let mut id = [1; 16];
    for (place, byte) in name.bytes().take(16).enumerate() {
        id[place] ^= byte;
    }
    Command::CreateTopic(CreateTopic {
        name: name.to_owned(),
        id: TopicId(id),
        partitions,
        replication_factor,
        settings: TopicSettings::new(),
        seed: 0,
        validate_only: false,
    })
}

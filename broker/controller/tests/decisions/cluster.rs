//! A cluster on paper: an image, and short ways to say what happens to it.

use tidemark_controller::{
    AlterPartition, AlterPartitions, AlterTopic, Answer, BrokerRun, Command, CreateTopic, Image,
    IncarnationId, IsrMember, Partition, PartitionState, RegisterBroker,
};
use tidemark_protocol::{
    BrokerId, DirectoryId, ErrorCode, Failure, TopicId, TopicPartition, messages::TopicSettings,
};

/// The topic that most tests are about.
pub(crate) const TOPIC: &str = "orders";

pub(crate) struct Cluster {
    pub(crate) image: Image,
    runs: u8,
}

/// What a broker comes back with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Restart {
    /// It stopped in order.
    Clean,
    /// It was killed.
    Killed,
    /// It was killed, and its disk is another.
    Wiped,
}

impl Cluster {
    /// `brokers` brokers, from 1 on, all alive.
    pub(crate) fn new(brokers: u32) -> Self {
        let mut cluster = Self { image: Image::default(), runs: 0 };
        for id in 1..=brokers {
            cluster.run(&register(id, 1));
            cluster.unfence(id);
        }
        cluster
    }

    /// With one partition on all brokers, of which the first leads. Unless the settings say otherwise, one replica in sync is
    /// enough.
    pub(crate) fn with_topic(brokers: u16, settings: &[(&str, &str)]) -> Self {
        let mut cluster = Self::new(brokers.into());
        let mut settings = settings_of(settings);
        settings.entry("min_insync_replicas".to_owned()).or_insert_with(|| "1".to_owned());
        let command = CreateTopic { settings, ..create(TOPIC, 1, brokers) };
        cluster.run(&Command::CreateTopic(command));
        cluster
    }

    /// Decides and applies.
    pub(crate) fn try_run(&mut self, command: &Command) -> Result<Answer, Failure> {
        let (records, answer) = self.image.decide(command)?;
        let index = self.image.metadata_index();
        self.image.apply(index, &records).unwrap();
        Ok(answer)
    }

    #[track_caller]
    pub(crate) fn run(&mut self, command: &Command) -> Answer {
        self.try_run(command).unwrap()
    }

    pub(crate) fn broker_run(&self, broker_id: BrokerId) -> BrokerRun {
        BrokerRun { broker_id, broker_epoch: self.image.broker(broker_id).unwrap().epoch }
    }

    pub(crate) fn fence(&mut self, id: BrokerId) {
        self.run(&Command::FenceBroker(self.broker_run(id)));
    }

    pub(crate) fn unfence(&mut self, id: BrokerId) {
        self.run(&Command::UnfenceBroker(self.broker_run(id)));
    }

    pub(crate) fn shut_down(&mut self, id: BrokerId) {
        self.run(&Command::BeginControlledShutdown(self.broker_run(id)));
    }

    /// Registers a new run, which is fenced still.
    pub(crate) fn restart(&mut self, id: BrokerId, restart: Restart) {
        self.runs += 1;
        let Command::RegisterBroker(mut command) = register(id, 100 + self.runs) else {
            unreachable!("it is made just there");
        };
        let known = self.image.broker(id).unwrap();
        command.directory = known.directory;
        match restart {
            Restart::Clean => command.previous_broker_epoch = Some(known.epoch),
            Restart::Killed => {}
            Restart::Wiped => command.directory = DirectoryId([100 + self.runs; 16]),
        }
        self.run(&Command::RegisterBroker(command));
    }

    /// The leader says who is in sync.
    pub(crate) fn alter(&mut self, isr: &[BrokerId]) -> Result<PartitionState, Failure> {
        let command = self.alter_command(isr);
        let Answer::PartitionsAltered(outcomes) =
            self.try_run(&Command::AlterPartitions(command))?
        else {
            panic!("another answer");
        };
        outcomes.into_iter().next().unwrap()
    }

    /// Expects the change to be taken.
    #[track_caller]
    pub(crate) fn in_sync(&mut self, isr: &[BrokerId]) -> PartitionState {
        self.alter(isr).unwrap()
    }

    /// As a leader with the newest metadata would send it.
    pub(crate) fn alter_command(&self, isr: &[BrokerId]) -> AlterPartitions {
        let partition = self.partition();
        let leader = partition.leader.unwrap();
        let member = |id: &BrokerId| IsrMember {
            id: *id,
            broker_epoch: self.image.broker(*id).map_or(0, |broker| broker.epoch),
        };
        AlterPartitions {
            broker_id: leader,
            broker_epoch: self.image.broker(leader).unwrap().epoch,
            changes: vec![AlterPartition {
                topic_id: self.id().topic_id,
                partition: 0,
                leader_epoch: partition.leader_epoch,
                partition_epoch: partition.partition_epoch,
                isr: isr.iter().map(member).collect(),
            }],
        }
    }

    pub(crate) fn set(&mut self, pairs: &[(&str, &str)]) {
        self.run(&Command::AlterTopic(AlterTopic {
            name: TOPIC.to_owned(),
            set: settings_of(pairs),
            unset: Vec::new(),
            validate_only: false,
        }));
    }

    pub(crate) fn id(&self) -> TopicPartition {
        TopicPartition { topic_id: self.image.topic(TOPIC).unwrap().id, partition: 0 }
    }

    pub(crate) fn partition(&self) -> &Partition {
        &self.image.topic(TOPIC).unwrap().partitions[0]
    }

    /// Leader, in-sync and eligible replicas, the last leader: what most tests are about, as one can read it.
    pub(crate) fn shown(&self) -> String {
        let partition = self.partition();
        let text = |id: Option<BrokerId>| id.map_or("-".to_owned(), |id| id.to_string());
        format!(
            "leader {} isr {:?} elr {:?} last {}",
            text(partition.leader),
            partition.isr,
            partition.elr,
            text(partition.last_known_leader)
        )
    }

    #[track_caller]
    pub(crate) fn refused(&self, command: &Command, code: ErrorCode, hint: &str) {
        let failure = self.image.decide(command).expect_err("should be refused");
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(hint), "{:?} lacks {hint:?}", failure.message);
    }
}

pub(crate) fn register(broker_id: BrokerId, run: u8) -> Command {
    Command::RegisterBroker(RegisterBroker {
        broker_id,
        incarnation: IncarnationId([run; 16]),
        directory: DirectoryId([u8::try_from(broker_id).unwrap(); 16]),
        host: format!("broker-{broker_id}"),
        port: 9092,
        rack: None,
        previous_broker_epoch: None,
    })
}

pub(crate) fn create(name: &str, partitions: u32, replication_factor: u16) -> CreateTopic {
    // A different id for every name.
    let mut id = [1; 16];
    for (place, byte) in name.bytes().take(16).enumerate() {
        id[place] ^= byte;
    }
    CreateTopic {
        name: name.to_owned(),
        id: TopicId(id),
        partitions,
        replication_factor,
        settings: TopicSettings::new(),
        seed: 0,
        validate_only: false,
    }
}

pub(crate) fn settings_of(pairs: &[(&str, &str)]) -> TopicSettings {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

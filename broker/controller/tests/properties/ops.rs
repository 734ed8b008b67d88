//! What may happen to a cluster, as random values, and the commands they come to on a given image.

use proptest::prelude::*;
use tidemark_controller::{
    AddPartitions, AlterPartition, AlterPartitions, AlterTopic, BrokerRun, Command, CreateTopic,
    DeleteTopic, ElectLeaders, Election, Image, IncarnationId, IsrMember, Partition, Reassign,
    ReassignPartition, RegisterBroker, SetDraining, UnregisterBroker, settings::SETTINGS,
};
use tidemark_protocol::{BrokerId, DirectoryId, TopicId, TopicPartition, messages::TopicSettings};

/// Brokers are numbered from 0.
pub(crate) const BROKERS: u32 = 6;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// The next run of a broker.
    Start {
        broker: BrokerId,
        is_clean: bool,
        is_wiped: bool,
    },
    Fence(BrokerId),
    Unfence(BrokerId),
    Stop(BrokerId),
    Drain(BrokerId, bool),
    Unregister(BrokerId),
    /// The leader of some partition proposes an in-sync set; `mask` picks the members. Perhaps it arrives at once.
    Alter {
        is_late: bool,
        partition: usize,
        mask: u8,
    },
    /// An earlier proposal arrives late.
    AlterLate(usize),
    Elect {
        election: Election,
        partition: Option<usize>,
    },
    Reassign {
        partition: usize,
        replicas: Option<Vec<BrokerId>>,
    },
    Throttle(Option<u64>),
    AllocateProducerIds(BrokerId),
    Topics(Command),
}

/// Turns what may happen into commands.
#[derive(Default)]
pub(crate) struct Player {
    runs: u8,
    alters: Vec<AlterPartitions>,
}

impl Player {
    pub(crate) fn command(&mut self, image: &Image, op: &Op) -> Option<Command> {
        let run = |id: BrokerId| {
            image.broker(id).map(|broker| BrokerRun { broker_id: id, broker_epoch: broker.epoch })
        };
        Some(match op {
            Op::Start { broker, is_clean, is_wiped } => {
                self.start(image, *broker, *is_clean, *is_wiped)
            }
            Op::Fence(id) => Command::FenceBroker(run(*id)?),
            Op::Unfence(id) => Command::UnfenceBroker(run(*id)?),
            Op::Stop(id) => Command::BeginControlledShutdown(run(*id)?),
            Op::Drain(id, draining) => {
                Command::SetDraining(SetDraining { broker_id: *id, draining: *draining })
            }
            Op::Unregister(id) => Command::UnregisterBroker(UnregisterBroker { broker_id: *id }),
            Op::Alter { is_late, partition, mask } => {
                let alter = alter(image, *partition, *mask)?;
                self.alters.push(alter.clone());
                if *is_late {
                    return None;
                }
                Command::AlterPartitions(alter)
            }
            Op::AlterLate(pick) => {
                let late = self.alters.get(self.alters.len().checked_sub(1 + pick % 4)?)?;
                Command::AlterPartitions(late.clone())
            }
            Op::Elect { election, partition } => Command::ElectLeaders(ElectLeaders {
                election: *election,
                partitions: match partition {
                    Some(pick) => Some(vec![pick_partition(image, *pick)?.0]),
                    None => None,
                },
            }),
            Op::Reassign { partition, replicas } => {
                let (partition, _) = pick_partition(image, *partition)?;
                let changes = vec![ReassignPartition { partition, replicas: replicas.clone() }];
                Command::Reassign(Reassign { changes, throttle_bytes_per_second: None })
            }
            Op::Throttle(bytes_per_second) => {
                Command::SetReplicationThrottle { bytes_per_second: *bytes_per_second }
            }
            Op::AllocateProducerIds(id) => Command::AllocateProducerIds(run(*id)?),
            Op::Topics(command) => command.clone(),
        })
    }

    fn start(&mut self, image: &Image, id: BrokerId, is_clean: bool, is_wiped: bool) -> Command {
        self.runs = self.runs.wrapping_add(1);
        let known = image.broker(id);
        let directory = match known {
            Some(broker) if !is_wiped => broker.directory,
            _ => DirectoryId([self.runs; 16]),
        };
        Command::RegisterBroker(RegisterBroker {
            broker_id: id,
            incarnation: IncarnationId([self.runs; 16]),
            directory,
            host: "localhost".to_owned(),
            port: 9092,
            rack: Some(format!("rack-{}", id % 3)),
            previous_broker_epoch: known.filter(|_| is_clean).map(|broker| broker.epoch),
        })
    }
}

/// One of the partitions there are.
fn pick_partition(image: &Image, pick: usize) -> Option<(TopicPartition, &Partition)> {
    let all = image.topics().flat_map(|topic| {
        (0..)
            .zip(&topic.partitions)
            .map(|(partition, state)| (TopicPartition { topic_id: topic.id, partition }, &**state))
    });
    let all: Vec<_> = all.collect();
    all.get(pick % all.len().max(1)).copied()
}

fn alter(image: &Image, pick: usize, mask: u8) -> Option<AlterPartitions> {
    let (id, partition) = pick_partition(image, pick)?;
    let leader = partition.leader?;
    let is_picked = |place: usize| mask & (1 << (place % 8)) != 0;
    let members = partition.replicas.iter().enumerate();
    let members = members.filter(|(place, id)| is_picked(*place) || **id == leader);
    let isr = members.map(|(_, id)| IsrMember {
        id: *id,
        broker_epoch: image.broker(*id).map_or(0, |broker| broker.epoch),
    });
    Some(AlterPartitions {
        broker_id: leader,
        broker_epoch: image.broker(leader)?.epoch,
        changes: vec![AlterPartition {
            topic_id: id.topic_id,
            partition: id.partition,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: isr.collect(),
        }],
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => (0..2_u8).prop_map(|n| format!("topic-{n}")),
        1 => ".{0,4}",
    ]
}

fn name_of_setting() -> impl Strategy<Value = String> {
    let known = (0..SETTINGS.len()).prop_map(|index| SETTINGS[index].name.to_owned());
    prop_oneof![9 => known, 1 => "[a-z_]{0,12}"]
}

fn value_of_setting() -> impl Strategy<Value = String> {
    let values = vec!["1MiB", "1d", "compact", "memory", "unlimited", "2", "true"];
    prop_oneof![6 => prop::sample::select(values).prop_map(str::to_owned), 1 => ".{0,8}"]
}

fn some_settings() -> impl Strategy<Value = TopicSettings> {
    let minimum = (1..4_u8)
        .prop_map(|n| TopicSettings::from([("min_insync_replicas".to_owned(), n.to_string())]));
    prop_oneof![
        2 => minimum,
        1 => prop::collection::btree_map(name_of_setting(), value_of_setting(), 0..3),
    ]
}

fn topics() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => (name(), any::<[u8; 16]>(), 1..3_u32, 0..5_u16, some_settings(), any::<u64>(), prop::bool::weighted(0.1))
            .prop_map(|(name, id, partitions, replication_factor, settings, seed, validate_only)| {
                Command::CreateTopic(CreateTopic {
                    name, id: TopicId(id), partitions, replication_factor, settings, seed, validate_only,
                })
            }),
        1 => (name(), prop::option::weighted(0.2, any::<[u8; 16]>()))
            .prop_map(|(name, id)| Command::DeleteTopic(DeleteTopic { name, id: id.map(TopicId) })),
        2 => (name(), some_settings(), prop::collection::vec(name_of_setting(), 0..2), any::<bool>())
            .prop_map(|(name, set, unset, validate_only)| {
                Command::AlterTopic(AlterTopic { name, set, unset, validate_only })
            }),
        1 => (name(), 0..8_u32, any::<u64>(), prop::bool::weighted(0.1))
            .prop_map(|(name, partitions, seed, validate_only)| {
                Command::AddPartitions(AddPartitions { name, partitions, seed, validate_only })
            }),
    ]
}

/// All brokers alive, and a topic to begin with.
pub(crate) fn beginning() -> Vec<Op> {
    let start = |broker| Op::Start { broker, is_clean: false, is_wiped: false };
    let mut ops: Vec<_> = (0..BROKERS).flat_map(|id| [start(id), Op::Unfence(id)]).collect();
    ops.push(Op::Topics(Command::CreateTopic(CreateTopic {
        name: "topic-0".to_owned(),
        id: TopicId([1; 16]),
        partitions: 2,
        replication_factor: 3,
        settings: TopicSettings::from([("min_insync_replicas".to_owned(), "2".to_owned())]),
        seed: 0,
        validate_only: false,
    })));
    ops
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let broker = || 0..BROKERS;
    let partition = any::<usize>;
    let election = prop_oneof![
        3 => Just(Election::Preferred),
        2 => broker().prop_map(|to| Election::Transfer { to }),
        1 => Just(Election::Unclean),
    ];
    let target = prop::sample::subsequence((0..BROKERS).collect::<Vec<_>>(), 1..4).prop_shuffle();
    prop_oneof![
        8 => (broker(), prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(broker, is_clean, is_wiped)| Op::Start { broker, is_clean, is_wiped }),
        4 => broker().prop_map(Op::Fence),
        24 => broker().prop_map(Op::Unfence),
        2 => broker().prop_map(Op::Stop),
        1 => (broker(), any::<bool>()).prop_map(|(id, draining)| Op::Drain(id, draining)),
        1 => broker().prop_map(Op::Unregister),
        28 => (prop::bool::weighted(0.2), partition(), any::<u8>())
            .prop_map(|(is_late, partition, mask)| Op::Alter { is_late, partition, mask }),
        8 => (0..4_usize).prop_map(Op::AlterLate),
        2 => (election, prop::option::of(partition()))
            .prop_map(|(election, partition)| Op::Elect { election, partition }),
        6 => (partition(), prop::option::weighted(0.8, target))
            .prop_map(|(partition, replicas)| Op::Reassign { partition, replicas }),
        1 => prop::option::of(any::<u64>()).prop_map(Op::Throttle),
        1 => broker().prop_map(Op::AllocateProducerIds),
        4 => topics().prop_map(Op::Topics),
    ]
}

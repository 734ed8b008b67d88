//! The cluster as the committed metadata describes it at one index. A value: cheap to clone, compared with
//! `==`, changed only by applying records. It does no I/O and knows no quorum.
//!
//! Clones share everything behind `Arc`s. Applying a record to an image that has clones copies the topic, and
//! some hundreds of pointers in the maps around it; further records before the next clone change the copy in
//! place.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, DirectoryId, ErrorCode, Failure, LeaderEpoch, PartitionEpoch,
    PartitionIndex, TopicId, TopicPartition,
    messages::{BrokerMetadata, PartitionMetadata, TopicMetadata, TopicSettings},
};

use crate::{
    names::{did_you_mean, quote},
    record::IncarnationId,
    settings::TopicConfig,
    shared_map::SharedMap,
};

/// Most replicas of one partition. While it moves it has those it comes from and those it goes to.
pub const REPLICAS_MAX: u16 = 32;
/// Most brokers that a refusal lists.
const BROKERS_NAMED_MAX: usize = 20;

/// A broker, as it registered, and what became of it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    pub id: BrokerId,
    pub incarnation: IncarnationId,
    /// The data it came with. A broker that comes with another has lost what it held.
    pub directory: DirectoryId,
    /// Index of the registration in the metadata log: grows with every start of the broker.
    pub epoch: BrokerEpoch,
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
    /// A fenced broker leads nothing, is in no ISR and is given no replicas.
    pub fenced: bool,
    /// It is about to stop: it leads nothing and joins no ISR until it starts anew.
    pub in_controlled_shutdown: bool,
    /// Its replicas are moved to others, and it is given none. Outlives the process.
    pub draining: bool,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub id: TopicId,
    pub name: Arc<str>,
    /// Those not left to their default, in canonical form.
    pub settings: TopicSettings,
    /// What `settings` and the defaults come to.
    pub config: TopicConfig,
    /// By index, without gaps.
    pub partitions: Vec<Arc<Partition>>,
}

/// Who holds one partition, and who leads it. See `docs/rfcs/2026-11-25-controller.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the partition epoch is the name of the field's thing"
)]
pub struct Partition {
    /// In order of preference; never empty, no broker twice. While it moves: those it goes to, then those that go.
    pub replicas: Vec<BrokerId>,
    /// In-sync replicas, among `replicas`. Empty when nobody in sync is alive.
    pub isr: Vec<BrokerId>,
    /// Eligible leader replicas: not in sync any more, and yet with every committed record, because nothing was
    /// committed since the ISR fell below its minimum. Among `replicas`, none in `isr`.
    pub elr: Vec<BrokerId>,
    /// The last leader of a partition that has none, as long as its data is there.
    pub last_known_leader: Option<BrokerId>,
    /// A member of `isr`.
    pub leader: Option<BrokerId>,
    /// Grows with every change of leader, and when a replica is removed.
    pub leader_epoch: LeaderEpoch,
    /// Grows by one with every change.
    pub partition_epoch: PartitionEpoch,
    /// Replicas that a reassignment under way brings in.
    pub adding: Vec<BrokerId>,
    /// Replicas that go when all others are in sync.
    pub removing: Vec<BrokerId>,
}

/// All metadata at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(crate) metadata_index: u64,
    pub(crate) brokers: Arc<BTreeMap<BrokerId, Broker>>,
    pub(crate) topics: SharedMap<TopicId, Arc<Topic>>,
    pub(crate) names: SharedMap<Arc<str>, TopicId>,
    pub(crate) partition_count: u32,
    pub(crate) replication_throttle: Option<u64>,
    /// No broker was handed this producer id or a higher one.
    pub(crate) next_producer_id: u64,
}

impl Image {
    /// Number of entries applied, which is the index of the next one.
    pub fn metadata_index(&self) -> u64 {
        self.metadata_index
    }

    pub fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(&id)
    }

    /// The broker of that id, or a refusal that says which there are.
    pub fn require_broker(&self, id: BrokerId) -> Result<&Broker, Failure> {
        self.broker(id).ok_or_else(|| {
            let known: Vec<_> = self.brokers.keys().take(BROKERS_NAMED_MAX).collect();
            let message = format!("there is no broker {id}; there are {known:?}");
            Failure::new(ErrorCode::UnknownBroker, message)
        })
    }

    /// Every broker that is registered, by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Broker> {
        self.brokers.values()
    }

    /// Those that may lead and be in sync, by id.
    pub fn live_brokers(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.values().filter(|broker| broker.is_eligible())
    }

    /// Those that may be given replicas, by id.
    pub fn open_brokers(&self) -> impl Iterator<Item = &Broker> {
        self.live_brokers().filter(|broker| !broker.draining)
    }

    /// Whether a broker may lead and be in sync.
    pub fn is_eligible(&self, id: BrokerId) -> bool {
        self.broker(id).is_some_and(Broker::is_eligible)
    }

    /// Most bytes per second that one broker takes in for replicas that catch up; `None`: as fast as it goes.
    pub fn replication_throttle(&self) -> Option<u64> {
        self.replication_throttle
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// The topic of that name, or a refusal that suggests a similar one.
    pub fn require_topic(&self, name: &str) -> Result<&Arc<Topic>, Failure> {
        self.topic(name).ok_or_else(|| {
            let suggestion = did_you_mean(name, self.names.iter().map(|(name, _)| &**name));
            let message = format!("there is no topic {}.{suggestion}", quote(name));
            Failure::new(ErrorCode::UnknownTopicOrPartition, message)
        })
    }

    /// Every topic, sorted by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.iter().map(|(_, id)| self.topics.get(id).expect("every name has its topic"))
    }

    pub fn partition(&self, partition: TopicPartition) -> Option<&Arc<Partition>> {
        self.topic_by_id(partition.topic_id)?.partition(partition.partition)
    }

    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Partitions of all topics together.
    pub fn partition_count(&self) -> u32 {
        self.partition_count
    }
}

impl Topic {
    pub fn partition(&self, index: PartitionIndex) -> Option<&Arc<Partition>> {
        self.partitions.get(index as usize)
    }

    /// Partitions in this topic.
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len()).expect("bounded when partitions are added")
    }

    /// Replicas per partition. Partitions are created with the same number; a reassignment may give one another,
    /// and then it is the first partition that counts.
    pub fn replication_factor(&self) -> u16 {
        let replicas = self.partitions.first().map_or(0, |first| first.target_replicas().count());
        u16::try_from(replicas).expect("bounded when replicas are assigned")
    }

    /// The topic as metadata responses carry it.
    pub fn metadata(&self) -> TopicMetadata {
        TopicMetadata {
            name: self.name.to_string(),
            id: self.id,
            partitions: self.partitions.iter().map(|partition| partition.metadata()).collect(),
            settings: self.settings.clone(),
        }
    }
}

impl Partition {
    /// A new partition: an empty log is in sync wherever it is, and the first in order of preference leads.
    pub(crate) fn new(replicas: Vec<BrokerId>) -> Self {
        Self {
            isr: replicas.clone(),
            elr: Vec::new(),
            last_known_leader: None,
            leader: replicas.first().copied(),
            leader_epoch: 0,
            partition_epoch: 0,
            adding: Vec::new(),
            removing: Vec::new(),
            replicas,
        }
    }

    /// Whether replicas come or go.
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// Its replicas once the reassignment under way is done, or those it has if there is none.
    pub fn target_replicas(&self) -> impl Iterator<Item = BrokerId> {
        self.replicas.iter().copied().filter(|id| !self.removing.contains(id))
    }

    /// `min_insync_replicas` of its topic, or all of its replicas if they are fewer.
    pub fn min_insync_replicas(&self, config: &TopicConfig) -> usize {
        usize::from(config.min_insync_replicas).min(self.replicas.len())
    }

    /// What is wrong with this partition by itself, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let Self { replicas, isr, elr, leader, adding, removing, .. } = self;
        let is_repeated = |list: &[BrokerId]| {
            list.iter().enumerate().any(|(place, id)| list[..place].contains(id))
        };
        let is_subset = |list: &[BrokerId]| list.iter().all(|id| replicas.contains(id));
        let replicas_max = usize::from(REPLICAS_MAX) * if self.is_reassigning() { 2 } else { 1 };
        if replicas.is_empty() || replicas.len() > replicas_max {
            return Some("has a partition without replicas, or with too many");
        }
        if [replicas, isr, elr, adding, removing].into_iter().any(|list| is_repeated(list)) {
            return Some("has a partition with two replicas on one broker");
        }
        if !is_subset(isr) || leader.is_some_and(|leader| !isr.contains(&leader)) {
            return Some("has a partition whose in-sync set or leader is not among its replicas");
        }
        if !is_subset(elr) || elr.iter().any(|id| isr.contains(id)) {
            return Some("has a partition whose eligible replicas are in sync or no replicas");
        }
        if self.last_known_leader.is_some_and(|id| leader.is_some() || !replicas.contains(&id)) {
            return Some("has a partition whose last leader is not needed or no replica");
        }
        let moves = [adding, removing].into_iter().all(|list| is_subset(list));
        if !moves
            || removing.len() == replicas.len()
            || adding.iter().any(|id| removing.contains(id))
        {
            return Some("has a partition whose reassignment makes no sense");
        }
        None
    }

    fn metadata(&self) -> PartitionMetadata {
        PartitionMetadata {
            leader: self.leader,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: self.replicas.clone(),
            isr: self.isr.clone(),
            elr: self.elr.clone(),
            adding: self.adding.clone(),
            removing: self.removing.clone(),
        }
    }
}

impl Broker {
    /// Whether it may lead and be in sync.
    pub fn is_eligible(&self) -> bool {
        !self.fenced && !self.in_controlled_shutdown
    }

    /// The broker as metadata responses carry it.
    pub fn metadata(&self) -> BrokerMetadata {
        BrokerMetadata {
            id: self.id,
            host: self.host.clone(),
            port: self.port,
            rack: self.rack.clone(),
            fenced: self.fenced,
            epoch: self.epoch,
            shutting_down: self.in_controlled_shutdown,
            draining: self.draining,
        }
    }
}

//! The cluster as the committed metadata describes it at one index. A value: cheap to clone, compared with
//! `==`, changed only by applying records. It does no I/O and knows no quorum.
//!
//! Clones share everything behind `Arc`s. Applying a record to an image that has clones copies the topic, and
//! some hundreds of pointers in the maps around it; further records before the next clone change the copy in
//! place.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, LeaderEpoch, PartitionIndex, TopicId, TopicPartition,
    messages::{BrokerMetadata, PartitionMetadata, TopicMetadata, TopicSettings},
};

use crate::{
    names::{did_you_mean, quote},
    record::IncarnationId,
    settings::TopicConfig,
    shared_map::SharedMap,
};

/// Most replicas of one partition.
pub const REPLICAS_MAX: u16 = 32;

/// A broker, as it registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    pub id: BrokerId,
    pub incarnation: IncarnationId,
    /// Index of the registration in the metadata log: grows with every start of the broker.
    pub epoch: u64,
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
    /// A fenced broker leads nothing, is given no replicas and is in no ISR with others.
    pub fenced: bool,
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

/// Who holds one partition, and who leads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the partition epoch is the name of the field's thing"
)]
pub struct Partition {
    /// In order of preference; never empty, no broker twice.
    pub replicas: Vec<BrokerId>,
    /// In-sync replicas: a subset of `replicas`, never empty.
    pub isr: Vec<BrokerId>,
    /// A member of `isr`.
    pub leader: Option<BrokerId>,
    /// Grows with every change of leader, and with every restart of one.
    pub leader_epoch: LeaderEpoch,
    /// Grows with every change.
    pub partition_epoch: u32,
}

/// All metadata at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(crate) metadata_index: u64,
    pub(crate) brokers: Arc<BTreeMap<BrokerId, Broker>>,
    pub(crate) topics: SharedMap<TopicId, Arc<Topic>>,
    pub(crate) names: SharedMap<Arc<str>, TopicId>,
    pub(crate) partition_count: u32,
}

impl Image {
    /// Number of records applied, which is the index of the next one.
    pub fn metadata_index(&self) -> u64 {
        self.metadata_index
    }

    pub fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(&id)
    }

    /// Every broker that ever registered, by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Broker> {
        self.brokers.values()
    }

    /// Those that may lead and be given replicas, by id.
    pub fn live_brokers(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.values().filter(|broker| !broker.fenced)
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

    /// Replicas per partition; all partitions of a topic are given the same number.
    pub fn replication_factor(&self) -> u16 {
        let replicas = self.partitions.first().map_or(0, |partition| partition.replicas.len());
        u16::try_from(replicas).expect("bounded when partitions are added")
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
    /// What is wrong with this partition by itself, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let Self { replicas, isr, leader, .. } = self;
        let is_repeated = |list: &[BrokerId]| {
            list.iter().enumerate().any(|(place, id)| list[..place].contains(id))
        };
        if replicas.is_empty() || replicas.len() > REPLICAS_MAX.into() {
            return Some("has a partition without replicas, or with too many");
        }
        if is_repeated(replicas) || is_repeated(isr) {
            return Some("has a partition with two replicas on one broker");
        }
        if isr.is_empty() || !isr.iter().all(|member| replicas.contains(member)) {
            return Some("has a partition whose in-sync set is not among its replicas");
        }
        if leader.is_some_and(|leader| !isr.contains(&leader)) {
            return Some("has a partition whose leader is not in sync");
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
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
        }
    }
}

impl Broker {
    /// The broker as metadata responses carry it.
    pub fn metadata(&self) -> BrokerMetadata {
        BrokerMetadata {
            id: self.id,
            host: self.host.clone(),
            port: self.port,
            rack: self.rack.clone(),
            fenced: self.fenced,
            epoch: self.epoch,
            shutting_down: false,
            draining: false,
        }
    }
}

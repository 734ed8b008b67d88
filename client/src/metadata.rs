//! What this client believes about the cluster: an immutable snapshot, replaced whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tidemark_protocol::{
    BrokerId, LeaderEpoch, PartitionIndex, TopicId,
    messages::{BrokerMetadata, MetadataResponse, PartitionMetadata, TopicMetadata},
};
use tokio::time::Instant;

/// Brokers, topics and leaders as last heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) cluster_id: Arc<str>,
    pub(crate) controller: Option<BrokerId>,
    /// How far in the metadata log this is.
    index: u64,
    /// Addresses of all brokers.
    brokers: BTreeMap<BrokerId, Arc<str>>,
    /// Those that serve nothing for now.
    fenced: BTreeSet<BrokerId>,
    topics: HashMap<Arc<str>, Arc<Topic>>,
}

/// One topic as last heard.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) name: Arc<str>,
    pub(crate) id: TopicId,
    pub(crate) learned: Instant,
    partitions: Vec<PartitionMetadata>,
}

/// Where a partition's requests go.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) address: Arc<str>,
    pub(crate) epoch: LeaderEpoch,
}

impl Metadata {
    /// This snapshot with a newer answer worked in. `asked` are the topics it answers for: those absent from
    /// it do not exist. An answer older than what is known changes nothing.
    pub(crate) fn updated(
        &self,
        answer: MetadataResponse,
        asked: &[Arc<str>],
        now: Instant,
    ) -> Self {
        let same_cluster = *self.cluster_id == *answer.cluster_id;
        if same_cluster && answer.metadata_index < self.index {
            return self.clone();
        }
        let mut topics = if same_cluster { self.topics.clone() } else { HashMap::new() };
        for name in asked {
            topics.remove(name);
        }
        for topic in answer.topics {
            let topic = Topic::new(topic, now);
            topics.insert(topic.name.clone(), Arc::new(topic));
        }
        let fenced = answer.brokers.iter().filter(|broker| broker.fenced);
        Self {
            cluster_id: answer.cluster_id.into(),
            controller: answer.controller_id,
            index: answer.metadata_index,
            brokers: answer.brokers.iter().map(located).collect(),
            fenced: fenced.map(|broker| broker.id).collect(),
            topics,
        }
    }

    pub(crate) fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    pub(crate) fn broker(&self, id: BrokerId) -> Option<&Arc<str>> {
        self.brokers.get(&id)
    }

    /// Of the brokers that are not fenced.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        let serving = self.brokers.iter().filter(|(id, _)| !self.fenced.contains(id));
        serving.map(|(_, address)| address)
    }

    /// The leader of a partition; `None` when it has none, or none that can be reached.
    pub(crate) fn leader(&self, topic: &str, partition: PartitionIndex) -> Option<Leader> {
        let partition = self.topic(topic)?.partitions.get(partition as usize)?;
        let leader = partition.leader.filter(|leader| !self.fenced.contains(leader))?;
        let address = self.broker(leader)?.clone();
        Some(Leader { address, epoch: partition.leader_epoch })
    }

    /// Whether the partition has a leader of a later epoch than this one.
    pub(crate) fn has_later_leader(
        &self,
        topic: &str,
        partition: PartitionIndex,
        epoch: LeaderEpoch,
    ) -> bool {
        self.leader(topic, partition).is_some_and(|leader| leader.epoch > epoch)
    }

    /// The name of a topic that is known.
    pub(crate) fn name_of(&self, id: TopicId) -> Option<&Arc<str>> {
        self.topics.values().find(|topic| topic.id == id).map(|topic| &topic.name)
    }
}

impl Topic {
    fn new(topic: TopicMetadata, now: Instant) -> Self {
        Self { name: topic.name.into(), id: topic.id, learned: now, partitions: topic.partitions }
    }

    pub(crate) fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len())
            .expect("a header lists fewer than 4 billion partitions")
    }
}

fn located(broker: &BrokerMetadata) -> (BrokerId, Arc<str>) {
    // A bare IPv6 address needs brackets before a port can follow.
    let address = if broker.host.contains(':') && !broker.host.starts_with('[') {
        format!("[{}]:{}", broker.host, broker.port)
    } else {
        format!("{}:{}", broker.host, broker.port)
    };
    (broker.id, address.into())
}

//! The topics a group coordinator goes by: an excerpt of the cluster's metadata that its caller makes.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{PartitionIndex, TopicId, TopicPartition};

/// What of a topic matters to those who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub id: TopicId,
    pub name: String,
    pub partitions: u32,
    /// The racks that hold a replica, by partition. Empty when racks are not in use.
    pub racks: Vec<BTreeSet<String>>,
}

impl Topic {
    /// Whether a replica of the partition is in `rack`.
    pub fn is_in_rack(&self, partition: PartitionIndex, rack: &str) -> bool {
        self.racks.get(partition as usize).is_some_and(|racks| racks.contains(rack))
    }

    pub fn iter_partitions(&self) -> impl Iterator<Item = TopicPartition> {
        let topic_id = self.id;
        (0..self.partitions).map(move |partition| TopicPartition { topic_id, partition })
    }
}

/// All topics of the cluster.
///
/// A coordinator takes the absence of a topic for its deletion. That is sound because the broker's metadata only
/// moves forward, because it is at least as new as the decision that made this broker the coordinator, and because
/// offsets are only committed for topics that are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    by_id: BTreeMap<TopicId, Topic>,
    by_name: BTreeMap<String, TopicId>,
}

impl Topics {
    pub fn get(&self, id: TopicId) -> Option<&Topic> {
        self.by_id.get(&id)
    }

    pub fn by_name(&self, name: &str) -> Option<&Topic> {
        self.by_id.get(self.by_name.get(name)?)
    }

    pub fn contains(&self, partition: &TopicPartition) -> bool {
        self.get(partition.topic_id).is_some_and(|topic| partition.partition < topic.partitions)
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }
}

impl FromIterator<Topic> for Topics {
    fn from_iter<I: IntoIterator<Item = Topic>>(topics: I) -> Self {
        let by_id: BTreeMap<_, _> = topics.into_iter().map(|topic| (topic.id, topic)).collect();
        let by_name = by_id.values().map(|topic| (topic.name.clone(), topic.id)).collect();
        Self { by_id, by_name }
    }
}

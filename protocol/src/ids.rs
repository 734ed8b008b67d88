//! The names of things: topics, partitions, offsets, epochs, brokers. Plain values, no behaviour beyond text.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Position of a record in its partition. The first record ever written has offset 0.
///
/// Ends are exclusive everywhere: a log end offset of 3 means that offsets 0, 1 and 2 exist.
pub type Offset = u64;
/// Generation of a partition's leadership, bumped by the controller on every leader change.
pub type LeaderEpoch = u32;
/// Index of a partition within its topic, from 0.
pub type PartitionIndex = u32;
/// A node of the cluster, chosen by its operator.
pub type BrokerId = u32;
/// A process of the cluster: broker, controller or both, under one number.
pub type NodeId = BrokerId;
/// Index of the metadata entry that registered a run of a broker process: grows with every start.
pub type BrokerEpoch = u64;
/// Generation of a partition's metadata: grows with every change the controller makes to it.
pub type PartitionEpoch = u32;
/// Milliseconds since the Unix epoch, UTC. Negative values are refused on input except [`NO_TIMESTAMP`].
pub type TimestampMs = i64;

/// "No timestamp", as Kafka writes it.
pub const NO_TIMESTAMP: TimestampMs = -1;

/// Whether a topic of this name is one of the cluster's own: its name begins with two underscores. Clients read it and do
/// not write, make or delete it, and no pattern of a subscription matches it.
pub fn is_internal_topic(name: &str) -> bool {
    name.starts_with("__")
}

/// Identity of a topic for its whole life: a topic deleted and created again under its name gets another.
///
/// Requests on the data path carry this and never the name (KIP-516).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl TopicId {
    /// The id that no topic has.
    pub const ZERO: Self = Self([0; 16]);

    /// Parses the hyphenated or plain hexadecimal form; `None` when the text is not an id.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(|id| Self(id.into_bytes()))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(out)
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Identity of a data directory for its whole life: a wiped or replaced disk has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DirectoryId(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl fmt::Display for DirectoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(out)
    }
}

impl fmt::Debug for DirectoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    pub topic_id: TopicId,
    pub partition: PartitionIndex,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.topic_id, self.partition)
    }
}

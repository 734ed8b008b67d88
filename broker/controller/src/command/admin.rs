//! Commands about topics. They say what is wanted; they do not check it.

use serde::{Deserialize, Serialize};
use tidemark_protocol::{TopicId, messages::TopicSettings};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopic {
    pub name: String,
    /// Fresh and random; never [`TopicId::ZERO`].
    pub id: TopicId,
    pub partitions: u32,
    pub replication_factor: u16,
    pub settings: TopicSettings,
    /// Random: where among the brokers the assignment of replicas starts.
    pub seed: u64,
    /// Check everything, create nothing.
    pub validate_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopic {
    pub name: String,
    /// When given, only the topic with this id is deleted.
    pub id: Option<TopicId>,
}

/// Changes settings, all or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterTopic {
    pub name: String,
    pub set: TopicSettings,
    /// Settings that go back to their default.
    pub unset: Vec<String>,
    pub validate_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPartitions {
    pub name: String,
    /// The new total. The present one changes nothing, so that asking twice is harmless.
    pub partitions: u32,
    /// Random: where among the brokers the assignment of replicas starts.
    pub seed: u64,
    pub validate_only: bool,
}

//! What the controller can be asked to do, and what it answers. What would be random is an argument.

use tidemark_protocol::{
    BrokerId, TopicId,
    messages::{
        AddPartitionsResponse, AlterTopicResponse, CreateTopicResponse, DeleteTopicResponse,
        TopicSettings,
    },
};

use crate::record::IncarnationId;

/// A request to change the metadata. [`crate::Image::decide`] turns it into records or refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    RegisterBroker(RegisterBroker),
    CreateTopic(CreateTopic),
    DeleteTopic(DeleteTopic),
    AlterTopic(AlterTopic),
    AddPartitions(AddPartitions),
}

/// A broker process is up, has recovered its logs and can be reached. Sent once per process; sent again with
/// the same incarnation it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterBroker {
    pub broker_id: BrokerId,
    pub incarnation: IncarnationId,
    /// Where clients reach it.
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteTopic {
    pub name: String,
    /// When given, only the topic with this id is deleted.
    pub id: Option<TopicId>,
}

/// Changes settings, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterTopic {
    pub name: String,
    pub set: TopicSettings,
    /// Settings that go back to their default.
    pub unset: Vec<String>,
    pub validate_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddPartitions {
    pub name: String,
    /// The new total. The present one changes nothing, so that asking twice is harmless.
    pub partitions: u32,
    /// Random: where among the brokers the assignment of replicas starts.
    pub seed: u64,
    pub validate_only: bool,
}

/// What a command led to, one variant per command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The broker's epoch: the index of its registration in the metadata log.
    BrokerRegistered {
        broker_epoch: u64,
    },
    TopicCreated(CreateTopicResponse),
    TopicDeleted(DeleteTopicResponse),
    TopicAltered(AlterTopicResponse),
    PartitionsAdded(AddPartitionsResponse),
}

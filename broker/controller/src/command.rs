//! What the controller can be asked to do, and what it answers. What would be random is an argument.
//!
//! Nodes send both to each other as opaque bytes, in this crate's encoding (`MessagePack`). Decoding takes any
//! bytes; what a command says is checked when it is decided.

pub mod admin;
pub mod broker;
pub mod partitions;

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    BrokerEpoch, Failure,
    limits::REQUEST_PARTITIONS_MAX,
    messagepack::{self, MessageError},
    messages::{
        AddPartitionsResponse, AlterTopicResponse, CreateTopicResponse, DeleteTopicResponse,
    },
};

pub use admin::{AddPartitions, AlterTopic, CreateTopic, DeleteTopic};
pub use broker::{BrokerRun, RegisterBroker, SetDraining, UnregisterBroker};
pub use partitions::{
    AlterPartition, AlterPartitions, ElectLeaders, Elected, Election, IsrMember, PartitionState,
    Reassign, ReassignPartition,
};

/// A request to change the metadata. [`crate::Image::decide`] turns it into records or refuses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    RegisterBroker(RegisterBroker),
    /// Nobody has heard of the broker for too long, or it asked for it.
    FenceBroker(BrokerRun),
    /// The broker is alive and has followed the metadata up to its registration.
    UnfenceBroker(BrokerRun),
    /// The broker is about to stop: others lead.
    BeginControlledShutdown(BrokerRun),
    SetDraining(SetDraining),
    UnregisterBroker(UnregisterBroker),
    CreateTopic(CreateTopic),
    DeleteTopic(DeleteTopic),
    AlterTopic(AlterTopic),
    AddPartitions(AddPartitions),
    AlterPartitions(AlterPartitions),
    ElectLeaders(ElectLeaders),
    Reassign(Reassign),
    /// See [`crate::Image::replication_throttle`].
    SetReplicationThrottle {
        bytes_per_second: Option<u64>,
    },
    /// A block of producer ids for this run of a broker to give out. Every call gives another.
    AllocateProducerIds(BrokerRun),
}

/// What a command led to, one variant per command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The broker's epoch: the index of its registration in the metadata log.
    BrokerRegistered {
        broker_epoch: BrokerEpoch,
    },
    BrokerFenced,
    BrokerUnfenced,
    ControlledShutdownBegun,
    DrainingSet,
    BrokerUnregistered,
    TopicCreated(CreateTopicResponse),
    TopicDeleted(DeleteTopicResponse),
    TopicAltered(AlterTopicResponse),
    PartitionsAdded(AddPartitionsResponse),
    /// In the order of the command's changes.
    PartitionsAltered(Vec<Result<PartitionState, Failure>>),
    LeadersElected(Elected),
    /// In the order of the command's changes.
    Reassigned(Vec<Result<(), Failure>>),
    ReplicationThrottleSet,
    /// The first of the block, and the one behind its last.
    ProducerIdsAllocated {
        first: u64,
        end: u64,
    },
}

impl Command {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads what [`Command::encode`] wrote. The bytes may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        messagepack::decode(bytes, REQUEST_PARTITIONS_MAX)
    }

    /// Whether only the controller itself may ask for it, because it depends on what no image shows: who has
    /// been heard of.
    pub fn is_internal(&self) -> bool {
        matches!(
            self,
            Self::FenceBroker(_) | Self::UnfenceBroker(_) | Self::BeginControlledShutdown(_)
        )
    }
}

impl Answer {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads what [`Answer::encode`] wrote. The bytes may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        messagepack::decode(bytes, REQUEST_PARTITIONS_MAX)
    }
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    messagepack::encode(value, &mut bytes).expect("plain data encodes into a vector");
    bytes
}

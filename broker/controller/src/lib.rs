//! Cluster metadata: which brokers, topics and partitions there are, who leads what, and the log that all
//! nodes agree on.
//!
//! [`Image`] and its commands are pure: [`Image::decide`] turns a command into records, [`Image::apply`] turns
//! records into the next image, and neither knows how records are agreed on.
//!
//! A [`quorum::Quorum`] commits records; a [`ControllerMachine`] joins the two and is what a node runs.
//!
//! Reading order: [`record`], [`image`], [`apply`], [`command`], [`decide`], [`plan`], [`settings`], [`snapshot`],
//! [`quorum`], [`machine`].

pub mod apply;
mod assignment;
pub mod command;
pub mod decide;
pub mod image;
pub mod machine;
pub mod names;
pub mod plan;
pub mod quorum;
pub mod record;
pub mod settings;
mod shared_map;
pub mod snapshot;

pub use apply::ApplyError;
pub use command::{
    AddPartitions, AlterPartition, AlterPartitions, AlterTopic, Answer, BrokerRun, Command,
    CreateTopic, DeleteTopic, ElectLeaders, Elected, Election, IsrMember, PartitionState, Reassign,
    ReassignPartition, RegisterBroker, SetDraining, UnregisterBroker,
};
pub use decide::{CLUSTER_PARTITIONS_MAX, Decision};
pub use image::{Broker, Image, Partition, REPLICAS_MAX, Topic};
pub use machine::{
    ControllerMachine,
    event::{
        Answered, ConnectionId, ControllerConfig, ControllerEffect, ControllerEvent, Token,
        UncleanElection,
    },
    refusal::{leader_hint, not_controller},
};
pub use quorum::{
    Committed, EntryId, LatestSnapshot, ProposeError, Quorum, QuorumAction, QuorumConfig,
    QuorumError, QuorumEvent, QuorumStatus, RaftQuorum, VoterChange, VoterStatus,
};
pub use record::{
    IncarnationId, MetadataRecord, PartitionChange, RecordError, decode_entry, encode_entry,
};
pub use settings::{CleanupPolicy, TopicConfig, TopicDurability};
pub use snapshot::SnapshotError;

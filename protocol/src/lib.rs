//! Bytes to meaning and back: native frames and messages, record batches, compression.
//!
//! `docs/protocol.md` is the specification to the byte; this crate is its implementation. It refuses to do
//! I/O, to read a clock, to hold state between calls beyond what a decoder needs, and to trust a length.
//!
//! Reading order: [`ids`], [`error`], [`frame`], [`messagepack`], [`message`], [`messages`], [`batch`],
//! [`compression`], [`partitioner`].

pub mod batch;
pub mod bug;
pub mod compression;
pub mod error;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod message;
pub mod messagepack;
pub mod messages;
pub mod partitioner;

pub use compression::Compression;
pub use error::{ErrorCode, Failure};
pub use ids::{
    BrokerEpoch, BrokerId, DirectoryId, LeaderEpoch, NodeId, Offset, PartitionEpoch,
    PartitionIndex, TimestampMs, TopicId, TopicPartition, is_internal_topic,
};

//! The Rust client of Tidemark: producer, consumer and admin over the native protocol.
//!
//! Reading order: [`Client`], then [`Producer`], [`Consumer`], [`GroupConsumer`] and [`Admin`]; below them the cluster as it is
//! known, connections, and the protocol crate. This crate refuses to know the Kafka protocol, to print, and
//! to retry what could do harm without saying so.

mod admin;
mod client;
mod cluster;
mod config;
mod connection;
mod consumer;
mod coordinator;
mod error;
mod group;
mod metadata;
mod partitions;
mod pool;
mod producer;
mod record;
mod tasks;
pub mod testing;

pub use admin::{
    Admin, GroupList, NewTopic, OffsetSpec, Reassignment, TopicChanges, TransactionList,
};
pub use client::Client;
pub use config::ClientConfig;
pub use consumer::{Consumer, ConsumerConfig, OutOfRange, Position, Transport};
pub use error::{AdminError, ConnectError, ConsumeError, GroupError, ProduceError, RequestError};
pub use group::{GroupConfig, GroupConsumer, Rebalance, StartAt};
pub use producer::{
    Delivery, Producer, ProducerConfig, TransactionError, TransactionalConfig,
    TransactionalProducer, TrySendError,
};
pub use record::{ConsumedBatch, ConsumedRecord, Delivered, ProducerRecord};

/// The protocol's vocabulary: batches, messages, ids and error codes.
pub use tidemark_protocol as protocol;
pub use tidemark_protocol::{
    Compression, ErrorCode, Failure,
    batch::RecordHeader,
    messages::{Acks, Durability, GroupMember, Isolation},
};

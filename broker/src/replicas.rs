//! Replication between this broker and the others: what the partitions' machines ask for, over the network.
//!
//! [`ReplicaPort`] is what shards see. Nothing behind it decides about a partition.

mod isr;
mod outbox;
mod sessions;
mod streams;
mod throttle;

//! Produce, fetch and subscribe: the messages that travel with record batches in their payload.

use serde::{Deserialize, Serialize};

use super::transactions::{Isolation, StablePart};
use crate::{
    Failure, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition,
    message::{Api, Request},
};

/// Whom the broker waits for before it answers a produce request (Kafka's `acks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Acks {
    /// No answer at all.
    None,
    /// The leader has appended. May be lost with the leader.
    Leader,
    /// Every in-sync replica has it, as durably as the request's [`Durability`] asks.
    #[default]
    All,
}

/// How durable a copy must be before it counts towards `acks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Durability {
    /// What the topic is configured to: the default.
    #[default]
    Topic,
    /// In memory (the page cache): survives the process, not the machine.
    Memory,
    /// On stable storage: flushed, and the device confirmed it.
    Disk,
}

macro_rules! wire_enum {
    ($name:ident { $($variant:ident = $code:literal),+ }) => {
        impl From<$name> for u8 {
            fn from(value: $name) -> Self { match value { $($name::$variant => $code),+ } }
        }
        impl TryFrom<u8> for $name {
            type Error = String;
            fn try_from(code: u8) -> Result<Self, String> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    other => Err(format!(concat!("no ", stringify!($name), " has code {}"), other)),
                }
            }
        }
    };
}
pub(crate) use wire_enum;

wire_enum!(Acks { None = 0, Leader = 1, All = 2 });
wire_enum!(Durability { Topic = 0, Memory = 1, Disk = 2 });

/// Appends batches to partitions this broker leads. Payload: the batches of the first partition, then those
/// of the second, and so on, each partition's part `batch_bytes` long.
///
/// Partitions succeed and fail one by one. With [`Acks::None`] there is no response frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceRequest {
    pub acks: Acks,
    pub durability: Durability,
    /// How long to wait for `acks`, in milliseconds; after it the answer is `Timeout`, and the records may
    /// yet become readable.
    pub timeout_ms: u32,
    pub partitions: Vec<ProducePartition>,
    /// Whose transaction the transactional batches belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactional_id: Option<String>,
}

/// One partition's share of a [`ProduceRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducePartition {
    pub partition: TopicPartition,
    /// The leader epoch the client believes in; `None` skips the check.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Length of this partition's batches in the payload, in bytes.
    pub batch_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<ProduceReceipt, Failure>>,
}

/// What was reached: the durability receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceReceipt {
    /// Offset of the first record appended; the rest follow without a gap.
    pub base_offset: Offset,
    /// Number of records appended.
    pub record_count: u32,
    pub leader_epoch: LeaderEpoch,
    /// The durability every counted copy had when this was sent: memory or disk.
    pub durability: Durability,
    /// Replicas known to hold the records in memory, the leader among them.
    pub replicas_memory: u16,
    /// Replicas known to hold the records on stable storage, the leader among them.
    pub replicas_durable: u16,
    /// First offset of the partition that still exists.
    pub log_start_offset: Offset,
}

impl Request for ProduceRequest {
    const API: Api = Api::Produce;
    type Response = ProduceResponse;
}

/// Reads batches below the high watermark.
///
/// Answers when `min_bytes` can be read over all partitions, when any partition fails, or after
/// `max_wait_ms`. The first batch found is returned whole even when it is longer than `max_bytes`, so that
/// a reader always makes progress; it may start below the offset asked for, since batches are never split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    pub max_wait_ms: u32,
    pub min_bytes: u32,
    /// Most payload bytes in the answer, over all partitions.
    pub max_bytes: u32,
    /// Served in this order. Only the first batch of the answer may be too long for the bounds: rotate the
    /// list, or a long batch holds up its partition.
    pub partitions: Vec<FetchPartition>,
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
}

/// One partition's share of a [`FetchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchPartition {
    pub partition: TopicPartition,
    pub leader_epoch: Option<LeaderEpoch>,
    pub offset: Offset,
    /// Most payload bytes from this partition.
    pub max_bytes: u32,
}

/// Payload: the batches of each partition in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchResponse {
    pub partitions: Vec<Result<FetchedPartition, Failure>>,
}

/// The state of one partition and the length of its share of the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedPartition {
    /// Exclusive end of what may be read.
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    pub leader_epoch: LeaderEpoch,
    /// Length of this partition's batches in the payload, in bytes.
    pub batch_bytes: u32,
    /// Only for readers with [`Isolation::ReadCommitted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<StablePart>,
}

impl Request for FetchRequest {
    const API: Api = Api::Fetch;
    type Response = FetchResponse;
}

/// Asks to be sent batches as they become readable, without polling.
///
/// The response says that the subscription stands. Then the broker sends `Push` frames with the request's
/// correlation, each a [`PushHeader`] and batches of one partition, while it has credit: every payload byte
/// spends one, a `Credit` frame ([`CreditHeader`]) adds some, and a push may overdraw by one batch, so that a
/// batch larger than the credit still arrives.
///
/// A subscription ends with exactly one last push, which names no partition and whose outcome is `Cancelled`:
/// after a `Cancel` frame (pushes in between are to be dropped), when no partition is left, or when the broker
/// stops. After it the correlation is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeRequest {
    pub credit_bytes: u32,
    /// Most payload bytes in one push, except that a batch is never split.
    pub max_push_bytes: u32,
    pub partitions: Vec<SubscribePartition>,
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
}

/// One partition of a [`SubscribeRequest`] and where to begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribePartition {
    pub partition: TopicPartition,
    pub leader_epoch: Option<LeaderEpoch>,
    pub offset: Offset,
}

/// One outcome per partition; those that failed are not part of the subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeResponse {
    pub partitions: Vec<Result<SubscribedPartition, Failure>>,
}

/// Where a partition stood when the subscription began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribedPartition {
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    pub leader_epoch: LeaderEpoch,
}

impl Request for SubscribeRequest {
    const API: Api = Api::Subscribe;
    type Response = SubscribeResponse;
}

/// Header of a `Push` frame. An error ends the subscription for that partition; `partition` is `None` in the
/// last push, which ends the whole subscription whatever its code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushHeader {
    pub partition: Option<TopicPartition>,
    pub outcome: Result<FetchedPartition, Failure>,
}

/// Header of a `Credit` frame; its correlation names the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditHeader {
    pub bytes: u32,
}

/// Shorthand for building partitions in requests.
impl From<(TopicId, PartitionIndex)> for TopicPartition {
    fn from((topic_id, partition): (TopicId, PartitionIndex)) -> Self {
        Self { topic_id, partition }
    }
}

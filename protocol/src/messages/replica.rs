//! Replication: the messages between a follower and its leader. One stream per pair of brokers carries all partitions.

use serde::{Deserialize, Serialize};

use crate::{
    BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, TopicPartition,
    message::{Api, Request},
};

/// Opens a follower's stream to a leader. After the response the leader sends `Push` frames with the request's
/// correlation, each a [`ReplicaPushHeader`]; the follower sends [`ReplicaPositionsRequest`]s on the same connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicateRequest {
    pub cluster_id: String,
    /// The follower, in the run of its process that it is registered with.
    pub broker_id: BrokerId,
    pub broker_epoch: BrokerEpoch,
    /// The broker that the follower means to talk to.
    pub leader_id: BrokerId,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicateResponse {}

impl Request for ReplicateRequest {
    const API: Api = Api::Replicate;
    type Response = ReplicateResponse;
}

/// Where a follower is in one partition, and what it wants next. See `docs/rfcs/2026-11-25-replication.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the leadership it follows.
    pub leader_epoch: LeaderEpoch,
    /// Raised for every new question. A position with the round of the last one is a report only.
    pub round: u64,
    /// Its log end offset: the first offset it wants.
    pub fetch_offset: Offset,
    /// Everything below is on its stable storage; at most `fetch_offset`.
    pub flushed_offset: Offset,
    /// Epoch of its last batch or leadership; `None` when it has none.
    pub last_fetched_epoch: Option<LeaderEpoch>,
    pub log_start_offset: Offset,
}

/// Positions that are new. There is no response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPositionsRequest {
    /// Correlation of the [`ReplicateRequest`] whose stream they belong to.
    pub stream: u32,
    pub positions: Vec<ReplicaPosition>,
}

/// One partition's share of a [`ReplicaPositionsRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPosition {
    pub partition: TopicPartition,
    pub position: Position,
}

impl Request for ReplicaPositionsRequest {
    const API: Api = Api::ReplicaPositions;
    type Response = ();
}

/// Header of a `Push` frame on a follower's stream. Payload: the batches of each partition, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPushHeader {
    pub partitions: Vec<ReplicaPush>,
}

/// What a leader says of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPush {
    pub partition: TopicPartition,
    /// Of the position that this answers.
    pub leader_epoch: LeaderEpoch,
    /// Of the position that this answers.
    pub round: u64,
    /// Exclusive end of what is committed, as of before the batches were read.
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    /// Length of this partition's batches in the payload, in bytes. 0 with an accepted position: only the watermark
    /// or the log start has moved, and the position is not answered yet.
    pub batch_bytes: u32,
    /// Why there are no batches; nothing else of the answer counts then.
    pub refusal: Option<ReplicaRefusal>,
    /// Tombstones below may be missing in the leader's log, as of after the batches were read: a follower that ends before and has
    /// not copied all it has from this leader may hold what they hid. Without batches it says nothing.
    pub removals_end: Offset,
}

/// Why a leader has no batches for a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaRefusal {
    /// The follower's log differs from the leader's: the leader's `epoch` ends at `end_offset`.
    Diverging { epoch: LeaderEpoch, end_offset: Offset },
    /// The position is outside the leader's log.
    OutOfRange { log_start_offset: Offset, log_end_offset: Offset },
    /// Anything else: the follower asks again later, or hears from the controller.
    Error { code: ErrorCode },
}

//! Offsets by position and by time, and deleting records from the front.

use serde::{Deserialize, Serialize};

use super::data::wire_enum;
use crate::{
    Failure, LeaderEpoch, Offset, TimestampMs, TopicPartition,
    message::{Api, Request},
};

/// Which position of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum OffsetQuery {
    /// The log start offset.
    Earliest,
    /// The high watermark: where the next readable record will be.
    Latest,
    /// The first record with a timestamp at or after the one given.
    Timestamp,
    /// The record with the largest timestamp.
    MaxTimestamp,
}

wire_enum!(OffsetQuery { Earliest = 0, Latest = 1, Timestamp = 2, MaxTimestamp = 3 });

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOffsetsRequest {
    pub partitions: Vec<ListOffsetsPartition>,
}

/// One partition's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOffsetsPartition {
    pub partition: TopicPartition,
    pub leader_epoch: Option<LeaderEpoch>,
    pub query: OffsetQuery,
    /// Only for [`OffsetQuery::Timestamp`]; 0 otherwise.
    pub timestamp_ms: TimestampMs,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOffsetsResponse {
    pub partitions: Vec<Result<ListedOffset, Failure>>,
}

/// The answer for one partition. A time after the last readable record answers the high watermark with
/// `NO_TIMESTAMP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedOffset {
    pub offset: Offset,
    /// Timestamp of the record found, [`crate::ids::NO_TIMESTAMP`] when the answer is not a record.
    pub timestamp_ms: TimestampMs,
    pub leader_epoch: LeaderEpoch,
}

impl Request for ListOffsetsRequest {
    const API: Api = Api::ListOffsets;
    type Response = ListOffsetsResponse;
}

/// Deletes the records below an offset, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRecordsRequest {
    pub timeout_ms: u32,
    pub partitions: Vec<DeleteRecordsPartition>,
}

/// One partition and its new log start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRecordsPartition {
    pub partition: TopicPartition,
    /// The new log start offset; at most the high watermark, which `None` stands for.
    pub before_offset: Option<Offset>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRecordsResponse {
    /// The log start offset of each partition after the request, in its order.
    pub partitions: Vec<Result<Offset, Failure>>,
}

impl Request for DeleteRecordsRequest {
    const API: Api = Api::DeleteRecords;
    type Response = DeleteRecordsResponse;
}

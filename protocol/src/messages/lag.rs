//! How far consumers are behind: of a group, asked of its coordinator, and of offsets, asked of leaders.

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Offset, TimestampMs, TopicPartition,
    message::{Api, Request},
};

/// Asks the coordinator how far a group is behind in every partition that it has committed an offset for or reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeLagRequest {
    pub group: String,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeLagResponse {
    /// By topic id and partition.
    pub partitions: Vec<GroupLag>,
}

/// How far a group is behind in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLag {
    pub partition: TopicPartition,
    /// Who reads it.
    pub member: Option<String>,
    /// `None`: nothing is committed; the lag is then that of a reader that begins at the log start.
    pub committed: Option<Offset>,
    pub lag: Result<PartitionLag, Failure>,
    /// Until there is nothing left to read, at the rates of the last seconds; `None` when it does not get less, or when
    /// nothing is known yet.
    pub drained_in_ms: Option<u64>,
}

/// How far an offset is behind the end of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLag {
    pub log_start_offset: Offset,
    pub high_watermark: Offset,
    /// Offsets from the one asked about to the high watermark. After compaction there are fewer records.
    pub records: u64,
    /// About as many bytes of batches.
    pub bytes: u64,
    /// Timestamp of the first record that is not read; `None` when there is none.
    pub first_unread_ms: Option<TimestampMs>,
    /// How old that record is, by the leader's clock; 0 when there is none.
    pub age_ms: u64,
    /// When retention by time may delete the first unread record, from now; `None`: never, or nothing is unread.
    pub deleted_in_ms: Option<u64>,
    /// Records between the offset asked about and the log start: they were deleted before they were read.
    pub lost_records: u64,
}

impl Request for DescribeLagRequest {
    const API: Api = Api::DescribeLag;
    type Response = DescribeLagResponse;
}

/// Asks a leader how far offsets are behind. Partitions it does not lead are refused one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureLagRequest {
    pub offsets: Vec<OffsetToMeasure>,
}

/// An offset in a [`MeasureLagRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetToMeasure {
    pub partition: TopicPartition,
    /// The next record to be read.
    pub offset: Offset,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureLagResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<PartitionLag, Failure>>,
}

impl Request for MeasureLagRequest {
    const API: Api = Api::MeasureLag;
    type Response = MeasureLagResponse;
}

//! Producers with an identity, so that what they send again is recognized, and their transactions.
//!
//! A transaction begins with its first batch or offset and ends with [`EndTransactionRequest`]. Requests with a transactional
//! id, other than produce, are for its coordinator: see [`super::FindCoordinatorRequest`].

use serde::{Deserialize, Serialize};

use super::{
    data::wire_enum,
    groups::{GroupMember, OffsetToCommit},
};
use crate::{
    Failure, Offset, TimestampMs, TopicPartition,
    message::{Api, Request},
};

/// Who a producer is: its batches carry both numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProducerIdentity {
    /// Never negative. Belongs to one producer for good.
    pub producer_id: i64,
    /// Never negative. What bears a lower one than was seen is refused.
    pub epoch: i16,
}

/// Asks for the identity of a producer that begins.
///
/// Without `transaction` any broker answers: the id was never given to anybody before, and the epoch is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProducerIdRequest {
    pub timeout_ms: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<TransactionalProducer>,
}

/// A producer under a transactional id: whoever was it before is fenced, and what it left open is aborted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionalProducer {
    pub transactional_id: String,
    /// A transaction that is open for longer is aborted.
    pub transaction_timeout_ms: u32,
    /// From a producer that goes on after an error: what it has. Nobody but the present owner gets anything with it.
    pub expected: Option<ProducerIdentity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProducerIdResponse {
    pub producer: ProducerIdentity,
}

impl Request for InitProducerIdRequest {
    const API: Api = Api::InitProducerId;
    type Response = InitProducerIdResponse;
}

/// Ends the transaction that is open, if one is. The answer comes when the decision is safe; markers follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransactionRequest {
    pub transactional_id: String,
    pub producer: ProducerIdentity,
    pub commit: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransactionResponse {
    /// What the next transaction goes under. Sequences begin at 0 in every partition.
    pub producer: ProducerIdentity,
}

impl Request for EndTransactionRequest {
    const API: Api = Api::EndTransaction;
    type Response = EndTransactionResponse;
}

/// Commits a group's offsets as part of a transaction: they count if it commits. For the coordinator of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitTransactionalOffsetsRequest {
    pub transactional_id: String,
    pub producer: ProducerIdentity,
    pub group: String,
    /// `None`: somebody outside of the group, which must have no members.
    pub member: Option<GroupMember>,
    pub offsets: Vec<OffsetToCommit>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitTransactionalOffsetsResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<(), Failure>>,
}

impl Request for CommitTransactionalOffsetsRequest {
    const API: Api = Api::CommitTransactionalOffsets;
    type Response = CommitTransactionalOffsetsResponse;
}

/// Where a transactional id stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum TransactionStatus {
    /// It has had no transaction yet, or begun anew.
    Empty,
    Ongoing,
    /// Decided; not all partitions know.
    Committing,
    Aborting,
    Committed,
    Aborted,
}

wire_enum!(TransactionStatus {
    Empty = 0,
    Ongoing = 1,
    Committing = 2,
    Aborting = 3,
    Committed = 4,
    Aborted = 5
});

/// The transactional ids that the broker asked coordinates, as far as it can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTransactionsRequest {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTransactionsResponse {
    /// Sorted by transactional id.
    pub transactions: Vec<ListedTransaction>,
    /// Partitions of the internal topic led here whose transactional ids are not among them, and why.
    #[serde(default)]
    pub unavailable: Vec<UnavailableTransactions>,
}

/// A coordinator that cannot say which transactional ids it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableTransactions {
    pub partition: TopicPartition,
    pub failure: Failure,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedTransaction {
    pub transactional_id: String,
    pub producer: ProducerIdentity,
    pub status: TransactionStatus,
}

impl Request for ListTransactionsRequest {
    const API: Api = Api::ListTransactions;
    type Response = ListTransactionsResponse;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeTransactionRequest {
    pub transactional_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeTransactionResponse {
    pub producer: ProducerIdentity,
    pub status: TransactionStatus,
    pub transaction_timeout_ms: u32,
    /// When the present transaction, or the last one, began; -1 if there was none.
    pub started_ms: TimestampMs,
    /// When anything about it was written last.
    pub updated_ms: TimestampMs,
    /// Those that have yet to be told of the end, too. A partition of the groups' topic stands for offsets.
    pub partitions: Vec<TopicPartition>,
}

impl Request for DescribeTransactionRequest {
    const API: Api = Api::DescribeTransaction;
    type Response = DescribeTransactionResponse;
}

/// An operator aborts the open transaction of a transactional id. Its producer learns it with its next request, and may go
/// on with the next transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortTransactionRequest {
    pub transactional_id: String,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortTransactionResponse {}

impl Request for AbortTransactionRequest {
    const API: Api = Api::AbortTransaction;
    type Response = AbortTransactionResponse;
}

/// The leader of partitions asks the coordinator to make them part of a transaction, before its first batch there is appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTransactionRequest {
    pub transactional_id: String,
    pub producer: ProducerIdentity,
    pub partitions: Vec<TopicPartition>,
    /// The metadata in which the leader has found them: the coordinator must know as much.
    pub metadata_index: u64,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTransactionResponse {}

impl Request for JoinTransactionRequest {
    const API: Api = Api::JoinTransaction;
    type Response = JoinTransactionResponse;
}

/// The coordinator tells the leader of partitions how a transaction has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteMarkersRequest {
    /// In the epoch after the transaction's.
    pub producer: ProducerIdentity,
    /// Leader epoch of the coordinator's partition.
    pub coordinator_epoch: i32,
    pub commit: bool,
    pub partitions: Vec<TopicPartition>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteMarkersResponse {
    /// In the order of the request. `Ok`: it is committed there.
    pub partitions: Vec<Result<(), Failure>>,
}

impl Request for WriteMarkersRequest {
    const API: Api = Api::WriteMarkers;
    type Response = WriteMarkersResponse;
}

/// What a reader may be given of transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Isolation {
    /// Everything below the high watermark, whatever becomes of its transaction.
    #[default]
    ReadUncommitted,
    /// What is below the last stable offset, and is not part of a transaction that was aborted.
    ReadCommitted,
}

wire_enum!(Isolation { ReadUncommitted = 0, ReadCommitted = 1 });

impl Isolation {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands in a reference")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a `ReadCommitted` reader is told with batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StablePart {
    /// Exclusive end of what such a reader may read.
    pub last_stable_offset: Offset,
    /// Transactions that were aborted and have records among the batches: to be left out.
    pub aborted: Vec<AbortedRecords>,
}

/// Records of one producer to be left out: the transactional ones from `first_offset` to `last_offset`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortedRecords {
    pub producer_id: i64,
    pub first_offset: Offset,
    pub last_offset: Offset,
}

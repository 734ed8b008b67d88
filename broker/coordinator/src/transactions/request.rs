//! What a transaction coordinator is asked, what it answers, and what it wants done besides. Plain values.

use std::collections::BTreeSet;

use tidemark_protocol::TopicPartition;

use super::record::{Transaction, TransactionState};
use crate::{ProducerEpoch, ProducerId};

/// A request to a transaction coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionRequest {
    InitProducerId(InitProducerId),
    AddPartitions(AddPartitions),
    EndTxn(EndTxn),
    /// What came of [`TransactionEffect::SendMarkers`].
    MarkersWritten(MarkersWritten),
    List,
    Describe {
        id: String,
    },
    /// An operator ends the transaction.
    Abort {
        id: String,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionResponse {
    InitProducerId(ProducerIdentity),
    AddPartitions,
    /// What the producer's next transaction goes under.
    EndTxn(ProducerIdentity),
    MarkersWritten,
    List(Vec<TransactionListing>),
    Describe(Transaction),
    Abort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProducerIdentity {
    pub producer_id: ProducerId,
    pub epoch: ProducerEpoch,
}

/// A process begins to produce under a transactional id: whoever did before is fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitProducerId {
    pub id: String,
    pub timeout_ms: u32,
    /// From a producer that goes on after an error: what it has (KIP-360). Nobody but the present owner gets anything
    /// with it.
    pub expected: Option<ProducerIdentity>,
}

/// Makes partitions part of the producer's transaction, which begins with it. Asked by the leader of a partition
/// before the transaction's first append there, the partition of a group's offsets among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddPartitions {
    pub id: String,
    pub producer: ProducerIdentity,
    pub partitions: BTreeSet<TopicPartition>,
    /// Only say whether they are.
    pub verify_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndTxn {
    pub id: String,
    pub producer: ProducerIdentity,
    pub commit: bool,
}

/// Answers of partition leaders to markers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkersWritten {
    pub id: String,
    /// Of the markers.
    pub producer: ProducerIdentity,
    pub results: Vec<(TopicPartition, MarkerResult)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerResult {
    /// Committed in the partition.
    Written,
    /// The topic is deleted for good: no topic of that id is in the metadata, which is as new as this coordinator.
    TopicDeleted,
    /// The partition knows a later coordinator.
    Fenced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionListing {
    pub id: String,
    pub producer: ProducerIdentity,
    pub state: TransactionState,
}

/// What the coordinator wants done besides its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionEffect {
    /// Write the markers and say what came of it. May come again for the same ones.
    SendMarkers(Markers),
    /// Ask the controller for a block of producer ids; see `add_producer_ids`.
    NeedProducerIds,
    /// For the log and the metrics: the coordinator aborted a transaction that nobody had ended.
    Aborted { id: String, producer: ProducerIdentity, cause: AbortCause },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markers {
    pub id: String,
    pub producer: ProducerIdentity,
    pub coordinator_epoch: i32,
    pub commit: bool,
    pub partitions: BTreeSet<TopicPartition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCause {
    TimedOut,
    Operator,
    /// A process began under the same id.
    Fenced,
}

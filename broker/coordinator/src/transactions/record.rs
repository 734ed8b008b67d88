//! What a transaction coordinator's log consists of: the last state of every transactional id.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tidemark_protocol::{TimestampMs, TopicPartition};

use crate::{
    ProducerEpoch, ProducerId,
    record::{Record, RecordError, decode_key, decode_value, encode, encode_key},
};

/// What a record is about. The order and content of the fields never change: compaction compares their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Key {
    Transaction { id: String },
}

/// Where a transactional id is in its life.
///
/// Kafka's `PrepareEpochFence` is not here: fencing a producer and deciding to abort is one record. Nor is `Dead`,
/// which is a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TransactionState {
    /// Initialized, and nothing written since.
    Empty,
    Ongoing,
    /// Decided. Markers are being written, in the epoch of the record.
    PrepareCommit,
    PrepareAbort,
    /// Every marker is in its partition.
    CompleteCommit,
    CompleteAbort,
}

impl TransactionState {
    /// How the transaction was decided whose markers are under way.
    pub fn decision(self) -> Option<bool> {
        match self {
            Self::PrepareCommit => Some(true),
            Self::PrepareAbort => Some(false),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }
}

/// A transactional id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub producer_id: ProducerId,
    /// From the decision on it is the epoch after the transaction's: that of the markers, and of the next transaction.
    pub producer_epoch: ProducerEpoch,
    /// The id and epoch before, if the same producer may ask with them again because an answer was lost. `None` when
    /// another process has taken over.
    pub last: Option<(ProducerId, ProducerEpoch)>,
    /// In a decided transaction whose epochs are used up: under which id the producer goes on.
    pub next_producer_id: Option<ProducerId>,
    pub timeout_ms: u32,
    pub state: TransactionState,
    pub partitions: BTreeSet<TopicPartition>,
    /// When the transaction began; 0 if none has.
    pub started_ms: TimestampMs,
    pub updated_ms: TimestampMs,
}

/// A record in its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: String,
    pub(crate) transaction: Option<Transaction>,
}

impl Change {
    pub(crate) fn encode(&self) -> Record {
        let key = encode_key(&Key::Transaction { id: self.id.clone() });
        Record { key, value: self.transaction.as_ref().map(encode) }
    }

    /// Reads what [`Change::encode`] wrote. The bytes may be anything.
    pub(crate) fn decode(record: &Record) -> Result<Self, RecordError> {
        let Key::Transaction { id } = decode_key(&record.key)?;
        let transaction = record.value.as_deref().map(decode_value).transpose()?;
        Ok(Self { id, transaction })
    }
}

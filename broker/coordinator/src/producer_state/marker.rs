//! Markers: the control records that end a transaction in a partition, as bytes and in the order of epochs.
//!
//! The formats are Kafka's, because segments are: key `version i16, type i16`, value `version i16, coordinator epoch
//! i32`, big-endian.

use tidemark_protocol::{ErrorCode, bug};

use super::{Producer, ProducerStates};
use crate::{ProducerEpoch, ProducerId};

const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    pub commit: bool,
    /// Leader epoch of the transaction coordinator's partition.
    pub coordinator_epoch: i32,
}

/// Who wants a marker to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerOrigin {
    Coordinator,
    /// An operator ends a transaction that its coordinator knows nothing of, in the epoch of the transaction.
    Operator,
}

/// What a leader does with a marker it does not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerAdmission {
    Append,
    /// The transaction has ended here already: the answer to the first marker was lost.
    AlreadyThere,
}

/// Bytes that are no marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    #[error("a marker's {0} is too short")]
    Truncated(&'static str),
    #[error("a marker's {part} has version {found}")]
    Version { part: &'static str, found: i16 },
}

impl Marker {
    /// Key and value of the control record.
    pub fn encode(self) -> ([u8; 4], [u8; 6]) {
        let (mut key, mut value) = ([0; 4], [0; 6]);
        key[..2].copy_from_slice(&VERSION.to_be_bytes());
        key[2..].copy_from_slice(&if self.commit { COMMIT } else { ABORT }.to_be_bytes());
        value[..2].copy_from_slice(&VERSION.to_be_bytes());
        value[2..].copy_from_slice(&self.coordinator_epoch.to_be_bytes());
        (key, value)
    }

    /// Reads a control record; `None` when it is of another kind than a transaction's end. Later versions may be
    /// longer.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Option<Self>, MarkerError> {
        let [v0, v1, t0, t1] = *key.first_chunk().ok_or(MarkerError::Truncated("key"))?;
        check_version("key", [v0, v1])?;
        let commit = match i16::from_be_bytes([t0, t1]) {
            ABORT => false,
            COMMIT => true,
            _ => return Ok(None),
        };
        let [v0, v1, e0, e1, e2, e3] =
            *value.first_chunk().ok_or(MarkerError::Truncated("value"))?;
        check_version("value", [v0, v1])?;
        Ok(Some(Self { commit, coordinator_epoch: i32::from_be_bytes([e0, e1, e2, e3]) }))
    }
}

fn check_version(part: &'static str, bytes: [u8; 2]) -> Result<(), MarkerError> {
    let found = i16::from_be_bytes(bytes);
    if found < VERSION { Err(MarkerError::Version { part, found }) } else { Ok(()) }
}

impl ProducerStates {
    /// Decides about a marker. `epoch` is the producer's after the transaction (KIP-890), or the transaction's own if
    /// an operator ends it.
    pub fn check_marker(
        &self,
        producer_id: ProducerId,
        epoch: ProducerEpoch,
        marker: Marker,
        origin: MarkerOrigin,
    ) -> Result<MarkerAdmission, ErrorCode> {
        let Some(producer) = self.log.producers.get(&producer_id) else {
            return Ok(MarkerAdmission::Append);
        };
        if marker.coordinator_epoch < producer.coordinator_epoch
            && !bug::is_put_back("marker-without-coordinator-epoch")
        {
            return Err(ErrorCode::TransactionCoordinatorFenced);
        }
        match origin {
            MarkerOrigin::Coordinator => check_epoch(producer, epoch),
            MarkerOrigin::Operator if producer.transaction_start.is_none() => {
                Ok(MarkerAdmission::AlreadyThere)
            }
            MarkerOrigin::Operator if epoch == producer.epoch => Ok(MarkerAdmission::Append),
            MarkerOrigin::Operator => Err(ErrorCode::InvalidProducerEpoch),
        }
    }
}

/// A transaction ends in the epoch after its own. A marker in the epoch of the open transaction is a late one, of the
/// transaction before.
fn check_epoch(producer: &Producer, epoch: ProducerEpoch) -> Result<MarkerAdmission, ErrorCode> {
    let is_open = producer.transaction_start.is_some();
    if epoch > producer.epoch {
        return Ok(MarkerAdmission::Append);
    }
    if epoch == producer.epoch && !is_open {
        return Ok(MarkerAdmission::AlreadyThere);
    }
    if epoch == producer.epoch && bug::is_put_back("kip-890-no-epoch-bump") {
        return Ok(MarkerAdmission::Append);
    }
    Err(ErrorCode::InvalidProducerEpoch)
}

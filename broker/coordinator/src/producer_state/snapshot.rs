//! The state as bytes, so that a restart need not replay the whole log. The file around them, with its checksum, is
//! the storage's business.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use tidemark_protocol::Offset;

use super::{AbortedTransaction, LogState, Producer, ProducerStates};
use crate::{
    ProducerId,
    record::{RecordError, decode_value, encode},
};

/// Why bytes are not a snapshot this build can use. The log says the same: replay it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot cannot be read: {0}")]
    Bytes(#[from] RecordError),
    #[error("the snapshot contradicts itself: {0}")]
    Contradiction(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    next_offset: Offset,
    producers: BTreeMap<ProducerId, Producer>,
    ended: BTreeMap<Offset, Offset>,
    aborted: VecDeque<AbortedTransaction>,
}

impl ProducerStates {
    /// The bytes; [`ProducerStates::from_snapshot`] is the way back. The log is to be replayed from
    /// [`ProducerStates::next_offset`].
    pub fn to_snapshot(&self) -> Vec<u8> {
        encode(&Snapshot {
            next_offset: self.log.next_offset,
            producers: self.log.producers.clone(),
            ended: self.log.ended.clone(),
            aborted: self.log.aborted.clone(),
        })
    }

    /// Reads what [`ProducerStates::to_snapshot`] wrote. The bytes may be anything.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Snapshot { next_offset, producers, ended, aborted } = decode_value(bytes)?;
        let contradiction = |what| Err(SnapshotError::Contradiction(what));
        let mut log = LogState { next_offset, ended, ..LogState::default() };
        for (producer_id, producer) in producers {
            let is_sane = producer_id >= 0
                && producer.epoch >= 0
                && producer.last_offset < next_offset
                && producer.batches.len() <= super::BATCHES_KEPT
                && producer.transaction_start.is_none_or(|start| start <= producer.last_offset);
            let start = producer.transaction_start;
            if !is_sane || start.is_some_and(|start| log.open.contains_key(&start)) {
                return contradiction("a producer");
            }
            log.put_back(producer_id, producer);
        }
        let is_sane = |first: Offset, last: Offset| first < last && last < next_offset;
        if !log.ended.iter().all(|(first, last)| is_sane(*first, *last)) {
            return contradiction("the end of a transaction");
        }
        let in_order = aborted.iter().zip(aborted.iter().skip(1));
        if !aborted.iter().all(|one| is_sane(one.first_offset, one.last_offset))
            || !{ in_order }.all(|(one, next)| one.last_offset < next.last_offset)
        {
            return contradiction("the aborted transactions");
        }
        log.aborted = aborted;
        Ok(Self { log, ..Self::new() })
    }
}

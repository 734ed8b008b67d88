//! Questions to the transaction coordinator that are under way: is this partition in the open transaction of that
//! producer? Soft state: whoever asked asks again after a change of leader.
//!
//! A guard stands for one transaction. Every marker takes it away, so that a "yes" that arrives after the transaction
//! has ended cannot let a batch into the next one (KIP-890).

use std::collections::BTreeMap;

use tidemark_protocol::{batch::BatchHeader, bug};

use super::ProducerStates;
use crate::{ProducerEpoch, ProducerId, limits::PARTITION_PRODUCERS_MAX};

/// Names a verification; never given twice by one partition leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard(u64);

/// Whether a batch needs the transaction coordinator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// It is not transactional, or its transaction is open here.
    NotNeeded,
    /// Ask the coordinator to add this partition to the transaction, then append with this guard.
    Needed(Guard),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Verifications {
    last: u64,
    by_producer: BTreeMap<ProducerId, UnderWay>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    epoch: ProducerEpoch,
    guard: Guard,
    /// Of the batches that wait. A later one must not get in front of it (KAFKA-14920).
    lowest_sequence: i32,
}

impl Verifications {
    pub(super) fn end(&mut self, producer_id: ProducerId) {
        self.by_producer.remove(&producer_id);
    }

    pub(super) fn lowest_sequence(&self, id: ProducerId, epoch: ProducerEpoch) -> Option<i32> {
        let under_way = self.by_producer.get(&id).filter(|under_way| under_way.epoch == epoch)?;
        Some(under_way.lowest_sequence)
    }

    pub(super) fn is_current(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
        guard: Option<Guard>,
    ) -> bool {
        let under_way = self.by_producer.get(&id);
        under_way.is_some_and(|it| it.epoch == epoch && Some(it.guard) == guard)
    }
}

impl ProducerStates {
    /// To be asked before the coordinator is, for every batch of a client.
    pub fn begin_verification(&mut self, header: &BatchHeader) -> Verification {
        let BatchHeader { producer_id, producer_epoch: epoch, base_sequence, .. } = *header;
        let is_open = self.log.producers.get(&producer_id).is_some_and(|producer| {
            producer.transaction_start.is_some() && producer.epoch == epoch
        });
        let is_asked = header.is_transactional() && !bug::is_put_back("no-verification-guard");
        if producer_id < 0 || !is_asked || is_open {
            return Verification::NotNeeded;
        }
        let verifications = &mut self.verifications;
        if verifications.by_producer.len() >= PARTITION_PRODUCERS_MAX {
            // Those who wait are told to verify again.
            verifications.by_producer.clear();
        }
        verifications.last += 1;
        let guard = Guard(verifications.last);
        let fresh = UnderWay { epoch, guard, lowest_sequence: base_sequence };
        let under_way = verifications.by_producer.entry(producer_id).or_insert(fresh);
        if under_way.epoch < epoch {
            *under_way = fresh;
        }
        if under_way.epoch == epoch {
            under_way.lowest_sequence = under_way.lowest_sequence.min(base_sequence);
        }
        // An older epoch gets a guard that opens nothing.
        Verification::Needed(if under_way.epoch == epoch { under_way.guard } else { guard })
    }
}

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

/// Every epoch by itself: what claims to be of a later epoch, which nobody was given, keeps the producer's own batches from
/// nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Verifications {
    last: u64,
    under_way: BTreeMap<(ProducerId, ProducerEpoch), UnderWay>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    guard: Guard,
    /// Of the batches that wait. A later one must not get in front of it (KAFKA-14920).
    lowest_sequence: i32,
}

impl Verifications {
    pub(super) fn end(&mut self, id: ProducerId) {
        let of_producer = (id, ProducerEpoch::MIN)..=(id, ProducerEpoch::MAX);
        while let Some(key) = self.under_way.range(of_producer.clone()).map(|(key, _)| *key).next()
        {
            self.under_way.remove(&key);
        }
    }

    pub(super) fn lowest_sequence(&self, id: ProducerId, epoch: ProducerEpoch) -> Option<i32> {
        self.under_way.get(&(id, epoch)).map(|it| it.lowest_sequence)
    }

    pub(super) fn is_current(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
        guard: Option<Guard>,
    ) -> bool {
        self.under_way.get(&(id, epoch)).is_some_and(|it| Some(it.guard) == guard)
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
        if verifications.under_way.len() >= PARTITION_PRODUCERS_MAX {
            // Those who wait are told to verify again.
            verifications.under_way.clear();
        }
        verifications.last += 1;
        let fresh = UnderWay { guard: Guard(verifications.last), lowest_sequence: base_sequence };
        let under_way = verifications.under_way.entry((producer_id, epoch)).or_insert(fresh);
        under_way.lowest_sequence = under_way.lowest_sequence.min(base_sequence);
        Verification::Needed(under_way.guard)
    }
}

//! Offsets that are committed in a transaction: kept apart until its coordinator says how it ended.
//!
//! They are records of their own keys. The end of a transaction writes what it comes to, one ordinary offset for each
//! pending one that counts, and removes the pending ones. So the state needs no marker in the log, and compaction can
//! go by keys alone. An end that arrives twice finds nothing pending.
//!
//! Zombies are kept out by epochs, as in any partition: see [`crate::producer_state`] for the rules.

use std::collections::BTreeMap;

use tidemark_protocol::{ErrorCode, Failure, TopicPartition, bug};

use super::{
    GroupCoordinator,
    commit::Within,
    record::{Change, OffsetValue, ProducerFence},
    request::{CommitTransactionalOffsets, EndTransaction},
    state::Committed,
};
use crate::{
    ProducerEpoch, ProducerId,
    decision::Now,
    limits::{METADATA_BYTES_MAX, TRANSACTION_OFFSETS_MAX},
};

/// Whether a producer's transaction has to be verified before offsets are committed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// The transaction has offsets here already.
    NotNeeded,
    /// Ask the transaction coordinator to add this partition, then send the request with this guard.
    Needed { guard: u64 },
}

/// Verifications under way, by producer. A guard is good for one transaction: its end takes it away, so that an old
/// answer of the transaction coordinator cannot let anything into the next transaction.
#[derive(Debug, Default)]
pub(super) struct Guards {
    last: u64,
    by_producer: BTreeMap<ProducerId, (ProducerEpoch, u64)>,
}

/// Most verifications under way at once; the oldest are forgotten, and tried again by whoever asked.
const GUARDS_MAX: usize = 10_000;

impl GroupCoordinator {
    /// To be asked before transactional offsets are committed.
    pub fn begin_verification(
        &mut self,
        producer_id: ProducerId,
        producer_epoch: ProducerEpoch,
    ) -> Verification {
        let fence = self.state.producer(producer_id);
        let is_open = fence.is_some_and(|fence| fence.is_open && fence.epoch == producer_epoch);
        if is_open || bug::is_put_back("no-verification-guard") {
            return Verification::NotNeeded;
        }
        if self.guards.by_producer.len() >= GUARDS_MAX {
            self.guards.by_producer.clear();
        }
        self.guards.last += 1;
        let fresh = (producer_epoch, self.guards.last);
        let known = self.guards.by_producer.entry(producer_id).or_insert(fresh);
        if known.0 != producer_epoch {
            *known = fresh;
        }
        Verification::Needed { guard: known.1 }
    }

    pub(super) fn commit_transactional_offsets(
        &mut self,
        now: Now,
        commit: &CommitTransactionalOffsets,
    ) -> Result<Vec<Result<(), ErrorCode>>, Failure> {
        let CommitTransactionalOffsets { group, producer_id, producer_epoch, .. } = commit;
        self.check_producer(commit)?;
        self.check_pending(commit)?;
        let permit = self.permit(group, &commit.committer, Within::Transaction)?;
        let checked: Vec<_> = commit
            .offsets
            .iter()
            .map(|one| permit.check(&one.partition).and_then(|()| self.value(now, one)))
            .collect();
        self.guards.by_producer.remove(producer_id);
        let before = self.state.producer(*producer_id);
        if !before.is_some_and(|fence| fence.is_open && fence.epoch == *producer_epoch) {
            let fence = ProducerFence {
                epoch: *producer_epoch,
                coordinator_epoch: before.map_or(-1, |fence| fence.coordinator_epoch),
                is_open: true,
                updated_ms: now.wall_ms,
            };
            self.write(Change::Producer(*producer_id, Some(fence)));
        }
        let mut results = Vec::with_capacity(commit.offsets.len());
        for (one, checked) in commit.offsets.iter().zip(checked) {
            let room = checked.and_then(|value| self.check_room(group, one).map(|()| value));
            results.push(room.map(|value| {
                let (group, id) = (group.clone(), *producer_id);
                self.write(Change::Pending(group, id, one.partition, Some(value)));
            }));
        }
        Ok(results)
    }

    /// The end of the transaction writes all its offsets at once: they have to fit a decision.
    fn check_pending(&self, commit: &CommitTransactionalOffsets) -> Result<(), Failure> {
        let mut count = commit.offsets.len();
        let mut bytes: usize = commit.offsets.iter().map(|one| one.metadata.len()).sum();
        for (group, partition) in self.state.pending_of(commit.producer_id) {
            let group = self.state.group(&group).expect("the index says so");
            count += 1;
            bytes += group.pending[&partition][&commit.producer_id].value.metadata.len();
        }
        if count <= TRANSACTION_OFFSETS_MAX && bytes <= METADATA_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "a transaction has at most {TRANSACTION_OFFSETS_MAX} offsets in a group, with at most \
             {METADATA_BYTES_MAX} bytes of metadata"
        );
        Err(Failure::new(ErrorCode::TooLarge, message))
    }

    fn check_producer(&self, commit: &CommitTransactionalOffsets) -> Result<(), Failure> {
        let (id, epoch) = (commit.producer_id, commit.producer_epoch);
        if id < 0 || epoch < 0 {
            let message = "a transaction has a producer id and an epoch".to_owned();
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        let fence = self.state.producer(id);
        if let Some(fence) = fence.filter(|fence| epoch < fence.epoch) {
            let message = format!("producer {id} is at epoch {}, not {epoch}", fence.epoch);
            return Err(Failure::new(ErrorCode::InvalidProducerEpoch, message));
        }
        if let Some(fence) = fence.filter(|fence| fence.is_open) {
            if fence.epoch == epoch {
                return Ok(());
            }
            let message = format!("producer {id} has a transaction open in epoch {}", fence.epoch);
            return Err(Failure::new(ErrorCode::InvalidTransactionState, message));
        }
        let is_verified =
            self.guards.by_producer.get(&id).is_some_and(|(of_epoch, guard)| {
                *of_epoch == epoch && commit.guard == Some(*guard)
            });
        if is_verified || bug::is_put_back("no-verification-guard") {
            return Ok(());
        }
        let message = format!("the transaction of producer {id} in epoch {epoch} is not verified");
        Err(Failure::new(ErrorCode::TransactionUnverified, message))
    }

    pub(super) fn end_transaction(&mut self, now: Now, end: EndTransaction) -> Result<(), Failure> {
        let id = end.producer_id;
        let fence = self.state.producer(id).copied();
        if let Some(fence) = fence {
            check_marker(&end, &fence)?;
            // The answer to the first one was lost.
            if fence.epoch == end.producer_epoch && !fence.is_open {
                return Ok(());
            }
        }
        self.guards.by_producer.remove(&id);
        for (group, partition) in self.state.pending_of(id) {
            let found = self.state.group(&group).expect("the index says so");
            let pending = found.pending[&partition][&id].clone();
            let counts = end.commit && counts(&pending, found.offsets.get(&partition));
            self.write(Change::Pending(group.clone(), id, partition, None));
            if counts {
                self.settle_offset(group, partition, pending);
            }
        }
        let fence = ProducerFence {
            epoch: end.producer_epoch,
            coordinator_epoch: end.coordinator_epoch,
            is_open: false,
            updated_ms: now.wall_ms,
        };
        self.write(Change::Producer(id, Some(fence)));
        Ok(())
    }

    fn settle_offset(&mut self, group: String, partition: TopicPartition, pending: Committed) {
        let value = OffsetValue { position: Some(pending.position), ..pending.value };
        self.write(Change::Offset(group, partition, Some(value)));
    }
}

/// Whether a pending offset takes the place of the committed one: the later one in the log does, whichever
/// transaction ends first.
fn counts(pending: &Committed, committed: Option<&Committed>) -> bool {
    committed.is_none_or(|committed| {
        if bug::is_put_back("pending-offset-wins-by-time") {
            return pending.value.committed_ms >= committed.value.committed_ms;
        }
        pending.position > committed.position
    })
}

fn check_marker(end: &EndTransaction, fence: &ProducerFence) -> Result<(), Failure> {
    let id = end.producer_id;
    if end.coordinator_epoch < fence.coordinator_epoch
        && !bug::is_put_back("marker-without-coordinator-epoch")
    {
        let message = format!(
            "the end of a transaction of producer {id} comes from coordinator epoch {}; epoch {} has ended one",
            end.coordinator_epoch, fence.coordinator_epoch
        );
        return Err(Failure::new(ErrorCode::TransactionCoordinatorFenced, message));
    }
    // KIP-890: a transaction ends in the epoch after its own. An end in the same epoch is a late one of the
    // transaction before.
    let same_is_late = fence.is_open && !bug::is_put_back("kip-890-no-epoch-bump");
    if end.producer_epoch < fence.epoch || (end.producer_epoch == fence.epoch && same_is_late) {
        let message = format!(
            "the end of a transaction of producer {id} has epoch {}; epoch {} has begun",
            end.producer_epoch, fence.epoch
        );
        return Err(Failure::new(ErrorCode::InvalidProducerEpoch, message));
    }
    Ok(())
}

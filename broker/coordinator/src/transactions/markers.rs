//! Markers on their way to the partitions, and the end of it.

use tidemark_protocol::bug;

use super::{
    MarkerResult, Markers, MarkersWritten, Timer, TransactionCoordinator, TransactionEffect,
    TransactionState, Unwritten, end::completed, since_ms,
};
use crate::decision::Now;

impl TransactionCoordinator {
    /// What a coordinator that begins has to do for what it finds in the log.
    pub(super) fn revive(&mut self, now: Now) {
        let ids: Vec<String> = self.transactions.keys().cloned().collect();
        for id in ids {
            let transaction = &self.transactions[&id];
            if transaction.state.decision().is_some() {
                if !bug::is_put_back("decided-transactions-forgotten-at-failover") {
                    self.await_markers(&id);
                    self.send_markers(now, &id);
                }
            } else if transaction.state == TransactionState::Ongoing {
                let timeout_ms = u64::from(transaction.timeout_ms);
                let left_ms = timeout_ms.saturating_sub(since_ms(now, transaction.started_ms));
                self.deadlines.set(Timer::Timeout { id }, now.mono_ms + left_ms);
            }
        }
        self.deadlines.set(Timer::Expire, now.mono_ms + super::EXPIRE_INTERVAL_MS);
        self.ask_for_ids();
    }

    pub(super) fn await_markers(&mut self, id: &str) {
        let transaction = &self.transactions[id];
        let unwritten = Unwritten {
            producer: transaction.identity(),
            partitions: transaction.partitions.clone(),
        };
        self.unwritten.insert(id.to_owned(), unwritten);
    }

    /// Sends the markers that are not known to be written, and looks again later.
    pub(super) fn send_markers(&mut self, now: Now, id: &str) {
        let Some(unwritten) = self.unwritten.get(id) else { return };
        let Some(commit) = self.transactions[id].state.decision() else { return };
        let markers = Markers {
            id: id.to_owned(),
            producer: unwritten.producer,
            coordinator_epoch: self.coordinator_epoch,
            commit,
            partitions: unwritten.partitions.clone(),
        };
        self.effect(TransactionEffect::SendMarkers(markers));
        let at_ms = now.mono_ms + self.config.marker_retry_ms;
        self.deadlines.set(Timer::Markers { id: id.to_owned() }, at_ms);
    }

    /// Answers for another transaction of the id, or for markers known to be written, say nothing new (KAFKA-9777,
    /// KAFKA-10080, KAFKA-16352).
    pub(super) fn markers_written(&mut self, now: Now, written: &MarkersWritten) {
        if written.results.iter().any(|(_, result)| *result == MarkerResult::Fenced) {
            self.is_fenced = true;
            return;
        }
        let Some(unwritten) = self.unwritten.get_mut(&written.id) else { return };
        if unwritten.producer != written.producer {
            return;
        }
        for (partition, _) in &written.results {
            unwritten.partitions.remove(partition);
        }
        let is_done = unwritten.partitions.is_empty();
        if is_done
            || (bug::is_put_back("complete-before-all-markers") && !written.results.is_empty())
        {
            self.complete(now, &written.id);
        }
    }

    fn complete(&mut self, now: Now, id: &str) {
        self.unwritten.remove(id);
        self.deadlines.cancel(&Timer::Markers { id: id.to_owned() });
        let transaction = self.transactions[id].clone();
        let state = match transaction.state.decision() {
            Some(true) => TransactionState::CompleteCommit,
            Some(false) => TransactionState::CompleteAbort,
            None => unreachable!("markers are awaited for decided transactions: {transaction:?}"),
        };
        self.write(now, id, completed(&transaction, state));
    }
}

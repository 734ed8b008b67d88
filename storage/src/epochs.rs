//! Leader-epoch history: which leader wrote from which offset on.
//!
//! An ordered list, strictly increasing in both epoch and start offset. It answers where two
//! replicas' histories part. This module keeps the list in memory and knows its rules; when it is
//! written to disk is the log's business.

use serde::{Deserialize, Serialize};
use tidemark_protocol::{LeaderEpoch, Offset};

/// One leadership: its epoch, and the offset of the first record it could write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    pub epoch: LeaderEpoch,
    pub start: Offset,
}

/// Answer to "where does this epoch end in your log?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The largest epoch in the history that is not above the one asked for.
    pub epoch: LeaderEpoch,
    /// Offset after the last record of that epoch.
    pub end_offset: Offset,
}

/// The history of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochHistory {
    entries: Vec<EpochStart>,
}

impl EpochHistory {
    /// Takes entries as they were stored, or `None` if they are not strictly increasing.
    pub fn from_entries(entries: Vec<EpochStart>) -> Option<Self> {
        let ordered =
            entries.windows(2).all(|w| w[0].epoch < w[1].epoch && w[0].start < w[1].start);
        ordered.then_some(Self { entries })
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The newest epoch, if there is any.
    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.entries.last().map(|last| last.epoch)
    }

    /// Notes that `epoch` starts at `start`. Returns whether anything changed.
    ///
    /// Entries that contradict it (a later or equal epoch, or a start at or after its own) are
    /// dropped: they describe records that are not in the log.
    pub fn assign(&mut self, epoch: LeaderEpoch, start: Offset) -> bool {
        if let Some(last) = self.entries.last()
            && last.epoch == epoch
            && start >= last.start
        {
            return false;
        }
        while self.entries.last().is_some_and(|last| last.epoch >= epoch || last.start >= start) {
            self.entries.pop();
        }
        self.entries.push(EpochStart { epoch, start });
        true
    }

    /// Notes that a batch of `epoch` was found at `offset`, when the history may be newer than the
    /// log (it is written first) and everything in front of `offset` agrees. Returns whether
    /// anything changed.
    pub fn observe(&mut self, epoch: LeaderEpoch, offset: Offset) -> bool {
        if self.epoch_at(offset) == Some(epoch) {
            return false;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| entry.epoch <= epoch);
        let dropped = self.entries.len() != before;
        self.assign(epoch, offset) || dropped
    }

    /// Where `epoch` ends in a log that ends at `log_end`. `None`: the history cannot tell (it is
    /// empty, or the epoch is newer than all it knows).
    pub fn end_offset_for(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<EpochEnd> {
        let latest = self.latest()?;
        if epoch == latest {
            return Some(EpochEnd { epoch, end_offset: log_end });
        }
        if epoch > latest {
            return None;
        }
        let above = self.entries.partition_point(|entry| entry.epoch <= epoch);
        // `epoch < latest`, so there is an entry above it.
        let end_offset = self.entries[above].start;
        // Asked for an epoch older than the history: the caller must go back to where it begins.
        let floor = above.checked_sub(1).map_or(epoch, |index| self.entries[index].epoch);
        Some(EpochEnd { epoch: floor, end_offset })
    }

    /// The epoch that wrote `offset`, if the history reaches back that far.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let above = self.entries.partition_point(|entry| entry.start <= offset);
        above.checked_sub(1).map(|index| self.entries[index].epoch)
    }

    /// Forgets leaderships that start at or after `end`. Returns whether anything changed.
    ///
    /// To be called even when the log itself needs no truncation: elections without data leave
    /// entries at the log end that would otherwise contradict the next leader's (KAFKA-10706).
    pub fn truncate_from_end(&mut self, end: Offset) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.start < end);
        self.entries.len() != before
    }

    /// Forgets leaderships that ended before `start`; the one that wrote `start` now begins there.
    /// Returns whether anything changed.
    pub fn truncate_from_start(&mut self, start: Offset) -> bool {
        let gone = self.entries.partition_point(|entry| entry.start <= start);
        let Some(last_gone) = gone.checked_sub(1) else { return false };
        if last_gone == 0 && self.entries[0].start == start {
            return false;
        }
        self.entries[last_gone].start = start;
        self.entries.drain(..last_gone);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(LeaderEpoch, Offset)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for &(epoch, start) in entries {
            history.assign(epoch, start);
        }
        history
    }

    fn pairs(history: &EpochHistory) -> Vec<(LeaderEpoch, Offset)> {
        history.entries().iter().map(|entry| (entry.epoch, entry.start)).collect()
    }

    #[test]
    fn assigning_the_same_epoch_again_changes_nothing() {
        let mut history = history(&[(1, 0), (3, 10)]);
        assert!(!history.assign(3, 10));
        assert!(!history.assign(3, 25));
        assert_eq!(pairs(&history), [(1, 0), (3, 10)]);
    }

    #[test]
    fn assigning_drops_what_contradicts_it() {
        let mut same_start = history(&[(1, 0), (3, 10), (4, 10)]);
        assert_eq!(pairs(&same_start), [(1, 0), (4, 10)]);
        assert!(same_start.assign(2, 20), "an older epoch replaces the newer ones");
        assert_eq!(pairs(&same_start), [(1, 0), (2, 20)]);
        assert!(same_start.assign(2, 5), "the same epoch may move back");
        assert_eq!(pairs(&same_start), [(1, 0), (2, 5)]);
    }

    #[test]
    fn the_end_of_an_epoch_follows_the_five_rules() {
        let history = history(&[(2, 5), (4, 10), (7, 20)]);
        let end = |epoch| history.end_offset_for(epoch, 33).map(|end| (end.epoch, end.end_offset));
        assert_eq!(end(7), Some((7, 33)), "the latest ends with the log");
        assert_eq!(end(8), None, "newer than anything known");
        assert_eq!(end(1), Some((1, 5)), "older than anything known");
        assert_eq!(end(4), Some((4, 20)));
        assert_eq!(end(5), Some((4, 20)), "between two: the one below");
        assert_eq!(EpochHistory::default().end_offset_for(0, 0), None);
    }

    #[test]
    fn a_batch_found_in_the_log_overrules_a_history_that_is_ahead_of_it() {
        let mut history = history(&[(0, 0), (1, 14), (2, 28)]);
        assert!(!history.observe(1, 18), "as expected");
        assert_eq!(pairs(&history), [(0, 0), (1, 14), (2, 28)]);
        assert!(history.observe(1, 30), "epoch 2 never wrote at 28");
        assert_eq!(pairs(&history), [(0, 0), (1, 14)]);
        assert!(history.observe(3, 32));
        assert_eq!(pairs(&history), [(0, 0), (1, 14), (3, 32)]);
    }

    #[test]
    fn truncating_the_end_drops_epochs_without_records() {
        let mut history = history(&[(1, 0), (2, 10), (3, 20)]);
        assert!(!history.truncate_from_end(21));
        assert!(history.truncate_from_end(20));
        assert_eq!(pairs(&history), [(1, 0), (2, 10)]);
        assert!(history.truncate_from_end(0));
        assert!(history.entries().is_empty());
    }

    #[test]
    fn truncating_the_start_keeps_the_epoch_that_covers_it() {
        let mut history = history(&[(1, 0), (2, 10), (3, 20)]);
        assert!(history.truncate_from_start(15));
        assert_eq!(pairs(&history), [(2, 15), (3, 20)]);
        assert!(!history.truncate_from_start(15));
        assert!(history.truncate_from_start(20));
        assert_eq!(pairs(&history), [(3, 20)]);
        assert!(history.truncate_from_start(90));
        assert_eq!(pairs(&history), [(3, 90)]);
        assert_eq!(history.epoch_at(95), Some(3));
        assert_eq!(history.epoch_at(89), None);
    }

    #[test]
    fn stored_entries_out_of_order_are_refused() {
        let entry = |epoch, start| EpochStart { epoch, start };
        assert!(EpochHistory::from_entries(vec![entry(1, 0), entry(2, 5)]).is_some());
        assert!(EpochHistory::from_entries(vec![entry(2, 0), entry(2, 5)]).is_none());
        assert!(EpochHistory::from_entries(vec![entry(1, 5), entry(2, 5)]).is_none());
    }
}

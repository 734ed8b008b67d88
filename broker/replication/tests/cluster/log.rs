//! A log in memory: records with their epochs, how much of it is flushed, and the epoch history as storage keeps it.

use tidemark_protocol::{LeaderEpoch, Offset};
use tidemark_replication::{EpochEnd, LogState};
use tidemark_storage::EpochHistory;

/// One record: the epoch that wrote it, and what it says. No two records say the same.
pub(crate) type Record = (LeaderEpoch, u64);

#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    start: Offset,
    records: Vec<Record>,
    pub(crate) flushed: Offset,
    history: EpochHistory,
    /// How often it was cut: a flush that began before says nothing.
    pub(crate) cuts: u64,
}

impl Log {
    pub(crate) fn start(&self) -> Offset {
        self.start
    }

    pub(crate) fn end(&self) -> Offset {
        self.start + self.records.len() as u64
    }

    pub(crate) fn get(&self, offset: Offset) -> Option<Record> {
        let index = offset.checked_sub(self.start)?;
        self.records.get(usize::try_from(index).unwrap()).copied()
    }

    pub(crate) fn read(&self, from: Offset, count: usize) -> Vec<Record> {
        (from..self.end()).take(count).filter_map(|offset| self.get(offset)).collect()
    }

    pub(crate) fn state(&self) -> LogState {
        LogState {
            log_start_offset: self.start,
            log_end_offset: self.end(),
            flushed_offset: self.flushed,
            last_epoch: self.history.latest(),
            damaged_from: None,
        }
    }

    pub(crate) fn assign_epoch(&mut self, epoch: LeaderEpoch, start: Offset) {
        self.history.assign(epoch, start);
    }

    pub(crate) fn epoch_end(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let end = self.history.end_offset_for(epoch, self.end())?;
        Some(EpochEnd { epoch: end.epoch, end_offset: end.end_offset })
    }

    pub(crate) fn append(&mut self, record: Record) {
        self.history.assign(record.0, self.end());
        self.records.push(record);
    }

    /// Appends what a leader sent, all or nothing.
    pub(crate) fn append_as_follower(
        &mut self,
        base: Offset,
        records: &[Record],
        epoch_max: LeaderEpoch,
    ) -> bool {
        let mut latest = self.history.latest().unwrap_or(0);
        let in_order = records.iter().all(|(epoch, _)| {
            let fits = (latest..=epoch_max).contains(epoch);
            latest = *epoch;
            fits
        });
        let fits = base == self.end() && !records.is_empty() && in_order;
        if fits {
            for record in records {
                self.append(*record);
            }
        }
        fits
    }

    pub(crate) fn truncate(&mut self, offset: Offset) {
        assert!(offset >= self.start, "truncating below the start");
        self.history.truncate_from_end(offset);
        self.records.truncate(usize::try_from(offset - self.start).unwrap());
        self.flushed = self.flushed.min(self.end());
        self.cuts += 1;
    }

    pub(crate) fn restart_at(&mut self, offset: Offset) {
        let cuts = self.cuts + 1;
        *self = Self { start: offset, flushed: offset, cuts, ..Self::default() };
    }

    pub(crate) fn trim(&mut self, offset: Offset) {
        assert!((self.start..=self.end()).contains(&offset), "trimming outside the log");
        self.records.drain(..usize::try_from(offset - self.start).unwrap());
        self.start = offset;
        self.flushed = self.flushed.max(offset);
        self.history.truncate_from_start(offset);
    }

    /// Loses what was not flushed, except for `kept` records of it, and recovers.
    pub(crate) fn crash(&mut self, kept: u64) {
        let end = (self.flushed + kept).min(self.end());
        self.truncate(end);
        // Recovery flushes what it found.
        self.flushed = self.end();
    }
}

//! Giving up the front of the log: by request, by age, by size.
//!
//! Whole segments go, never one with records at or above the high watermark, never the one being
//! written unless it was rolled first. The new log start is recorded before anything is deleted:
//! deletions that a power loss undoes, in part and in any order, are then done again at the next
//! open instead of looking like loss.

use std::sync::{Arc, atomic::Ordering};

use tidemark_protocol::Offset;

use super::{Log, quarantine};
use crate::{
    disk::{Disk, DiskError},
    error::StorageError,
    index::NO_MAX_TIMESTAMP,
    segment::Segment,
    state_file::{self, Kind},
};

pub(super) const LOG_START_FILE: &str = "log-start";
pub(super) const LOG_START_BYTES_MAX: usize = 256;

/// What retention deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub segments: usize,
    pub bytes: u64,
    /// Those of `bytes` that were not old enough to go: the log was too large.
    pub oversize_bytes: u64,
    pub log_start: Offset,
}

/// What moving the log start did.
struct GivenUp {
    segments: usize,
    bytes: u64,
    /// Whether the new start is on disk.
    recorded: Result<(), DiskError>,
}

impl<D: Disk> Log<D> {
    /// Closes the segment being written if it is old enough; the next append begins another.
    pub fn roll_if_due(&mut self, now_ms: u64) {
        let segment_ms = self.config.segment_ms;
        let Some(tail) = &mut self.tail else { return };
        if tail.rolled || tail.at.position == 0 {
            return;
        }
        let created_ms = *tail.created_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(created_ms) >= segment_ms {
            self.roll();
        }
    }

    /// Raises the log start to `before` (at most the log end) and deletes the segments that are
    /// wholly below it. Returns the log start. Durable when it returns.
    pub fn trim(&mut self, before: Offset) -> Result<Offset, StorageError> {
        let range = self.log_start_offset()..self.log_end_offset();
        if before > range.end {
            return Err(StorageError::OutOfRange { offset: before, range });
        }
        if before <= range.start {
            return Ok(range.start);
        }
        self.give_up_front(before)?.recorded?;
        Ok(before)
    }

    /// Moves the log start and deletes what is below it. The start is recorded first; where the disk
    /// is too full for that, segments go one by one until it is not.
    fn give_up_front(&mut self, start: Offset) -> Result<GivenUp, StorageError> {
        let mut recorded = self.record_log_start(start);
        self.raise_log_start(start);
        if start == self.log_end_offset() {
            self.roll();
        }
        let (mut segments, mut bytes) = (0, 0);
        while recorded.as_ref().is_err_and(DiskError::is_full) && self.front(false) > 0 {
            bytes += self.delete_front(1)?;
            segments += 1;
            self.shared.disk().sync_dir(&self.shared.dir)?;
            recorded = self.record_log_start(start);
        }
        if recorded.is_ok() {
            // The batches that the history could be rebuilt from are about to go.
            match self.save_own_epochs() {
                Err(error) if error.is_full() => tracing::warn!(%error, "epochs are not saved"),
                other => other?,
            }
            let front = self.front(true);
            segments += front;
            bytes += self.delete_front(front)?;
        }
        Ok(GivenUp { segments, bytes, recorded })
    }

    /// Deletes segments that are older or more than the settings allow, oldest first, and none with
    /// records at or above `decided`: the high watermark, or the last stable offset where there are transactions.
    pub fn apply_retention(
        &mut self,
        decided: Offset,
        now_ms: u64,
    ) -> Result<Deleted, StorageError> {
        let before = self.log_start_offset();
        let mut deleted = Deleted { log_start: before, ..Deleted::default() };
        if !self.config.cleanup.delete {
            return Ok(deleted);
        }
        let segments = self.shared.segments.load_full();
        let mut total: u64 = segments.iter().map(|segment| segment.end()).sum();
        let mut start = before;
        for (index, segment) in segments.iter().enumerate() {
            let end = segments.get(index + 1).map_or(self.log_end_offset(), |next| next.base);
            let last = index + 1 == segments.len();
            let expired = self.is_expired(segment, now_ms);
            let oversize =
                self.config.retention_bytes.is_some_and(|max| total - segment.end() >= max);
            // Size never asks for the segment being written: at least its own bytes are wanted.
            if end > decided || !(expired || (oversize && !last)) || segment.end() == 0 {
                break;
            }
            total -= segment.end();
            start = end;
            deleted.oversize_bytes += if expired { 0 } else { segment.end() };
        }
        if start > before {
            let given_up = self.give_up_front(start)?;
            (deleted.segments, deleted.bytes) = (given_up.segments, given_up.bytes);
            // On a full disk some may have been left for later.
            deleted.oversize_bytes = deleted.oversize_bytes.min(deleted.bytes);
            match given_up.recorded {
                // What could be deleted is; the rest waits for the next run.
                Err(error) if !error.is_full() => return Err(error.into()),
                _ => {}
            }
            deleted.log_start = start;
        }
        Ok(deleted)
    }

    fn is_expired(&self, segment: &Segment<D>, now_ms: u64) -> bool {
        let (Some(retention_ms), newest) = (self.config.retention_ms, segment.max_timestamp())
        else {
            return false;
        };
        // Records without a timestamp have no age to expire by.
        let Ok(newest) = u64::try_from(newest) else { return false };
        newest != NO_MAX_TIMESTAMP.cast_unsigned() && now_ms.saturating_sub(newest) > retention_ms
    }

    pub(super) fn record_log_start(&mut self, start: Offset) -> Result<(), DiskError> {
        if !self.dir_exists {
            return Ok(());
        }
        self.make_dir_durable()?;
        let path = self.shared.path(LOG_START_FILE);
        state_file::write(self.shared.disk(), &path, Kind::LogStart, &start)
    }

    fn raise_log_start(&mut self, start: Offset) {
        self.shared.log_start.store(start, Ordering::Release);
        // What is deleted needs no flushing.
        self.shared.flushed.fetch_max(start, Ordering::Release);
        if self.epochs.truncate_from_start(start) {
            self.epochs_version += 1;
        }
        if let Err(error) = quarantine::clip(&self.shared, &(start..Offset::MAX)) {
            // Nothing is ever written below the log start again.
            tracing::debug!(%error, "damage below the log start is still on the list");
        }
    }

    /// How many segments are wholly below the log start. The last one counts only if it takes no
    /// more batches and the log start is `recorded`: nothing but its name may say where the log ends.
    pub(super) fn front(&self, recorded: bool) -> usize {
        let start = self.log_start_offset();
        let segments = self.shared.segments.load();
        let followed = segments.iter().skip(1).take_while(|next| next.base <= start).count();
        let all = followed + 1 == segments.len()
            && start == self.log_end_offset()
            && self.tail.as_ref().is_some_and(|tail| tail.rolled);
        followed + usize::from(recorded && all)
    }

    /// Deletes the oldest segments; returns their bytes.
    pub(super) fn delete_front(&mut self, count: usize) -> Result<u64, DiskError> {
        let segments = self.shared.segments.load_full();
        if count > 0 && count == segments.len() {
            self.tail = None;
            self.durable = None;
        }
        let gone = &segments[..count];
        self.segments_with(|list| drop(list.drain(..count)));
        self.dirty.retain(|dirty| !gone.iter().any(|gone| Arc::ptr_eq(gone, &dirty.segment)));
        let mut bytes = 0;
        for segment in gone {
            bytes += segment.end();
            self.unlink(segment)?;
        }
        Ok(bytes)
    }

    /// Removes a segment's files; readers that have them open keep them.
    pub(super) fn unlink(&self, segment: &Segment<D>) -> Result<(), DiskError> {
        let _names = self.shared.state_files();
        for path in [segment.index_path(), segment.path().to_owned()] {
            match self.shared.disk().unlink(&path) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

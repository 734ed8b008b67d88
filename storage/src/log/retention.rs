//! Giving up the front of the log: by request, by age, by size.
//!
//! Whole segments go, never one with records at or above the high watermark, never the one being
//! written unless it was rolled first. The new log start is recorded before anything is deleted:
//! deletions that a power loss undoes, in part and in any order, are then done again at the next
//! open instead of looking like loss. On a full disk it cannot be recorded, and deleting is what
//! helps: oldest first, one by one, and never the last segment, whose name says where the log ends.

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
    pub log_start: Offset,
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
        if !self.give_up_front(before)?.2 {
            self.record_log_start(before)?;
            self.delete_below_start(true)?;
        }
        Ok(before)
    }

    /// Moves the log start and deletes what is below it: segments, bytes, and whether the new start
    /// is on disk. On a full disk it is not, but what can be deleted without it is.
    fn give_up_front(&mut self, start: Offset) -> Result<(usize, u64, bool), StorageError> {
        let recorded = match self.record_log_start(start) {
            Ok(()) => true,
            Err(error) if error.is_full() => false,
            Err(error) => return Err(error.into()),
        };
        self.raise_log_start(start);
        if start == self.log_end_offset() {
            self.roll();
        }
        let (segments, bytes) = self.delete_below_start(recorded)?;
        Ok((segments, bytes, recorded))
    }

    /// Deletes segments that are older or more than the settings allow, oldest first, and none with
    /// records at or above `high_watermark`.
    pub fn apply_retention(
        &mut self,
        high_watermark: Offset,
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
            if end > high_watermark || !(expired || (oversize && !last)) || segment.end() == 0 {
                break;
            }
            total -= segment.end();
            start = end;
        }
        if start > before {
            (deleted.segments, deleted.bytes, _) = self.give_up_front(start)?;
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
        quarantine::clip(&self.shared, &(start..Offset::MAX));
    }

    /// Deletes the segments wholly below the log start, but not the one being written. `recorded`:
    /// the log start is on disk, so that names which disappear in any order, or all of them, say
    /// nothing wrong.
    pub(super) fn delete_below_start(&mut self, recorded: bool) -> Result<(usize, u64), DiskError> {
        let start = self.log_start_offset();
        let segments = self.shared.segments.load_full();
        let mut count = segments
            .iter()
            .zip(segments.iter().skip(1))
            .take_while(|(_, next)| next.base <= start)
            .count();
        if recorded
            && count + 1 == segments.len()
            && start == self.log_end_offset()
            && self.tail.as_ref().is_some_and(|tail| tail.rolled)
        {
            count += 1;
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
            if !recorded {
                self.shared.disk().sync_dir(&self.shared.dir)?;
            }
        }
        Ok((count, bytes))
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

//! Taking back the end of the log, as a follower does when its leader's history differs.
//!
//! Stale batches behind the new end would be believed by a recovery, so they are zeroed, not
//! forgotten; and because that takes several steps, a durable mark says that it is under way. An
//! open that finds the mark finishes the job before it reads anything.

use std::sync::{Arc, atomic::Ordering};

use tidemark_protocol::{Offset, bug};

use super::{Dirty, Log, Tail, compact::REPLACED_FILE, quarantine};
use crate::{
    config::APPEND_BYTES_MAX,
    disk::{Disk, DiskError, DiskFile},
    error::{FlushError, ReadError, StorageError},
    index::IndexEntry,
    segment::{Segment, SegmentStart, first_entry},
    state_file::{self, Kind},
    truncations::{TRUNCATIONS_FILE, Truncations},
    walk::{Walk, WalkError},
};

impl<D: Disk> Log<D> {
    /// Removes everything from `offset` on; a batch that contains `offset` goes whole. Also forgets
    /// leaderships that start there or later, even when `offset` is the log end or beyond. Durable
    /// when it returns `Ok`. An error half-way fences the log, and the next open finishes what was
    /// begun.
    ///
    /// The caller sees to it that no reader is given offsets at or above `offset` from now on.
    pub fn truncate(&mut self, offset: Offset) -> Result<(), StorageError> {
        if self.shared.is_fenced() {
            return Err(StorageError::Fenced);
        }
        let range = self.log_start_offset()..self.log_end_offset();
        if offset < range.start {
            return Err(StorageError::OutOfRange { offset, range });
        }
        if offset >= range.end {
            if bug::is_put_back("epochs-not-truncated-at-end") {
                return Ok(());
            }
            self.forget_epochs(offset);
            return Ok(self.save_own_epochs()?);
        }
        let segments = self.shared.segments.load_full();
        let keep = segments.partition_point(|segment| segment.base <= offset);
        let (kept, gone) = segments.split_at(keep);
        let Some(cut) = kept.last() else {
            // The segment is missing, and everything behind it goes: nothing is left of what was durable.
            return self.restart_at(offset);
        };
        let (at, last_batch) = boundary(cut, offset)?;
        self.mark(|truncations| truncations.begin(at.offset))?;
        self.forget_epochs(offset);
        self.cut(cut, gone, at, last_batch).map_err(|error| self.interrupted(error))
    }

    /// What stopped a change that is marked. Even a full disk is no refusal any more, which would mean that nothing has
    /// happened: the log is fenced, and says so.
    pub(super) fn interrupted(&self, error: StorageError) -> StorageError {
        self.shared.fenced.store(true, Ordering::Release);
        match error {
            StorageError::Disk(error) => FlushError::Failed(error).into(),
            other => other,
        }
    }

    fn forget_epochs(&mut self, offset: Offset) {
        if self.epochs.truncate_from_end(offset) {
            self.epochs_version += 1;
        }
    }

    /// Makes the mark of a truncation durable. A full disk refuses it, and nothing has happened.
    pub(super) fn mark(&mut self, begin: impl FnOnce(&mut Truncations)) -> Result<(), DiskError> {
        self.make_dir_durable()?;
        let before = self.truncations.clone();
        begin(&mut self.truncations);
        if let Err(error) = self.save_truncations() {
            if !error.is_full() {
                self.shared.fenced.store(true, Ordering::Release);
            }
            self.truncations = before;
            return Err(error);
        }
        self.shared.state_files().truncations = self.truncations.count();
        Ok(())
    }

    pub(super) fn save_own_epochs(&mut self) -> Result<(), DiskError> {
        if self.dir_exists && self.epochs_version > self.epochs_saved {
            // They show that a flush was completed here, which is told from whose log it is.
            self.make_dir_durable()?;
            self.shared.save_epochs(self.epochs_version, self.epochs.entries())?;
            self.epochs_saved = self.epochs_version;
        }
        Ok(())
    }

    /// Carries out a truncation whose mark is set.
    fn cut(
        &mut self,
        cut: &Arc<Segment<D>>,
        gone: &[Arc<Segment<D>>],
        at: IndexEntry,
        last_batch: u64,
    ) -> Result<(), StorageError> {
        // Readers first: nobody may find what is about to be zeroed.
        let end = at.offset.max(self.log_start_offset());
        self.shared.log_end.store(end, Ordering::Release);
        self.shared.flushed.fetch_min(end, Ordering::Release);
        let file = cut.file()?;
        let rest = Arc::new(self.replacement(cut, at));
        if rest.capacity_bytes() == cut.capacity_bytes() {
            rest.adopt(Arc::clone(&file));
        }
        self.segments_with(|list| {
            list.retain(|segment| segment.base < cut.base);
            list.push(Arc::clone(&rest));
        });
        let unflushed = self.dirty.iter().find(|dirty| dirty.segment.base == cut.base);
        let unflushed = unflushed.map(|dirty| dirty.from).filter(|from| *from < at.position);
        self.dirty.retain(|dirty| dirty.segment.base < cut.base);

        file.file.zero(at.position..file.file.len())?;
        file.file.sync(at.position..file.file.len())?;
        for gone in gone {
            self.unlink(gone)?;
        }
        match self.shared.disk().unlink(&rest.index_path()) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => self.shared.disk().sync_dir(&self.shared.dir)?,
        }
        if let Some(from) = unflushed {
            rest.set_pinned(true);
            self.dirty.push(Dirty { segment: Arc::clone(&rest), file, from, seal: None });
        }
        self.tail = Some(Tail {
            segment: rest,
            at,
            last_batch,
            indexed: at.position,
            index_saved: 0,
            created_ms: None,
            rolled: false,
        });
        if end > at.offset {
            // The batch that went had been trimmed in part. All that is left of the segment is
            // below the log start; the next batch begins another one there.
            self.record_log_start(end)?;
            if let Some(tail) = &mut self.tail {
                tail.rolled = true;
                tail.segment.seal(tail.at);
            }
            self.delete_front(self.front(true))?;
        }
        if self.dirty.is_empty() {
            self.durable = self.tip();
            self.shared.flushed.store(end, Ordering::Release);
        } else if self.durable.is_some_and(|tip| tip.at.offset > at.offset) {
            self.durable = self.tip();
        }
        quarantine::clip(&self.shared, &(0..end))?;
        self.save_own_epochs()?;
        self.forget_replacements(at.offset)?;
        self.clip_removals(at.offset)?;
        self.truncations.pending = None;
        self.save_truncations()?;
        Ok(())
    }

    pub(super) fn save_truncations(&self) -> Result<(), DiskError> {
        let path = self.shared.path(TRUNCATIONS_FILE);
        state_file::write(self.shared.disk(), &path, Kind::Truncations, &self.truncations)
    }

    /// What compaction made of a segment that goes only to `end` now is not what it is any more. A file keeps its length when
    /// its end is zeroed, so that nothing else would tell.
    pub(super) fn forget_replacements(&mut self, end: Offset) -> Result<(), DiskError> {
        let known = self.replaced.len();
        self.replaced.retain(|entry| entry.end.offset <= end);
        if self.replaced.len() == known {
            return Ok(());
        }
        let path = self.shared.path(REPLACED_FILE);
        state_file::write(self.shared.disk(), &path, Kind::Compacted, &self.replaced)
    }

    /// The segment again, ending at a boundary in front of its end.
    fn replacement(&self, cut: &Segment<D>, at: IndexEntry) -> Segment<D> {
        // One that was sealed is mapped as far as it went, and is closed when it is full again. An empty one takes whatever
        // comes, as a new one would.
        let capacity_bytes = if at.position == 0 {
            self.config.segment_limit().max(APPEND_BYTES_MAX).max(cut.capacity_bytes())
        } else {
            cut.capacity_bytes()
        };
        let start = SegmentStart {
            recent_from: at,
            end: at.position,
            max_timestamp: at.max_timestamp,
            verified_from: at.position,
            salt: cut.salt,
            capacity_bytes,
        };
        Segment::new(&self.shared.files, &self.shared.dir, cut.base, start)
    }
}

/// The last boundary in a segment with everything in front of it below `offset`, and where the
/// batch in front of it starts.
fn boundary<D: Disk>(
    segment: &Arc<Segment<D>>,
    offset: Offset,
) -> Result<(IndexEntry, u64), StorageError> {
    let older = segment.load_older()?;
    // Strictly below, so that the walk passes at least the batch in front of the boundary.
    let mut at = segment.floor_in(&older, |entry| entry.offset < offset);
    if at.position > 0 && at.offset >= offset {
        at = first_entry(segment.base, segment.salt);
    }
    let mut last_batch = at.position;
    let mut walk = Walk::new(segment.file()?, at.position, segment.end(), true);
    loop {
        let before = at;
        if at.offset == offset {
            // What follows goes, damaged or not.
            return Ok((at, last_batch));
        }
        match walk.step(&mut at) {
            Ok(true) if at.offset <= offset => last_batch = before.position,
            Ok(true) => return Ok((before, last_batch)),
            Ok(false) => return Ok((at, last_batch)),
            Err(WalkError::Disk(error)) => return Err(error.into()),
            Err(WalkError::NoBatch) => {
                return Err(ReadError::Corrupt {
                    range: before.offset..offset.max(before.offset + 1),
                }
                .into());
            }
        }
    }
}

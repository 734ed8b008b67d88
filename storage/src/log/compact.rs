//! Compacting a log: when, and how the result takes the place of what it was made from.
//!
//! The owner makes a [`CompactionJob`], anybody runs it, the owner installs the
//! [`CompactionDone`]. Readers that hold an old segment keep reading it.
//!
//! A file is replaced in an order that any crash may interrupt. What the new files look like is
//! recorded first, because a checkpoint may still describe the old ones; indexes of old files are
//! gone before the files are; a recovery finds each segment either as it was or as it is to be.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
};

use serde::{Deserialize, Serialize};
use tidemark_protocol::Offset;

use super::{Log, Shared};
use crate::{
    compaction::{self, AbortedRange, Cleaned, LatestOffsets, Rules, Tombstones, cleaned_path},
    disk::{Disk, DiskError},
    error::StorageError,
    index::{IndexEntry, IndexFile},
    segment::{Segment, SegmentStart},
    state_file::{self, Kind},
};

/// Most keys one pass holds in memory, about 40 bytes each. No batch has more records than this.
const KEYS_MAX: usize = 1 << 20;
/// A pass is due when this many percent of what it would read was never compacted.
const DIRTY_PERCENT_MIN: u64 = 50;

pub(super) const REPLACED_FILE: &str = "compacted";
pub(super) const REPLACED_BYTES_MAX: usize = 64 << 20;

/// What a segment file is known to look like since compaction replaced it. Goes before what a
/// checkpoint says, but only if the file is exactly this long: it may not have been replaced yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replaced {
    pub base: Offset,
    pub file_bytes: u64,
    pub end: IndexEntry,
}

/// How far compaction has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Below, every key has one record at most.
    cleaned_end: Offset,
    tombstones: Tombstones,
    /// Truncations that had happened when this was true.
    truncations: u64,
    /// Alive while a job or its outcome is.
    under_way: Weak<()>,
}

/// Rewrites sealed segments without superseded records, into new files, when run.
pub struct CompactionJob<D: Disk> {
    shared: Arc<Shared<D>>,
    under_way: Arc<()>,
    segments: Vec<Arc<Segment<D>>>,
    /// Where the segments end.
    end: Offset,
    cleaned_end: Offset,
    truncations: u64,
    removals_max: Offset,
    now_ms: i64,
    delete_retention_ms: i64,
    index_interval_bytes: u64,
    keys_max: usize,
    aborted: Vec<AbortedRange>,
}

/// A segment, and what is to take its place.
struct Replacement<D: Disk> {
    old: Arc<Segment<D>>,
    new: Arc<Segment<D>>,
    mark: Replaced,
}

/// What a [`CompactionJob`] made; for [`Log::install_compaction`].
pub struct CompactionDone<D: Disk> {
    _under_way: Arc<()>,
    segments: Vec<Replacement<D>>,
    cleaned_end: Offset,
    tombstones: Tombstones,
    truncations: u64,
}

/// How far a pass may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionBounds {
    /// What lies below is committed, and below every transaction that has not ended.
    pub decided: Offset,
    /// Tombstones stay from here on: somebody who copies the log has yet to read them. [`Offset::MAX`] if nobody does.
    pub removals_max: Offset,
}

/// What compaction changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    pub segments: usize,
    /// What the log is smaller by.
    pub bytes: u64,
}

impl<D: Disk> fmt::Debug for CompactionJob<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CompactionJob").field("log", &self.shared).finish_non_exhaustive()
    }
}

impl<D: Disk> fmt::Debug for CompactionDone<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CompactionDone")
            .field("cleaned_end", &self.cleaned_end)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> CompactionDone<D> {
    /// Below, every key has one record at most, once this is installed.
    pub fn cleaned_end(&self) -> Offset {
        self.cleaned_end
    }
}

impl<D: Disk> CompactionJob<D> {
    /// Holds fewer keys in memory than usual: more passes, less memory. A batch with more keys than
    /// this is never compacted.
    #[must_use]
    pub fn with_keys_max(mut self, keys_max: usize) -> Self {
        self.keys_max = keys_max;
        self
    }

    /// Leaves out what was aborted. Whoever knows of transactions says so, and has the job made for what is decided only.
    #[must_use]
    pub fn without(mut self, aborted: Vec<AbortedRange>) -> Self {
        self.aborted = aborted;
        self
    }

    /// Reads, and writes new files beside the old ones. The log is as before, whatever comes of it.
    pub fn run(self) -> Result<CompactionDone<D>, StorageError> {
        let (shared, segments) = (Arc::clone(&self.shared), self.segments.clone());
        let outcome = self.rewrite();
        if outcome.is_err() {
            for segment in &segments {
                discard(&shared, segment);
            }
        }
        outcome
    }

    fn rewrite(self) -> Result<CompactionDone<D>, StorageError> {
        let mut latest = LatestOffsets::new(self.keys_max);
        let mut latest_end = self.end;
        for segment in &self.segments {
            let dirty = segment.sealed().is_some_and(|end| end.offset > self.cleaned_end);
            if dirty
                && let Some(stop) =
                    compaction::note_keys(segment, self.cleaned_end, &self.aborted, &mut latest)?
            {
                latest_end = stop;
                break;
            }
        }
        let rules = Rules {
            latest: &latest,
            aborted: &self.aborted,
            latest_end,
            cleaned_end: self.cleaned_end,
            removals_max: self.removals_max,
            now_ms: self.now_ms,
            delete_retention_ms: self.delete_retention_ms,
        };
        let mut segments = Vec::new();
        let mut tombstones = Tombstones::default();
        for old in self.segments.iter().filter(|segment| segment.base < latest_end) {
            let disk = self.shared.disk();
            let outcome = compaction::clean(disk, old, &rules, self.index_interval_bytes)?;
            tombstones = tombstones.and(outcome.tombstones);
            if let Some(cleaned) = outcome.cleaned {
                segments.push(self.stage(old, cleaned)?);
            }
        }
        Ok(CompactionDone {
            _under_way: self.under_way,
            segments,
            cleaned_end: latest_end,
            tombstones,
            truncations: self.truncations,
        })
    }

    /// Writes the index and makes the segment, whose file is open under its provisional name.
    fn stage(
        &self,
        old: &Arc<Segment<D>>,
        cleaned: Cleaned<D::File>,
    ) -> Result<Replacement<D>, DiskError> {
        let Cleaned { file, file_bytes, end, entries } = cleaned;
        let index = IndexFile { salt: old.salt, seal: end, entries };
        let bytes = state_file::encode(Kind::Index, &index);
        self.shared.disk().write_file(&cleaned_path(&old.index_path()), &bytes)?;
        let start = SegmentStart {
            recent_from: end,
            end: end.position,
            max_timestamp: end.max_timestamp,
            verified_from: 0,
            salt: old.salt,
            capacity_bytes: file_bytes,
        };
        let new = Arc::new(Segment::new(&self.shared.files, &self.shared.dir, old.base, start));
        new.seal(end);
        new.older.store(Some(Arc::new(index.entries)));
        // Until the file has its name nobody could open it again.
        new.set_pinned(true);
        new.install(file);
        let mark = Replaced { base: old.base, file_bytes, end };
        Ok(Replacement { old: Arc::clone(old), new, mark })
    }
}

impl<D: Disk> Log<D> {
    /// A job that compacts what is sealed, durable, decided and old enough. `None` when the settings do not ask for it, when
    /// too little would come of it, when the log is fenced, or while an earlier job or its outcome is still about.
    pub fn compaction_job(
        &mut self,
        bounds: CompactionBounds,
        now_ms: u64,
    ) -> Option<CompactionJob<D>> {
        let CompactionBounds { decided, removals_max } = bounds;
        let progress = &mut self.compaction;
        if !self.config.cleanup.compact
            || self.shared.is_fenced()
            || progress.under_way.strong_count() > 0
        {
            return None;
        }
        if progress.truncations != self.truncations.count() {
            *progress = Progress { truncations: self.truncations.count(), ..Progress::default() };
        }
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let newest = now_ms.saturating_sub(signed(self.config.min_compaction_lag_ms));
        let durable = decided.min(self.shared.flushed.load(Ordering::Acquire));
        let cleaned_end = self.compaction.cleaned_end;
        let segments = self.compactable(durable, newest);
        let end = segments.last()?.sealed()?.offset;
        let bytes =
            |segments: &[Arc<Segment<D>>]| -> u64 { segments.iter().map(|s| s.end()).sum() };
        let total = bytes(&segments);
        let cleaned = segments.partition_point(|segment| {
            segment.sealed().is_some_and(|end| end.offset <= cleaned_end)
        });
        let dirty = bytes(&segments[cleaned..]);
        let Tombstones { delete_horizon, held_end, .. } = self.compaction.tombstones;
        let expired = delete_horizon.is_some_and(|horizon| horizon <= now_ms)
            || held_end.is_some_and(|end| end <= removals_max);
        if !expired && (dirty == 0 || dirty * 100 < total * DIRTY_PERCENT_MIN) {
            return None;
        }
        let under_way = Arc::new(());
        self.compaction.under_way = Arc::downgrade(&under_way);
        Some(CompactionJob {
            shared: Arc::clone(&self.shared),
            under_way,
            segments,
            end,
            cleaned_end,
            truncations: self.truncations.count(),
            removals_max,
            now_ms,
            delete_retention_ms: signed(self.config.delete_retention_ms),
            index_interval_bytes: self.config.index_interval_bytes,
            keys_max: KEYS_MAX,
            aborted: Vec::new(),
        })
    }

    /// The segments that compaction may touch: sealed and flushed, all of it below `durable`, what
    /// was never compacted not younger than `newest`, and never the last.
    fn compactable(&self, durable: Offset, newest: i64) -> Vec<Arc<Segment<D>>> {
        let all = self.shared.segments.load_full();
        let sealed = &all[..all.len().saturating_sub(1)];
        let eligible = sealed.iter().take_while(|segment| {
            let dirty = self.dirty.iter().any(|dirty| Arc::ptr_eq(&dirty.segment, segment));
            let old = |end: IndexEntry| {
                end.offset <= self.compaction.cleaned_end || end.max_timestamp <= newest
            };
            !dirty && segment.sealed().is_some_and(|end| end.offset <= durable && old(end))
        });
        eligible.cloned().collect()
    }

    /// Puts what a job made in the place of what it was made from. Durable when it returns `Ok`; an
    /// error half-way fences the log, and the next open finds each segment old or new.
    pub fn install_compaction(
        &mut self,
        done: CompactionDone<D>,
    ) -> Result<Compacted, StorageError> {
        if self.shared.is_fenced() {
            return Err(StorageError::Fenced);
        }
        let current = done.truncations == self.truncations.count();
        let listed = self.shared.segments.load_full();
        let mut segments = done.segments;
        segments.retain(|Replacement { old, .. }| {
            // Retention or a truncation may have been faster.
            let wanted = current && listed.iter().any(|listed| Arc::ptr_eq(listed, old));
            if !wanted {
                discard(&self.shared, old);
            }
            wanted
        });
        if !segments.is_empty() {
            let noted = self
                .note_removals(done.tombstones.dropped_end)
                .and_then(|()| Ok(self.record_replacements(&listed, &segments)?));
            if let Err(error) = noted {
                // A full disk would not get any emptier by what is never used.
                for Replacement { old, .. } in &segments {
                    discard(&self.shared, old);
                }
                return Err(error);
            }
            if let Err(error) = self.replace(&segments) {
                self.shared.fenced.store(true, Ordering::Release);
                return Err(error.into());
            }
        }
        if current {
            self.compaction.cleaned_end = done.cleaned_end;
            self.compaction.tombstones = done.tombstones;
        }
        let before: u64 = segments.iter().map(|segment| segment.old.end()).sum();
        let after: u64 = segments.iter().map(|segment| segment.new.end()).sum();
        Ok(Compacted { segments: segments.len(), bytes: before.saturating_sub(after) })
    }

    fn record_replacements(
        &mut self,
        listed: &[Arc<Segment<D>>],
        segments: &[Replacement<D>],
    ) -> Result<(), DiskError> {
        let mut replaced = self.replaced.clone();
        replaced.retain(|entry| {
            // What is about to be replaced is still described by an entry of its own.
            let current = listed.iter().find(|listed| listed.base == entry.base);
            current.is_some_and(|current| current.sealed() == Some(entry.end))
        });
        replaced.extend(segments.iter().map(|segment| segment.mark));
        let path = self.shared.path(REPLACED_FILE);
        state_file::write(self.shared.disk(), &path, Kind::Compacted, &replaced)?;
        self.replaced = replaced;
        Ok(())
    }

    fn replace(&self, segments: &[Replacement<D>]) -> Result<(), DiskError> {
        let _names = self.shared.state_files();
        // Readers first: from here on nobody opens an old file by its name and believes it.
        self.segments_with(|list| {
            for Replacement { old, new, .. } in segments {
                if let Some(place) = list.iter_mut().find(|listed| Arc::ptr_eq(listed, old)) {
                    *place = Arc::clone(new);
                }
            }
        });
        let (disk, dir) = (self.shared.disk(), &self.shared.dir);
        for Replacement { old, .. } in segments {
            old.retire();
            match disk.unlink(&old.index_path()) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        disk.sync_dir(dir)?;
        for Replacement { old, .. } in segments {
            disk.rename(&cleaned_path(old.path()), old.path())?;
        }
        disk.sync_dir(dir)?;
        for Replacement { old, new, .. } in segments {
            disk.rename(&cleaned_path(&old.index_path()), &old.index_path())?;
            new.set_pinned(false);
        }
        Ok(())
    }
}

/// Removes what was to replace a segment. A file that stays is in nobody's way, and goes with the
/// next job or open.
fn discard<D: Disk>(shared: &Shared<D>, segment: &Segment<D>) {
    for path in [segment.path().to_owned(), segment.index_path()] {
        match shared.disk().unlink(&cleaned_path(&path)) {
            Err(error) if !error.is_not_found() => {
                tracing::debug!(%error, "what compaction wrote in vain is not removed");
            }
            _ => {}
        }
    }
}

//! Making data durable, away from the owner.
//!
//! The owner makes a [`FlushJob`], anybody runs it, the owner takes the [`FlushDone`]. At most one is
//! under way for a log: two could each be told a different half of the truth about a failed write,
//! since a file reports it once. A job that is dropped unrun leaves everything as dirty as it was.
//!
//! Everything that makes data *findable* comes first: the directory, its identity, the epochs, the
//! names. Indexes come last and may fail; they are caches.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use tidemark_protocol::Offset;

use super::{Log, Shared};
use crate::{
    checkpoint::Tip,
    disk::{Disk, DiskError, DiskFile},
    epochs::EpochStart,
    error::FlushError,
    index::{IndexEntry, IndexFile},
    meta::{META_BYTES_MAX, META_FILE, PartitionMeta},
    segment::{OpenFile, Segment, SegmentStart},
    state_file::{self, Kind},
};

pub(crate) const EPOCHS_FILE: &str = "epochs";
/// The index of the segment being written is saved each time it has grown by this much, so that a
/// restart after a crash has little to index again.
const INDEX_SAVE_BYTES: u64 = 64 << 20;
/// A flush of less than this does not bother to allocate ahead of the writer.
const ALLOCATE_AHEAD_MIN_BYTES: u64 = 64 << 10;

/// Makes everything appended before it was made durable, when run. May be run on any thread.
pub struct FlushJob<D: Disk> {
    shared: Arc<Shared<D>>,
    under_way: Arc<()>,
    /// To be written first, with the directory's own name: this is the log's first flush.
    meta: Option<PartitionMeta>,
    epochs: Option<(u64, Vec<EpochStart>)>,
    parts: Vec<Part<D>>,
    names_created: u64,
    sync_names: bool,
    tip: Option<Tip>,
    truncations: u64,
}

/// The dirty bytes of one segment.
struct Part<D: Disk> {
    segment: Arc<Segment<D>>,
    file: Arc<OpenFile<D>>,
    range: Range<u64>,
    /// Write the index up to here.
    index: Option<IndexEntry>,
    rolled: bool,
}

/// What a [`FlushJob`] made durable; for [`Log::flushed`].
#[derive(Debug)]
pub struct FlushDone {
    _under_way: Arc<()>,
    tip: Option<Tip>,
    truncations: u64,
    names_created: u64,
    epochs_version: Option<u64>,
    parts: Vec<PartDone>,
}

#[derive(Debug)]
struct PartDone {
    base: Offset,
    rolled: bool,
    /// The index as it was written, and up to where.
    index: Option<(u64, Arc<Vec<IndexEntry>>)>,
}

impl FlushDone {
    /// Everything below is durable now; `None` when the job was about names only.
    pub fn flushed_offset(&self) -> Option<Offset> {
        self.tip.map(|tip| tip.at.offset)
    }
}

impl<D: Disk> fmt::Debug for FlushJob<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FlushJob").field("log", &self.shared).finish_non_exhaustive()
    }
}

impl<D: Disk> FlushJob<D> {
    /// Bytes of batches this job makes durable.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.range.end - part.range.start).sum()
    }

    /// Blocks until everything is on stable storage. Any error but [`FlushError::Full`] and
    /// [`FlushError::Deleted`] has fenced the log by the time it is returned.
    pub fn run(mut self) -> Result<FlushDone, FlushError> {
        if self.shared.is_fenced() {
            return Err(FlushError::Fenced);
        }
        self.make_durable().map_err(|error| self.refuse(error))?;
        let parts = std::mem::take(&mut self.parts);
        let parts = parts.iter().map(|part| self.finish(part)).collect::<Result<_, _>>();
        let parts = parts.map_err(|error| self.refuse(error))?;
        Ok(FlushDone {
            _under_way: self.under_way,
            tip: self.tip,
            truncations: self.truncations,
            names_created: self.names_created,
            epochs_version: self.epochs.map(|(version, _)| version),
            parts,
        })
    }

    fn make_durable(&self) -> Result<(), DiskError> {
        let (disk, dir) = (self.shared.disk(), &self.shared.dir);
        for part in self.parts.iter().filter(|part| !part.range.is_empty()) {
            part.file.file.sync(part.range.clone())?;
        }
        if let Some(meta) = &self.meta {
            self.shared.make_dir_durable(meta)?;
        }
        if let Some((version, epochs)) = &self.epochs {
            self.shared.save_epochs(*version, epochs)?;
        }
        if self.sync_names { disk.sync_dir(dir) } else { Ok(()) }
    }

    /// What is worth doing after a part is durable: its index, and space for the writer.
    fn finish(&self, part: &Part<D>) -> Result<PartDone, DiskError> {
        let flushed = part.range.end - part.range.start;
        if !part.rolled && flushed >= ALLOCATE_AHEAD_MIN_BYTES {
            part.segment.allocate_ahead(&part.file, flushed);
        }
        let mut done = PartDone { base: part.segment.base, rolled: part.rolled, index: None };
        let Some(seal) = part.index else { return Ok(done) };
        match self.save_index(&part.segment, seal) {
            Ok(entries) => done.index = Some((seal.position, entries)),
            Err(error) if error.is_full() => tracing::warn!(%error, "an index is not saved"),
            Err(error) => return Err(error),
        }
        Ok(done)
    }

    fn save_index(
        &self,
        segment: &Arc<Segment<D>>,
        seal: IndexEntry,
    ) -> Result<Arc<Vec<IndexEntry>>, DiskError> {
        let mut entries = segment.load_older()?.to_vec();
        entries.extend(segment.recent.to_vec());
        entries.retain(|entry| entry.position < seal.position);
        let file = IndexFile { salt: segment.salt, seal, entries };
        let state_files = self.shared.state_files();
        if !state_files.deleted && state_files.truncations == self.truncations {
            state_file::write(self.shared.disk(), &segment.index_path(), Kind::Index, &file)?;
        }
        drop(state_files);
        Ok(Arc::new(file.entries))
    }

    fn refuse(&self, error: DiskError) -> FlushError {
        if self.shared.state_files().deleted {
            return FlushError::Deleted;
        }
        if error.is_full() {
            return FlushError::Full(error);
        }
        self.shared.fenced.store(true, Ordering::Release);
        FlushError::Failed(error)
    }
}

impl<D: Disk> Shared<D> {
    /// Makes the directory findable, and says whose it is.
    fn make_dir_durable(&self, meta: &PartitionMeta) -> Result<(), DiskError> {
        let (disk, path) = (self.disk(), self.path(META_FILE));
        let state_files = self.state_files();
        if !state_files.deleted && meta.incarnation >= state_files.incarnation {
            let written = state_file::read_cache(disk, &path, Kind::PartitionMeta, META_BYTES_MAX);
            if written == Some(*meta) {
                // After a crash: it says the right thing, perhaps only in memory. A full disk must not keep
                // what was recovered from being shown, so nothing new is written, but the same once more: a
                // flush that failed in an earlier life may have left a page that looks clean and is on no disk.
                let file = disk.open(&path, 0)?;
                file.write_at(0, &state_file::encode(Kind::PartitionMeta, meta))?;
                file.sync(0..file.len())?;
                disk.sync_dir(&self.dir)?;
            } else {
                state_file::write(disk, &path, Kind::PartitionMeta, meta)?;
            }
        }
        drop(state_files);
        // The names of `<partition>` in `<topic>`, of `<topic>` in `topics`, and of that.
        for above in self.dir.ancestors().skip(1).take(3) {
            self.disk().sync_dir(above)?;
        }
        Ok(())
    }

    /// Writes the leader-epoch history unless a newer one is on disk already.
    pub(super) fn save_epochs(&self, version: u64, epochs: &[EpochStart]) -> Result<(), DiskError> {
        let mut state_files = self.state_files();
        if state_files.deleted || state_files.epochs_version >= version {
            return Ok(());
        }
        state_file::write(self.disk(), &self.path(EPOCHS_FILE), Kind::Epochs, &epochs)?;
        state_files.epochs_version = version;
        Ok(())
    }
}

impl<D: Disk> Log<D> {
    /// A job that makes everything appended so far durable. `None` when it is already, when the
    /// log is fenced, or while an earlier job or its outcome is still about.
    pub fn flush_job(&mut self) -> Option<FlushJob<D>> {
        let epochs_dirty = self.dir_exists && self.epochs_version > self.epochs_saved;
        if self.flushing.strong_count() > 0
            || self.shared.is_fenced()
            || (self.dirty.is_empty() && !epochs_dirty)
        {
            return None;
        }
        let under_way = Arc::new(());
        self.flushing = Arc::downgrade(&under_way);
        Some(FlushJob {
            shared: Arc::clone(&self.shared),
            under_way,
            meta: (!self.meta_durable).then_some(self.meta),
            epochs: epochs_dirty.then(|| (self.epochs_version, self.epochs.entries().to_vec())),
            parts: self.parts(),
            names_created: self.names_created,
            sync_names: self.names_created > self.names_synced,
            tip: self.tip(),
            truncations: self.truncations.count(),
        })
    }

    /// What a first flush does, for changes that are durable without one.
    pub(super) fn make_dir_durable(&mut self) -> Result<(), DiskError> {
        if !self.meta_durable {
            self.shared.make_dir_durable(&self.meta)?;
            (self.meta_written, self.meta_durable) = (true, true);
        }
        Ok(())
    }

    fn parts(&self) -> Vec<Part<D>> {
        let Some(tail) = &self.tail else { return Vec::new() };
        let save = tail.at.position >= tail.index_saved + INDEX_SAVE_BYTES;
        let parts = self.dirty.iter().map(|dirty| Part {
            segment: Arc::clone(&dirty.segment),
            file: Arc::clone(&dirty.file),
            range: dirty.from..dirty.seal.unwrap_or(tail.at).position,
            index: dirty.seal.or(save.then_some(tail.at)),
            rolled: dirty.seal.is_some(),
        });
        parts.collect()
    }

    pub(super) fn tip(&self) -> Option<Tip> {
        let tail = self.tail.as_ref()?;
        Some(Tip {
            segment_base: tail.segment.base,
            at: tail.at,
            last_batch: tail.last_batch,
            created_ms: tail.created_ms,
            rolled: tail.rolled,
        })
    }

    /// Takes note of what a job made durable. Called by the owner.
    pub fn flushed(&mut self, done: FlushDone) {
        (self.meta_written, self.meta_durable) = (true, true);
        self.names_synced = self.names_synced.max(done.names_created);
        self.epochs_saved = self.epochs_saved.max(done.epochs_version.unwrap_or(0));
        if done.truncations != self.truncations.count() {
            // The log was cut under the job: what is left of its range gets flushed again.
            return;
        }
        if let Some(tip) = done.tip {
            self.durable = Some(tip);
            self.shared.flushed.fetch_max(tip.at.offset, Ordering::Release);
            self.clean_up_to(&tip);
        }
        for part in done.parts {
            if part.rolled {
                self.sealed(part);
            } else if let (Some((position, _)), Some(tail)) = (part.index, &mut self.tail)
                && tail.segment.base == part.base
            {
                tail.index_saved = position;
            }
        }
    }

    /// Forgets the dirty bytes in front of the tip.
    fn clean_up_to(&mut self, tip: &Tip) {
        let end = self.tail.as_ref().map(|tail| (tail.segment.base, tail.at.position));
        for dirty in &mut self.dirty {
            let flushed = match dirty.segment.base.cmp(&tip.segment_base) {
                std::cmp::Ordering::Less => dirty.segment.end(),
                std::cmp::Ordering::Equal => tip.at.position,
                std::cmp::Ordering::Greater => continue,
            };
            dirty.from = dirty.from.max(flushed);
        }
        self.dirty.retain(|dirty| {
            let clean = dirty.seal.is_none() && end == Some((dirty.segment.base, dirty.from));
            if clean {
                dirty.segment.set_pinned(false);
            }
            !clean
        });
    }

    /// A rolled segment is durable and sealed: lets go of what only its writer needed.
    fn sealed(&mut self, part: PartDone) {
        let Some(index) = self.dirty.iter().position(|dirty| dirty.segment.base == part.base)
        else {
            return;
        };
        let dirty = self.dirty.remove(index);
        dirty.segment.set_pinned(false);
        let (Some((_, entries)), Some(seal)) = (part.index, dirty.seal) else { return };
        let old = &dirty.segment;
        let slim = Arc::new(Segment::new(
            &self.shared.files,
            &self.shared.dir,
            old.base,
            SegmentStart {
                recent_from: seal,
                end: seal.position,
                max_timestamp: seal.max_timestamp,
                verified_from: old.verified_from,
                salt: old.salt,
                capacity_bytes: seal.position,
            },
        ));
        slim.seal(seal);
        slim.older.store(Some(entries));
        slim.adopt(dirty.file);
        if let Some(tail) = &mut self.tail
            && Arc::ptr_eq(&tail.segment, old)
        {
            tail.segment = Arc::clone(&slim);
        }
        self.segments_with(|list| {
            if let Some(place) = list.iter_mut().find(|segment| Arc::ptr_eq(segment, old)) {
                *place = slim;
            }
        });
    }
}

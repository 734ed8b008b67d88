//! One partition's log: the owner's side.
//!
//! A [`Log`] has one owner, who calls everything that changes it. It never waits for the disk where
//! it can help it: making data durable is a [`FlushJob`] that somebody else runs. A log that was
//! never written to has no files at all, and costs about a kilobyte.
//!
//! Offsets, in order: `log start <= flushed offset <= log end offset`. Below the log start everything
//! is deleted; below the flushed offset everything is durable; the high watermark is not this
//! crate's business, except where a caller passes it in so that nothing above it is deleted.

mod append;
mod compact;
mod flush;
mod quarantine;
mod read;
mod recover;
mod removals;
mod restart;
mod retention;
mod summary;
mod truncate;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
pub use compact::{Compacted, CompactionBounds, CompactionDone, CompactionJob};
pub(crate) use flush::EPOCHS_FILE;
pub use flush::{FlushDone, FlushJob};
pub use read::{LogReader, ReadOutcome, Residency};
pub use recover::{Extent, Recovery};
pub use retention::Deleted;
pub use summary::{SUMMARY_BYTES_MAX, Summary, SummaryJob};
use tidemark_protocol::{LeaderEpoch, Offset, TimestampMs, ids::NO_TIMESTAMP};

use crate::{
    checkpoint::{Checkpoint, SegmentMark, Tip},
    config::{LogConfig, LogIdentity},
    disk::{Disk, DiskError},
    epochs::{EpochEnd, EpochHistory},
    error::{OpenError, StorageError},
    index::{IndexEntry, NO_MAX_TIMESTAMP},
    meta::{META_FILE, PartitionMeta},
    segment::{OpenFile, Segment},
    segment_files::SegmentFiles,
    truncations::Truncations,
};

/// Segments in order of their base offsets.
type SegmentList<D> = Vec<Arc<Segment<D>>>;

/// What the owner and the readers of a log share.
struct Shared<D: Disk> {
    files: SegmentFiles<D>,
    dir: PathBuf,
    segments: ArcSwap<SegmentList<D>>,
    log_start: AtomicU64,
    log_end: AtomicU64,
    flushed: AtomicU64,
    /// See [`Log::removals_end`].
    removals_end: AtomicU64,
    /// Set once a flush failed, before anybody hears of it.
    fenced: AtomicBool,
    /// Ranges of offsets whose bytes are damaged; ordered, apart.
    quarantine: ArcSwap<Vec<Range<Offset>>>,
    /// Serialises changes to the small files of the directory; nobody who reads data takes it.
    state_files: Mutex<StateFiles>,
}

/// What is known of a log's small files.
#[derive(Debug, Default)]
struct StateFiles {
    /// Version of the leader-epoch history on disk: an older one never replaces a newer one.
    epochs_version: u64,
    /// Truncations so far: an index made before the last one describes what is gone.
    truncations: u64,
    /// The life of the directory that the identity on disk is of: an older one never replaces it.
    incarnation: u64,
    /// The log was deleted; nothing may appear in its directory any more.
    deleted: bool,
}

impl<D: Disk> Shared<D> {
    fn disk(&self) -> &D {
        self.files.disk()
    }

    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn state_files(&self) -> MutexGuard<'_, StateFiles> {
        // What it guards is replaced by single assignments, so a panic leaves nothing half done.
        self.state_files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> fmt::Debug for Shared<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Log")
            .field("dir", &self.dir)
            .field("start", &self.log_start)
            .field("end", &self.log_end)
            .finish_non_exhaustive()
    }
}

/// The last segment, and where in it the log ends.
struct Tail<D: Disk> {
    segment: Arc<Segment<D>>,
    /// The end of the last batch.
    at: IndexEntry,
    /// Where the last batch starts.
    last_batch: u64,
    /// Position of the newest index entry.
    indexed: u64,
    /// Up to where the `.index` file describes the segment.
    index_saved: u64,
    /// When its first batch was appended, if that is known.
    created_ms: Option<u64>,
    /// Takes no more; the next append begins another segment.
    rolled: bool,
}

/// Bytes of one segment that no flush has covered yet.
struct Dirty<D: Disk> {
    segment: Arc<Segment<D>>,
    /// The descriptor that was open when they were written: it is told if writing them back fails.
    file: Arc<OpenFile<D>>,
    from: u64,
    /// Where the segment ends, if it was rolled.
    seal: Option<IndexEntry>,
}

/// The owner's handle. Not shared: readers get a [`LogReader`].
pub struct Log<D: Disk> {
    shared: Arc<Shared<D>>,
    identity: LogIdentity,
    config: LogConfig,
    meta: PartitionMeta,
    /// Whether `partition.meta` is there, and whether it and the directory itself are known to be durable.
    meta_written: bool,
    meta_durable: bool,
    dir_exists: bool,
    tail: Option<Tail<D>>,
    dirty: Vec<Dirty<D>>,
    /// Counts the segment files created, and those of them whose names are durable.
    names_created: u64,
    names_synced: u64,
    epochs: EpochHistory,
    /// Counts changes to `epochs`, and how many of them are on disk.
    epochs_version: u64,
    epochs_saved: u64,
    /// Where the flushed part ends.
    durable: Option<Tip>,
    truncations: Truncations,
    compaction: compact::Progress,
    /// Segment files that compaction replaced.
    replaced: Vec<compact::Replaced>,
    /// Alive while a flush job or its outcome is.
    flushing: Weak<()>,
    /// What the checkpoint said, and after how many truncations.
    opened_summary: Option<(u64, Summary)>,
}

impl<D: Disk> fmt::Debug for Log<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(out)
    }
}

impl<D: Disk> Log<D> {
    /// A new, empty log. Touches the disk only to see that nothing is in the way: files appear with
    /// the first append.
    pub fn create(
        files: &SegmentFiles<D>,
        dir: &Path,
        identity: LogIdentity,
        config: LogConfig,
        now_ms: u64,
    ) -> Result<Self, OpenError> {
        if files.disk().exists(dir)? && !files.disk().list(dir)?.is_empty() {
            return Err(OpenError::Damaged {
                path: dir.to_owned(),
                reason: "a new log needs its directory to itself".to_owned(),
            });
        }
        Ok(Self::empty(files, dir, PartitionMeta::new(identity, now_ms), config))
    }

    /// A log without files.
    fn empty(files: &SegmentFiles<D>, dir: &Path, meta: PartitionMeta, config: LogConfig) -> Self {
        let shared = Shared {
            files: files.clone(),
            dir: dir.to_owned(),
            segments: ArcSwap::default(),
            log_start: AtomicU64::new(0),
            log_end: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            removals_end: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            quarantine: ArcSwap::default(),
            state_files: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            identity: meta.identity(),
            config,
            meta,
            meta_written: false,
            meta_durable: false,
            dir_exists: false,
            tail: None,
            dirty: Vec::new(),
            names_created: 0,
            names_synced: 0,
            epochs: EpochHistory::default(),
            epochs_version: 0,
            epochs_saved: 0,
            durable: None,
            truncations: Truncations::default(),
            compaction: compact::Progress::default(),
            replaced: Vec::new(),
            flushing: Weak::new(),
            opened_summary: None,
        }
    }

    /// Which partition's log this is.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }

    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Takes new settings; they apply from the next operation on.
    pub fn set_config(&mut self, config: LogConfig) {
        self.config = config;
    }

    /// The directory of the log's files.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// A view for readers on any thread.
    pub fn reader(&self) -> LogReader<D> {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Offset of the oldest record that may be read.
    pub fn log_start_offset(&self) -> Offset {
        self.shared.log_start.load(Ordering::Relaxed)
    }

    /// Offset that the next record gets.
    pub fn log_end_offset(&self) -> Offset {
        self.shared.log_end.load(Ordering::Relaxed)
    }

    /// Everything below is durable.
    pub fn flushed_offset(&self) -> Offset {
        self.shared.flushed.load(Ordering::Relaxed)
    }

    /// Bytes of batches in the log.
    pub fn size_bytes(&self) -> u64 {
        self.shared.segments.load().iter().map(|segment| segment.end()).sum()
    }

    pub fn segment_count(&self) -> usize {
        self.shared.segments.load().len()
    }

    /// Whether a failed flush has ended this log's writing life.
    pub fn is_fenced(&self) -> bool {
        self.shared.is_fenced()
    }

    /// Newest timestamp in the log, [`NO_TIMESTAMP`] when there is none.
    pub fn max_timestamp_ms(&self) -> TimestampMs {
        let segments = self.shared.segments.load();
        segments.iter().map(|segment| segment.max_timestamp()).max().map_or(NO_TIMESTAMP, shown)
    }

    /// What is durable now, for [`crate::DataDir::write_checkpoints`]. Cheap.
    pub fn checkpoint(&self) -> Checkpoint {
        let segments = self.shared.segments.load();
        // A truncation that stopped halfway is counted already: nothing would say later why there is less than before it.
        let is_kept = |tip: &Tip| self.truncations.pending.is_none_or(|cut| tip.at.offset <= cut);
        let tip = self.durable.filter(is_kept);
        let sealed_before = tip.as_ref().map_or(0, |tip| tip.segment_base);
        let sealed = segments
            .iter()
            .take_while(|segment| segment.base < sealed_before)
            .filter_map(|segment| Some(SegmentMark { base: segment.base, end: segment.sealed()? }))
            .collect();
        Checkpoint {
            incarnation: self.meta.incarnation,
            log_start: self.log_start_offset(),
            flushed_offset: self.flushed_offset(),
            sealed,
            tip,
            truncations: self.truncations.count(),
            epochs: self.epochs.entries().to_vec(),
            summary: None,
            clean: false,
        }
    }

    /// Notes that the leader of `epoch` writes from `start` on. Durable with the next flush.
    pub fn assign_epoch(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.epochs.assign(epoch, start) {
            self.epochs_version += 1;
        }
    }

    /// Leader-epoch history of the log.
    pub fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }

    /// The first offset known to be damaged, if one is.
    pub fn damaged_from(&self) -> Option<Offset> {
        quarantine::first(&self.shared)
    }

    /// Where `epoch` ends in this log; see [`EpochHistory::end_offset_for`].
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        self.epochs.end_offset_for(epoch, self.log_end_offset())
    }

    /// Flushes what is dirty and lets go of the files. After `Ok`, [`Self::checkpoint`] of the
    /// same state is complete, which is why it is returned.
    pub fn close(mut self) -> Result<Checkpoint, StorageError> {
        if self.is_fenced() {
            return Err(StorageError::Fenced);
        }
        self.flushing = Weak::new();
        while let Some(job) = self.flush_job() {
            let done = job.run()?;
            self.flushed(done);
        }
        Ok(self.checkpoint())
    }

    /// Deletes the log and its directory. Readers keep what they have open. When it fails half-way,
    /// [`delete_log_dir`] finishes the job later.
    pub fn delete(self) -> Result<(), StorageError> {
        self.shared.segments.store(Arc::default());
        self.shared.state_files().deleted = true;
        delete_log_dir(self.shared.disk(), &self.shared.dir)?;
        Ok(())
    }

    fn segments_with(&self, change: impl FnOnce(&mut SegmentList<D>)) {
        let mut list = Vec::clone(&self.shared.segments.load());
        change(&mut list);
        self.shared.segments.store(Arc::new(list));
    }
}

/// Deletes a log's directory and all files in it, whatever state they are in. Does nothing when
/// there is none.
///
/// First goes, durably, what says that the directory is anybody's: a deletion that was interrupted leaves a whole log or
/// one that is nobody's ([`crate::is_nobodys_log_dir`]), never a part of one that could be taken for all of it.
pub fn delete_log_dir<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    if !disk.exists(dir)? {
        return Ok(());
    }
    let (names, rest): (Vec<_>, Vec<_>) = disk
        .list(dir)?
        .into_iter()
        .partition(|entry| !entry.is_dir && [META_FILE, EPOCHS_FILE].contains(&&*entry.name));
    for entry in &names {
        disk.unlink(&dir.join(&entry.name))?;
    }
    if !names.is_empty() && !rest.is_empty() {
        disk.sync_dir(dir)?;
    }
    for entry in rest {
        let path = dir.join(&entry.name);
        if entry.is_dir { delete_log_dir(disk, &path)? } else { disk.unlink(&path)? }
    }
    disk.remove_dir(dir)?;
    match dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent)) {
        // Whoever deleted the last of its logs has removed the directory above, too.
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// A segment's newest timestamp as others write it.
fn shown(timestamp: TimestampMs) -> TimestampMs {
    if timestamp == NO_MAX_TIMESTAMP { NO_TIMESTAMP } else { timestamp }
}

#[cfg(test)]
mod tests;

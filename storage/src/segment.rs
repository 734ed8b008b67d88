//! One segment: a file of consecutive batches, opened when needed, and its index.
//!
//! A segment is shared between the log's owner, who appends to the last one, and readers. What
//! readers may touch is what was published: everything below [`Segment::end`]. A segment never
//! shrinks: truncation puts another `Segment` over the same file in its place in the list.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use tidemark_protocol::{Offset, TimestampMs, batch::BatchHeader};

use crate::{
    disk::{Disk, DiskError, DiskFile, Operation},
    index::{IndexEntry, IndexFile, NO_MAX_TIMESTAMP, SparseIndex},
    segment_files::{Closable, OpenTicket, SegmentFiles},
    state_file::{self, Kind},
    walk::{Walk, WalkError},
};

/// What a segment's file is allocated at first; the file of a small partition stays this small.
const FIRST_ALLOCATION_BYTES: u64 = 16 << 10;
/// Largest step by which a file is allocated ahead of its writer.
const ALLOCATION_STEP_BYTES: u64 = 16 << 20;

/// One index entry for this many bytes where the index is made from the batches.
const REBUILT_INTERVAL_BYTES: u64 = 4096;
/// Far more than the index of a 2 GiB segment with an entry per KiB.
pub(crate) const INDEX_FILE_BYTES_MAX: usize = 128 << 20;

/// `NNNNNNNNNNNNNNNNNNNN.log` in the log's directory.
pub(crate) fn log_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{base:020}.log"))
}

/// The base offset in a file name with the given extension.
pub(crate) fn base_of(name: &str, extension: &str) -> Option<Offset> {
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// The running checksum with one more batch header in it.
pub(crate) fn chain(previous: u32, header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(previous);
    hasher.update(&header[..BatchHeader::BYTES]);
    hasher.finalize()
}

/// A segment's open file. Dropping the last handle closes it.
#[derive(Debug)]
pub(crate) struct OpenFile<D: Disk> {
    pub file: D::File,
    _ticket: OpenTicket,
}

pub(crate) struct Segment<D: Disk> {
    pub base: Offset,
    path: PathBuf,
    files: SegmentFiles<D>,
    /// How far the file may grow while it is open.
    capacity_bytes: u64,
    /// Bytes of published batches.
    end: AtomicU64,
    max_timestamp: AtomicI64,
    /// Where `recent` begins; everything in front is described by `older`, once loaded.
    pub recent_from: IndexEntry,
    pub recent: SparseIndex,
    pub older: ArcSwapOption<Vec<IndexEntry>>,
    /// Bytes from here on were written, or read and verified, by this process.
    pub verified_from: u64,
    /// Where it ends, once it takes no more batches.
    sealed: OnceLock<IndexEntry>,
    /// The running checksum of an empty segment.
    pub salt: u32,
    file: ArcSwapOption<OpenFile<D>>,
    used: AtomicBool,
    /// Has data that is not flushed: its file stays open.
    pinned: AtomicBool,
    /// Its files are about to be replaced by others of the same names.
    retired: AtomicBool,
}

impl<D: Disk> fmt::Debug for Segment<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Segment")
            .field("path", &self.path)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// What is known of a segment when it is put into a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentStart {
    /// Where this process's own index begins: the end for a segment that is only read.
    pub recent_from: IndexEntry,
    /// Published bytes.
    pub end: u64,
    pub max_timestamp: TimestampMs,
    pub verified_from: u64,
    pub salt: u32,
    pub capacity_bytes: u64,
}

impl SegmentStart {
    /// An empty segment that this process is about to write.
    pub(crate) fn empty(base: Offset, salt: u32, capacity_bytes: u64) -> Self {
        Self {
            recent_from: first_entry(base, salt),
            end: 0,
            max_timestamp: NO_MAX_TIMESTAMP,
            verified_from: 0,
            salt,
            capacity_bytes,
        }
    }
}

/// The boundary in front of a segment's first batch.
pub(crate) fn first_entry(base: Offset, salt: u32) -> IndexEntry {
    IndexEntry { offset: base, position: 0, chain: salt, max_timestamp: NO_MAX_TIMESTAMP }
}

impl<D: Disk> Segment<D> {
    /// Describes a file that exists; nothing is opened.
    pub(crate) fn new(files: &SegmentFiles<D>, dir: &Path, base: Offset, at: SegmentStart) -> Self {
        Self {
            base,
            path: log_path(dir, base),
            files: files.clone(),
            capacity_bytes: at.capacity_bytes,
            end: AtomicU64::new(at.end),
            max_timestamp: AtomicI64::new(at.max_timestamp),
            recent_from: at.recent_from,
            recent: SparseIndex::new(base),
            older: ArcSwapOption::empty(),
            verified_from: at.verified_from,
            sealed: OnceLock::new(),
            salt: at.salt,
            file: ArcSwapOption::empty(),
            used: AtomicBool::new(true),
            pinned: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        }
    }

    /// Creates the file, with space for the first `bytes`.
    pub(crate) fn create(
        files: &SegmentFiles<D>,
        dir: &Path,
        base: Offset,
        at: SegmentStart,
        bytes: u64,
    ) -> Result<Arc<Self>, DiskError> {
        let segment = Arc::new(Self::new(files, dir, base, at));
        let reserve = bytes.max(FIRST_ALLOCATION_BYTES).min(at.capacity_bytes).max(bytes);
        let file = files.disk().create(&segment.path, reserve, at.capacity_bytes)?;
        segment.install(file);
        Ok(segment)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Bytes of published batches.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Makes batches visible to readers; their bytes are in place.
    pub(crate) fn publish(&self, end: u64, max_timestamp: TimestampMs) {
        self.max_timestamp.store(max_timestamp, Ordering::Relaxed);
        self.end.store(end, Ordering::Release);
    }

    pub(crate) fn max_timestamp(&self) -> TimestampMs {
        self.max_timestamp.load(Ordering::Relaxed)
    }

    /// Notes where the segment ends, for good.
    pub(crate) fn seal(&self, end: IndexEntry) {
        let sealed = self.sealed.get_or_init(|| end);
        assert_eq!(*sealed, end, "a segment is sealed once");
    }

    /// Where the segment ends, if it takes no more batches.
    pub(crate) fn sealed(&self) -> Option<IndexEntry> {
        self.sealed.get().copied()
    }

    /// The file, if it is open.
    pub(crate) fn open_file(&self) -> Option<Arc<OpenFile<D>>> {
        let file = self.file.load_full()?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        Some(file)
    }

    /// The file, opened if need be.
    pub(crate) fn file(self: &Arc<Self>) -> Result<Arc<OpenFile<D>>, DiskError> {
        if let Some(file) = self.open_file() {
            return Ok(file);
        }
        let file = self.files.disk().open(&self.path, self.capacity_bytes)?;
        self.check_names()?;
        Ok(self.install(file))
    }

    /// From here on its names are not its own: nothing is opened by them any more. To be called
    /// after another segment took its place in the list, and before the names change.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Checks, after something was opened by one of its names, that it was this segment's. A name
    /// that changed before it was opened changed after the segment was retired.
    fn check_names(&self) -> Result<(), DiskError> {
        if self.retired.load(Ordering::Acquire) {
            let path = self.path.clone();
            return Err(DiskError::NotFound { operation: Operation::Open, path });
        }
        Ok(())
    }

    pub(crate) fn install(self: &Arc<Self>, file: D::File) -> Arc<OpenFile<D>> {
        let holder: Weak<Self> = Arc::downgrade(self);
        self.used.store(true, Ordering::Relaxed);
        let file = Arc::new(OpenFile { file, _ticket: self.files.admit(holder) });
        self.file.store(Some(Arc::clone(&file)));
        file
    }

    /// Takes over the open file of the segment that this one replaces.
    pub(crate) fn adopt(self: &Arc<Self>, file: Arc<OpenFile<D>>) {
        self.file.store(Some(file));
        let holder: Weak<Self> = Arc::downgrade(self);
        self.files.watch(holder);
    }

    pub(crate) fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Release);
    }

    /// The segment's index file.
    pub(crate) fn index_path(&self) -> PathBuf {
        self.path.with_extension("index")
    }

    /// The last known boundary for which `before` holds, the start of the segment at the least;
    /// `before` must hold for a prefix of them. `None`: [`Self::load_older`] first.
    pub(crate) fn floor(&self, before: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        if before(&self.recent_from) {
            return Some(self.recent.last_where(before).unwrap_or(self.recent_from));
        }
        if self.recent_from.position == 0 {
            return Some(self.recent_from);
        }
        self.older.load().as_ref().map(|older| self.floor_in(older, before))
    }

    /// As [`Self::floor`], given the older part of the index.
    pub(crate) fn floor_in(
        &self,
        older: &[IndexEntry],
        before: impl Fn(&IndexEntry) -> bool,
    ) -> IndexEntry {
        if before(&self.recent_from) {
            return self.recent.last_where(before).unwrap_or(self.recent_from);
        }
        let above = older.partition_point(before);
        above.checked_sub(1).map_or_else(|| first_entry(self.base, self.salt), |last| older[last])
    }

    /// The first known boundary behind `position`.
    pub(crate) fn entry_after(&self, older: &[IndexEntry], position: u64) -> Option<IndexEntry> {
        let above = older.partition_point(|entry| entry.position <= position);
        let recent = || (0..self.recent.len()).map(|index| self.recent.get(index));
        older
            .get(above)
            .copied()
            .or_else(|| (self.recent_from.position > position).then_some(self.recent_from))
            .or_else(|| recent().find(|entry| entry.position > position))
    }

    /// What the index noted of the boundary at `position`, if it did.
    pub(crate) fn noted_at(&self, position: u64) -> Option<IndexEntry> {
        if position >= self.recent_from.position {
            let noted = self.recent.last_where(|entry| entry.position <= position);
            return Some(noted.unwrap_or(self.recent_from)).filter(|it| it.position == position);
        }
        let older = self.older.load();
        let older = older.as_ref()?;
        let found = older.binary_search_by_key(&position, |entry| entry.position);
        found.ok().map(|index| older[index])
    }

    /// The index of the bytes in front of what this process wrote: from the index file, and where
    /// that does not reach from the batches themselves. Blocks.
    pub(crate) fn load_older(self: &Arc<Self>) -> Result<Arc<Vec<IndexEntry>>, DiskError> {
        if self.recent_from.position == 0 {
            return Ok(Arc::default());
        }
        if let Some(older) = self.older.load_full() {
            return Ok(older);
        }
        let older = Arc::new(self.read_older()?);
        self.check_names()?;
        // Opened first, so that whoever closes the file forgets this, too.
        self.file()?;
        self.older.store(Some(Arc::clone(&older)));
        Ok(older)
    }

    fn read_older(self: &Arc<Self>) -> Result<Vec<IndexEntry>, DiskError> {
        let (disk, path) = (self.files.disk(), self.index_path());
        let file: Option<IndexFile> =
            state_file::read_cache(disk, &path, Kind::Index, INDEX_FILE_BYTES_MAX);
        let until = self.recent_from;
        let usable = file.filter(|file| {
            let reaches_too_far = file.seal.position > until.position;
            let contradicts = file.seal.position == until.position && file.seal != until;
            let fits = file.is_consistent(self.base, self.salt) && !reaches_too_far && !contradicts;
            if !fits {
                tracing::warn!(path = %path.display(), "an index does not fit its segment");
            }
            fits
        });
        let (mut entries, mut at) = match usable {
            Some(file) => (file.entries, file.seal),
            None => (Vec::new(), first_entry(self.base, self.salt)),
        };
        let trusted = entries.len();
        let mut indexed = entries.last().map_or(0, |entry| entry.position);
        let mut walk = Walk::new(self.file()?, at.position, until.position, true);
        loop {
            match walk.step(&mut at) {
                Ok(true) => {}
                Err(WalkError::Disk(error)) => return Err(error),
                // Damage is found, and dealt with, by whoever reads there.
                Ok(false) | Err(WalkError::NoBatch) => break,
            }
            if at.position >= indexed + REBUILT_INTERVAL_BYTES && at.position < until.position {
                entries.push(at);
                indexed = at.position;
            }
        }
        if at.position == until.position && (at.offset, at.chain) != (until.offset, until.chain) {
            // Some header was changed where its batch's CRC does not reach, its leader epoch most likely. Boundaries that are
            // made from it would vouch for it; without them, whoever reads there walks to `until` and finds it.
            entries.truncate(trusted);
        }
        Ok(entries)
    }

    /// Allocates up to `end`, so that what is written below it cannot meet a full disk.
    pub(crate) fn allocate(&self, file: &OpenFile<D>, end: u64) -> Result<(), DiskError> {
        let len = file.file.len();
        if end <= len {
            return Ok(());
        }
        // Grow in steps that suit the segment's size so far, but never ask for more than fits.
        let step = len.clamp(FIRST_ALLOCATION_BYTES, ALLOCATION_STEP_BYTES) * 2;
        let wanted = (len + step.min(ALLOCATION_STEP_BYTES)).max(end);
        let wanted = wanted.min(self.capacity_bytes.max(end));
        match file.file.grow(wanted) {
            Err(error) if error.is_full() && wanted > end => file.file.grow(end),
            other => other,
        }
    }

    /// Allocates ahead of a writer that just wrote `recent_bytes`; off its thread. Failing is fine:
    /// the writer then finds out by itself.
    pub(crate) fn allocate_ahead(&self, file: &OpenFile<D>, recent_bytes: u64) {
        let ahead = recent_bytes.saturating_mul(2).min(ALLOCATION_STEP_BYTES);
        let until = (self.end() + ahead).min(self.capacity_bytes);
        if until > file.file.len()
            && let Err(error) = file.file.grow(until)
        {
            tracing::debug!(%error, "no space ahead of the writer");
        }
    }
}

impl<D: Disk> Closable for Segment<D> {
    fn close_if_idle(&self) -> bool {
        if self.used.swap(false, Ordering::Relaxed) || self.pinned.load(Ordering::Acquire) {
            return self.file.load().is_none();
        }
        self.file.store(None);
        self.older.store(None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_carry_the_base_offset_in_twenty_digits() {
        let path = log_path(Path::new("/d"), 42);
        assert_eq!(path, Path::new("/d/00000000000000000042.log"));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(base_of(name, "log"), Some(42));
        assert_eq!(base_of(name, "index"), None);
        assert_eq!(base_of("42.log", "log"), None);
        assert_eq!(base_of("0000000000000000004x.log", "log"), None);
        assert_eq!(base_of("99999999999999999999.log", "log"), None, "does not fit 64 bits");
    }
}

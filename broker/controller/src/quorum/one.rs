//! A quorum of one: what is on this node's stable storage is committed. A log in `<dir>/log`, and beside it
//! snapshots named by the index they stand for, `NNNNNNNNNNNNNNNNNNNN.snapshot`.
//!
//! One commit is one record batch and one flush, so a crash can tear the last batch and no other. Anything
//! else that is missing or damaged was committed once: then opening fails and says what, rather than to go on
//! with a part of the metadata. Everything in front of an older snapshot is deleted; two snapshots are kept,
//! so that one of them may rot.

mod damage;
mod reserve;

use std::{
    fmt,
    path::{Path, PathBuf},
    slice,
};

use tidemark_protocol::{
    LeaderEpoch, TimestampMs, TopicId, TopicPartition,
    batch::{Batch, BatchBuilder, batches},
    compression::Compression,
    limits::BATCH_BYTES_MAX,
};
use tidemark_storage::{
    AppendError, Cleanup, Disk, DiskError, FlushError, Log, LogConfig, LogIdentity, OpenError,
    ReadOutcome, Recovery, Residency, SegmentFiles,
};

use self::reserve::Reserve;
use super::{CommitError, Quorum, QuorumError, Room, TooLarge};
use crate::{image::Image, record::MetadataRecord};

/// Identity of the metadata log; no topic has it.
pub const METADATA_TOPIC_ID: TopicId = TopicId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// There is one leader, and there was never another.
const LEADER_EPOCH: LeaderEpoch = 0;

/// Bytes of records after which no further decision joins a commit.
const COMMIT_BYTES: usize = 1 << 20;
/// Most bytes of records in one commit: what a batch may hold, less its header and framing.
const COMMIT_BYTES_MAX: usize = BATCH_BYTES_MAX / 2;
/// What a record of the log adds to its value, at most, in bytes.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// Log written since the last snapshot before another is due, in bytes: this is what a restart replays.
const SNAPSHOT_EVERY_BYTES: u64 = 4 << 20;
/// Largest snapshot that is read, in bytes.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;
const SNAPSHOT_SUFFIX: &str = ".snapshot";
/// Segments open at a time: the last, and one that is being replayed.
const OPEN_FILES_MAX: usize = 4;
const REPLAY_READ_BYTES: usize = 1 << 20;

/// The metadata log of a cluster with one node.
pub struct QuorumOfOne<D: Disk> {
    disk: D,
    dir: PathBuf,
    log: Log<D>,
    /// The next commit.
    batch: BatchBuilder,
    batch_bytes: usize,
    /// Whether the next commit may use what is kept for when the disk is full.
    may_use_reserve: bool,
    reserve: Reserve<D>,
    now_ms: TimestampMs,
    /// Index of the newest snapshot that is good.
    snapshot_index: Option<u64>,
    /// Log written since that snapshot, or since the last attempt to take one.
    bytes_since_snapshot: u64,
}

impl<D: Disk> QuorumOfOne<D> {
    /// Opens the log in `dir`, creating it if there is none (its parent exists), and recovers the image from
    /// the newest good snapshot and the records after it. Fails when anything committed is missing or damaged.
    pub fn open(disk: D, dir: &Path, now_ms: TimestampMs) -> Result<(Self, Image), QuorumError> {
        let failed = |source: Boxed| {
            QuorumError::new(format!("opening the metadata in {}", dir.display()), source)
        };
        create_dir(&disk, dir).map_err(|error| failed(error.into()))?;
        let mut reserve = Reserve::find(disk.clone(), dir).map_err(|error| failed(error.into()))?;
        let (log, recovery) = match open_log(&disk, dir, now_ms) {
            Err(error) if is_full(&error) && reserve.release() => open_log(&disk, dir, now_ms),
            other => other,
        }
        .map_err(failed)?;
        check_recovery(&recovery).map_err(|problem| failed(problem.into()))?;
        let (mut image, newest) =
            newest_snapshot(&disk, dir).map_err(|error| failed(error.into()))?;
        let snapshot_index = (image.metadata_index() > 0).then_some(image.metadata_index());
        if newest.is_some_and(|newest| newest > log.log_end_offset()) {
            let end = log.log_end_offset();
            return Err(failed(format!("the log ends at {end}, before a snapshot").into()));
        }
        let bytes_since_snapshot = replay(&log, &mut image).map_err(failed)?;
        tracing::debug!(index = image.metadata_index(), ?snapshot_index, "metadata recovered");
        reserve.renew();
        let quorum = Self {
            disk,
            dir: dir.to_owned(),
            log,
            batch: BatchBuilder::new(Compression::None),
            batch_bytes: 0,
            may_use_reserve: false,
            reserve,
            now_ms,
            snapshot_index,
            bytes_since_snapshot,
        };
        Ok((quorum, image))
    }

    /// Bytes of commits in the log.
    pub fn size_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// Makes the batch last, on a full disk at the expense of what is kept for that.
    fn write(&mut self, batch: BatchBuilder, may_use_reserve: bool) -> Result<(), CommitError> {
        let mut bytes = batch.build().map_err(|error| write_failed(error.into()))?;
        let batch = Batch::parse(&mut bytes).map_err(|error| write_failed(error.into()))?;
        match self.append(&batch) {
            Err(CommitError::Full) if may_use_reserve && self.reserve.release() => {
                self.append(&batch)
            }
            other => other,
        }
    }

    /// Appends the batch and flushes it.
    fn append(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let end_before = self.log.log_end_offset();
        let appended =
            match self.log.append(slice::from_ref(batch), LEADER_EPOCH, wall(self.now_ms)) {
                Ok(appended) => appended,
                Err(AppendError::Full(_)) => return Err(CommitError::Full),
                Err(error) => return Err(write_failed(error.into())),
            };
        match flush(&mut self.log) {
            Ok(()) => {}
            Err(FlushError::Full(_)) => {
                // Nobody has been told; without the batch the log is what it was.
                self.log.truncate(end_before).map_err(|error| write_failed(error.into()))?;
                return Err(CommitError::Full);
            }
            Err(error) => return Err(write_failed(error.into())),
        }
        self.bytes_since_snapshot += appended.bytes;
        Ok(())
    }

    fn write_snapshot(
        &mut self,
        image: &Image,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let index = image.metadata_index();
        assert!(index == self.log.flushed_offset(), "a snapshot is of what is committed");
        self.disk.write_file(&snapshot_path(&self.dir, index), &image.to_snapshot())?;
        let previous = self.snapshot_index.replace(index);
        for (old, path) in list_snapshots(&self.disk, &self.dir)? {
            if old != index && Some(old) != previous {
                self.disk.unlink(&path)?;
            }
        }
        if let Some(previous) = previous {
            self.log.trim(previous)?;
        }
        Ok(())
    }
}

impl<D: Disk> Quorum for QuorumOfOne<D> {
    fn propose(
        &mut self,
        records: &[MetadataRecord],
        now_ms: TimestampMs,
    ) -> Result<Room, TooLarge> {
        let encoded: Vec<Vec<u8>> = records.iter().map(MetadataRecord::encode).collect();
        let bytes = encoded.iter().map(|value| value.len() + RECORD_OVERHEAD_BYTES).sum();
        if bytes > COMMIT_BYTES_MAX {
            return Err(TooLarge { bytes, bytes_max: COMMIT_BYTES_MAX });
        }
        for value in encoded {
            self.batch.push(now_ms, None, Some(&value), &[]);
        }
        self.batch_bytes += bytes;
        self.may_use_reserve |= reserve::may_use_it(records);
        self.now_ms = now_ms;
        Ok(if self.batch_bytes < COMMIT_BYTES { Room::More } else { Room::Enough })
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        let batch = std::mem::replace(&mut self.batch, BatchBuilder::new(Compression::None));
        self.batch_bytes = 0;
        let may_use_reserve = std::mem::take(&mut self.may_use_reserve);
        if batch.is_empty() {
            return Ok(());
        }
        self.write(batch, may_use_reserve)?;
        self.reserve.keep();
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        self.bytes_since_snapshot >= SNAPSHOT_EVERY_BYTES
    }

    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError> {
        // Also after a failure: the next attempt is due when as much has been written again.
        self.bytes_since_snapshot = 0;
        self.write_snapshot(image).map_err(|source| {
            QuorumError::new(format!("storing a snapshot in {}", self.dir.display()), source)
        })
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

fn is_full(error: &Boxed) -> bool {
    match (error.downcast_ref(), error.downcast_ref(), error.downcast_ref()) {
        (Some(FlushError::Full(_)), _, _) => true,
        (_, Some(OpenError::Disk(error)), _) | (_, _, Some(error)) => DiskError::is_full(error),
        _ => false,
    }
}

fn write_failed(source: Boxed) -> CommitError {
    CommitError::Failed(QuorumError::new("writing the metadata log", source))
}

/// Sees to it that the directory is there and will be.
fn create_dir<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    if !disk.exists(dir)? {
        disk.create_dir(dir)?;
    }
    // It may exist because a process made it that was killed before this.
    dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
}

fn open_log<D: Disk>(
    disk: &D,
    dir: &Path,
    now_ms: TimestampMs,
) -> Result<(Log<D>, Recovery), Boxed> {
    let dir = dir.join("log");
    let identity =
        LogIdentity { partition: TopicPartition { topic_id: METADATA_TOPIC_ID, partition: 0 } };
    let config = LogConfig {
        segment_bytes: 2 * SNAPSHOT_EVERY_BYTES,
        segment_ms: u64::MAX,
        // Nothing goes but what a snapshot stands for.
        retention_bytes: None,
        retention_ms: None,
        cleanup: Cleanup { delete: false, compact: false },
        max_batch_bytes: BATCH_BYTES_MAX as u64,
        ..LogConfig::default()
    };
    let files = SegmentFiles::new(disk.clone(), OPEN_FILES_MAX);
    if !disk.exists(&dir)? {
        let log = Log::create(&files, &dir, identity, config, wall(now_ms))?;
        return Ok((log, Recovery::default()));
    }
    damage::check(disk, &dir)?;
    let (mut log, recovery) = Log::open(&files, &dir, identity, config, None)?;
    // A process that was killed may have left its last commit in the page cache only. From now on it counts.
    flush(&mut log)?;
    Ok((log, recovery))
}

/// Makes everything in the log durable.
fn flush<D: Disk>(log: &mut Log<D>) -> Result<(), FlushError> {
    while let Some(job) = log.flush_job() {
        let done = job.run()?;
        log.flushed(done);
    }
    let (flushed, end) = (log.flushed_offset(), log.log_end_offset());
    assert!(flushed == end, "flushed everything, and yet only {flushed} of {end}");
    Ok(())
}

/// A torn last batch is the mark of a crash. Whatever else recovery found was committed.
fn check_recovery(recovery: &Recovery) -> Result<(), String> {
    if let Some(range) = recovery.corrupt.first() {
        return Err(format!("records {} to {} are damaged", range.start, range.end));
    }
    if recovery.torn_batches > 0 || recovery.segments_removed > 0 {
        return Err(format!(
            "{} bytes of the log are damaged, with {} whole commits behind them; \
             a copy of all of it is in its directory `torn`",
            recovery.torn_bytes, recovery.torn_batches
        ));
    }
    if recovery.torn_bytes > 0 {
        tracing::info!(bytes = recovery.torn_bytes, "removed a metadata write that a crash tore");
    }
    Ok(())
}

/// The image of the newest good snapshot, an empty one if there is none, and the index of the newest of all.
fn newest_snapshot<D: Disk>(disk: &D, dir: &Path) -> Result<(Image, Option<u64>), DiskError> {
    let snapshots = list_snapshots(disk, dir)?;
    let newest = snapshots.first().map(|(index, _)| *index);
    for (index, path) in snapshots {
        let bytes = disk.read_file(&path, SNAPSHOT_BYTES_MAX)?.unwrap_or_default();
        match Image::from_snapshot(&bytes) {
            Ok(image) if image.metadata_index() == index => return Ok((image, newest)),
            Ok(image) => tracing::error!(
                path = %path.display(), index = image.metadata_index(),
                "a metadata snapshot has another's name; falling back to an older one"
            ),
            Err(error) => tracing::error!(
                path = %path.display(), %error,
                "a metadata snapshot cannot be used; falling back to an older one"
            ),
        }
    }
    Ok((Image::default(), newest))
}

/// Snapshots by index, newest first.
fn list_snapshots<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<(u64, PathBuf)>, DiskError> {
    let mut found: Vec<_> = disk
        .list(dir)?
        .iter()
        .filter_map(|entry| entry.name.strip_suffix(SNAPSHOT_SUFFIX)?.parse().ok())
        .map(|index| (index, snapshot_path(dir, index)))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn snapshot_path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:020}{SNAPSHOT_SUFFIX}"))
}

/// Applies everything in the log that the image has not applied. A snapshot is taken between commits, so the
/// image ends where a batch begins. Returns the bytes read.
fn replay<D: Disk>(log: &Log<D>, image: &mut Image) -> Result<u64, Boxed> {
    let (start, end) = (log.log_start_offset(), log.log_end_offset());
    if image.metadata_index() < start {
        let index = image.metadata_index();
        return Err(format!(
            "the log begins at {start}, and the newest snapshot that can be read is of {index}"
        )
        .into());
    }
    let reader = log.reader();
    let mut bytes_read = 0;
    while image.metadata_index() < end {
        let from = image.metadata_index();
        let outcome = reader.read(from, end, REPLAY_READ_BYTES, Residency::Any)?;
        let ReadOutcome::Batches { bytes, .. } = outcome else {
            return Err(format!("the log has nothing to say about record {from}").into());
        };
        bytes_read += bytes.len() as u64;
        for batch in batches(bytes) {
            for record in batch?.records()? {
                apply(image, record.offset, record.value.as_deref())?;
            }
        }
        if image.metadata_index() == from {
            return Err(format!("the log has nothing to say about record {from}").into());
        }
    }
    Ok(bytes_read)
}

fn apply(image: &mut Image, index: u64, value: Option<&[u8]>) -> Result<(), Boxed> {
    let record = MetadataRecord::decode(value.unwrap_or_default())
        .map_err(|error| format!("record {index}: {error}"))?;
    Ok(image.apply(index, &record)?)
}

/// A time for the log, which counts no milliseconds before 1970.
fn wall(now_ms: TimestampMs) -> u64 {
    u64::try_from(now_ms).unwrap_or(0)
}

impl<D: Disk> fmt::Debug for QuorumOfOne<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("QuorumOfOne")
            .field("log", &self.log)
            .field("snapshot_index", &self.snapshot_index)
            .finish_non_exhaustive()
    }
}

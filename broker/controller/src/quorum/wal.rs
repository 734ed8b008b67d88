//! The log on disk: one record batch per entry, its offset the index, its leader epoch the term.
//!
//! Each batch says in its record's key how far the log was durable, and known to be committed, when it was written. A
//! crash can tear what was not durable yet and nothing else, so the first of these tells a torn write from damage;
//! the second spares a write of its own for most entries.

mod damage;
mod reserve;

use std::{collections::VecDeque, path::Path};

use bytes::{Bytes, BytesMut};
use raft::eraftpb::Entry;
use tidemark_protocol::{
    LeaderEpoch, TimestampMs, TopicId, TopicPartition,
    batch::{Batch, BatchBuilder, batches, stamp},
    bug,
    compression::Compression,
    limits::BATCH_BYTES_MAX,
};
use tidemark_storage::{
    AppendError, Cleanup, Disk, DiskError, FlushError, Log, LogConfig, LogIdentity, OpenError,
    ReadOutcome, Recovery, Residency, SegmentFiles, StorageError, delete_log_dir,
};

pub(super) use self::reserve::{RESERVE_FILE, Reserve, may_use_it};
use super::{
    Boxed,
    entry::{self, shown},
};

/// Identity of the metadata log; no topic has it.
pub const METADATA_TOPIC_ID: TopicId = TopicId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Most bytes of payload in one entry: what a batch may hold, less its header and framing.
pub(super) const ENTRY_BYTES_MAX: usize = BATCH_BYTES_MAX / 2;
/// Most bytes of batches appended at once.
const APPEND_BYTES: usize = BATCH_BYTES_MAX;
/// Segments open at a time: the last, and one that is being replayed.
const OPEN_FILES_MAX: usize = 4;
const REPLAY_READ_BYTES: usize = 1 << 20;
const LOG_DIR: &str = "log";

/// Why nothing was written, or not durably.
#[derive(Debug)]
pub(super) enum WalError {
    /// There is no space. What was durable is as it was.
    Full,
    /// It is not known what is durable.
    Failed(Boxed),
}

impl<E: Into<Boxed>> From<E> for WalError {
    fn from(error: E) -> Self {
        let error = error.into();
        if is_full(&error) { Self::Full } else { Self::Failed(error) }
    }
}

/// The key of an entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    kind: u8,
    /// The batch header's epoch again: no checksum covers that one.
    term: LeaderEpoch,
    /// The library's index of the last entry that was durable when this one was written.
    durable: u64,
    /// The same of the last that was known to be committed.
    commit: u64,
}

#[derive(Debug)]
pub(super) struct Wal<D: Disk> {
    log: Log<D>,
    /// Terms of what was written and is not durable yet, by the library's index.
    unflushed: VecDeque<(u64, u64)>,
    /// Log written since the last snapshot, or since the last attempt to take one.
    pub bytes_since_snapshot: u64,
}

/// What a log on disk holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In order, without gaps, from the log start on.
    pub entries: Vec<Entry>,
    /// The library's index of the last entry that is known to be committed.
    pub commit: u64,
}

impl<D: Disk> Wal<D> {
    /// Opens the log below `dir`, or begins one.
    pub(super) fn open(disk: &D, dir: &Path, segment_bytes: u64) -> Result<Self, Boxed> {
        let log = open_log(disk, &dir.join(LOG_DIR), segment_bytes)?;
        Ok(Self { log, unflushed: VecDeque::new(), bytes_since_snapshot: 0 })
    }

    /// The library's index of the last entry, durable or not.
    pub(super) fn last(&self) -> u64 {
        self.log.log_end_offset()
    }

    /// Index of the first entry, as everybody but the library counts.
    pub(super) fn start(&self) -> u64 {
        self.log.log_start_offset()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// Writes entries that continue the log, or replace the end of it; those that were written already are left
    /// alone. Not durable before [`Wal::flush`].
    pub(super) fn write(
        &mut self,
        entries: &[Entry],
        commit: u64,
        now_ms: u64,
    ) -> Result<(), WalError> {
        let written = entries.iter().take_while(|entry| {
            let known = self.unflushed.iter().find(|(index, _)| *index == entry.index);
            known.is_some_and(|(_, term)| *term == entry.term)
        });
        let entries = &entries[written.count()..];
        let Some(first) = entries.first() else { return Ok(()) };
        if first.index <= self.last() {
            self.truncate(first.index - 1)?;
        }
        assert!(first.index == self.last() + 1, "entry {} leaves a gap", first.index);
        let durable = self.durable();
        let mut group = Vec::new();
        let mut group_bytes = 0;
        for entry in entries {
            let batch = batch(entry, Marks { durable, commit, now_ms })?;
            if group_bytes + batch.bytes().len() > APPEND_BYTES {
                self.append(&std::mem::take(&mut group), now_ms)?;
                group_bytes = 0;
            }
            group_bytes += batch.bytes().len();
            group.push(batch);
        }
        self.append(&group, now_ms)?;
        Ok(())
    }

    fn append(&mut self, group: &[Batch], now_ms: u64) -> Result<(), WalError> {
        let appended = self.log.append_as_follower(group, now_ms)?;
        self.bytes_since_snapshot += appended.bytes;
        let written = group.iter().map(|batch| {
            let header = &batch.header;
            (header.base_offset + 1, u64::from(header.leader_epoch))
        });
        self.unflushed.extend(written);
        Ok(())
    }

    /// The library's index of the last entry that is durable.
    fn durable(&self) -> u64 {
        self.unflushed.front().map_or(self.last(), |(index, _)| index - 1)
    }

    pub(super) fn is_durable(&self) -> bool {
        self.unflushed.is_empty()
    }

    /// Makes everything written durable: one flush, whatever was written.
    pub(super) fn flush(&mut self) -> Result<(), WalError> {
        flush(&mut self.log)?;
        self.unflushed.clear();
        Ok(())
    }

    /// Takes back everything behind an entry, durably.
    pub(super) fn truncate(&mut self, last: u64) -> Result<(), WalError> {
        if last >= self.last() {
            return Ok(());
        }
        self.log.truncate(last)?;
        self.unflushed.retain(|(index, _)| *index <= last);
        Ok(())
    }

    /// Forgets entries in front of an index, as everybody but the library counts.
    pub(super) fn trim(&mut self, before: u64) -> Result<(), WalError> {
        self.log.trim(before.min(self.log.log_end_offset()))?;
        Ok(())
    }

    /// Begins again with the entry at an index, as everybody but the library counts, and nothing before it.
    pub(super) fn restart(&mut self, index: u64) -> Result<(), WalError> {
        self.log.restart_at(index)?;
        self.unflushed.clear();
        self.bytes_since_snapshot = 0;
        Ok(())
    }

    /// Everything in the log.
    pub(super) fn read(&self) -> Result<Found, Boxed> {
        let reader = self.log.reader();
        let mut found = Found::default();
        let (mut from, end) = (self.log.log_start_offset(), self.log.log_end_offset());
        while from < end {
            let outcome = reader.read(from, end, REPLAY_READ_BYTES, Residency::Any)?;
            let ReadOutcome::Batches { bytes, .. } = outcome else {
                return Err(nothing_at(from));
            };
            let before = from;
            for batch in batches(bytes) {
                let batch = batch?;
                if batch.header.base_offset != from {
                    return Err(nothing_at(from));
                }
                let (stamp, payload) = unpack(&batch)?;
                if stamp.term != batch.header.leader_epoch {
                    return Err(format!(
                        "entry {from} is damaged: its term is there twice, and not the same"
                    )
                    .into());
                }
                found.commit = found.commit.max(stamp.commit);
                let term = u64::from(stamp.term);
                let entry = entry::entry(from + 1, term, stamp.kind, payload)?;
                entry::content(&entry)?;
                found.entries.push(entry);
                from += 1;
            }
            if from == before {
                return Err(nothing_at(from));
            }
        }
        found.commit = found.commit.min(self.last());
        Ok(found)
    }
}

/// Removes the log, whatever is in it.
pub(super) fn remove<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    delete_log_dir(disk, &dir.join(LOG_DIR))
}

/// Sees to it that a directory is there and will be.
pub(super) fn create_dir<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    if !disk.exists(dir)? {
        disk.create_dir(dir)?;
    }
    // It may exist because a process made it that was killed before this.
    dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
}

fn open_log<D: Disk>(disk: &D, dir: &Path, segment_bytes: u64) -> Result<Log<D>, Boxed> {
    let identity =
        LogIdentity { partition: TopicPartition { topic_id: METADATA_TOPIC_ID, partition: 0 } };
    let config = LogConfig {
        segment_bytes,
        segment_ms: u64::MAX,
        // Nothing goes but what a snapshot stands for.
        retention_bytes: None,
        retention_ms: None,
        cleanup: Cleanup { delete: false, compact: false },
        max_batch_bytes: BATCH_BYTES_MAX as u64,
        ..LogConfig::default()
    };
    let files = SegmentFiles::new(disk.clone(), OPEN_FILES_MAX);
    if !disk.exists(dir)? {
        return Ok(Log::create(&files, dir, identity, config, 0)?);
    }
    damage::check(disk, dir)?;
    let (mut log, recovery) = Log::open(&files, dir, identity, config, None)?;
    check_recovery(&recovery)?;
    // A process that was killed may have left its last entries in the page cache only. From now on they count.
    flush(&mut log)?;
    Ok(log)
}

/// What recovery cut off was torn by a crash: anything else was refused before it began.
fn check_recovery(recovery: &Recovery) -> Result<(), String> {
    if let Some(range) = recovery.corrupt.first() {
        return Err(format!("entries {} to {} are damaged", range.start, range.end));
    }
    if recovery.torn_bytes > 0 {
        tracing::info!(bytes = recovery.torn_bytes, "removed a metadata write that a crash tore");
    }
    Ok(())
}

/// Makes everything in the log durable.
fn flush<D: Disk>(log: &mut Log<D>) -> Result<(), FlushError> {
    while let Some(job) = log.flush_job() {
        let done = job.run()?;
        log.flushed(done);
    }
    if log.is_fenced() {
        return Err(FlushError::Fenced);
    }
    let (flushed, end) = (log.flushed_offset(), log.log_end_offset());
    assert!(flushed == end, "flushed everything, and yet only {flushed} of {end}");
    Ok(())
}

/// What an entry's stamp says beside its term.
#[derive(Clone, Copy)]
struct Marks {
    durable: u64,
    commit: u64,
    now_ms: u64,
}

fn batch(entry: &Entry, marks: Marks) -> Result<Batch, Boxed> {
    let (kind, payload) = entry::payload(entry);
    let term = LeaderEpoch::try_from(entry.term).expect("terms are bounded on the way in");
    let commit = if bug::is_put_back("raft-commit-not-persisted") { 0 } else { marks.commit };
    let key = Stamp { kind, term, durable: marks.durable, commit }.encode();
    let wall_ms = TimestampMs::try_from(marks.now_ms).unwrap_or(TimestampMs::MAX);
    let mut builder =
        BatchBuilder::with_capacity(Compression::None, payload.len() + key.len() + 128);
    builder.push(wall_ms, Some(&key), Some(payload), &[]);
    let mut bytes = BytesMut::from(builder.build()?);
    stamp(&mut bytes, shown(entry.index), term);
    Ok(Batch::parse(&mut bytes.freeze())?)
}

/// The one record of an entry's batch.
fn unpack(batch: &Batch) -> Result<(Stamp, Bytes), Boxed> {
    let mut records = batch.records()?;
    let record = records.pop().filter(|_| records.is_empty()).ok_or("an entry is one record")?;
    let stamp = record.key.as_deref().and_then(Stamp::decode).ok_or("an entry has no stamp")?;
    Ok((stamp, record.value.unwrap_or_default()))
}

impl Stamp {
    const BYTES: usize = 22;
    const VERSION: u8 = 1;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        (bytes[0], bytes[1]) = (Self::VERSION, self.kind);
        bytes[2..6].copy_from_slice(&self.term.to_be_bytes());
        bytes[6..14].copy_from_slice(&self.durable.to_be_bytes());
        bytes[14..22].copy_from_slice(&self.commit.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let word =
            |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let term = LeaderEpoch::from_be_bytes(bytes[2..6].try_into().expect("four bytes"));
        (bytes[0] == Self::VERSION).then(|| Self {
            kind: bytes[1],
            term,
            durable: word(6),
            commit: word(14),
        })
    }
}

fn nothing_at(index: u64) -> Boxed {
    format!("the log has nothing to say about entry {index}").into()
}

/// Whether an error means that there is no space.
pub(super) fn is_full(error: &Boxed) -> bool {
    let is_full = |error: &DiskError| error.is_full();
    error.downcast_ref().is_some_and(is_full)
        || matches!(error.downcast_ref(), Some(FlushError::Full(_)))
        || matches!(error.downcast_ref(), Some(AppendError::Full(_)))
        || matches!(error.downcast_ref(), Some(OpenError::Disk(error)) if error.is_full())
        || match error.downcast_ref() {
            Some(StorageError::Disk(error)) => error.is_full(),
            Some(StorageError::Flush(FlushError::Full(_))) => true,
            _ => false,
        }
}

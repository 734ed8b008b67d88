//! Compaction by key: of all records with the same key only the newest stays.
//!
//! A pass reads the sealed segments that no pass has read yet, notes the newest offset of every key
//! in bounded memory, and rewrites all sealed segments without the records that are superseded. Keys
//! that find no room wait for the next pass. Offsets never change and records without a key stay.
//! A record without a value, a tombstone, takes its predecessors with it like any other and goes
//! itself some time after that; see [`rewrite`].
//!
//! Below the end of the last pass every key has one record at most. That is why a tombstone may
//! only go in a *later* pass than the one that removed what it hides, and why a crash in between,
//! which forgets how far passes had come, costs another pass and nothing else.
//!
//! This module turns segments into smaller files. It knows nothing of logs, decides nothing about
//! when, and replaces nothing: `log::compact` does. It is told which transactions were aborted, and is given nothing
//! that is not decided: what was aborted goes, and ends of transactions stay.

mod latest;
mod rewrite;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tidemark_protocol::{
    Offset,
    batch::{Batch, BatchHeader},
};

pub use self::rewrite::AbortedRange;
use self::rewrite::is_aborted;
pub(crate) use self::{
    latest::LatestOffsets,
    rewrite::{Rules, Tombstones, cut_empty},
};
use crate::{
    disk::{Disk, DiskError, DiskFile},
    error::{ReadError, StorageError},
    index::IndexEntry,
    segment::{self, Segment, first_entry},
    walk::{Walk, WalkError},
};

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// A segment's new content, durable in a file of its own.
#[derive(Debug)]
pub(crate) struct Cleaned<F> {
    pub file: F,
    /// Length of the file. Differs from the old file's, which is how a recovery tells them apart.
    pub file_bytes: u64,
    pub end: IndexEntry,
    pub entries: Vec<IndexEntry>,
}

/// What the rules come to for one segment.
#[derive(Debug)]
pub(crate) struct Outcome<F> {
    /// `None`: it stays as it is.
    pub cleaned: Option<Cleaned<F>>,
    pub tombstones: Tombstones,
}

/// Where a segment's new content is until it takes the segment's place.
pub(crate) fn cleaned_path(path: &Path) -> PathBuf {
    path.with_added_extension(CLEANED_EXTENSION)
}

/// Extension of files that a crash may leave behind and that mean nothing then.
pub(crate) const CLEANED_EXTENSION: &str = "cleaned";

/// Notes the keys of a segment's records from offset `from` on. Returns the first offset that was
/// not looked at, if that is not the segment's end: there was no room. What was aborted supersedes nothing.
pub(crate) fn note_keys<D: Disk>(
    segment: &Arc<Segment<D>>,
    from: Offset,
    aborted: &[AbortedRange],
    latest: &mut LatestOffsets,
) -> Result<Option<Offset>, StorageError> {
    let mut batches = Batches::new(segment)?;
    while let Some(batch) = batches.next()? {
        let header = &batch.header;
        if header.next_offset() <= from {
            continue;
        }
        if header.is_control() || is_aborted(aborted, header) {
            continue;
        }
        let corrupt = |_| corrupt(header.base_offset, header.next_offset());
        for record in batch.iter_records().map_err(corrupt)? {
            let record = record.map_err(corrupt)?;
            let Some(key) = &record.key else { continue };
            if !latest.note(key, record.offset) {
                return Ok(Some(header.base_offset));
            }
        }
    }
    Ok(None)
}

/// Applies the rules to a segment.
pub(crate) fn clean<D: Disk>(
    disk: &D,
    segment: &Arc<Segment<D>>,
    rules: &Rules<'_>,
    index_interval_bytes: u64,
) -> Result<Outcome<D::File>, StorageError> {
    let (changes, tombstones) = look(segment, rules)?;
    if !changes {
        return Ok(Outcome { cleaned: None, tombstones });
    }
    let path = cleaned_path(segment.path());
    if disk.exists(&path)? {
        disk.unlink(&path)?;
    }
    let file = disk.create(&path, 0, segment.end() + segment.end() / 2 + WRITE_BYTES as u64)?;
    let mut output = Output {
        file,
        buffer: Vec::new(),
        written: 0,
        at: first_entry(segment.base, segment.salt),
        entries: Vec::new(),
        indexed: 0,
        index_interval_bytes,
        empty: None,
    };
    let mut batches = Batches::new(segment)?;
    while let Some(batch) = batches.next()? {
        let rewritten =
            rewrite::rewrite(&batch, rules).map_err(|error| unreadable(&batch, &error))?;
        output.push(rewritten.bytes)?;
    }
    let old_bytes = segment.file()?.file.len();
    Ok(Outcome { cleaned: Some(output.finish(old_bytes)?), tombstones })
}

/// Whether the rules change anything in a segment, and what becomes of its tombstones.
fn look<D: Disk>(
    segment: &Arc<Segment<D>>,
    rules: &Rules<'_>,
) -> Result<(bool, Tombstones), StorageError> {
    let mut batches = Batches::new(segment)?;
    let mut tombstones = Tombstones::default();
    let mut changes = false;
    while let Some(batch) = batches.next()? {
        let rewritten =
            rewrite::rewrite(&batch, rules).map_err(|error| unreadable(&batch, &error))?;
        changes |= rewritten.changed;
        tombstones = tombstones.and(rewritten.tombstones);
    }
    Ok((changes, tombstones))
}

fn unreadable(batch: &Batch, error: &tidemark_protocol::batch::BatchError) -> StorageError {
    tracing::warn!(%error, offset = batch.header.base_offset, "a batch cannot be compacted");
    corrupt(batch.header.base_offset, batch.header.next_offset())
}

fn corrupt(start: Offset, end: Offset) -> StorageError {
    ReadError::Corrupt { range: start..end }.into()
}

/// The batches of a sealed segment, verified and without gaps.
struct Batches<D: Disk> {
    walk: Walk<D>,
    expected: Offset,
}

impl<D: Disk> Batches<D> {
    fn new(segment: &Arc<Segment<D>>) -> Result<Self, StorageError> {
        let walk = Walk::new(segment.file()?, 0, segment.end(), true);
        Ok(Self { walk, expected: segment.base })
    }

    fn next(&mut self) -> Result<Option<Batch>, StorageError> {
        let expected = self.expected;
        let failed = |error| match error {
            WalkError::Disk(error) => StorageError::Disk(error),
            WalkError::NoBatch => corrupt(expected, expected + 1),
        };
        let Some(header) = self.walk.peek().map_err(failed)? else { return Ok(None) };
        let batch = self.walk.batch(&header).map_err(failed)?;
        if header.base_offset != expected || batch.verify_crc().is_err() {
            return Err(corrupt(expected, header.next_offset().max(expected + 1)));
        }
        self.walk.skip(&header);
        self.expected = header.next_offset();
        Ok(Some(batch))
    }
}

/// A segment file in the making.
struct Output<F> {
    file: F,
    buffer: Vec<u8>,
    /// Bytes of the file that hold batches; the buffer comes behind them.
    written: u64,
    at: IndexEntry,
    entries: Vec<IndexEntry>,
    indexed: u64,
    index_interval_bytes: u64,
    /// The last batch, held back while it is empty: the next one may be as well.
    empty: Option<Bytes>,
}

impl<F: DiskFile> Output<F> {
    fn push(&mut self, batch: Bytes) -> Result<(), StorageError> {
        let header = parse(&batch);
        if let Some(empty) = self.empty.take() {
            match rewrite::merge_empty(&parse(&empty), &header) {
                Some(merged) => {
                    self.empty = Some(merged);
                    return Ok(());
                }
                None => self.put(&empty)?,
            }
        }
        if header.record_count == 0 {
            self.empty = Some(batch);
            return Ok(());
        }
        self.put(&batch)
    }

    fn put(&mut self, batch: &[u8]) -> Result<(), StorageError> {
        if self.at.position >= self.indexed + self.index_interval_bytes {
            self.entries.push(self.at);
            self.indexed = self.at.position;
        }
        let header = parse(batch);
        self.at = IndexEntry {
            offset: header.next_offset(),
            position: self.at.position + batch.len() as u64,
            chain: segment::chain(self.at.chain, batch),
            max_timestamp: self.at.max_timestamp.max(header.max_timestamp),
        };
        self.buffer.extend_from_slice(batch);
        if self.buffer.len() >= WRITE_BYTES { self.write().map_err(Into::into) } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), DiskError> {
        let end = self.written + self.buffer.len() as u64;
        self.file.grow(end)?;
        self.file.write_at(self.written, &self.buffer)?;
        self.written = end;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, old_bytes: u64) -> Result<Cleaned<F>, StorageError> {
        if let Some(empty) = self.empty.take() {
            self.put(&empty)?;
        }
        self.write()?;
        if self.written == old_bytes {
            // Zeros behind the last batch say nothing, but tell this file from the old one.
            self.file.grow(self.written + BatchHeader::BYTES as u64)?;
        }
        self.file.sync(0..self.file.len())?;
        let file_bytes = self.file.len();
        Ok(Cleaned { file: self.file, file_bytes, end: self.at, entries: self.entries })
    }
}

fn parse(batch: &[u8]) -> BatchHeader {
    BatchHeader::parse(batch).expect("it was parsed or made a moment ago")
}

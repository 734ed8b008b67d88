//! Tells a write that a crash tore from damage to what was committed, before recovery changes anything.
//!
//! A commit is one batch, and none is written before the one in front of it is durable. So a crash can tear
//! the last batch and no other: a whole batch anywhere behind a broken place proves that the broken one was
//! committed. The log itself cannot say so, because it may be asked to take many batches between two flushes.
//! What rots in the very last batch cannot be told from a crash, here or anywhere.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidemark_protocol::{
    Offset,
    batch::{Batch, BatchHeader},
};
use tidemark_storage::{Disk, DiskError};

use super::LEADER_EPOCH;

/// Largest segment file that is read, in bytes: well over what a segment of this log holds.
const SEGMENT_FILE_BYTES_MAX: usize = 256 << 20;

/// Where a batch has its format version, and which one it is.
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;

/// A batch that proves damage in front of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error(
        "record {expected} is damaged, at byte {position} of {}: record {found} behind it is whole",
        path.display()
    )]
    Commit { expected: Offset, position: usize, path: PathBuf, found: Offset },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A place where the batches end, or break.
struct Break {
    expected: Offset,
    position: usize,
    path: PathBuf,
}

/// Refuses a log with a whole batch behind a broken place. Reads all of it and changes nothing.
pub(super) fn check<D: Disk>(disk: &D, log_dir: &Path) -> Result<(), Damage> {
    let mut end: Option<Break> = None;
    for (base, path) in segments(disk, log_dir)? {
        let contents = disk.read_file(&path, SEGMENT_FILE_BYTES_MAX)?.unwrap_or_default();
        let contents = Bytes::from(contents);
        // A segment begins where the one in front of it ended, or else all of it is behind a break.
        let (last, from) = match end.take() {
            Some(last) if last.expected != base => (last, 0),
            _ => {
                let last = walk(&contents, base, path);
                let from = last.position;
                (last, from)
            }
        };
        let whole = (from..contents.len()).find_map(|position| whole_batch(&contents, position));
        if let Some(whole) = whole {
            let Break { expected, position, path } = last;
            return Err(Damage::Commit { expected, position, path, found: whole.base_offset });
        }
        end = Some(last);
    }
    Ok(())
}

/// Segment files by the offset they begin with.
fn segments<D: Disk>(disk: &D, log_dir: &Path) -> Result<Vec<(Offset, PathBuf)>, DiskError> {
    let mut found: Vec<(Offset, PathBuf)> = disk
        .list(log_dir)?
        .iter()
        .filter_map(|entry| {
            let base = entry.name.strip_suffix(".log")?.parse().ok()?;
            Some((base, log_dir.join(&entry.name)))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Follows whole batches with consecutive offsets from the front.
fn walk(contents: &Bytes, base: Offset, path: PathBuf) -> Break {
    let (mut expected, mut position) = (base, 0);
    while let Some(header) = whole_batch(contents, position) {
        // Neither is covered by the batch's CRC.
        if header.base_offset != expected || header.leader_epoch != LEADER_EPOCH {
            break;
        }
        expected = header.next_offset();
        position += header.batch_bytes;
    }
    Break { expected, position, path }
}

fn whole_batch(contents: &Bytes, position: usize) -> Option<BatchHeader> {
    // Most of a segment is zeros: a batch's format version is cheap to look for.
    if contents.get(position + MAGIC_AT) != Some(&MAGIC) {
        return None;
    }
    let batch = Batch::parse(&mut contents.slice(position..)).ok()?;
    batch.verify_crc().ok()?;
    Some(batch.header)
}

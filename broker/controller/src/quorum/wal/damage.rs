//! Tells a write that a crash tore from damage to what was durable, before recovery changes anything.
//!
//! Every entry says how far the log was durable when it was written. So a whole entry behind a broken place that
//! says of the broken one that it was durable proves damage; any other was written together with the broken one and
//! may go with it. The log itself cannot say so. What rots in the very last entry is told by how far the log is known
//! to have been committed, if by anything.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidemark_protocol::{Offset, batch::Batch};
use tidemark_storage::{Disk, DiskError, Extent, OpenError};

use super::{Stamp, unpack};

/// Largest segment file that is read, in bytes: well over what a segment of this log holds.
const SEGMENT_FILE_BYTES_MAX: usize = 256 << 20;

/// Where a batch has its format version, and which one it is.
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;

/// An entry that proves damage in front of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error(
        "entry {expected} is damaged, at byte {position} of {}: entry {found} behind it is whole",
        path.display()
    )]
    Entry { expected: u64, position: usize, path: PathBuf, found: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A place where the entries end, or break.
struct Break {
    /// Offset of the entry that should be there.
    expected: Offset,
    position: usize,
    path: PathBuf,
}

/// Refuses a log with a place that is broken and was durable. Reads all of it and changes nothing.
pub(super) fn check<D: Disk>(disk: &D, log_dir: &Path) -> Result<(), Damage> {
    let extent = Extent::read(disk, log_dir)?;
    let mut end: Option<Break> = None;
    for (first, path) in segments(disk, log_dir)? {
        let contents = disk.read_file(&path, SEGMENT_FILE_BYTES_MAX)?.unwrap_or_default();
        let contents = Bytes::from(contents);
        // A segment begins where the one in front of it ended, or else all of it is behind a break.
        let (last, from) = match end.take() {
            Some(last) if last.expected != first => (last, 0),
            _ => {
                let last = walk(&contents, first, path);
                let from = last.position;
                (last, from)
            }
        };
        if extent.cut.is_some_and(|cut| last.expected >= cut) {
            return Ok(());
        }
        if last.expected < extent.log_start {
            continue;
        }
        let proof = (from..contents.len())
            .filter_map(|position| whole_entry(&contents, position))
            .find(|(_, stamp)| stamp.durable > last.expected);
        if let Some((batch, _)) = proof {
            let Break { expected, position, path } = last;
            let found = batch.header.base_offset;
            return Err(Damage::Entry { expected, position, path, found });
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

/// Follows whole entries with consecutive offsets from the front.
fn walk(contents: &Bytes, base: Offset, path: PathBuf) -> Break {
    let (mut expected, mut position) = (base, 0);
    while let Some((batch, stamp)) = whole_entry(contents, position) {
        // Neither is covered by the batch's CRC.
        if batch.header.base_offset != expected || batch.header.leader_epoch != stamp.term {
            break;
        }
        expected = batch.header.next_offset();
        position += batch.header.batch_bytes;
    }
    Break { expected, position, path }
}

fn whole_entry(contents: &Bytes, position: usize) -> Option<(Batch, Stamp)> {
    // Most of a segment is zeros: a batch's format version is cheap to look for.
    if contents.get(position + MAGIC_AT) != Some(&MAGIC) {
        return None;
    }
    let batch = Batch::parse(&mut contents.slice(position..)).ok()?;
    batch.verify_crc().ok()?;
    let (stamp, _) = unpack(&batch).ok()?;
    Some((batch, stamp))
}

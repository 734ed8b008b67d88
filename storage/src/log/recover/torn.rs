//! What lies behind the end of a log: cleared, and kept aside where it may be worth looking at.

use std::{path::PathBuf, sync::Arc};

use tidemark_protocol::Offset;

use crate::{
    disk::{Disk, DiskError, DiskFile},
    log::Shared,
    segment::{OpenFile, Segment, log_path},
    walk::Walk,
};

const TORN_DIR: &str = "torn";
/// Bytes looked at, at a time.
const WINDOW_BYTES: u64 = 1 << 20;
/// More than this of a torn tail is not kept.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// A torn tail that was cleared.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cleared {
    pub bytes: u64,
    pub batches: u64,
}

/// Zeroes everything behind a segment's end, durably. Whole batches in there, which were appended
/// but never known to be durable, are copied to `torn/` first if `keep` says so.
pub(super) fn clear<D: Disk>(
    shared: &Shared<D>,
    segment: &Segment<D>,
    file: &Arc<OpenFile<D>>,
    keep: bool,
) -> Result<Cleared, DiskError> {
    let from = segment.end();
    let Some(end) = last_nonzero(file, from)? else { return Ok(Cleared::default()) };
    let (batches, end_of_batches) = whole_batches(file, from);
    // A batch may end in zeros.
    let end = end.max(end_of_batches);
    if batches > 0 && keep {
        let until = end.min(from + KEPT_BYTES_MAX);
        let bytes = file.file.slice(from..until);
        let name = format!("{:020}-{from}.tail", segment.base);
        match torn_dir(shared).and_then(|dir| shared.disk().write_file(&dir.join(name), &bytes)) {
            Err(error) if !error.is_full() => return Err(error),
            Err(error) => tracing::warn!(%error, "a torn tail is not kept"),
            Ok(()) => {}
        }
    }
    tracing::warn!(
        segment = %segment.path().display(), position = from, bytes = end - from, batches,
        "clearing what an interrupted write left behind the end of the log"
    );
    file.file.zero(from..end)?;
    file.file.sync(from..end)?;
    Ok(Cleared { bytes: end - from, batches })
}

/// Zeroes everything behind a segment's end, durably, whatever it looks like. Where a truncation was interrupted by a flush
/// that failed, the zeros that are read may be in the page cache alone: a loss of power would bring back what was cut off.
pub(super) fn clear_unseen<D: Disk>(
    segment: &Segment<D>,
    file: &OpenFile<D>,
) -> Result<(), DiskError> {
    let rest = segment.end()..file.file.len();
    file.file.zero(rest.clone())?;
    file.file.sync(rest)
}

/// Takes a segment behind the end of the log out of the way.
pub(super) fn set_aside<D: Disk>(
    shared: &Shared<D>,
    base: Offset,
    keep: bool,
) -> Result<(), DiskError> {
    let (disk, path) = (shared.disk(), log_path(&shared.dir, base));
    tracing::warn!(segment = %path.display(), "removing a segment behind the end of the log");
    match disk.unlink(&path.with_extension("index")) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    if keep {
        disk.rename(&path, &log_path(&torn_dir(shared)?, base))?;
    } else {
        disk.unlink(&path)?;
    }
    disk.sync_dir(&shared.dir)
}

fn torn_dir<D: Disk>(shared: &Shared<D>) -> Result<PathBuf, DiskError> {
    let dir = shared.path(TORN_DIR);
    match shared.disk().create_dir(&dir) {
        Ok(()) | Err(DiskError::Exists { .. }) => Ok(dir),
        Err(error) => Err(error),
    }
}

/// The end of the last bytes behind `from` that are not zero.
fn last_nonzero<D: Disk>(file: &OpenFile<D>, from: u64) -> Result<Option<u64>, DiskError> {
    let (mut start, len) = (from, file.file.len());
    let mut last = None;
    while start < len {
        let end = len.min(start + WINDOW_BYTES);
        file.file.populate_read(start..end)?;
        let window = file.file.slice(start..end);
        if let Some(index) = window.iter().rposition(|byte| *byte != 0) {
            last = Some(start + index as u64 + 1);
        }
        start = end;
    }
    Ok(last)
}

/// How many intact batches a hop from header to header finds, and where the last one ends.
fn whole_batches<D: Disk>(file: &Arc<OpenFile<D>>, from: u64) -> (u64, u64) {
    let mut walk = Walk::new(Arc::clone(file), from, file.file.len(), true);
    let (mut count, mut end) = (0, from);
    while let Ok(Some(header)) = walk.peek() {
        let is_intact = walk.batch(&header).is_ok_and(|batch| batch.verify_crc().is_ok());
        walk.skip(&header);
        if is_intact {
            count += 1;
            end = walk.position();
        }
    }
    (count, end)
}

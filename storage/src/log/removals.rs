//! How far the marks of removals may be missing.
//!
//! Compaction drops a tombstone some time after everything that it hid. A replica that ended before that tombstone when it was away
//! still has what it hid, and would never hear of it. So a log remembers where the last tombstone was that it dropped; whoever follows
//! it and ends before has to start over (see `docs/rfcs/2026-11-25-replication.md`). The note goes before what it speaks of.
//! It is behind the log's end only while the log is being copied from one that lacks them.

use std::{path::Path, sync::atomic::Ordering};

use tidemark_protocol::Offset;

use super::{Log, append::create_dirs};
use crate::{
    disk::{DirEntry, Disk, DiskError},
    error::{OpenError, StorageError},
    state_file::{self, Kind},
};

pub(super) const REMOVALS_FILE: &str = "removals";
const REMOVALS_BYTES_MAX: usize = 64;

impl<D: Disk> Log<D> {
    /// Behind every tombstone that may be missing here: dropped by compaction, or by the log that this one is a copy of; 0 if none is.
    pub fn removals_end(&self) -> Offset {
        self.shared.removals_end.load(Ordering::Relaxed)
    }

    /// Takes note that tombstones below `end` may be missing, for good: durable when it returns `Ok`. Does nothing if that is known.
    pub fn note_removals(&mut self, end: Offset) -> Result<(), StorageError> {
        if self.shared.is_fenced() {
            return Err(StorageError::Fenced);
        }
        if end <= self.removals_end() {
            return Ok(());
        }
        if !self.dir_exists {
            create_dirs(self.shared.disk(), &self.shared.dir)?;
            self.dir_exists = true;
        }
        self.make_dir_durable()?;
        self.write_removals(end)?;
        self.shared.removals_end.store(end, Ordering::Release);
        Ok(())
    }

    /// What is written from here on lacks no tombstone, whatever was known of the log that this one was to be a copy of. To be called
    /// when another leadership begins, in either role: whoever is in sync would be taken for one that is behind.
    pub fn forget_removals_ahead(&mut self) -> Result<(), StorageError> {
        Ok(self.clip_removals(self.log_end_offset())?)
    }

    /// The log ends at `end` now: no tombstone behind is missing, whatever is written there.
    pub(super) fn clip_removals(&self, end: Offset) -> Result<(), DiskError> {
        if self.removals_end() <= end {
            return Ok(());
        }
        self.shared.removals_end.store(end, Ordering::Release);
        self.write_removals(end)
    }

    fn write_removals(&self, end: Offset) -> Result<(), DiskError> {
        let path = self.shared.path(REMOVALS_FILE);
        state_file::write(self.shared.disk(), &path, Kind::Removals, &end)
    }
}

/// What a directory says of it.
pub(super) fn stored<D: Disk>(
    disk: &D,
    dir: &Path,
    names: &[DirEntry],
) -> Result<Offset, OpenError> {
    if !names.iter().any(|entry| entry.name == REMOVALS_FILE) {
        return Ok(0);
    }
    let path = dir.join(REMOVALS_FILE);
    let stored = state_file::read(disk, &path, Kind::Removals, REMOVALS_BYTES_MAX)?;
    Ok(stored.unwrap_or(0))
}

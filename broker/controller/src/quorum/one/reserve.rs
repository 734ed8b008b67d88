//! Space that is kept for commits which a full disk must not refuse: deletions, which bring space back, and the
//! registration without which a broker does not start.
//!
//! A file of zeros beside the log. When such a commit meets the end of the disk the file is removed, and what it
//! held is taken by the log. It is made again as soon as there is space. It promises nothing against others who
//! write to the same disk in that very moment.

use std::path::{Path, PathBuf};

use tidemark_storage::{Disk, DiskError};

use crate::record::MetadataRecord;

/// Enough for thousands of deletions, or for a start with tens of thousands of partitions.
const RESERVE_BYTES: u64 = 4 << 20;
const RESERVE_FILE: &str = "reserve";

#[derive(Debug)]
pub(super) struct Reserve<D> {
    disk: D,
    path: PathBuf,
    is_kept: bool,
}

impl<D: Disk> Reserve<D> {
    /// Nothing is kept before [`Reserve::keep`].
    pub(super) fn new(disk: D, dir: &Path) -> Self {
        Self { disk, path: dir.join(RESERVE_FILE), is_kept: false }
    }

    /// Takes the space, unless it is taken already or there is none.
    pub(super) fn keep(&mut self) {
        if self.is_kept {
            return;
        }
        match self.disk.create(&self.path, RESERVE_BYTES, RESERVE_BYTES) {
            Ok(_) | Err(DiskError::Exists { .. }) => self.is_kept = true,
            Err(error) if error.is_full() => {
                tracing::debug!(%error, "no space is kept for deletions");
            }
            Err(error) => tracing::warn!(%error, "no space is kept for deletions"),
        }
    }

    /// Gives the space back to the disk. Says whether there was any.
    pub(super) fn release(&mut self) -> bool {
        if !std::mem::take(&mut self.is_kept) {
            return false;
        }
        // The second makes file systems that free blocks late do it now.
        let dir = self.path.parent().unwrap_or(&self.path);
        let released = self.disk.unlink(&self.path).and_then(|()| self.disk.sync_dir(dir));
        match released {
            Ok(()) => tracing::info!("the space kept for deletions is given to the metadata log"),
            Err(error) => tracing::warn!(%error, "the space kept for deletions is not released"),
        }
        true
    }
}

/// Whether a full disk must not refuse these.
pub(super) fn may_use_it(records: &[MetadataRecord]) -> bool {
    records.iter().any(|record| {
        matches!(
            record,
            MetadataRecord::TopicDeleted { .. } | MetadataRecord::BrokerRegistered { .. }
        )
    })
}

//! Space that is kept for commits which a full disk must not refuse: deletions, which bring space back, and those
//! without which a broker neither starts nor is replaced when it is gone.
//!
//! A file of zeros beside the log. When such a commit meets the end of the disk the file is removed, and what it
//! held is taken by the log. It is made again as soon as there is space. It promises nothing against others who
//! write to the same disk in that very moment.

use std::path::{Path, PathBuf};

use tidemark_storage::{Disk, DiskError};

use crate::record::MetadataRecord;

/// What is kept if it can be had, else the next smaller. The largest is enough for thousands of deletions, or for
/// a start with tens of thousands of partitions.
const RESERVE_BYTES: [u64; 4] = [4 << 20, 1 << 20, 256 << 10, 64 << 10];
pub(in crate::quorum) const RESERVE_FILE: &str = "reserve";

#[derive(Debug)]
pub(in crate::quorum) struct Reserve<D> {
    disk: D,
    path: PathBuf,
    is_kept: bool,
    /// Less than the most is kept, since an earlier process found no more.
    is_small: bool,
}

impl<D: Disk> Reserve<D> {
    /// What an earlier process has kept.
    pub(in crate::quorum) fn find(disk: D, dir: &Path) -> Result<Self, DiskError> {
        let found = disk.list(dir)?.into_iter().find(|entry| entry.name == RESERVE_FILE);
        let is_small = found.as_ref().is_some_and(|found| found.bytes < RESERVE_BYTES[0]);
        Ok(Self { disk, path: dir.join(RESERVE_FILE), is_kept: found.is_some(), is_small })
    }

    /// Takes as much as is to be had, even if something is kept already.
    pub(in crate::quorum) fn renew(&mut self) {
        if std::mem::take(&mut self.is_small) {
            self.release();
        }
        self.keep();
    }

    /// Takes the space, unless it is taken already or there is none.
    pub(in crate::quorum) fn keep(&mut self) {
        if self.is_kept {
            return;
        }
        for bytes in RESERVE_BYTES {
            match self.disk.create(&self.path, bytes, bytes) {
                Ok(_) | Err(DiskError::Exists { .. }) => {
                    self.is_kept = true;
                    return;
                }
                Err(error) if error.is_full() => {
                    tracing::debug!(%error, bytes, "cannot be kept for deletions");
                }
                Err(error) => {
                    tracing::warn!(%error, "no space is kept for deletions");
                    return;
                }
            }
        }
    }

    /// Gives the space back to the disk. Says whether there was any.
    pub(in crate::quorum) fn release(&mut self) -> bool {
        if !std::mem::take(&mut self.is_kept) {
            return false;
        }
        // The second makes file systems that free blocks late do it now.
        let dir = self.path.parent().unwrap_or(&self.path);
        let released = self.disk.unlink(&self.path).and_then(|()| self.disk.sync_dir(dir));
        match released {
            Ok(()) => tracing::debug!("the space kept for deletions is given back to the disk"),
            Err(error) => tracing::warn!(%error, "the space kept for deletions is not released"),
        }
        true
    }
}

/// Whether a full disk must not refuse these.
pub(in crate::quorum) fn may_use_it(records: &[MetadataRecord]) -> bool {
    records.iter().any(|record| {
        matches!(
            record,
            MetadataRecord::TopicDeleted { .. }
                | MetadataRecord::BrokerRegistered { .. }
                | MetadataRecord::BrokerChanged { .. }
        )
    })
}

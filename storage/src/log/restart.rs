//! Starting over at another offset, as a follower does when its leader has nothing any more of what would come next.
//!
//! What is on the disk becomes an earlier life of the directory: it is deleted under a durable mark, and everything that
//! was known of it, checkpoints included, bears another incarnation from then on. An open that finds the mark
//! finishes the job before it believes anything.

use std::sync::{Arc, atomic::Ordering};

use tidemark_protocol::Offset;

use super::{Log, append::create_dirs, compact::REPLACED_FILE, quarantine};
use crate::{
    disk::{Disk, DiskError},
    epochs::EpochHistory,
    error::StorageError,
    meta::{META_FILE, PartitionMeta},
    state_file::{self, Kind},
    truncations::Restart,
};

impl<D: Disk> Log<D> {
    /// Drops everything: the log is empty and goes on at `offset`, wherever it was. Durable when it returns `Ok`. A full
    /// disk may refuse it, and nothing has happened; any other error fences the log, and the next open finishes
    /// what was begun.
    ///
    /// The caller sees to it that no reader is given offsets of the old log from now on.
    pub fn restart_at(&mut self, offset: Offset) -> Result<(), StorageError> {
        if self.shared.is_fenced() {
            return Err(StorageError::Fenced);
        }
        if !self.dir_exists {
            // An empty log that goes on at an offset has that to remember.
            create_dirs(self.shared.disk(), &self.shared.dir)?;
            self.dir_exists = true;
        }
        let incarnation = self.meta.incarnation + 1;
        self.mark(|truncations| truncations.begin_restart(Restart { offset, incarnation }))?;
        self.meta.incarnation = incarnation;
        self.start_over(offset).map_err(|error| self.interrupted(error.into()))
    }

    /// Carries out a restart whose mark is set.
    fn start_over(&mut self, offset: Offset) -> Result<(), DiskError> {
        let gone = self.shared.segments.swap(Arc::default());
        let shared = &self.shared;
        // The start is never above the end, whichever way they move.
        if offset >= self.log_end_offset() {
            shared.log_end.store(offset, Ordering::Release);
            shared.log_start.store(offset, Ordering::Release);
        } else {
            shared.log_start.fetch_min(offset, Ordering::Release);
            shared.log_end.store(offset, Ordering::Release);
            shared.log_start.store(offset, Ordering::Release);
        }
        shared.flushed.store(offset, Ordering::Release);
        (self.tail, self.durable) = (None, None);
        self.dirty.clear();
        for segment in gone.iter() {
            self.unlink(segment)?;
        }
        self.complete_restart(offset)
    }

    /// What remains to be done once the old segments are gone.
    pub(super) fn complete_restart(&mut self, offset: Offset) -> Result<(), DiskError> {
        let disk = self.shared.disk().clone();
        disk.sync_dir(&self.shared.dir)?;
        quarantine::clip(&self.shared, &(offset..offset))?;
        if !self.replaced.is_empty() {
            self.replaced.clear();
            let path = self.shared.path(REPLACED_FILE);
            state_file::write(&disk, &path, Kind::Compacted, &self.replaced)?;
        }
        self.clip_removals(0)?;
        self.epochs = EpochHistory::default();
        self.epochs_version += 1;
        self.save_own_epochs()?;
        self.record_log_start(offset)?;
        self.write_meta()?;
        self.truncations.restart = None;
        self.save_truncations()
    }

    /// Nothing but this writes the identity of a directory that has one.
    fn write_meta(&self) -> Result<(), DiskError> {
        let mut state_files = self.shared.state_files();
        state_files.incarnation = self.meta.incarnation;
        let path = self.shared.path(META_FILE);
        state_file::write::<D, PartitionMeta>(
            self.shared.disk(),
            &path,
            Kind::PartitionMeta,
            &self.meta,
        )
    }
}

//! Where the logs of a data directory are, and how one is opened and deleted. Blocks on the disk; decides neither which
//! logs there are nor when.

use std::path::{Path, PathBuf};

use tidemark_controller::Topic;
use tidemark_protocol::TopicPartition;
use tidemark_storage::{
    Checkpoint, DataDir, Disk as _, DiskError, LogIdentity, OpenError, Recovery, StorageError,
    delete_log_dir, is_nobodys_log_dir, log_dir_owner,
};

use crate::{
    disk::{Disk, Log, SegmentFiles},
    left_behind::LeftBehind,
    producers::Producers,
    shard::log_config,
};

/// The place of all logs.
#[derive(Clone, Debug)]
pub(crate) struct LogDirs {
    pub(crate) files: SegmentFiles,
    pub(crate) topics_dir: PathBuf,
    pub(crate) left_behind: LeftBehind,
}

/// What to do with another partition's directory where a log should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stray {
    /// Nothing: the metadata may be older than the directory, and the directory the one that counts.
    Keep,
    /// The metadata is at least as new as what the last process followed: that partition is no more.
    MoveAside,
}

impl LogDirs {
    /// Opens a log, new or with what is known to be durable of it, in the state that its topic's settings ask for, and
    /// reads who its producers are.
    pub(crate) fn open(
        &self,
        topic: &Topic,
        id: TopicPartition,
        checkpoint: Option<&Checkpoint>,
        (stray, now_ms): (Stray, u64),
    ) -> Result<(Log, Producers), OpenError> {
        let dir = self.dir(topic, id.partition);
        let identity = LogIdentity { partition: id };
        let config = log_config(&topic.config);
        let open = || {
            self.clear_nobodys(&dir, checkpoint, now_ms)?;
            if checkpoint.is_none() && self.is_free(&dir)? {
                // Tells this life of the partition here from others, which may have left checkpoints behind.
                let log = Log::create(&self.files, &dir, identity, config.clone(), now_ms)?;
                return Ok((log, Recovery::default()));
            }
            Log::open(&self.files, &dir, identity, config.clone(), checkpoint.cloned())
        };
        let (mut log, recovery) = match open() {
            Err(OpenError::Foreign { found, .. }) if stray == Stray::MoveAside => {
                // The metadata has no such partition any more, or it would have been opened here: its deletion
                // was interrupted.
                tracing::warn!(dir = %dir.display(), %found, "another partition's directory is in the way");
                self.left_behind.move_aside(&dir, now_ms)?;
                open()?
            }
            other => other?,
        };
        if recovery.torn_bytes > 0 || !recovery.corrupt.is_empty() {
            tracing::warn!(dir = %dir.display(), ?recovery, "log recovered");
        } else {
            tracing::debug!(dir = %dir.display(), ?recovery, "log opened");
        }
        let quarantined = log.reader().quarantined();
        if !quarantined.is_empty() {
            tracing::warn!(dir = %dir.display(), ?quarantined, "offsets with damaged data are not served");
        }
        flush_recovered(&mut log);
        let producers = Producers::load(&log)?;
        Ok((log, producers))
    }

    /// Has the checkpoint file speak of logs no more, before they are deleted: a crash may follow at any point, and what is
    /// found in their places at the next start is not to be measured by what they held. Says whether it was done. A full
    /// disk may refuse it, and then their deletion makes room: it is to be tried once more after that.
    pub(crate) fn forget(data_dir: &DataDir<Disk>, logs: &[TopicPartition]) -> bool {
        if logs.is_empty() {
            return true;
        }
        let forgotten = data_dir.forget_checkpoints(logs);
        if let Err(error) = &forgotten {
            // Nothing is lost by it: what comes to such a place may at worst count as damaged after a crash.
            tracing::warn!(%error, "the checkpoint file speaks of logs that are deleted");
        }
        forgotten.is_ok()
    }

    /// Deletes a log that is open and was forgotten.
    pub(crate) fn delete(&self, log: Log) -> Result<(), StorageError> {
        let dir = log.dir().to_owned();
        log.delete()?;
        self.remove_topic_dir(&dir);
        Ok(())
    }

    /// Deletes a log that could not be opened and was forgotten. A directory that is another partition's stays: the topic may have come
    /// back under its name before this process heard that it was gone.
    pub(crate) fn delete_unopened(
        &self,
        topic: &Topic,
        id: TopicPartition,
    ) -> Result<(), StorageError> {
        let dir = self.dir(topic, id.partition);
        match log_dir_owner(self.disk(), &dir) {
            Ok(owner) if owner.is_none_or(|owner| owner == id) => {
                delete_log_dir(self.disk(), &dir)?;
                self.remove_topic_dir(&dir);
            }
            Ok(_another) => {}
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "a directory stays: nobody knows whose it is");
            }
        }
        Ok(())
    }

    /// Moves away what a loss of power has left that does not say whose it is: perhaps it is of a topic that had this
    /// name before. Nothing of it was promised to anybody.
    fn clear_nobodys(
        &self,
        dir: &Path,
        checkpoint: Option<&Checkpoint>,
        now_ms: u64,
    ) -> Result<(), OpenError> {
        let was_flushed = checkpoint.is_some_and(|checkpoint| checkpoint.flushed_offset > 0);
        if was_flushed || self.is_free(dir)? || !is_nobodys_log_dir(self.disk(), dir)? {
            return Ok(());
        }
        tracing::warn!(dir = %dir.display(), "a directory does not say whose it is, and was never flushed");
        Ok(self.left_behind.move_aside(dir, now_ms)?)
    }

    /// Whether nothing is there.
    fn is_free(&self, dir: &Path) -> Result<bool, DiskError> {
        match self.disk().list(dir) {
            Err(error) if error.is_not_found() => Ok(true),
            listed => Ok(listed?.is_empty()),
        }
    }

    fn disk(&self) -> &Disk {
        self.files.disk()
    }

    fn dir(&self, topic: &Topic, partition: u32) -> PathBuf {
        self.topics_dir.join(&*topic.name).join(partition.to_string())
    }

    /// The last partition to go takes the topic's directory with it; before that it is not empty.
    fn remove_topic_dir(&self, partition_dir: &Path) {
        if let Some(topic_dir) = partition_dir.parent()
            && self.disk().remove_dir(topic_dir).is_ok()
        {
            tracing::debug!(dir = %topic_dir.display(), "removed");
        }
    }
}

/// What a crash left unflushed was perhaps readable before it. Flushed here, the high watermark is where it was
/// when the log is served again; a consumer that had come that far would be told otherwise that its offset is
/// out of range.
fn flush_recovered(log: &mut Log) {
    while let Some(job) = log.flush_job() {
        match job.run() {
            Ok(done) => log.flushed(done),
            Err(error) => {
                // The log opens all the same: its shard flushes again, and draws the consequences.
                tracing::warn!(dir = %log.dir().display(), %error, "a recovered log is not flushed");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Directories under `topics/` that the metadata does not know: what a deletion left that a crash, or a failing
//! disk, kept from its end.
//!
//! They are moved aside at start, into `left-behind/`, and deleted from there a day later. Nothing here opens a log, and nothing that is not named like a partition is moved.

use std::path::{Path, PathBuf};

use tidemark_controller::Image;
use tidemark_storage::{Disk as _, DiskError, delete_log_dir};

use crate::disk::Disk;

/// How long a directory is kept once it was moved aside: time to notice that older metadata was put back.
const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
const DIR: &str = "left-behind";

/// The place for what is left behind.
#[derive(Clone, Debug)]
pub(crate) struct LeftBehind {
    disk: Disk,
    /// In the data directory; made when there is something to put there.
    dir: PathBuf,
    topics_dir: PathBuf,
}

/// The directory of one partition.
struct Found {
    path: PathBuf,
    topic: String,
    partition: u32,
}

impl LeftBehind {
    pub(crate) fn new(disk: Disk, root: &Path, topics_dir: PathBuf) -> Self {
        Self { disk, dir: root.join(DIR), topics_dir }
    }

    /// Moves away what the metadata has no partition for. Returns how much that was.
    pub(crate) fn clear_topics(&self, image: &Image, now_ms: u64) -> Result<usize, DiskError> {
        let is_known = |found: &Found| {
            let topic = image.topic(&found.topic);
            topic.is_some_and(|topic| found.partition < topic.partition_count())
        };
        let mut moved = 0;
        for found in self.partitions()?.into_iter().filter(|found| !is_known(found)) {
            self.move_aside(&found.path, now_ms)?;
            moved += 1;
            if let Some(topic_dir) = found.path.parent()
                && self.disk.list(topic_dir)?.is_empty()
            {
                self.disk.remove_dir(topic_dir)?;
            }
        }
        Ok(moved)
    }

    /// Moves the directory of a partition, `topics/<topic>/<partition>`, out of the way.
    pub(crate) fn move_aside(&self, path: &Path, now_ms: u64) -> Result<(), DiskError> {
        match self.disk.create_dir(&self.dir) {
            Ok(()) | Err(DiskError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        let below = path.strip_prefix(&self.topics_dir).unwrap_or(path);
        let names: Vec<_> = below.iter().map(|name| name.to_string_lossy()).collect();
        let aside = self.dir.join(format!("{}-{now_ms}", names.join("-")));
        self.disk.rename(path, &aside)?;
        tracing::warn!(
            dir = %path.display(), aside = %aside.display(),
            "a directory without a partition was moved aside; it is deleted in a day"
        );
        // The way back after a loss of power would be harmless: it is found again.
        self.disk.sync_dir(&self.dir)
    }

    /// Deletes what was moved here long ago.
    pub(crate) fn delete_old(&self, now_ms: u64) -> Result<(), DiskError> {
        let entries = match self.disk.list(&self.dir) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        for entry in entries.into_iter().filter(|entry| entry.is_dir) {
            let since_ms = entry.name.rsplit_once('-').and_then(|(_, ms)| ms.parse::<u64>().ok());
            if since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= KEPT_MS) {
                delete_log_dir(&self.disk, &self.dir.join(&entry.name))?;
                tracing::info!(name = entry.name, "deleted what was left behind");
            }
        }
        Ok(())
    }

    fn partitions(&self) -> Result<Vec<Found>, DiskError> {
        let mut found = Vec::new();
        for topic in self.disk.list(&self.topics_dir)?.into_iter().filter(|entry| entry.is_dir) {
            let topic_dir = self.topics_dir.join(&topic.name);
            for entry in self.disk.list(&topic_dir)?.into_iter().filter(|entry| entry.is_dir) {
                if let Ok(partition) = entry.name.parse::<u32>()
                    && partition.to_string() == entry.name
                {
                    let path = topic_dir.join(&entry.name);
                    found.push(Found { path, topic: topic.name.clone(), partition });
                }
            }
        }
        Ok(found)
    }
}

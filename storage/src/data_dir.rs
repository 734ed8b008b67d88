//! A data directory: who may use it, whose it is, and what its logs know to be durable.
//!
//! ```text
//! LOCK        held by the process that uses the directory; says which
//! format      format version, cluster, node, the directory's own id
//! checkpoint  one entry per log
//! clean       there only after a clean shutdown, and gone before anything is loaded again
//! controller  the node has been a controller with this directory: `metadata/` belongs to it
//! metadata/   the controller's log
//! topics/<topic name>/<partition>/
//! ```
//!
//! A directory that is locked, of a newer format, or somebody else's is refused, untouched. This
//! module opens no logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{BrokerEpoch, BrokerId, TopicPartition};

use crate::{
    checkpoint::Checkpoint,
    disk::{Disk, DiskError, Space},
    error::OpenError,
    state_file::{self, Kind},
};

const LOCK_FILE: &str = "LOCK";
const HOLDER_FILE: &str = "LOCK.holder";
const FORMAT_FILE: &str = "format";
const CHECKPOINT_FILE: &str = "checkpoint";
const CLEAN_FILE: &str = "clean";
const CONTROLLER_FILE: &str = "controller";
const TOPICS_DIR: &str = "topics";
const METADATA_DIR: &str = "metadata";
/// What an unused directory may hold: the beginnings of ours, and what a file system puts into its root.
const UNUSED_DIR_ENTRIES: &[&str] =
    &[LOCK_FILE, HOLDER_FILE, "LOCK.holder.tmp", FORMAT_FILE, "format.tmp", "lost+found"];

const SMALL_FILE_BYTES_MAX: usize = 64 << 10;
const CHECKPOINT_BYTES_MAX: usize = 1 << 30;

/// Refuses a directory that others keep their files in: deleting topics there could delete theirs.
fn refuse_foreign<D: Disk>(disk: &D, root: &Path) -> Result<(), OpenError> {
    let entries = disk.list(root)?;
    let is_ours = |name: &str| [FORMAT_FILE, TOPICS_DIR].contains(&name);
    if entries.iter().any(|entry| is_ours(&entry.name)) {
        return Ok(());
    }
    match entries.into_iter().find(|entry| !UNUSED_DIR_ENTRIES.contains(&entry.name.as_str())) {
        Some(entry) => Err(OpenError::NotEmpty { path: root.to_owned(), found: entry.name }),
        None => Ok(()),
    }
}

/// Whose data a directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are all ids, of different things")]
pub struct DataDirIdentity {
    pub cluster_id: String,
    pub node_id: BrokerId,
    /// Tells this directory from every other, and from an earlier one at the same place.
    pub directory_id: [u8; 16],
}

/// Says that the process which wrote the checkpoint stopped with nothing left to do.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CleanMarker {
    /// Of the checkpoint file that was last written.
    checkpoint_crc: u32,
    /// What the process was registered with in its cluster.
    #[serde(default)]
    broker_epoch: Option<BrokerEpoch>,
    /// Metadata up to which (exclusive) the process knew what there is. Its logs are in it.
    #[serde(default)]
    metadata_index: u64,
}

/// What a data directory says about its logs when it is opened.
#[derive(Debug, Default)]
pub struct Checkpoints {
    by_log: BTreeMap<TopicPartition, Checkpoint>,
    clean: bool,
    clean_epoch: Option<BrokerEpoch>,
    metadata_index: u64,
}

impl Checkpoints {
    /// What is known of each log, for [`crate::Log::open`].
    pub fn take_logs(&mut self) -> BTreeMap<TopicPartition, Checkpoint> {
        std::mem::take(&mut self.by_log)
    }

    /// Whether the last process shut down cleanly: no log will be scanned.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// The broker epoch of the last process, if it was registered and shut down cleanly.
    pub fn clean_epoch(&self) -> Option<BrokerEpoch> {
        self.clean_epoch
    }

    /// Metadata up to which (exclusive) the last process knew what there is, if it shut down cleanly; otherwise 0. Only
    /// metadata that goes so far speaks of every log that was closed in order.
    pub fn metadata_index(&self) -> u64 {
        self.metadata_index
    }

    pub fn len(&self) -> usize {
        self.by_log.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_log.is_empty()
    }
}

/// A data directory in use by this process; the lock goes with it.
#[derive(Debug)]
pub struct DataDir<D: Disk> {
    disk: D,
    root: PathBuf,
    identity: DataDirIdentity,
    checkpoint_file: Mutex<CheckpointFile>,
    _lock: D::Lock,
}

/// What is known of the checkpoint file. Whoever writes it holds this.
#[derive(Debug, Default)]
struct CheckpointFile {
    /// Logs forgotten since the checkpoints were begun that are written next: they may still speak of them.
    forgotten: BTreeSet<TopicPartition>,
    /// What is read from the file is what a loss of power leaves. Not known at the start: the last process may have ended
    /// in the middle of a write.
    is_durable: bool,
}

/// A data directory that this process has locked, and nothing more yet.
#[derive(Debug)]
pub struct LockedDataDir<D: Disk> {
    disk: D,
    root: PathBuf,
    lock: D::Lock,
}

impl<D: Disk> LockedDataDir<D> {
    /// Creates the directory if need be and locks it. `holder` is what another process is told
    /// that finds it locked, such as a process id.
    pub fn lock(disk: D, root: &Path, holder: &str) -> Result<Self, OpenError> {
        match disk.create_dir(root) {
            Ok(()) | Err(DiskError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        refuse_foreign(&disk, root)?;
        let lock = match disk.lock(&root.join(LOCK_FILE)) {
            Err(DiskError::Locked { .. }) => {
                let holder = disk.read_file(&root.join(HOLDER_FILE), SMALL_FILE_BYTES_MAX);
                let holder = holder.ok().flatten().unwrap_or_default();
                let holder = String::from_utf8_lossy(&holder).trim().to_owned();
                return Err(OpenError::Locked { path: root.to_owned(), holder });
            }
            other => other?,
        };
        // For people only; a full disk must not keep a broker from starting.
        if let Err(error) = disk.write_file(&root.join(HOLDER_FILE), holder.as_bytes()) {
            tracing::warn!(%error, "the lock's holder is not noted");
        }
        Ok(Self { disk, root: root.to_owned(), lock })
    }

    /// Where the controller's log is.
    pub fn metadata_dir(&self) -> PathBuf {
        self.root.join(METADATA_DIR)
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Whose data is in the directory; `None` when it was never used.
    pub fn identity(&self) -> Result<Option<DataDirIdentity>, OpenError> {
        let path = self.root.join(FORMAT_FILE);
        let found = state_file::read(&self.disk, &path, Kind::Format, SMALL_FILE_BYTES_MAX)?;
        if found.is_none() && self.disk.exists(&self.root.join(TOPICS_DIR))? {
            let reason = "it is missing, but there is data beside it".to_owned();
            return Err(OpenError::Damaged { path, reason });
        }
        Ok(found)
    }

    /// The directory's identity. An unused one becomes `unused`, which may be without a cluster (an empty id) as
    /// long as it is not known which: [`Self::open`] fills it in.
    pub fn claim(&self, unused: DataDirIdentity) -> Result<DataDirIdentity, OpenError> {
        match self.identity()? {
            None => {
                self.write_identity(&unused)?;
                Ok(unused)
            }
            Some(found) if found.node_id == unused.node_id => Ok(found),
            Some(found) => Err(OpenError::Foreign {
                path: self.root.clone(),
                found: render(&found),
                expected: format!("node {}", unused.node_id),
            }),
        }
    }

    /// Whether the node has been a controller with this directory, as far as [`Self::mark_controller`] noted it.
    pub fn was_controller(&self) -> Result<bool, DiskError> {
        self.disk.exists(&self.root.join(CONTROLLER_FILE))
    }

    /// Notes that this directory has a controller's log from now on: one that is missing later was lost.
    pub fn mark_controller(&self, identity: &DataDirIdentity) -> Result<(), DiskError> {
        let path = self.root.join(CONTROLLER_FILE);
        if self.disk.exists(&path)? {
            return Ok(());
        }
        state_file::write(&self.disk, &path, Kind::Controller, &identity.directory_id)
    }

    fn write_identity(&self, identity: &DataDirIdentity) -> Result<(), OpenError> {
        let path = self.root.join(FORMAT_FILE);
        state_file::write(&self.disk, &path, Kind::Format, identity)?;
        if let Some(above) = self.root.parent().filter(|above| *above != Path::new("")) {
            self.disk.sync_dir(above)?;
        }
        Ok(())
    }

    /// Opens the directory as `identity`'s, which an unused one becomes now.
    pub fn open(self, identity: DataDirIdentity) -> Result<DataDir<D>, OpenError> {
        match self.identity()? {
            None => self.write_identity(&identity)?,
            Some(found) if found == identity => {}
            Some(found)
                if found == (DataDirIdentity { cluster_id: String::new(), ..identity.clone() }) =>
            {
                self.write_identity(&identity)?;
            }
            Some(found) => {
                return Err(OpenError::Foreign {
                    path: self.root,
                    found: render(&found),
                    expected: render(&identity),
                });
            }
        }
        let topics = self.root.join(TOPICS_DIR);
        match self.disk.create_dir(&topics) {
            Ok(()) => self.disk.sync_dir(&self.root)?,
            Err(DiskError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let Self { disk, root, lock } = self;
        Ok(DataDir { disk, root, identity, checkpoint_file: Mutex::default(), _lock: lock })
    }
}

fn render(identity: &DataDirIdentity) -> String {
    let directory = uuid::Uuid::from_bytes(identity.directory_id);
    let DataDirIdentity { cluster_id, node_id, .. } = identity;
    format!("node {node_id} of cluster {cluster_id} (directory {directory})")
}

impl<D: Disk> DataDir<D> {
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub fn identity(&self) -> &DataDirIdentity {
        &self.identity
    }

    /// Where a partition's log lives. `topic` is a valid topic name, which is a valid file name.
    pub fn log_dir(&self, topic: &str, partition: u32) -> PathBuf {
        self.root.join(TOPICS_DIR).join(topic).join(partition.to_string())
    }

    /// Where the directories of topics are.
    pub fn topics_dir(&self) -> PathBuf {
        self.root.join(TOPICS_DIR)
    }

    /// Where the controller's log lives.
    pub fn metadata_dir(&self) -> PathBuf {
        self.root.join(METADATA_DIR)
    }

    /// Space on the file system.
    pub fn space(&self) -> Result<Space, DiskError> {
        self.disk.space(&self.root)
    }

    /// What is known of the logs, once per start: the mark of a clean shutdown is gone, durably,
    /// when this returns, so that a crash from now on is not taken for one.
    ///
    /// A checkpoint file that is damaged counts as absent: everything is read.
    pub fn load_checkpoints(&self) -> Result<Checkpoints, OpenError> {
        let clean_path = self.root.join(CLEAN_FILE);
        let marker: Option<CleanMarker> = state_file::read_cache(
            &self.disk,
            &clean_path,
            Kind::CleanMarker,
            SMALL_FILE_BYTES_MAX,
        );
        if self.disk.exists(&clean_path)? {
            self.disk.unlink(&clean_path)?;
            self.disk.sync_dir(&self.root)?;
        }
        let path = self.root.join(CHECKPOINT_FILE);
        let Some(bytes) = self.disk.read_file(&path, CHECKPOINT_BYTES_MAX)? else {
            return Ok(Checkpoints::default());
        };
        let entries: Vec<(TopicPartition, Checkpoint)> =
            match state_file::decode(Kind::Checkpoint, &bytes) {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "reading every log instead");
                    return Ok(Checkpoints::default());
                }
            };
        let crc = crc32fast::hash(&bytes);
        let marker = marker.filter(|marker| marker.checkpoint_crc == crc);
        let clean = marker.is_some();
        let by_log =
            entries.into_iter().map(|(log, checkpoint)| (log, Checkpoint { clean, ..checkpoint }));
        let clean_epoch = marker.as_ref().and_then(|marker| marker.broker_epoch);
        let metadata_index = marker.map_or(0, |marker| marker.metadata_index);
        Ok(Checkpoints { by_log: by_log.collect(), clean, clean_epoch, metadata_index })
    }

    /// To be called before the first checkpoint is taken of those that [`Self::write_checkpoints`] gets next.
    pub fn begin_checkpoints(&self) {
        self.checkpoint_file().forgotten.clear();
    }

    /// Replaces the checkpoint file by one that covers exactly these logs, but for those that were forgotten since
    /// [`Self::begin_checkpoints`]. A log that is left out is read whole when it is opened next.
    pub fn write_checkpoints(
        &self,
        logs: &[(TopicPartition, Checkpoint)],
    ) -> Result<(), DiskError> {
        let mut file = self.checkpoint_file();
        let is_kept = |log: &&(TopicPartition, Checkpoint)| !file.forgotten.contains(&log.0);
        let kept: Vec<_> = logs.iter().filter(is_kept).collect();
        self.replace_checkpoints(&mut file, &state_file::encode(Kind::Checkpoint, &kept))
    }

    /// Takes logs out of the checkpoint file, durably: before their directories are deleted, or what comes to their places
    /// next could be taken for them, and count as damaged.
    pub fn forget_checkpoints(&self, logs: &[TopicPartition]) -> Result<(), DiskError> {
        let mut file = self.checkpoint_file();
        file.forgotten.extend(logs);
        let path = self.root.join(CHECKPOINT_FILE);
        let stored: Option<Vec<(TopicPartition, Checkpoint)>> =
            state_file::read_cache(&self.disk, &path, Kind::Checkpoint, CHECKPOINT_BYTES_MAX);
        // One that cannot be read says nothing of any log.
        let mut kept = stored.unwrap_or_default();
        let before = kept.len();
        kept.retain(|(log, _)| !file.forgotten.contains(log));
        if kept.len() == before && file.is_durable {
            return Ok(());
        }
        self.replace_checkpoints(&mut file, &state_file::encode(Kind::Checkpoint, &kept))
    }

    fn replace_checkpoints(
        &self,
        file: &mut CheckpointFile,
        bytes: &[u8],
    ) -> Result<(), DiskError> {
        file.is_durable = false;
        self.disk.write_file(&self.root.join(CHECKPOINT_FILE), bytes)?;
        file.is_durable = true;
        Ok(())
    }

    fn checkpoint_file(&self) -> MutexGuard<'_, CheckpointFile> {
        // A panic leaves at worst more logs forgotten than need be.
        self.checkpoint_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the checkpoints and the mark of a clean shutdown: the last thing a process does, when
    /// every log is closed.
    /// `broker_epoch` is what the process was registered with, and `metadata_index` how far it knew the metadata.
    pub fn close(
        self,
        logs: &[(TopicPartition, Checkpoint)],
        broker_epoch: Option<BrokerEpoch>,
        metadata_index: u64,
    ) -> Result<(), DiskError> {
        let bytes = state_file::encode(Kind::Checkpoint, &logs);
        self.disk.write_file(&self.root.join(CHECKPOINT_FILE), &bytes)?;
        let checkpoint_crc = crc32fast::hash(&bytes);
        let marker = CleanMarker { checkpoint_crc, broker_epoch, metadata_index };
        let path = self.root.join(CLEAN_FILE);
        state_file::write(&self.disk, &path, Kind::CleanMarker, &marker)
    }
}

#[cfg(test)]
mod tests;

//! `partition.meta`: which partition a directory belongs to, and which life of it.
//!
//! It is there before the first batch, so that whoever finds batches after the end of a process knows whose they are; durable
//! it is with the first flush. A loss of power before that may leave batches that nobody vouches for: such a directory is
//! nobody's ([`is_nobodys_log_dir`]).

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemark_protocol::{Offset, TopicPartition};

use crate::{
    config::LogIdentity,
    disk::{Disk, DiskError, DiskFile},
    error::OpenError,
    log::EPOCHS_FILE,
    state_file::{self, Kind},
};

pub(crate) const META_FILE: &str = "partition.meta";
pub(crate) const META_BYTES_MAX: usize = 4096;

/// Whose log a directory holds; `None` when it does not say.
pub fn log_dir_owner<D: Disk>(disk: &D, dir: &Path) -> Result<Option<TopicPartition>, OpenError> {
    Ok(PartitionMeta::read_any(disk, dir)?.map(|meta| meta.partition))
}

/// Whether a directory that may hold files of a log is nobody's: it does not say whose it is, and no flush has ever
/// been completed there, since each first one leaves the identity and the history of epochs behind. Nothing in it was
/// promised to anybody. A directory that is missing or empty is nobody's, too.
pub fn is_nobodys_log_dir<D: Disk>(disk: &D, dir: &Path) -> Result<bool, OpenError> {
    Ok(PartitionMeta::read_any(disk, dir)?.is_none() && !was_flushed(disk, dir)?)
}

fn was_flushed<D: Disk>(disk: &D, dir: &Path) -> Result<bool, DiskError> {
    disk.exists(&dir.join(EPOCHS_FILE))
}

/// Identity of a log's data. Salts every checksum chain, so that a segment or index that strays
/// from another partition, or from an earlier life of this one, does not pass for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartitionMeta {
    pub partition: TopicPartition,
    pub incarnation: u64,
}

impl PartitionMeta {
    /// The time of creation tells one life of a partition's directory from the next.
    pub(crate) fn new(identity: LogIdentity, now_ms: u64) -> Self {
        Self { partition: identity.partition, incarnation: now_ms }
    }

    pub(crate) fn identity(&self) -> LogIdentity {
        LogIdentity { partition: self.partition }
    }

    /// Where the checksum chain of the segment at `base` begins.
    pub(crate) fn salt(&self, base: Offset) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.partition.topic_id.0);
        hasher.update(&self.partition.partition.to_be_bytes());
        hasher.update(&self.incarnation.to_be_bytes());
        hasher.update(&base.to_be_bytes());
        hasher.finalize()
    }

    /// Writes the file where there is none that counts, without making it durable: an end of the process leaves it
    /// whole or, killed in the middle, damaged in a directory without batches.
    pub(crate) fn write_undurably<D: Disk>(&self, disk: &D, dir: &Path) -> Result<(), DiskError> {
        let path = dir.join(META_FILE);
        match disk.unlink(&path) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let bytes = state_file::encode(Kind::PartitionMeta, self);
        let length = bytes.len() as u64;
        disk.create(&path, length, length)?.write_at(0, &bytes)
    }

    fn read_any<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = dir.join(META_FILE);
        match state_file::read(disk, &path, Kind::PartitionMeta, META_BYTES_MAX) {
            // Written, and never flushed: a loss of power leaves any part of it.
            Err(OpenError::Damaged { .. }) if !was_flushed(disk, dir)? => Ok(None),
            other => other,
        }
    }

    /// Reads the file; refuses one that says the data is another partition's.
    pub(crate) fn read<D: Disk>(
        disk: &D,
        dir: &Path,
        identity: LogIdentity,
    ) -> Result<Option<Self>, OpenError> {
        match Self::read_any(disk, dir)? {
            Some(meta) if meta.partition != identity.partition => Err(OpenError::Foreign {
                path: dir.join(META_FILE),
                found: format!("partition {}", meta.partition),
                expected: format!("partition {}", identity.partition),
            }),
            other => Ok(other),
        }
    }
}

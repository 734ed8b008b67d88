//! `partition.meta`: which partition a directory belongs to, and which life of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemark_protocol::{Offset, TopicPartition};

use crate::{
    config::LogIdentity,
    disk::Disk,
    error::OpenError,
    state_file::{self, Kind},
};

pub(crate) const META_FILE: &str = "partition.meta";
pub(crate) const META_BYTES_MAX: usize = 4096;

/// Whose log a directory holds; `None` when it does not say.
pub fn log_dir_owner<D: Disk>(disk: &D, dir: &Path) -> Result<Option<TopicPartition>, OpenError> {
    Ok(PartitionMeta::read_any(disk, dir)?.map(|meta| meta.partition))
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

    fn read_any<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Self>, OpenError> {
        state_file::read(disk, &dir.join(META_FILE), Kind::PartitionMeta, META_BYTES_MAX)
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

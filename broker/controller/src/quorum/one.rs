//! A quorum of one: what is on this node's stable storage is committed.

use std::path::Path;

use tidemark_protocol::TimestampMs;
use tidemark_storage::Disk;

use super::{ProposeError, Quorum, QuorumError};
use crate::{image::Image, record::MetadataRecord};

/// The metadata log of a cluster with one node.
#[derive(Debug)]
pub struct QuorumOfOne<D: Disk> {
    disk: D,
}

impl<D: Disk> QuorumOfOne<D> {
    /// Opens the log in `dir`, creating it if there is none, and recovers the image from the newest snapshot
    /// and the records after it.
    pub fn open(disk: D, dir: &Path, _now_ms: TimestampMs) -> Result<(Self, Image), QuorumError> {
        let attempt = format!("opening the metadata log in {}", dir.display());
        drop(disk);
        Err(QuorumError::new(attempt, "not built yet"))
    }
}

impl<D: Disk> Quorum for QuorumOfOne<D> {
    fn propose(
        &mut self,
        _records: &[MetadataRecord],
        _now_ms: TimestampMs,
    ) -> Result<(), ProposeError> {
        Err(QuorumError::new("proposing", "not built yet").into())
    }

    fn commit(&mut self) -> Result<(), QuorumError> {
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn snapshot(&mut self, _image: &Image) -> Result<(), QuorumError> {
        drop(self.disk.clone());
        Ok(())
    }
}

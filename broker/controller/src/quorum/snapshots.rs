//! Snapshots on disk: `NNNNNNNNNNNNNNNNNNNN.snapshot`, named by the index behind what they stand for.
//!
//! `"TDMS" | u16 version | u32 head bytes | head (MessagePack) | image | u32 CRC-32`, big-endian, the CRC over
//! everything in front of it; the image as [`Image::to_snapshot`] makes it, the head with the term and the voters at
//! that index. The same bytes go to other controllers. Two are kept, so that one of them may rot.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    messagepack::{self, MessageError},
    messages::VoterId,
};
use tidemark_storage::{Disk, DiskError};

use super::{
    members::{CONTROLLERS_MAX, Members},
    store::SnapshotMark,
};
use crate::{image::Image, snapshot::SnapshotError};

/// Largest snapshot that is read from disk or taken from a leader, in bytes.
pub(super) const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

const MAGIC: [u8; 4] = *b"TDMS";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 10;
const CRC_BYTES: usize = 4;
const SUFFIX: &str = ".snapshot";
/// Of a leader's snapshot until there is a log that continues it.
const ARRIVED_SUFFIX: &str = ".arrived";

/// A snapshot, read and found good.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// Exclusive end of what it stands for, which is the library's index of its last entry.
    pub end: u64,
    /// Term of that entry.
    pub term: u64,
    pub members: Members,
    pub image: Image,
    /// The file.
    pub bytes: Bytes,
}

/// Why bytes are not a snapshot this build can use.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotFileError {
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it has format version {found}; this build reads {VERSION}")]
    Newer { found: u16 },
    #[error("its head cannot be decoded: {0}")]
    Head(#[from] MessageError),
    #[error(transparent)]
    Image(#[from] SnapshotError),
}

#[derive(Serialize, Deserialize)]
struct Head {
    term: u64,
    voters: Vec<VoterId>,
    learners: Vec<VoterId>,
}

impl Snapshot {
    /// Takes one of an image at its index.
    pub(super) fn of(image: &Image, term: u64, members: &Members) -> Self {
        let head = Head {
            term,
            voters: members.voters().map(|(_, voter)| voter).collect(),
            learners: members.learners().map(|(_, voter)| voter).collect(),
        };
        let mut encoded = Vec::new();
        messagepack::encode(&head, &mut encoded).expect("plain data encodes into a vector");
        let head_bytes = u32::try_from(encoded.len()).expect("a few controllers");
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&head_bytes.to_be_bytes());
        bytes.extend_from_slice(&encoded);
        bytes.extend_from_slice(&image.to_snapshot());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        Self {
            end: image.metadata_index(),
            term,
            members: members.clone(),
            image: image.clone(),
            bytes: bytes.into(),
        }
    }

    /// Reads a file, or what came from a leader. The bytes may be anything.
    pub(super) fn parse(bytes: Bytes) -> Result<Self, SnapshotFileError> {
        let (head, image) = split(&bytes)?;
        let head: Head = messagepack::decode(&bytes[head], CONTROLLERS_MAX)?;
        let image = Image::from_snapshot(&bytes[image])?;
        let members = Members::new(&head.voters, &head.learners)
            .filter(|members| members.voters().len() > 0)
            .ok_or(SnapshotFileError::Damaged("its voters make no quorum"))?;
        if image.metadata_index() == 0 || head.term == 0 {
            return Err(SnapshotFileError::Damaged("it stands for nothing"));
        }
        Ok(Self { end: image.metadata_index(), term: head.term, members, image, bytes })
    }

    /// The image in it, as bytes.
    pub(super) fn image_bytes(&self) -> Bytes {
        let (_, image) = split(&self.bytes).expect("it was checked, or made here");
        self.bytes.slice(image)
    }

    pub(super) fn mark(&self) -> SnapshotMark {
        SnapshotMark { raft_index: self.end, term: self.term, conf: self.members.conf_state() }
    }
}

type Span = std::ops::Range<usize>;

/// Where head and image are.
fn split(bytes: &[u8]) -> Result<(Span, Span), SnapshotFileError> {
    let damaged = SnapshotFileError::Damaged;
    let (checked, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(damaged("it is too short"))?;
    let fixed = checked.first_chunk::<FIXED_BYTES>().ok_or(damaged("it is too short"))?;
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = *fixed;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(damaged("it does not start with the magic number"));
    }
    if crc32fast::hash(checked) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum does not match"));
    }
    // Only a file whose checksum holds may claim to be newer: everything else is damage.
    let found = u16::from_be_bytes([v0, v1]);
    if found != VERSION {
        return Err(SnapshotFileError::Newer { found });
    }
    let head_bytes = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let head_end = FIXED_BYTES.saturating_add(head_bytes);
    if head_end > checked.len() {
        return Err(damaged("its head is too long"));
    }
    Ok((FIXED_BYTES..head_end, head_end..checked.len()))
}

/// The snapshots in one directory.
#[derive(Debug)]
pub(super) struct Snapshots<D> {
    disk: D,
    dir: PathBuf,
}

impl<D: Disk> Snapshots<D> {
    pub(super) fn new(disk: &D, dir: &Path) -> Self {
        Self { disk: disk.clone(), dir: dir.to_owned() }
    }

    /// Indexes of all, newest first.
    pub(super) fn list(&self) -> Result<Vec<u64>, DiskError> {
        self.list_with(SUFFIX)
    }

    fn list_with(&self, suffix: &str) -> Result<Vec<u64>, DiskError> {
        let entries = self.disk.list(&self.dir)?;
        let indexes = entries.iter().filter_map(|entry| entry.name.strip_suffix(suffix));
        let mut indexes: Vec<u64> = indexes.filter_map(|name| name.parse().ok()).collect();
        indexes.sort_unstable_by(|a, b| b.cmp(a));
        Ok(indexes)
    }

    /// The snapshot of an index; `None`, and a line in the log, when it is no good.
    pub(super) fn read(&self, index: u64) -> Result<Option<Snapshot>, DiskError> {
        self.read_file(&self.path(index, SUFFIX), index)
    }

    fn read_file(&self, path: &Path, index: u64) -> Result<Option<Snapshot>, DiskError> {
        let bytes = self.disk.read_file(path, SNAPSHOT_BYTES_MAX)?.unwrap_or_default();
        match Snapshot::parse(bytes.into()) {
            Ok(snapshot) if snapshot.end == index => return Ok(Some(snapshot)),
            Ok(snapshot) => tracing::error!(
                path = %path.display(), index = snapshot.end, "a metadata snapshot has another's name"
            ),
            Err(error) => tracing::error!(
                path = %path.display(), %error, "a metadata snapshot cannot be used"
            ),
        }
        Ok(None)
    }

    /// Term of the last entry that the snapshot of an index stands for, if that can be read.
    pub(super) fn term_of(&self, index: u64) -> Result<Option<u64>, DiskError> {
        let path = self.path(index, SUFFIX);
        let bytes = self.disk.read_file(&path, SNAPSHOT_BYTES_MAX)?.unwrap_or_default();
        let head = split(&bytes).ok().map(|(head, _)| &bytes[head]);
        let head = head.and_then(|head| messagepack::decode::<Head>(head, CONTROLLERS_MAX).ok());
        Ok(head.map(|head| head.term))
    }

    /// Stores a snapshot, and removes all others but the one of `previous`.
    pub(super) fn store(
        &self,
        snapshot: &Snapshot,
        previous: Option<u64>,
    ) -> Result<(), DiskError> {
        self.disk.write_file(&self.path(snapshot.end, SUFFIX), &snapshot.bytes)?;
        for old in self.list()? {
            if old != snapshot.end && Some(old) != previous {
                self.disk.unlink(&self.path(old, SUFFIX))?;
            }
        }
        Ok(())
    }

    /// Stores a leader's snapshot, under a name that says that the log does not continue it yet.
    pub(super) fn store_arrived(&self, snapshot: &Snapshot) -> Result<(), DiskError> {
        self.disk.write_file(&self.path(snapshot.end, ARRIVED_SUFFIX), &snapshot.bytes)
    }

    /// The log continues the snapshot now: it takes the place of all others.
    pub(super) fn settle(&self, index: u64) -> Result<(), DiskError> {
        self.disk.rename(&self.path(index, ARRIVED_SUFFIX), &self.path(index, SUFFIX))?;
        self.disk.sync_dir(&self.dir)?;
        for old in self.list()?.into_iter().filter(|old| *old != index) {
            self.disk.unlink(&self.path(old, SUFFIX))?;
        }
        Ok(())
    }

    /// The log does not continue the snapshot, and never will.
    pub(super) fn withdraw(&self, index: u64) -> Result<(), DiskError> {
        self.disk.unlink(&self.path(index, ARRIVED_SUFFIX))?;
        self.disk.sync_dir(&self.dir)
    }

    pub(super) fn has_arrived(&self) -> Result<bool, DiskError> {
        Ok(!self.list_with(ARRIVED_SUFFIX)?.is_empty())
    }

    /// A leader's snapshot that a crash kept from being settled; the log may be gone already. One that is not whole
    /// was never told to anybody, and is removed.
    pub(super) fn arrived(&self) -> Result<Option<u64>, DiskError> {
        let mut good = None;
        for index in self.list_with(ARRIVED_SUFFIX)? {
            let path = self.path(index, ARRIVED_SUFFIX);
            if good.is_none() && self.read_file(&path, index)?.is_some() {
                good = Some(index);
            } else {
                self.disk.unlink(&path)?;
            }
        }
        Ok(good)
    }

    fn path(&self, index: u64, suffix: &str) -> PathBuf {
        self.dir.join(format!("{index:020}{suffix}"))
    }
}

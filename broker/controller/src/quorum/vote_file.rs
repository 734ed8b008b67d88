//! `vote`: whose directory this is, the term, the vote in it, and how far this node knew the log to be committed.
//!
//! Five pages, each with one checksummed copy of that state. A vote goes into two pages at a time, alternating
//! between two pairs, with one sync: a crash spoils at most the pair being written, rot at most one page of a pair.
//! How far the log is committed goes into the fifth page and is synced only when voters have changed: otherwise an
//! older value is as good (whoever was committed once stays so), it only says less about what must be in the log.
//! Everything is written in place, so that a full disk takes away nobody's vote.

use std::path::{Path, PathBuf};

use tidemark_protocol::{DirectoryId, bug, messages::VoterId};
use tidemark_storage::{Disk, DiskError, DiskFile};

const FILE: &str = "vote";
const PAGE_BYTES: usize = 4096;
const PAGES: usize = 5;
/// Where the fifth page begins.
const COMMIT_AT: usize = 4 * PAGE_BYTES;
const MAGIC: [u8; 4] = *b"TDMV";
const VERSION: u16 = 1;
const RECORD_BYTES: usize = 62;

/// What must not be forgotten before anybody hears of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vote {
    pub term: u64,
    /// The library's number of whoever got the vote in that term; 0 for nobody.
    pub for_id: u64,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum VoteFileError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{} is damaged: no copy of this node's last vote can be read", path.display())]
    Damaged { path: PathBuf },
    #[error("{} has format version {found}; this build reads {VERSION}", path.display())]
    Newer { path: PathBuf, found: u16 },
    #[error(
        "{} belongs to node {} in directory {}, not to node {} in directory {}",
        path.display(), found.node, found.directory, expected.node, expected.directory
    )]
    Foreign { path: PathBuf, found: VoterId, expected: VoterId },
}

#[derive(Debug)]
pub(super) struct VoteFile<D: Disk> {
    file: D::File,
    me: VoterId,
    sequence: u64,
    vote: Vote,
    commit: u64,
    /// Which pair of pages holds the last vote.
    pair: usize,
}

/// One page's content.
#[derive(Clone, Copy, Debug)]
struct Copy {
    sequence: u64,
    vote: Vote,
    commit: u64,
    me: VoterId,
}

impl<D: Disk> VoteFile<D> {
    pub(super) fn exists(disk: &D, dir: &Path) -> Result<bool, DiskError> {
        disk.exists(&dir.join(FILE))
    }

    /// Writes the file of a node that has not voted yet, in place of any other.
    pub(super) fn create(
        disk: &D,
        dir: &Path,
        me: VoterId,
        (vote, commit): (Vote, u64),
    ) -> Result<(), DiskError> {
        let mut bytes = vec![0; PAGES * PAGE_BYTES];
        let copy = Copy { sequence: 1, vote, commit, me }.encode();
        for page in 0..PAGES {
            bytes[page * PAGE_BYTES..][..RECORD_BYTES].copy_from_slice(&copy);
        }
        disk.write_file(&dir.join(FILE), &bytes)
    }

    /// How far the log was committed, whosever the file is; `None` when there is none.
    pub(super) fn peek(disk: &D, dir: &Path) -> Result<Option<u64>, VoteFileError> {
        let path = dir.join(FILE);
        let Some(bytes) = disk.read_file(&path, PAGES * PAGE_BYTES)? else { return Ok(None) };
        let copies = read(&bytes, &path)?;
        let commit = copies.iter().map(|(_, copy)| copy.commit).max();
        commit.map(Some).ok_or(VoteFileError::Damaged { path })
    }

    /// Opens the file; what it says from now on is durable.
    pub(super) fn open(disk: &D, dir: &Path, me: VoterId) -> Result<Self, VoteFileError> {
        let path = dir.join(FILE);
        let bytes = disk.read_file(&path, PAGES * PAGE_BYTES)?.unwrap_or_default();
        let copies = read(&bytes, &path)?;
        let commit = copies.iter().map(|(_, copy)| copy.commit).max().unwrap_or(0);
        let votes = copies.iter().filter(|(page, _)| page * PAGE_BYTES < COMMIT_AT);
        let newest = votes.max_by_key(|(_, copy)| copy.sequence);
        let Some((page, newest)) = newest else { return Err(VoteFileError::Damaged { path }) };
        if newest.me != me {
            return Err(VoteFileError::Foreign { path, found: newest.me, expected: me });
        }
        let file = disk.open(&path, 0)?;
        // A process that was killed may have left its last vote in the page cache only.
        file.sync(0..file.len())?;
        let Copy { sequence, vote, .. } = *newest;
        Ok(Self { file, me, sequence, vote, commit, pair: page / 2 })
    }

    pub(super) fn vote(&self) -> Vote {
        self.vote
    }

    /// Up to where the log is known to have been committed, in the library's numbers.
    pub(super) fn commit(&self) -> u64 {
        self.commit
    }

    /// Makes a vote durable.
    pub(super) fn store(&mut self, vote: Vote) -> Result<(), DiskError> {
        if bug::is_put_back("raft-vote-not-durable") {
            self.vote = vote;
            return Ok(());
        }
        self.sequence += 1;
        self.vote = vote;
        self.pair = 1 - self.pair;
        let copy = self.copy().encode();
        let at = (self.pair * 2 * PAGE_BYTES) as u64;
        let page = PAGE_BYTES as u64;
        self.file.write_at(at, &copy)?;
        self.file.write_at(at + page, &copy)?;
        self.file.sync(at..at + 2 * page)
    }

    /// Notes how far the log is committed; everything up to there is durable already.
    pub(super) fn note_commit(&mut self, commit: u64) -> Result<(), DiskError> {
        if commit <= self.commit || bug::is_put_back("raft-commit-not-persisted") {
            return Ok(());
        }
        self.commit = commit;
        self.file.write_at(COMMIT_AT as u64, &self.copy().encode())
    }

    /// Makes durable what was noted last.
    pub(super) fn sync_commit(&mut self) -> Result<(), DiskError> {
        self.file.sync(COMMIT_AT as u64..(COMMIT_AT + PAGE_BYTES) as u64)
    }

    fn copy(&self) -> Copy {
        let Self { me, sequence, vote, commit, .. } = *self;
        Copy { sequence, vote, commit, me }
    }
}

/// The copies that are whole, with their pages.
fn read(bytes: &[u8], path: &Path) -> Result<Vec<(usize, Copy)>, VoteFileError> {
    let mut copies = Vec::new();
    for (page, bytes) in bytes.chunks(PAGE_BYTES).enumerate() {
        if let Some(copy) = Copy::decode(bytes, path)? {
            copies.push((page, copy));
        }
    }
    Ok(copies)
}

impl Copy {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = Vec::with_capacity(RECORD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        for number in [self.sequence, self.vote.term, self.vote.for_id, self.commit] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.me.node.to_be_bytes());
        bytes.extend_from_slice(&self.me.directory.0);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.try_into().expect("as long as its fields")
    }

    /// `None` when the page holds none.
    fn decode(page: &[u8], path: &Path) -> Result<Option<Self>, VoteFileError> {
        let Some(record) = page.first_chunk::<RECORD_BYTES>() else { return Ok(None) };
        let (checked, crc) = record.split_at(RECORD_BYTES - 4);
        if checked[..4] != MAGIC || crc32fast::hash(checked).to_be_bytes() != crc {
            return Ok(None);
        }
        let found = u16::from_be_bytes([checked[4], checked[5]]);
        if found != VERSION {
            return Err(VoteFileError::Newer { path: path.to_owned(), found });
        }
        let word = |at: usize| {
            let bytes = checked[at..at + 8].try_into().expect("eight bytes");
            u64::from_be_bytes(bytes)
        };
        let node = checked[38..42].try_into().expect("four bytes");
        let directory = checked[42..58].try_into().expect("sixteen bytes");
        Ok(Some(Self {
            sequence: word(6),
            vote: Vote { term: word(14), for_id: word(22) },
            commit: word(30),
            me: VoterId { node: u32::from_be_bytes(node), directory: DirectoryId(directory) },
        }))
    }
}

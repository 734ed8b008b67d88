//! What the Raft library reads: everything that is durable, from memory.
//!
//! It holds the entries behind the older of two snapshots, which is some megabytes. Nothing enters it before it is
//! on disk; a library that is made anew over it behaves as after a crash.

use std::collections::VecDeque;

use raft::{
    Error, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use super::entry;

/// Where a snapshot stands, without its bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotMark {
    pub raft_index: u64,
    pub term: u64,
    pub conf: ConfState,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    /// Index and term of the entry in front of the first.
    before: (u64, u64),
    /// Without gaps.
    entries: VecDeque<Entry>,
    pub hard_state: HardState,
    /// The configuration at the index that was applied last.
    pub conf: ConfState,
    /// The newest.
    pub snapshot: Option<SnapshotMark>,
}

impl Store {
    pub(super) fn new(before: (u64, u64)) -> Self {
        Self { before, ..Self::default() }
    }

    pub(super) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Term of the entry at an index, that in front of the first included.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.first())?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Adds entries that are durable. They replace everything from the first of them on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let kept = first.index.checked_sub(self.first());
        let kept = kept.and_then(|kept| usize::try_from(kept).ok());
        let kept = kept.expect("what a snapshot stands for is never replaced");
        assert!(kept <= self.entries.len(), "entry {} leaves a gap", first.index);
        self.entries.truncate(kept);
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets the entries up to an index; one that is not there is ignored.
    pub(super) fn compact(&mut self, through: u64) {
        let Some(term) = self.term_at(through) else { return };
        let count = through - self.before.0;
        self.entries.drain(..usize::try_from(count).expect("no more than there are"));
        self.before = (through, term);
    }

    /// Begins again behind a snapshot from elsewhere.
    pub(super) fn restart(&mut self, mark: SnapshotMark) {
        self.before = (mark.raft_index, mark.term);
        self.entries.clear();
        self.conf = mark.conf.clone();
        self.hard_state.commit = self.hard_state.commit.max(mark.raft_index);
        self.snapshot = Some(mark);
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for index in low..high {
            let entry = self.get(index).ok_or(Error::Store(StorageError::Unavailable))?;
            let bytes = entry::bytes(entry) as u64;
            if bytes > room && !found.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.before.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Its place only: the driver sends the bytes.
    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        let unavailable = Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        let mark = self.snapshot.as_ref().ok_or(unavailable)?;
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = mark.raft_index;
        metadata.term = mark.term;
        metadata.set_conf_state(mark.conf.clone());
        Ok(snapshot)
    }
}

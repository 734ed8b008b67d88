//! The quorum: the Raft library around a log on disk.
//!
//! Every event is taken in, what it changed is made durable, and only then do messages leave and entries count as
//! committed; all of it inside one call. In steady state that is one flush of the log for whatever was proposed or
//! received together; a vote costs one more. How far the log is committed is written, not flushed, before an entry
//! is delivered.
//!
//! What a full disk cannot take did not happen: entries are refused before the library hears of them or, where it
//! has, the library is made anew from what is durable, as after a crash in that moment. Any other failure of
//! the disk ends this node's part in the quorum until it is started again.

mod drive;
mod elections;
mod library_log;
mod open;
mod receive;
#[cfg(test)]
mod tests;
mod voters;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use bytes::Bytes;
use raft::{RawNode, StateRole, eraftpb::Entry};
use tidemark_protocol::messages::VoterId;
use tidemark_storage::Disk;

use self::elections::Elections;
use super::{
    Committed, EntryId, LatestSnapshot, ProposeError, Quorum, QuorumAction, QuorumError,
    QuorumEvent, QuorumStatus, VoterStatus,
    config::QuorumConfig,
    entry::{self, Content, shown},
    members::Members,
    snapshots::{Snapshot, Snapshots},
    store::{SnapshotMark, Store},
    transfer::{Incoming, Outgoing},
    vote_file::VoteFile,
    wal::{ENTRY_BYTES_MAX, Reserve, Wal, WalError, may_use_it},
};
use crate::{
    image::Image,
    record::{self, MetadataRecord},
};

/// One controller of the cluster, or of a cluster of one.
pub struct RaftQuorum<D: Disk> {
    node: RawNode<Store>,
    disk: Durable<D>,
    config: QuorumConfig,
    me: VoterId,
    my_id: u64,
    /// The configuration at the entry that was applied last.
    members: Members,
    /// Controllers that are not in it and have been heard: they may be answered.
    heard: BTreeMap<u64, VoterId>,
    /// The library's index of the last entry that was delivered.
    applied: u64,
    elections: Elections,
    outgoing: Outgoing,
    incoming: Incoming,
    /// A leader's snapshot that was checked and waits for the library's word.
    arrived: Option<Snapshot>,
    /// The newest snapshot.
    latest: Option<Latest>,
    /// Whose message was refused last, and why.
    refused: Option<(VoterId, &'static str)>,
    /// What was said of leadership last.
    role: Option<(u64, Option<VoterId>, bool)>,
    failed: Failed,
    now_ms: u64,
}

/// Everything on disk.
#[derive(Debug)]
struct Durable<D: Disk> {
    wal: Wal<D>,
    votes: VoteFile<D>,
    snapshots: Snapshots<D>,
    reserve: Reserve<D>,
    dir: PathBuf,
}

/// The newest snapshot, to be handed on.
#[derive(Clone, Debug)]
struct Latest {
    mark: SnapshotMark,
    /// The whole file.
    file: Bytes,
    /// The image in it.
    image: Bytes,
}

/// Whether anything can be persisted.
#[derive(Debug, Default)]
enum Failed {
    #[default]
    No,
    /// And nobody has been told.
    Now(QuorumError),
    Before(String),
}

impl<D: Disk> RaftQuorum<D> {
    /// Bytes of entries in the log.
    pub fn size_bytes(&self) -> u64 {
        self.disk.wal.size_bytes()
    }

    /// The entries of this node's log that are durable, committed or not: for tests that compare logs.
    pub fn log(&self) -> impl DoubleEndedIterator<Item = EntryId> {
        let store = self.node.store();
        (store.first()..=store.last()).map(|index| {
            let term = store.term_at(index).expect("between first and last");
            EntryId { index: shown(index), term }
        })
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this node alone decides.
    fn is_only_voter(&self) -> bool {
        self.members.voters().len() == 1 && self.members.is_voter(self.my_id)
    }

    fn name(&self, id: u64) -> Option<VoterId> {
        let known = self.members.get(id).or_else(|| self.heard.get(&id).copied());
        known.or((id == self.my_id).then_some(self.me))
    }

    fn fail(&mut self, attempt: &str, source: super::Boxed) {
        if matches!(self.failed, Failed::No) {
            let attempt = format!("{attempt} in {}", self.disk.dir.display());
            self.failed = Failed::Now(QuorumError::new(attempt, source));
        }
    }

    /// Writes an entry that the library is about to take: where there is no space for it, it never hears of it.
    fn write_ahead(
        &mut self,
        payload: Payload<'_>,
        is_urgent: bool,
    ) -> Result<EntryId, ProposeError> {
        let raft = &self.node.raft;
        let (index, term) = (raft.raft_log.last_index() + 1, raft.term);
        let (kind, bytes) = match payload {
            Payload::Records(bytes) => (entry::RECORDS, bytes),
            Payload::Change(bytes) => (entry::CHANGE, bytes),
        };
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: bytes.len(), bytes_max: ENTRY_BYTES_MAX });
        }
        let entry = entry::entry(index, term, kind, Bytes::copy_from_slice(bytes));
        let entry = entry.expect("the kind is one of ours");
        match self.disk.write(std::slice::from_ref(&entry), self.now_ms, is_urgent) {
            Ok(()) => Ok(EntryId { index: shown(index), term }),
            Err(WalError::Full) => Err(ProposeError::Full),
            Err(WalError::Failed(source)) => {
                let text = source.to_string();
                self.fail("writing the metadata log", source);
                Err(ProposeError::Failed(text))
            }
        }
    }

    /// Whether an entry may be proposed, the library's own refusals included.
    fn check_leading(&self) -> Result<(), ProposeError> {
        match &self.failed {
            Failed::No => {}
            Failed::Now(error) => return Err(ProposeError::Failed(error.to_string())),
            Failed::Before(text) => return Err(ProposeError::Failed(text.clone())),
        }
        if !self.is_leader() || self.node.raft.lead_transferee.is_some() {
            return Err(ProposeError::NotLeader);
        }
        Ok(())
    }
}

/// What goes into an entry, encoded.
#[derive(Clone, Copy)]
enum Payload<'a> {
    Records(&'a [u8]),
    Change(&'a [u8]),
}

impl<D: Disk> Durable<D> {
    /// Writes entries, on a full disk at the expense of what is kept for that if they are urgent.
    fn write(&mut self, entries: &[Entry], now_ms: u64, is_urgent: bool) -> Result<(), WalError> {
        let commit = self.votes.commit();
        self.with_reserve(is_urgent, |wal| wal.write(entries, commit, now_ms))
    }

    fn flush(&mut self) -> Result<(), WalError> {
        self.with_reserve(true, Wal::flush)
    }

    fn with_reserve(
        &mut self,
        may_use_it: bool,
        mut change: impl FnMut(&mut Wal<D>) -> Result<(), WalError>,
    ) -> Result<(), WalError> {
        match change(&mut self.wal) {
            Err(WalError::Full) if may_use_it && self.reserve.release() => change(&mut self.wal),
            other => other,
        }
    }
}

impl Latest {
    fn of(snapshot: &Snapshot) -> Self {
        Self { mark: snapshot.mark(), file: snapshot.bytes.clone(), image: snapshot.image_bytes() }
    }
}

impl<D: Disk> Quorum for RaftQuorum<D> {
    fn propose(&mut self, records: &[MetadataRecord]) -> Result<EntryId, ProposeError> {
        self.check_leading()?;
        let payload = record::encode_entry(records);
        let id = self.write_ahead(Payload::Records(&payload), may_use_it(records))?;
        let proposed = self.node.propose(Vec::new(), payload);
        proposed.expect("a leader that transfers nothing takes every proposal");
        Ok(id)
    }

    fn step(&mut self, now_ms: u64, event: QuorumEvent, actions: &mut Vec<QuorumAction>) {
        self.now_ms = now_ms;
        if !self.disk.wal.is_durable() {
            // What was proposed is made durable before anything else can happen to it.
            self.drive(actions);
        }
        if matches!(self.failed, Failed::No) {
            match event {
                QuorumEvent::Tick => self.tick(actions),
                QuorumEvent::Received { from, message } => self.receive(from, &message, actions),
                QuorumEvent::PeerLost { node } => self.peer_lost(node),
                QuorumEvent::Flush => {}
                QuorumEvent::ChangeVoters(change) => self.change_voters(change),
                QuorumEvent::TransferLeadership { to } => self.transfer_leadership(to),
            }
            self.drive(actions);
        }
        self.failed = match std::mem::take(&mut self.failed) {
            Failed::Now(error) => {
                tracing::error!(%error, "this controller takes no further part");
                let text = error.to_string();
                actions.push(QuorumAction::Failed { error });
                Failed::Before(text)
            }
            other => other,
        };
    }

    fn status(&self) -> QuorumStatus {
        let raft = &self.node.raft;
        let leads = self.is_leader();
        let log_end_index = self.node.store().last();
        let status = |(id, voter): (u64, VoterId)| {
            let progress = raft.prs().get(id).filter(|_| leads);
            let matched = if id == self.my_id {
                Some(log_end_index)
            } else {
                progress.map(|progress| progress.matched)
            };
            let is_alive = leads && (id == self.my_id || self.elections.is_alive(id));
            VoterStatus { id: voter, log_end_index: matched, is_alive }
        };
        QuorumStatus {
            me: self.me,
            term: raft.term,
            leader: self.name(raft.leader_id).map(|leader| leader.node),
            is_leader: leads,
            committed_index: self.applied,
            log_end_index,
            voters: self.members.voters().map(status).collect(),
            learners: self.members.learners().map(status).collect(),
        }
    }

    fn wants_snapshot(&self) -> bool {
        self.disk.wal.bytes_since_snapshot >= self.config.snapshot_every_bytes
            && self.latest.as_ref().is_none_or(|latest| latest.mark.raft_index < self.applied)
    }

    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError> {
        // Also after a failure: the next attempt is due when as much has been written again.
        self.disk.wal.bytes_since_snapshot = 0;
        let end = image.metadata_index();
        assert!(
            end == self.applied,
            "a snapshot is of what was delivered, {end}, {}",
            self.applied
        );
        self.write_snapshot(image).map_err(|source| {
            let dir = self.disk.dir.display();
            QuorumError::new(format!("storing a snapshot in {dir}"), source)
        })
    }

    fn committed_entries(
        &self,
        from_index: u64,
        previous_term: u64,
        max_bytes: usize,
    ) -> Option<Vec<Committed>> {
        let store = self.node.store();
        // The entry before has, in the library's numbers, the index of the first wanted.
        if from_index > self.applied || store.term_at(from_index)? != previous_term {
            return None;
        }
        let mut room = max_bytes;
        let mut found = Vec::new();
        for index in from_index + 1..=self.applied {
            let entry = store.get(index)?;
            let bytes = entry::bytes(entry);
            if bytes > room && !found.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            found.push(committed(entry, entry::content(entry).ok()?));
        }
        Some(found)
    }

    fn latest_snapshot(&self) -> Option<LatestSnapshot> {
        let latest = self.latest.as_ref()?;
        Some(LatestSnapshot {
            index: latest.mark.raft_index,
            term: latest.mark.term,
            bytes: latest.image.clone(),
        })
    }
}

/// An entry as it is delivered.
fn committed(entry: &Entry, content: Content) -> Committed {
    let records = match content {
        Content::Records(records) => records,
        Content::Change(_) => Vec::new(),
    };
    Committed { index: shown(entry.index), term: entry.term, records }
}

impl<D: Disk> RaftQuorum<D> {
    fn write_snapshot(&mut self, image: &Image) -> Result<(), super::Boxed> {
        let end = image.metadata_index();
        let previous = self.latest.as_ref().map(|latest| latest.mark.raft_index);
        if end == 0 || previous == Some(end) {
            return Ok(());
        }
        let term = self.node.store().term_at(end).expect("what was delivered is in the log");
        let snapshot = Snapshot::of(image, term, &self.members);
        self.disk.snapshots.store(&snapshot, previous)?;
        let latest = Latest::of(&snapshot);
        let store = self.node.mut_store();
        store.snapshot = Some(latest.mark.clone());
        self.latest = Some(latest);
        if let Some(previous) = previous {
            self.node.mut_store().compact(previous);
            match self.disk.wal.trim(previous) {
                Ok(()) => {}
                Err(WalError::Full) => return Err("the disk is full".into()),
                Err(WalError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<D: Disk> fmt::Debug for RaftQuorum<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raft = &self.node.raft;
        out.debug_struct("RaftQuorum")
            .field("me", &self.me)
            .field("term", &raft.term)
            .field("role", &raft.state)
            .field("applied", &self.applied)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

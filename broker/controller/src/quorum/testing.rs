//! A quorum of one in memory that does what a test tells it to: commits at once, holds entries back, is full, fails,
//! loses its leadership. It agrees with nobody and keeps nothing.

use std::{cell::RefCell, fmt, rc::Rc};

use bytes::Bytes;
use tidemark_protocol::{DirectoryId, NodeId, messages::VoterId};

use super::{
    Committed, EntryId, LatestSnapshot, ProposeError, Quorum, QuorumAction, QuorumError,
    QuorumEvent, QuorumStatus, VoterStatus,
};
use crate::{image::Image, record::MetadataRecord};

/// What becomes of proposals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Committed by the next flush.
    #[default]
    Commits,
    /// Kept in the log, and not committed until this changes.
    Holds,
    /// Refused as [`ProposeError::Full`].
    Full,
    /// Refused as [`ProposeError::Failed`]; the next step says so, too.
    Failed,
}

/// Leads from the first tick on, until told otherwise.
pub struct InstantQuorum {
    me: VoterId,
    script: Rc<RefCell<Script>>,
    term: u64,
    leader: Option<NodeId>,
    log: Vec<Committed>,
    committed: usize,
    snapshot: Option<LatestSnapshot>,
    has_failed: bool,
}

/// The test's hold on an [`InstantQuorum`] that somebody else owns.
#[derive(Clone, Debug, Default)]
pub struct Control(Rc<RefCell<Script>>);

#[derive(Debug, Default)]
struct Script {
    mode: Mode,
    /// Somebody else leads.
    other_leader: Option<NodeId>,
    /// Entries since the last snapshot before one is wanted.
    snapshot_every: Option<usize>,
    /// Flushes so far that had something to commit.
    commits: u32,
}

impl Control {
    pub fn set_mode(&self, mode: Mode) {
        self.0.borrow_mut().mode = mode;
    }

    /// From the next step on another node leads, and what is not committed is lost; with `None` this one leads again.
    pub fn set_other_leader(&self, node: Option<NodeId>) {
        self.0.borrow_mut().other_leader = node;
    }

    pub fn snapshot_every(&self, entries: usize) {
        self.0.borrow_mut().snapshot_every = Some(entries);
    }

    /// How many flushes committed something.
    pub fn commits(&self) -> u32 {
        self.0.borrow().commits
    }
}

impl InstantQuorum {
    pub fn new(node: NodeId) -> (Self, Control) {
        let control = Control::default();
        let quorum = Self {
            me: VoterId { node, directory: DirectoryId([0; 16]) },
            script: control.0.clone(),
            term: 0,
            leader: None,
            log: Vec::new(),
            committed: 0,
            snapshot: None,
            has_failed: false,
        };
        (quorum, control)
    }

    fn is_leader(&self) -> bool {
        self.leader == Some(self.me.node)
    }

    /// Takes over or gives up leadership as the script says.
    fn follow_script(&mut self, actions: &mut Vec<QuorumAction>) {
        let wanted = self.script.borrow().other_leader.unwrap_or(self.me.node);
        if self.leader == Some(wanted) {
            return;
        }
        self.term += 1;
        self.leader = Some(wanted);
        self.log.truncate(self.committed);
        let (term, leader, is_leader) = (self.term, self.leader, self.is_leader());
        actions.push(QuorumAction::Role { term, leader, is_leader });
        if is_leader {
            self.append(Vec::new());
        }
    }

    fn append(&mut self, records: Vec<MetadataRecord>) -> EntryId {
        let index = self.log.len() as u64;
        self.log.push(Committed { index, term: self.term, records });
        EntryId { index, term: self.term }
    }

    fn commit(&mut self, actions: &mut Vec<QuorumAction>) {
        let mut script = self.script.borrow_mut();
        if script.mode == Mode::Holds || self.committed == self.log.len() {
            return;
        }
        script.commits += 1;
        actions.extend(self.log[self.committed..].iter().cloned().map(QuorumAction::Committed));
        self.committed = self.log.len();
    }
}

impl Quorum for InstantQuorum {
    fn propose(&mut self, records: &[MetadataRecord]) -> Result<EntryId, ProposeError> {
        match self.script.borrow().mode {
            Mode::Full => return Err(ProposeError::Full),
            Mode::Failed => return Err(ProposeError::Failed("as told".to_owned())),
            Mode::Commits | Mode::Holds => {}
        }
        if !self.is_leader() {
            return Err(ProposeError::NotLeader);
        }
        Ok(self.append(records.to_vec()))
    }

    fn step(&mut self, _now_ms: u64, event: QuorumEvent, actions: &mut Vec<QuorumAction>) {
        if self.script.borrow().mode == Mode::Failed && !self.has_failed {
            self.has_failed = true;
            let error = QuorumError::new("writing the metadata log", "as told");
            actions.push(QuorumAction::Failed { error });
        }
        match event {
            QuorumEvent::Tick => {
                self.follow_script(actions);
                self.commit(actions);
            }
            QuorumEvent::Flush => self.commit(actions),
            QuorumEvent::ChangeVoters(_) if self.is_leader() => {
                self.append(Vec::new());
            }
            _ => {}
        }
    }

    fn status(&self) -> QuorumStatus {
        let log_end_index = self.log.len() as u64;
        let me = VoterStatus {
            id: self.me,
            log_end_index: Some(log_end_index),
            is_alive: self.is_leader(),
        };
        QuorumStatus {
            me: self.me,
            term: self.term,
            leader: self.leader,
            is_leader: self.is_leader(),
            committed_index: self.committed as u64,
            log_end_index,
            voters: vec![me],
            learners: Vec::new(),
        }
    }

    fn wants_snapshot(&self) -> bool {
        let taken = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let every = self.script.borrow().snapshot_every;
        every.is_some_and(|every| self.committed as u64 - taken >= every as u64)
    }

    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError> {
        let index = image.metadata_index();
        assert_eq!(index, self.committed as u64, "of what is committed");
        let term = self.log[..self.committed].last().map_or(0, |entry| entry.term);
        self.snapshot =
            Some(LatestSnapshot { index, term, bytes: Bytes::from(image.to_snapshot()) });
        Ok(())
    }

    fn committed_entries(
        &self,
        from_index: u64,
        previous_term: u64,
        max_bytes: usize,
    ) -> Option<Vec<Committed>> {
        let from = usize::try_from(from_index).ok()?;
        let entries = self.log[..self.committed].get(from..)?;
        let term = from.checked_sub(1).map_or(0, |previous| self.log[previous].term);
        // Bytes are counted as entries: enough for whoever wants to see answers that are cut short.
        let entries = &entries[..entries.len().min(max_bytes.max(1))];
        (term == previous_term).then(|| entries.to_vec())
    }

    fn latest_snapshot(&self) -> Option<LatestSnapshot> {
        self.snapshot.clone()
    }
}

impl fmt::Debug for InstantQuorum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("InstantQuorum")
            .field("term", &self.term)
            .field("leader", &self.leader)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

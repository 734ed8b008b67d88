//! The seam between the controller and whoever agrees on its records. The controller decides, a quorum makes
//! decisions last; neither looks inside the other.
//!
//! One entry of the quorum's log is one decision: its records are committed together or not at all. Entries have
//! consecutive indexes from 0 on; an entry may have no records (the one a leader begins its term with, a change
//! of voters), and is delivered all the same, so that whoever applies entries can count them.

mod config;
mod entry;
mod members;
mod raft;
mod snapshots;
mod store;
pub mod testing;
mod transfer;
mod vote_file;
mod wal;
mod wire;

use bytes::Bytes;
use tidemark_protocol::{NodeId, messages::VoterId};

pub use self::{
    config::QuorumConfig, members::CONTROLLERS_MAX, raft::RaftQuorum, wal::METADATA_TOPIC_ID,
    wire::MESSAGE_BYTES_MAX,
};
use crate::{image::Image, record::MetadataRecord};

/// Whatever went wrong below.
type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Agrees on decisions, in order, once and for good. One thread owns it and everything is an argument: it reads
/// no clock and no socket. It may block on the disk it was given, inside [`Quorum::step`] and
/// [`Quorum::snapshot`].
pub trait Quorum {
    /// Appends one decision to this leader's log: all of it or, after an error, none. It is neither durable nor
    /// sent before the next [`QuorumEvent::Flush`], so that decisions share one flush.
    ///
    /// The answer names the entry. It is committed when [`QuorumAction::Committed`] says so with the same index
    /// and term; an entry of another term at that index, or [`QuorumAction::Restored`] past it, means that it
    /// was lost.
    fn propose(&mut self, records: &[MetadataRecord]) -> Result<EntryId, ProposeError>;

    /// Takes one event and appends what is to be done because of it, in order.
    fn step(&mut self, now_ms: u64, event: QuorumEvent, actions: &mut Vec<QuorumAction>);

    fn status(&self) -> QuorumStatus;

    /// Whether replaying the log has become so long that a snapshot should be taken.
    fn wants_snapshot(&self) -> bool;

    /// Stores the image, which has applied exactly what was delivered as committed so far, and forgets entries it
    /// makes superfluous. An error loses nothing: the log is still there.
    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError>;

    /// Committed entries from `from_index` on, for those who follow: at least one if there is one, and no more
    /// than fit `max_bytes`. Empty at the end of what is committed. `None` when only a snapshot helps: the
    /// entries are gone, `from_index` is beyond the end, or the entry before it has another term than
    /// `previous_term` (0 when `from_index` is 0).
    fn committed_entries(
        &self,
        from_index: u64,
        previous_term: u64,
        max_bytes: usize,
    ) -> Option<Vec<Committed>>;

    /// The newest snapshot, if one was ever taken.
    fn latest_snapshot(&self) -> Option<LatestSnapshot>;
}

/// What a quorum is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuorumEvent {
    /// Time has passed.
    Tick,
    /// A message that another controller's quorum asked to have sent. The bytes may be anything.
    Received { from: VoterId, message: Bytes },
    /// The connection to a node closed: a fact, where silence is a suspicion.
    PeerLost { node: NodeId },
    /// Persist and send what was proposed.
    Flush,
    /// Add or remove a controller. What became of it is in [`QuorumStatus::voters`].
    ChangeVoters(VoterChange),
    /// Give up leadership, to the node named or to any that has caught up.
    TransferLeadership { to: Option<NodeId> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoterChange {
    /// Lets it catch up first, then vote.
    Add(VoterId),
    Remove(VoterId),
}

/// What a quorum asks to be done, or tells.
#[derive(Debug)]
pub enum QuorumAction {
    Send {
        to: VoterId,
        message: Bytes,
    },
    /// An entry is committed. After a start, delivery goes on behind the recovered image.
    Committed(Committed),
    /// A leader's snapshot replaces everything applied so far; its metadata index says where it stands.
    Restored {
        image: Image,
    },
    /// Leadership as far as this node knows has changed. A leader is told so before an entry of its term.
    Role {
        term: u64,
        leader: Option<NodeId>,
        is_leader: bool,
    },
    /// Nothing can be persisted any more. Final; later proposals are refused with [`ProposeError::Failed`].
    Failed {
        error: QuorumError,
    },
}

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
    /// None for the entry a leader begins its term with, and for changes of voters.
    pub records: Vec<MetadataRecord>,
}

/// Names an entry: no two have both the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    pub index: u64,
    pub term: u64,
}

/// A snapshot for those who follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatestSnapshot {
    /// Exclusive end of what it stands for: its image's metadata index.
    pub index: u64,
    /// Term of the last entry it stands for.
    pub term: u64,
    /// See [`Image::from_snapshot`].
    pub bytes: Bytes,
}

/// Where a quorum stands, for people and for whoever sends heartbeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumStatus {
    pub me: VoterId,
    pub term: u64,
    /// As far as this node knows.
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    /// Exclusive end of what is committed.
    pub committed_index: u64,
    /// Exclusive end of this node's log.
    pub log_end_index: u64,
    pub voters: Vec<VoterStatus>,
    /// Those that are catching up in order to vote.
    pub learners: Vec<VoterStatus>,
}

/// One controller, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterStatus {
    pub id: VoterId,
    /// Exclusive end of what it has; `None` when this node does not lead and cannot know.
    pub log_end_index: Option<u64>,
    /// Whether the leader has heard from it within an election timeout, or is it; `false` when this node does not lead.
    pub is_alive: bool,
}

/// Why a decision was not taken into the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this controller does not lead the quorum")]
    NotLeader,
    #[error(
        "the change takes {bytes} bytes in the metadata log; at most {bytes_max} can be committed at once"
    )]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Try again when there is space.
    #[error("the disk of the metadata log is full; nothing was changed")]
    Full,
    /// Only a restart helps.
    #[error("the metadata log failed: {0}")]
    Failed(String),
}

/// Something that did not work, and why.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {source}")]
pub struct QuorumError {
    /// What was attempted, in words.
    pub attempt: String,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl QuorumError {
    pub fn new(
        attempt: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { attempt: attempt.into(), source: source.into() }
    }
}

//! What goes into the controller's machine and what comes out of it.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_protocol::{
    BrokerId, Failure, LeaderEpoch, NodeId, TopicPartition,
    messages::{HeartbeatRequest, HeartbeatResponse, VoterId},
};

use crate::{
    command::{Answer, Command},
    image::Image,
    quorum::{Committed, QuorumEvent},
};

/// Names a request until it is answered; chosen by whoever passes it on.
pub type Token = u64;
/// Names a connection; never used again for another.
pub type ConnectionId = u64;

/// Spans of time that an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// A broker that is not heard for so long is fenced.
    pub broker_session_timeout_ms: u64,
    /// How often leadership goes back to the first in order of preference.
    pub leader_balance_interval_ms: u64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self { broker_session_timeout_ms: 9_000, leader_balance_interval_ms: 30_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEvent {
    /// For the quorum. After [`QuorumEvent::Flush`] whatever was decided before is on its way; whoever drives the
    /// machine sends one when no other event is waiting and [`super::ControllerMachine::wants_flush`] says so.
    Quorum(QuorumEvent),
    /// Ends with one [`ControllerEffect::Answer`].
    Command { token: Token, command: Command },
    /// Ends with one [`ControllerEffect::HeartbeatAnswer`].
    Heartbeat { token: Token, connection: ConnectionId, request: HeartbeatRequest },
    /// A broker whose heartbeats came over it is fenced at once.
    ConnectionClosed { connection: ConnectionId },
    /// Time has passed: for the quorum, too. Comes behind the events that waited before it, or else the heartbeats
    /// among them would be too late.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEffect {
    /// A message of the quorum.
    Send {
        to: VoterId,
        message: Bytes,
    },
    /// The metadata is at `image` now. `entries` lead to it from the image published before; none when a snapshot
    /// took their place. Always before answers that rest on it.
    Published {
        image: Arc<Image>,
        entries: Vec<Committed>,
    },
    Answer {
        token: Token,
        outcome: Result<Answered, Failure>,
    },
    HeartbeatAnswer {
        token: Token,
        outcome: Result<HeartbeatResponse, Failure>,
    },
    /// Who leads the quorum has changed, or this node has become the active controller.
    Role {
        term: u64,
        leader: Option<NodeId>,
        is_active: bool,
    },
    /// To be written down where an operator looks for it.
    Audit(UncleanElection),
    /// The metadata log takes nothing any more. Final; the image can still be read.
    Failed {
        message: String,
    },
}

impl ControllerEffect {
    /// An answer turned into a refusal; what is no answer is dropped.
    pub(super) fn refused(self, failure: &Failure) -> Option<Self> {
        match self {
            Self::Answer { token, .. } => {
                Some(Self::Answer { token, outcome: Err(failure.clone()) })
            }
            Self::HeartbeatAnswer { token, .. } => {
                Some(Self::HeartbeatAnswer { token, outcome: Err(failure.clone()) })
            }
            _ => None,
        }
    }
}

/// A command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub answer: Answer,
    /// Whoever has applied the metadata up to this index (exclusive) sees what the command did.
    pub metadata_index: u64,
}

/// A partition was given a leader that may lack committed records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncleanElection {
    pub topic: Arc<str>,
    pub id: TopicPartition,
    pub leader: BrokerId,
    pub leader_epoch: LeaderEpoch,
    /// Who had every committed record as far as the controller knew, and was not there.
    pub passed_over: Vec<BrokerId>,
}

//! The controller of this node: a thread that owns the machine, and the handle everybody else asks it through.
//!
//! The thread takes what has come together, lets the machine decide it, has the quorum persist and send it with one
//! flush, and passes on what the machine wants done. It decides nothing itself.

mod runner;

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
};

use bytes::Bytes;
use tidemark_controller::{
    Command, Committed as CommittedEntry, Image, LatestSnapshot, QuorumStatus, VoterChange,
};
use tidemark_protocol::{
    ErrorCode, Failure, NodeId,
    messages::{HeartbeatRequest, HeartbeatResponse, VoterId},
};
use tokio::sync::{oneshot, watch};

pub(crate) use self::runner::{Runner, RunnerConfig};
use crate::control::Committed;

/// Messages that wait for the controller; beyond it commands are refused as overloaded, and messages of the quorum are
/// dropped.
const INBOX_MAX: usize = 4_096;
/// The connection number of the broker in the same process: it never closes.
pub(crate) const LOCAL_CONNECTION: u64 = 0;

/// What the thread is asked.
pub(super) enum Message {
    Command {
        command: Command,
        reply: oneshot::Sender<Result<Committed, Failure>>,
    },
    Heartbeat {
        connection: u64,
        request: HeartbeatRequest,
        reply: oneshot::Sender<Result<HeartbeatResponse, Failure>>,
    },
    ConnectionClosed {
        connection: u64,
    },
    FromPeer {
        from: VoterId,
        message: Bytes,
    },
    PeerLost {
        node: NodeId,
    },
    Followed {
        from_index: u64,
        previous_term: u64,
        reply: oneshot::Sender<Followed>,
    },
    Status {
        reply: oneshot::Sender<QuorumStatus>,
    },
    ChangeVoters {
        change: VoterChange,
        reply: oneshot::Sender<()>,
    },
    TransferLeadership {
        reply: oneshot::Sender<()>,
    },
    Close,
}

/// What a node that follows the metadata has to catch up with.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    pub(crate) committed_index: u64,
    pub(crate) entries: Vec<CommittedEntry>,
    /// Instead of entries.
    pub(crate) snapshot: Option<LatestSnapshot>,
}

impl Followed {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.snapshot.is_none()
    }
}

/// Asks the controller of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ControllerHandle {
    inbox: SyncSender<Message>,
    images: watch::Receiver<Arc<Image>>,
    leader: watch::Receiver<Option<NodeId>>,
}

impl fmt::Debug for ControllerHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ControllerHandle")
            .field("leader", &*self.leader.borrow())
            .finish_non_exhaustive()
    }
}

impl ControllerHandle {
    /// Everything committed, as it is committed.
    pub(crate) fn images(&self) -> watch::Receiver<Arc<Image>> {
        self.images.clone()
    }

    /// The active controller, as far as is known here.
    pub(crate) fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.clone()
    }

    /// Has a command carried out, if this is the active controller.
    pub(crate) async fn command(&self, command: Command) -> Result<Committed, Failure> {
        self.ask(|reply| Message::Command { command, reply }).await?
    }

    /// Notes that a broker is alive. `connection` is the one it was heard on.
    pub(crate) async fn heartbeat(
        &self,
        connection: u64,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Failure> {
        self.ask(|reply| Message::Heartbeat { connection, request, reply }).await?
    }

    /// A connection with heartbeats has closed.
    pub(crate) fn connection_closed(&self, connection: u64) {
        self.tell(Message::ConnectionClosed { connection });
    }

    /// A message from another controller.
    pub(crate) fn quorum_message(&self, from: VoterId, message: Bytes) {
        self.tell(Message::FromPeer { from, message });
    }

    /// The connection to a node was lost.
    pub(crate) fn peer_lost(&self, node: NodeId) {
        self.tell(Message::PeerLost { node });
    }

    /// Committed entries from an index on, or the newest snapshot.
    pub(crate) async fn followed(
        &self,
        from_index: u64,
        previous_term: u64,
    ) -> Result<Followed, Failure> {
        self.ask(|reply| Message::Followed { from_index, previous_term, reply }).await
    }

    pub(crate) async fn status(&self) -> Result<QuorumStatus, Failure> {
        self.ask(|reply| Message::Status { reply }).await
    }

    /// Begins a change of the quorum; [`ControllerHandle::status`] shows what became of it.
    pub(crate) async fn change_voters(&self, change: VoterChange) -> Result<(), Failure> {
        self.ask(|reply| Message::ChangeVoters { change, reply }).await
    }

    /// Asks to be led by another controller. Answered when it was asked for.
    pub(crate) async fn transfer_leadership(&self) -> Result<(), Failure> {
        self.ask(|reply| Message::TransferLeadership { reply }).await
    }

    /// Ends the thread once it has dealt with what came before. May wait for room in the inbox.
    pub(crate) fn close(&self) {
        // A thread that has ended needs no telling.
        drop(self.inbox.send(Message::Close));
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        match self.inbox.try_send(message(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let text = format!("{INBOX_MAX} messages wait for the controller already");
                return Err(Failure::new(ErrorCode::Overloaded, text));
            }
            Err(TrySendError::Disconnected(_)) => return Err(closed()),
        }
        answer.await.map_err(|_dropped| closed())
    }

    fn tell(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.inbox.try_send(message) {
            tracing::warn!("a message to the controller was dropped: its inbox is full");
        }
    }
}

fn closed() -> Failure {
    Failure::new(ErrorCode::NotReady, "the controller is closed: the node is stopping")
}

//! Commands to the active controller, wherever it is: here, or on another node.
//!
//! A command is tried again, at the controller that is active by then, until its time is over; every command is such
//! that being carried out twice is the same as once, or is refused the second time. What is tried again says so in the
//! log; what failed for good says why.

use std::{fmt, sync::Arc, time::Duration};

use tidemark_controller::{Answer, Command};
use tidemark_protocol::{
    ErrorCode, Failure, NodeId,
    messages::{ControllerCommandRequest, ControllerCommandResponse},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    controller::ControllerHandle,
    peers::{Peers, pause},
};

/// How long one node is waited for before the next attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// A command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) answer: Answer,
    /// Whoever has applied the metadata up to this index (exclusive) sees what the command did.
    pub(crate) metadata_index: u64,
}

/// The way to the active controller. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Control {
    me: NodeId,
    local: Option<ControllerHandle>,
    peers: Peers,
    leader: watch::Receiver<Option<NodeId>>,
}

impl fmt::Debug for Control {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Control").field("leader", &self.leader()).finish_non_exhaustive()
    }
}

impl Control {
    /// `leader`: the active controller as far as is known here.
    pub(crate) fn new(
        me: NodeId,
        local: Option<ControllerHandle>,
        peers: Peers,
        leader: watch::Receiver<Option<NodeId>>,
    ) -> Self {
        Self { me, local, peers, leader }
    }

    /// The active controller as far as is known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        *self.leader.borrow()
    }

    pub(crate) fn leader_changes(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.clone()
    }

    /// The controller of this node, if it has one.
    pub(crate) fn local(&self) -> Option<&ControllerHandle> {
        self.local.as_ref()
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Has the command carried out, within `wait`.
    pub(crate) async fn command(
        &self,
        command: Command,
        wait: Duration,
    ) -> Result<Committed, Failure> {
        let encoded: Arc<[u8]> = command.encode().into();
        let deadline = Instant::now() + wait;
        let mut failures = 0;
        loop {
            let leader = self.known_leader(deadline).await?;
            let outcome = self.attempt(leader, &command, &encoded, deadline).await;
            let failure = match outcome {
                Ok(committed) => return Ok(committed),
                Err(failure) => failure,
            };
            failures += 1;
            let again = Instant::now() + pause(failures);
            if !is_worth_another_try(failure.code) || again >= deadline {
                return Err(failure);
            }
            tracing::debug!(leader, %failure, "a command is tried again");
            let mut leader_changes = self.leader_changes();
            leader_changes.mark_unchanged();
            tokio::select! {
                () = sleep(pause(failures)) => {}
                _ = leader_changes.changed() => {}
            }
        }
    }

    async fn known_leader(&self, deadline: Instant) -> Result<NodeId, Failure> {
        let mut leader = self.leader_changes();
        let known = timeout_at(deadline, leader.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(leader)) => Ok(leader.expect("waited for")),
            Ok(Err(_closed)) => Err(Failure::new(ErrorCode::NotReady, "the broker is stopping")),
            Err(_elapsed) => {
                let message =
                    "there is no active controller: fewer than half of the controllers are there";
                Err(Failure::new(ErrorCode::NotController, message))
            }
        }
    }

    async fn attempt(
        &self,
        leader: NodeId,
        command: &Command,
        encoded: &[u8],
        deadline: Instant,
    ) -> Result<Committed, Failure> {
        let wait = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT_TIMEOUT);
        if leader == self.me
            && let Some(local) = &self.local
        {
            return timeout(wait, local.command(command.clone())).await.unwrap_or_else(
                |_elapsed| {
                    Err(Failure::new(ErrorCode::Timeout, "the controller has not decided in time"))
                },
            );
        }
        let timeout_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = ControllerCommandRequest { command: encoded.to_vec(), timeout_ms };
        let (response, _payload) = self.peers.ask(leader, &request, wait).await?;
        let ControllerCommandResponse { answer, metadata_index } = response;
        let answer = Answer::decode(&answer).map_err(|error| {
            let message = format!("the controller's answer cannot be decoded: {error}");
            Failure::new(ErrorCode::Internal, message)
        })?;
        Ok(Committed { answer, metadata_index })
    }
}

/// Whether the next attempt may end otherwise, because another node is asked or the same one is further by then.
fn is_worth_another_try(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NotController
            | ErrorCode::NotReady
            | ErrorCode::Timeout
            | ErrorCode::Overloaded
            | ErrorCode::DuplicateBroker
    )
}

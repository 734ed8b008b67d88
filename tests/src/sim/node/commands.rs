//! Commands to the active controller, wherever it is: tried again at whichever is active by then, until their time is
//! over.

use std::collections::BTreeMap;

use tidemark_controller::Command;
use tidemark_protocol::{ErrorCode, Failure, NodeId, TopicPartition};
use tidemark_replication::IsrChange;

use super::{Io, NodeTimer, coordination::NeedsIds, peers::pause_us};
use crate::sim::{
    core::{Micros, SECOND},
    message::Committed,
};

/// How long one node is waited for before the next attempt.
const ATTEMPT_US: Micros = 2 * SECOND;

/// Names a command within its process.
pub type CommandId = u64;

/// Who wants it carried out.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Register,
    AlterIsr(Vec<(TopicPartition, IsrChange)>),
    /// Others are to lead.
    Relinquish,
    /// A block of producer ids.
    ProducerIds(NeedsIds),
}

/// How it ended.
pub(super) type Outcome = Result<Committed, Failure>;

#[derive(Debug)]
struct Pending {
    command: Command,
    wanted: Wanted,
    deadline_us: Micros,
    failures: u32,
    /// Asked, and not answered yet.
    is_asked: bool,
}

/// What is to be done with a command now.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: CommandId,
    pub(super) leader: NodeId,
    pub(super) command: Command,
    pub(super) wait_us: Micros,
}

/// Commands under way.
#[derive(Debug, Default)]
pub(super) struct Commands {
    next: CommandId,
    pending: BTreeMap<CommandId, Pending>,
}

impl Commands {
    /// Takes on a command; [`Self::attempt`] begins with it.
    pub(super) fn add(
        &mut self,
        command: Command,
        wanted: Wanted,
        wait_us: Micros,
        io: &mut Io<'_>,
    ) -> CommandId {
        let id = self.next;
        self.next += 1;
        let deadline_us = io.core.now_us() + wait_us;
        let pending = Pending { command, wanted, deadline_us, failures: 0, is_asked: false };
        self.pending.insert(id, pending);
        io.timer(wait_us, NodeTimer::Command(id));
        id
    }

    /// The next attempt at a command, if it is not under way and there is somebody to ask.
    pub(super) fn attempt(
        &mut self,
        id: CommandId,
        leader: Option<NodeId>,
        io: &mut Io<'_>,
    ) -> Option<Attempt> {
        let pending = self.pending.get_mut(&id).filter(|pending| !pending.is_asked)?;
        let wait_us = pending.deadline_us.saturating_sub(io.core.now_us()).min(ATTEMPT_US);
        if wait_us == 0 {
            return None;
        }
        // Nobody: the change of leader makes the next attempt.
        let leader = leader?;
        pending.is_asked = true;
        Some(Attempt { id, leader, command: pending.command.clone(), wait_us })
    }

    /// Commands that wait for a controller, or for the end of a pause that a new one cuts short.
    pub(super) fn idle(&self) -> Vec<CommandId> {
        let idle = self.pending.iter().filter(|(_, pending)| !pending.is_asked);
        idle.map(|(id, _)| *id).collect()
    }

    /// Takes in an outcome. Given back when it is the last word.
    pub(super) fn answered(
        &mut self,
        id: CommandId,
        outcome: Outcome,
        io: &mut Io<'_>,
    ) -> Option<(Wanted, Outcome)> {
        let pending = self.pending.get_mut(&id)?;
        pending.is_asked = false;
        if let Err(failure) = &outcome {
            pending.failures += 1;
            let pause_us = pause_us(pending.failures);
            let is_too_late = io.core.now_us() + pause_us >= pending.deadline_us;
            if is_worth_another_try(failure.code) && !is_too_late {
                io.timer(pause_us, NodeTimer::Command(id));
                return None;
            }
        }
        let pending = self.pending.remove(&id)?;
        Some((pending.wanted, outcome))
    }

    /// Ends a command whose time is over although nobody could be asked.
    pub(super) fn expired(&mut self, id: CommandId, io: &Io<'_>) -> Option<(Wanted, Outcome)> {
        let pending = self.pending.get(&id)?;
        if pending.is_asked || io.core.now_us() < pending.deadline_us {
            return None;
        }
        let pending = self.pending.remove(&id)?;
        let failure = Failure::new(ErrorCode::NotController, "there is no active controller");
        Some((pending.wanted, Err(failure)))
    }

    pub(super) fn is_relinquishing(&self) -> bool {
        self.pending.values().any(|pending| matches!(pending.wanted, Wanted::Relinquish))
    }

    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }
}

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

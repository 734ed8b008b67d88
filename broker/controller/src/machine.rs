//! The controller as a machine: it owns the quorum and two images. One is committed and shown to everybody; the other
//! has applied what is decided and not committed yet, and only the active controller has it. Commands are decided in
//! order on the second; answers leave when what they rest on is in the first.
//!
//! A node is the active controller once it has applied an entry of the term it leads: until then it may not know
//! everything that is committed. It takes time, messages and requests as arguments and refuses to do anything itself
//! but to call its quorum, which writes to the disk it was given.
//!
//! Reading order: [`event`], `pending`, this file, `sessions`, `heartbeat`, `upkeep`, [`refusal`].

mod audit;
pub mod event;
mod heartbeat;
mod pending;
pub mod refusal;
mod sessions;
mod upkeep;

use std::{collections::BTreeSet, fmt, sync::Arc};

use tidemark_protocol::{ErrorCode, Failure, NodeId};

use self::{
    audit::unclean_elections,
    event::{Answered, ControllerConfig, ControllerEffect, ControllerEvent, Token},
    pending::{Pending, Waiting},
    refusal::{not_controller, not_proposed},
    sessions::Sessions,
    upkeep::Upkeep,
};
use crate::{
    command::{Answer, Command, RegisterBroker},
    image::Image,
    quorum::{Committed, EntryId, Quorum, QuorumAction, QuorumEvent},
};

/// Most commands and heartbeats that wait for a commit; beyond it they are refused as overloaded.
pub const WAITING_MAX: usize = 8_192;

/// See the file's head. [`ControllerMachine::step`] is all there is.
pub struct ControllerMachine<Q> {
    quorum: Q,
    config: ControllerConfig,
    committed: Arc<Image>,
    term: u64,
    leader: Option<NodeId>,
    /// This node leads the quorum, and perhaps is not the active controller yet.
    leads: bool,
    active: Option<Active>,
    /// Controllers whose connection closed, and of whom nothing was heard since.
    lost_peers: BTreeSet<NodeId>,
    /// Why nothing is decided any more. Final.
    failure: Option<Failure>,
    wants_flush: bool,
    stepped_ms: u64,
    actions: Vec<QuorumAction>,
}

/// What only the active controller has.
struct Active {
    /// Everything decided, committed or not.
    image: Image,
    pending: Pending,
    sessions: Sessions,
    upkeep: Upkeep,
}

/// What a step has committed so far: shown first, then told.
struct Outcome {
    entries: Vec<Committed>,
    answers: Vec<ControllerEffect>,
    /// The image shown last.
    shown: Arc<Image>,
}

impl<Q: Quorum> ControllerMachine<Q> {
    /// A controller over what the quorum has committed: `image` is the state it recovered to.
    pub fn new(quorum: Q, image: Image, config: ControllerConfig) -> Self {
        Self {
            quorum,
            config,
            committed: Arc::new(image),
            term: 0,
            leader: None,
            leads: false,
            active: None,
            lost_peers: BTreeSet::new(),
            failure: None,
            wants_flush: false,
            stepped_ms: 0,
            actions: Vec::new(),
        }
    }

    /// Everything committed so far.
    pub fn image(&self) -> &Arc<Image> {
        &self.committed
    }

    /// For whoever serves those that follow: committed entries, snapshots, the state of the quorum.
    pub fn quorum(&self) -> &Q {
        &self.quorum
    }

    /// The node that leads the quorum as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Whether something was decided since the last [`QuorumEvent::Flush`].
    pub fn wants_flush(&self) -> bool {
        self.wants_flush
    }

    /// Takes one event and appends what is to be done because of it, in order.
    pub fn step(
        &mut self,
        now_ms: u64,
        event: ControllerEvent,
        effects: &mut Vec<ControllerEffect>,
    ) {
        self.notice_stall(now_ms);
        match event {
            ControllerEvent::Quorum(event) => self.step_quorum(now_ms, event, effects),
            ControllerEvent::Command { token, command } => {
                self.take_command(now_ms, token, &command, effects);
            }
            ControllerEvent::Heartbeat { token, connection, request } => {
                self.take_heartbeat(now_ms, (token, connection), &request, effects);
            }
            ControllerEvent::ConnectionClosed { connection } => {
                if let Some(active) = &mut self.active {
                    active.sessions.close(connection);
                }
                self.fence_lost(now_ms);
            }
            ControllerEvent::Tick => {
                self.step_quorum(now_ms, QuorumEvent::Tick, effects);
                if self.failure.is_some() && self.leads {
                    // Perhaps another can go on.
                    let event = QuorumEvent::TransferLeadership { to: None };
                    self.step_quorum(now_ms, event, effects);
                }
                self.keep_up(now_ms);
            }
        }
    }

    /// Whoever could not listen has no right to call others silent.
    fn notice_stall(&mut self, now_ms: u64) {
        let stall_ms = now_ms.saturating_sub(std::mem::replace(&mut self.stepped_ms, now_ms));
        if let Some(active) = &mut self.active
            && stall_ms >= self.config.broker_session_timeout_ms / 2
        {
            active.sessions.excuse(stall_ms);
        }
    }

    fn take_command(
        &mut self,
        now_ms: u64,
        token: Token,
        command: &Command,
        effects: &mut Vec<ControllerEffect>,
    ) {
        let outcome = self.check_external(now_ms, command).and_then(|()| self.decide(command));
        if let (Command::RegisterBroker(run), Ok(Answer::BrokerRegistered { broker_epoch })) =
            (command, &outcome)
            && let Some(active) = &mut self.active
        {
            active.sessions.heard(run.broker_id, *broker_epoch, now_ms);
        }
        self.tell(Waiting::Command { token, outcome }, effects);
    }

    /// What no image shows.
    fn check_external(&self, now_ms: u64, command: &Command) -> Result<(), Failure> {
        let active = self.require_active()?;
        if command.is_internal() {
            let message = "brokers are fenced and unfenced by their heartbeats";
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        if active.pending.waiting >= WAITING_MAX {
            let message = format!("{WAITING_MAX} requests wait for the controller already");
            return Err(Failure::new(ErrorCode::Overloaded, message));
        }
        match command {
            Command::RegisterBroker(command) => check_other_run(active, now_ms, command),
            _ => Ok(()),
        }
    }

    fn require_active(&self) -> Result<&Active, Failure> {
        match (&self.failure, &self.active) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(active)) => Ok(active),
            (None, None) => Err(not_controller(self.leader)),
        }
    }

    /// Decides on everything decided so far, and puts what comes of it into the log.
    fn decide(&mut self, command: &Command) -> Result<Answer, Failure> {
        self.require_active()?;
        let active = self.active.as_mut().expect("just required");
        let (records, mut answer) = active.image.decide(command)?;
        if records.is_empty() {
            return Ok(answer);
        }
        let proposed = self.quorum.propose(&records);
        let id = proposed.map_err(|error| not_proposed(&error, self.leader))?;
        assert_eq!(id.term, self.term, "whoever lost the term has been told so");
        // Entries of the quorum's own, a change of voters, may have come between.
        while active.image.metadata_index() < id.index {
            let index = active.image.metadata_index();
            active.image.apply(index, &[]).expect("an entry without records always applies");
        }
        active.image.apply(id.index, &records).expect("a decision applies to what it was made on");
        if let Answer::BrokerRegistered { broker_epoch } = &mut answer {
            *broker_epoch = id.index;
        }
        active.pending.push(id);
        self.wants_flush = true;
        Ok(answer)
    }

    /// Decides what nobody asked for; if it cannot be done now, the next tick tries again.
    fn decide_by_itself(&mut self, command: &Command) -> Option<Answer> {
        let decided = self.decide(command);
        decided.inspect_err(|error| tracing::warn!(%error, ?command, "not decided")).ok()
    }

    /// Says it when everything decided so far is committed.
    fn tell(&mut self, waiting: Waiting, effects: &mut Vec<ControllerEffect>) {
        let now = match &mut self.active {
            Some(active) => active.pending.wait(waiting),
            None => Some(waiting),
        };
        if let Some(waiting) = now {
            effects.push(self.answer(waiting));
        }
    }

    /// The effect that tells what the committed image shows.
    fn answer(&self, waiting: Waiting) -> ControllerEffect {
        match waiting {
            Waiting::Command { token, outcome } => {
                let metadata_index = self.committed.metadata_index();
                let outcome = outcome.map(|answer| Answered { answer, metadata_index });
                ControllerEffect::Answer { token, outcome }
            }
            Waiting::Heartbeat { token, broker_id } => {
                let outcome = self.heartbeat_outcome(broker_id);
                ControllerEffect::HeartbeatAnswer { token, outcome }
            }
        }
    }

    fn step_quorum(
        &mut self,
        now_ms: u64,
        event: QuorumEvent,
        effects: &mut Vec<ControllerEffect>,
    ) {
        self.notice(now_ms, &event);
        let mut actions = std::mem::take(&mut self.actions);
        self.quorum.step(now_ms, event, &mut actions);
        let (entries, answers, shown) = (Vec::new(), Vec::new(), Arc::clone(&self.committed));
        let mut outcome = Outcome { entries, answers, shown };
        for action in actions.drain(..) {
            match action {
                QuorumAction::Send { to, message } => {
                    effects.push(ControllerEffect::Send { to, message });
                }
                QuorumAction::Committed(entry) => self.commit(now_ms, entry, &mut outcome, effects),
                QuorumAction::Restored { image } => {
                    self.show(&mut outcome, effects);
                    self.committed = Arc::new(image);
                    outcome.shown = Arc::clone(&self.committed);
                    let (image, entries) = (Arc::clone(&self.committed), Vec::new());
                    effects.push(ControllerEffect::Published { image, entries });
                }
                QuorumAction::Role { term, leader, is_leader } => {
                    self.show(&mut outcome, effects);
                    self.change_role(term, leader, is_leader, effects);
                }
                QuorumAction::Failed { error } => {
                    self.show(&mut outcome, effects);
                    self.fail(&error.to_string(), effects);
                }
            }
        }
        self.actions = actions;
        self.show(&mut outcome, effects);
        if self.failure.is_none()
            && self.quorum.wants_snapshot()
            && let Err(error) = self.quorum.snapshot(&self.committed)
        {
            tracing::warn!(%error, "no metadata snapshot was taken; the log keeps growing");
        }
    }

    fn notice(&mut self, now_ms: u64, event: &QuorumEvent) {
        match event {
            QuorumEvent::Flush => self.wants_flush = false,
            QuorumEvent::PeerLost { node } => {
                self.lost_peers.insert(*node);
                if let Some(active) = &mut self.active {
                    active.sessions.suspect(*node, now_ms);
                }
            }
            QuorumEvent::Received { from, .. } => {
                if self.lost_peers.remove(&from.node)
                    && let Some(active) = &mut self.active
                {
                    active.sessions.clear(from.node, now_ms);
                }
            }
            _ => {}
        }
    }

    fn commit(
        &mut self,
        now_ms: u64,
        entry: Committed,
        outcome: &mut Outcome,
        effects: &mut Vec<ControllerEffect>,
    ) {
        if self.failure.is_some() {
            return;
        }
        if self.leads {
            outcome.answers.extend(unclean_elections(&self.committed, &entry.records));
        }
        let image = Arc::make_mut(&mut self.committed);
        if let Err(error) = image.apply(entry.index, &entry.records) {
            // The image is of no use any more: the one shown last stays, and nothing is said of what came after.
            self.committed = Arc::clone(&outcome.shown);
            outcome.entries.clear();
            let failure = self.fail(&error.to_string(), effects);
            let answers = outcome.answers.drain(..).filter_map(|answer| answer.refused(&failure));
            effects.extend(answers);
            return;
        }
        let id = EntryId { index: entry.index, term: entry.term };
        outcome.entries.push(entry);
        if let Some(active) = &mut self.active {
            let settled = active.pending.settle(id);
            outcome.answers.extend(settled.into_iter().map(|waiting| self.answer(waiting)));
        } else if self.leads && id.term == self.term {
            self.become_active(now_ms);
            let (term, leader) = (self.term, self.leader);
            outcome.answers.push(ControllerEffect::Role { term, leader, is_active: true });
        }
    }

    fn show(&self, outcome: &mut Outcome, effects: &mut Vec<ControllerEffect>) {
        let entries = std::mem::take(&mut outcome.entries);
        if !entries.is_empty() {
            outcome.shown = Arc::clone(&self.committed);
            let image = Arc::clone(&self.committed);
            effects.push(ControllerEffect::Published { image, entries });
        }
        effects.append(&mut outcome.answers);
    }

    fn change_role(
        &mut self,
        term: u64,
        leader: Option<NodeId>,
        is_leader: bool,
        effects: &mut Vec<ControllerEffect>,
    ) {
        let is_same = is_leader && self.leads && term == self.term;
        (self.term, self.leader, self.leads) = (term, leader, is_leader);
        if is_same {
            return;
        }
        // What is in the log may be committed by the next leader, or not.
        self.give_up(&not_controller(leader), effects);
        effects.push(ControllerEffect::Role { term, leader, is_active: false });
    }

    fn become_active(&mut self, now_ms: u64) {
        let timeout_ms = self.config.broker_session_timeout_ms;
        let mut sessions = Sessions::fresh(&self.committed, now_ms, timeout_ms);
        for node in &self.lost_peers {
            sessions.suspect(*node, now_ms);
        }
        self.active = Some(Active {
            image: Image::clone(&self.committed),
            pending: Pending::default(),
            sessions,
            upkeep: Upkeep::new(now_ms, &self.config),
        });
    }

    /// Nothing that waits will be known here.
    fn give_up(&mut self, failure: &Failure, effects: &mut Vec<ControllerEffect>) {
        let Some(mut active) = self.active.take() else { return };
        self.wants_flush = false;
        let abandoned = active.pending.abandon().map(|waiting| match waiting {
            Waiting::Command { token, .. } => {
                ControllerEffect::Answer { token, outcome: Err(failure.clone()) }
            }
            Waiting::Heartbeat { token, .. } => {
                ControllerEffect::HeartbeatAnswer { token, outcome: Err(failure.clone()) }
            }
        });
        effects.extend(abandoned);
    }

    fn fail(&mut self, error: &str, effects: &mut Vec<ControllerEffect>) -> Failure {
        let message = format!("metadata cannot be changed until the node is restarted: {error}");
        let failure = Failure::new(ErrorCode::StorageFailed, message.clone());
        self.give_up(&failure, effects);
        self.failure = Some(failure.clone());
        effects.push(ControllerEffect::Failed { message });
        failure
    }
}

/// Two processes cannot share a directory, so with the same one the other run is over. With another it may be
/// alive, and is unless nothing is heard of it.
fn check_other_run(active: &Active, now_ms: u64, command: &RegisterBroker) -> Result<(), Failure> {
    let other = active.image.broker(command.broker_id).filter(|broker| {
        !broker.fenced
            && broker.incarnation != command.incarnation
            && broker.directory != command.directory
            && !active.sessions.is_over(broker.id, broker.epoch, now_ms)
    });
    match other {
        None => Ok(()),
        Some(other) => {
            let message = format!(
                "broker {} is alive at {}:{}, with another data directory",
                other.id, other.host, other.port
            );
            Err(Failure::new(ErrorCode::DuplicateBroker, message))
        }
    }
}

impl<Q> fmt::Debug for ControllerMachine<Q> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ControllerMachine")
            .field("metadata_index", &self.committed.metadata_index())
            .field("term", &self.term)
            .field("leader", &self.leader)
            .field("is_active", &self.active.is_some())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

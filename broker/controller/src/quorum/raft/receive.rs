//! What comes in from other controllers, judged before the library sees it.
//!
//! The library trusts its peers and panics on what it holds impossible. Such messages are refused here, with a line in
//! the log where they mean that somebody has lost what it promised to keep.

use raft::{
    INVALID_ID, StateRole,
    eraftpb::{Message, MessageType},
};
use tidemark_protocol::messages::VoterId;
use tidemark_storage::Disk;

use super::RaftQuorum;
use crate::quorum::{
    QuorumAction,
    members::raft_id,
    snapshots::Snapshot,
    wire::{self, Inbound, Part},
};

/// Controllers outside the configuration that are remembered, so that they can be answered.
const HEARD_MAX: usize = 64;
/// Well over what a log will ever reach, and well below where numbers end.
const INDEX_MAX: u64 = u64::MAX / 4;
/// What a follower finds out that has lost what it acknowledged, and what helps.
const LOST_ENTRIES: &str = "this controller has acknowledged entries that it does not have any more; remove it from the \
    controllers, start it on an empty data directory, and add it again";
/// Terms fit the leader epochs of the log, and leave room to go on.
const TERM_MAX: u64 = (u32::MAX - 1_000_000) as u64;

impl<D: Disk> RaftQuorum<D> {
    pub(super) fn receive(
        &mut self,
        from: VoterId,
        message: &[u8],
        actions: &mut Vec<QuorumAction>,
    ) {
        let id = raft_id(&from);
        if id == self.my_id {
            return;
        }
        let inbound = match wire::decode(message, id, self.my_id) {
            Ok(inbound) => inbound,
            Err(error) => {
                tracing::warn!(from = from.node, %error, "a message of a controller is refused");
                return;
            }
        };
        self.remember(id, from);
        match inbound {
            Inbound::Raft(mut message) => match self.admit(&mut message) {
                // It refuses nothing but answers of somebody who is no member any more.
                Ok(()) => drop(self.node.step(message)),
                Err(reason) => self.tell_refused(from, reason),
            },
            Inbound::Part { term, part } => self.take_part(id, term, &part, actions),
            Inbound::Got { term, got } => {
                if self.is_leader()
                    && term == self.node.raft.term
                    && let Some(progress) = self.outgoing.answered(id, got)
                {
                    self.go_on(id, progress, actions);
                }
            }
        }
    }

    /// Once for the same reason: heartbeats come many times a second.
    fn tell_refused(&mut self, from: VoterId, reason: &'static str) {
        if self.refused.replace((from, reason)) != Some((from, reason)) {
            tracing::warn!(from = from.node, reason, "messages of a controller are dropped");
        }
    }

    fn remember(&mut self, id: u64, voter: VoterId) {
        if self.members.get(id).is_some() {
            self.elections.note_heard(id);
            return;
        }
        if self.heard.contains_key(&id) {
            return;
        }
        if self.heard.len() >= HEARD_MAX {
            self.heard.pop_first();
        }
        self.heard.insert(id, voter);
    }

    /// Whether the library may see a message, mended where an old one would mislead it.
    fn admit(&self, message: &mut Message) -> Result<(), &'static str> {
        let raft = &self.node.raft;
        if message.term == 0 || message.term > TERM_MAX || message.log_term > message.term {
            return Err("its term is impossible");
        }
        if message.index.max(message.commit).max(message.reject_hint) > INDEX_MAX {
            return Err("its index is impossible");
        }
        if message.term < raft.term {
            return Ok(());
        }
        match message.get_msg_type() {
            MessageType::MsgAppend => {
                self.admit_leader(message)?;
                Self::admit_entries(message)
            }
            MessageType::MsgHeartbeat => {
                self.admit_leader(message)?;
                if message.commit > raft.raft_log.last_index() {
                    return Err(LOST_ENTRIES);
                }
                Ok(())
            }
            MessageType::MsgAppendResponse if message.term == raft.term && self.is_leader() => {
                self.admit_response(message)
            }
            MessageType::MsgTimeoutNow if message.from != raft.leader_id => {
                Err("only the leader hands its leadership over")
            }
            _ => Ok(()),
        }
    }

    fn admit_leader(&self, message: &Message) -> Result<(), &'static str> {
        let raft = &self.node.raft;
        let is_other = raft.leader_id != INVALID_ID && raft.leader_id != message.from;
        if message.term == raft.term && (is_other || raft.state == StateRole::Leader) {
            return Err("there is another leader in its term");
        }
        Ok(())
    }

    /// Terms never go back along a log, and none is ahead of its leader's. Nothing has term 0 but what is in front of
    /// the first entry; the library takes it for that of any entry it does not have.
    fn admit_entries(message: &Message) -> Result<(), &'static str> {
        if (message.log_term == 0) != (message.index == 0) {
            return Err("the entry in front of its entries is impossible");
        }
        let mut last_term = message.log_term;
        for entry in message.get_entries() {
            if entry.term == 0 || entry.term < last_term || entry.term > message.term {
                return Err("the terms of its entries are out of order");
            }
            last_term = entry.term;
        }
        Ok(())
    }

    /// What a follower says it has, or lacks.
    ///
    /// A rejection that was overtaken by a later answer must not take the library back to, or behind, what the
    /// follower is known to have: `raft` 0.7.0 checks that only while it replicates, not while it probes (its
    /// issue 555, mended in its repository and not released). It would then offer entries that a snapshot may stand
    /// for already, and wait for an answer that changes nothing.
    fn admit_response(&self, message: &mut Message) -> Result<(), &'static str> {
        let raft = &self.node.raft;
        let Some(progress) = raft.prs().get(message.from) else { return Ok(()) };
        if !message.reject {
            if message.index > raft.raft_log.last_index() {
                return Err("it says that entries arrived which were never sent");
            }
            return Ok(());
        }
        if message.index <= progress.matched {
            return Err("an old rejection");
        }
        message.reject_hint = message.reject_hint.max(progress.matched);
        let matched_term = raft.raft_log.term(progress.matched).unwrap_or(0);
        message.log_term = message.log_term.max(matched_term);
        Ok(())
    }

    fn take_part(&mut self, from: u64, term: u64, part: &Part, actions: &mut Vec<QuorumAction>) {
        let raft = &self.node.raft;
        let is_leaders = term == raft.term && from == raft.leader_id;
        if !is_leaders || raft.state != StateRole::Follower {
            return;
        }
        let (got, whole) = self.incoming.take(from, term, part);
        match whole.map(Snapshot::parse) {
            None => {}
            Some(Ok(snapshot)) if snapshot.end == part.end && snapshot.term <= term => {
                self.offer(from, term, snapshot);
            }
            Some(Ok(_)) => {
                tracing::error!("a leader's snapshot is not what it was said to be");
                return;
            }
            Some(Err(error)) => {
                tracing::error!(%error, index = part.end, "a leader's snapshot is refused");
                return;
            }
        }
        if let Some(to) = self.name(from) {
            let message = wire::encode_got(from, term, got);
            actions.push(QuorumAction::Send { to, message });
        }
    }

    /// Hands a snapshot to the library, which takes it or finds that it has all of it.
    fn offer(&mut self, from: u64, term: u64, snapshot: Snapshot) {
        let mut conf = snapshot.members.conf_state();
        if snapshot.members.get(self.my_id).is_none() {
            // It was taken before this node was added. The library wants its owner to be a member; a learner has no
            // say, and the entry that adds it follows.
            conf.mut_learners().push(self.my_id);
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (from, self.my_id, term);
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (snapshot.end, snapshot.term);
        metadata.set_conf_state(conf);
        tracing::info!(index = snapshot.end, "a leader's snapshot has arrived");
        let end = snapshot.end;
        self.arrived = Some(snapshot);
        drop(self.node.step(message));
        let taken = self.node.snap().map(|snapshot| snapshot.get_metadata().index);
        if taken != Some(end) {
            self.arrived = None;
        }
    }
}

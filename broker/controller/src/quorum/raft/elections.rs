//! When this node stands for election. Whom it votes for is the library's business.
//!
//! The library draws its election timeouts from the thread's generator. Each draw is overridden from a seeded one
//! before it can matter, so that a run is decided by its seed.

use std::collections::BTreeMap;

use raft::{INVALID_ID, ProgressState, RawNode, SnapshotStatus, StateRole};
use tidemark_protocol::{NodeId, bug};
use tidemark_storage::Disk;

use super::RaftQuorum;
use crate::quorum::{
    QuorumAction,
    config::{Chance, QuorumConfig, Ticks},
    store::Store,
    transfer::Progress,
    wal::WalError,
    wire,
};

/// Ticks after which it is tried again to set space aside for when the disk is full.
const RESERVE_TICKS: usize = 50;

#[derive(Debug)]
pub(super) struct Elections {
    ticks: Ticks,
    chance: Chance,
    /// Of the election timeout.
    timeout_ticks: usize,
    /// Term, role and leader for which it was drawn.
    drawn_for: Option<(u64, StateRole, u64)>,
    /// Ticks until this node stands for election because it saw its leader go.
    stands_in_ticks: Option<usize>,
    now_ticks: usize,
    /// When a member was heard last.
    heard_at_ticks: BTreeMap<u64, usize>,
}

impl Elections {
    pub(super) fn new(config: &QuorumConfig) -> Self {
        let ticks = config.ticks();
        Self {
            ticks,
            chance: Chance::new(config.seed),
            timeout_ticks: ticks.election_min,
            drawn_for: None,
            stands_in_ticks: None,
            now_ticks: 0,
            heard_at_ticks: BTreeMap::new(),
        }
    }

    pub(super) fn note_heard(&mut self, member: u64) {
        self.heard_at_ticks.insert(member, self.now_ticks);
    }

    /// Whether a member was heard within an election timeout.
    pub(super) fn is_alive(&self, member: u64) -> bool {
        let heard_at_ticks = self.heard_at_ticks.get(&member);
        heard_at_ticks.is_some_and(|then| self.now_ticks - then <= self.ticks.election_min)
    }

    /// Overrides what the library may have drawn. A timeout is drawn again whenever term, role or leader change.
    pub(super) fn settle(&mut self, node: &mut RawNode<Store>) {
        let now = (node.raft.term, node.raft.state, node.raft.leader_id);
        if self.drawn_for != Some(now) {
            self.drawn_for = Some(now);
            self.draw();
        }
        node.raft.set_randomized_election_timeout(self.timeout_ticks);
    }

    fn draw(&mut self) {
        let spread = self.ticks.election_max - self.ticks.election_min;
        self.timeout_ticks = self.ticks.election_min + self.chance.below(spread);
    }

    /// Stands for election with the next tick.
    pub(super) fn stand_at_once(&mut self) {
        self.stands_in_ticks = Some(1);
    }

    /// Stands for election soon, after so many others.
    fn stand_in_turn(&mut self, others: usize) {
        self.stands_in_ticks = Some(1 + others * self.ticks.lost_leader_pause);
    }
}

impl<D: Disk> RaftQuorum<D> {
    pub(super) fn tick(&mut self, actions: &mut Vec<QuorumAction>) {
        self.flush_what_a_bug_put_off();
        self.elections.now_ticks += 1;
        if self.elections.now_ticks.is_multiple_of(RESERVE_TICKS) {
            self.disk.reserve.keep();
        }
        let (role, elapsed) = (self.node.raft.state, self.node.raft.election_elapsed);
        self.node.tick();
        if role != StateRole::Leader && self.node.raft.election_elapsed <= elapsed {
            // It stood for election; the next attempt, if need be, comes after another time.
            self.elections.draw();
        }
        self.stand_if_due();
        self.tick_transfers(actions);
        if self.is_leader() {
            self.promote_who_has_caught_up();
        }
    }

    fn stand_if_due(&mut self) {
        let Some(ticks) = self.elections.stands_in_ticks.take() else { return };
        let raft = &self.node.raft;
        if raft.leader_id != INVALID_ID || raft.state != StateRole::Follower || !raft.promotable() {
            return;
        }
        if ticks > 1 {
            self.elections.stands_in_ticks = Some(ticks - 1);
            return;
        }
        self.node.campaign().expect("standing for election is never refused");
    }

    /// A connection closed. If it was the leader's, its lease on this node's vote is over, and somebody has to stand
    /// for election: all who saw it, one after the other in an order that they agree on, because two at a time would
    /// split the votes.
    pub(super) fn peer_lost(&mut self, node: NodeId) {
        let members = self.members.voters().chain(self.members.learners());
        let lost: Vec<u64> =
            members.filter(|(_, voter)| voter.node == node).map(|(id, _)| id).collect();
        for id in lost {
            self.elections.heard_at_ticks.remove(&id);
            if self.is_leader() {
                if self.outgoing.stop(id) {
                    self.node.report_snapshot(id, SnapshotStatus::Failure);
                }
                self.node.report_unreachable(id);
            } else if self.node.raft.leader_id == id {
                self.node.raft.leader_id = INVALID_ID;
                self.incoming.clear();
                let before = self.members.voters().map(|(other, _)| other);
                let before = before.filter(|other| *other != id && *other < self.my_id);
                self.elections.stand_in_turn(before.count());
            }
        }
    }

    fn tick_transfers(&mut self, actions: &mut Vec<QuorumAction>) {
        if !self.is_leader() {
            self.outgoing.clear();
            return;
        }
        let receivers: Vec<u64> = self.outgoing.receivers().collect();
        for to in receivers {
            let progress = self.node.raft.prs().get(to);
            if progress.is_none_or(|progress| progress.state != ProgressState::Snapshot) {
                self.outgoing.stop(to);
            }
        }
        for (to, progress) in self.outgoing.tick() {
            self.go_on(to, progress, actions);
        }
    }

    /// Goes on with a snapshot on its way out.
    pub(super) fn go_on(&mut self, to: u64, progress: Progress, actions: &mut Vec<QuorumAction>) {
        match progress {
            Progress::Done => self.node.report_snapshot(to, SnapshotStatus::Finish),
            Progress::GivenUp => self.node.report_snapshot(to, SnapshotStatus::Failure),
            Progress::Send(part) => {
                let Some(voter) = self.name(to) else { return };
                let message = wire::encode_part(to, self.node.raft.term, part);
                actions.push(QuorumAction::Send { to: voter, message });
            }
        }
    }

    /// Nothing, unless a bug is put back.
    fn flush_what_a_bug_put_off(&mut self) {
        let puts_off = bug::is_put_back("raft-send-before-flush")
            || bug::is_put_back("raft-apply-before-flush-single-voter");
        if puts_off && let Err(WalError::Failed(error)) = self.disk.flush() {
            self.fail("flushing the metadata log", error);
        }
    }
}

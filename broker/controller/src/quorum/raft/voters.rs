//! Who becomes a voter and who ceases to be one: by one controller at a time, learners first, decided by the leader.

use tidemark_protocol::{NodeId, messages::VoterId};
use tidemark_storage::Disk;

use super::{Payload, RaftQuorum};
use crate::quorum::{
    ProposeError, VoterChange,
    members::{CONTROLLERS_MAX, Change, raft_id},
};

/// A learner that lacks no more entries than this has caught up.
const CAUGHT_UP_ENTRIES: u64 = 100;

impl<D: Disk> RaftQuorum<D> {
    pub(super) fn change_voters(&mut self, change: VoterChange) {
        if let Err(reason) = self.try_change_voters(change) {
            // Whoever wants it asks again.
            tracing::debug!(?change, reason, "the voters are not changed");
        }
    }

    fn try_change_voters(&mut self, change: VoterChange) -> Result<(), String> {
        let change = match change {
            VoterChange::Add(voter) => self.addition(voter)?,
            VoterChange::Remove(voter) => self.removal(voter)?,
        };
        self.propose_change(&change)
    }

    fn addition(&self, voter: VoterId) -> Result<Change, String> {
        match self.members.get(raft_id(&voter)) {
            Some(known) if known == voter => Err("it belongs already".to_owned()),
            Some(_) => Err("its number is another's".to_owned()),
            None if self.members.len() == CONTROLLERS_MAX => {
                Err(format!("there are {CONTROLLERS_MAX} controllers already"))
            }
            None => Ok(Change::AddLearner(voter)),
        }
    }

    fn removal(&mut self, voter: VoterId) -> Result<Change, String> {
        let id = raft_id(&voter);
        if self.members.get(id).is_none() {
            return Err("it does not belong".to_owned());
        }
        if self.members.is_voter(id) && self.members.voters().len() == 1 {
            return Err("it is the only voter".to_owned());
        }
        if id == self.my_id {
            // The next leader can do it without a gap.
            self.transfer_leadership(None);
            return Err("a leader hands over before it goes: ask its successor".to_owned());
        }
        Ok(Change::Remove(voter))
    }

    fn propose_change(&mut self, change: &Change) -> Result<(), String> {
        let shown = |error: ProposeError| error.to_string();
        self.check_leading().map_err(shown)?;
        // A change is on firm ground only behind an entry of the leader's own term; and one at a time.
        if !self.node.raft.apply_to_current_term() {
            return Err("the leader has just begun".to_owned());
        }
        if self.node.raft.has_pending_conf() {
            return Err("another change is under way".to_owned());
        }
        let payload = change.encode();
        let id = self.write_ahead(Payload::Change(&payload), true).map_err(shown)?;
        let mut steps = change.steps();
        let step = steps.pop().filter(|_| steps.is_empty()).expect("one controller at a time");
        let proposed = self.node.propose_conf_change(payload, step);
        proposed.expect("a leader that transfers nothing takes every proposal");
        let pending = self.node.raft.pending_conf_index;
        assert!(pending == id.index + 1, "the library has taken the change for one");
        Ok(())
    }

    /// A learner that has (almost) everything becomes a voter.
    pub(super) fn promote_who_has_caught_up(&mut self) {
        if self.node.raft.has_pending_conf() {
            return;
        }
        let end = self.node.raft.raft_log.committed;
        let caught_up = self.members.learners().find(|(id, _)| {
            self.node.raft.prs().get(*id).is_some_and(|progress| {
                progress.recent_active && progress.matched + CAUGHT_UP_ENTRIES >= end
            })
        });
        let Some((_, voter)) = caught_up else { return };
        if let Err(reason) = self.propose_change(&Change::Promote(voter)) {
            tracing::debug!(?voter, reason, "not promoted yet");
        }
    }

    /// Hands leadership over, if this node has it and somebody else can take it.
    pub(super) fn transfer_leadership(&mut self, to: Option<NodeId>) {
        if !self.is_leader() {
            return;
        }
        let raft = &self.node.raft;
        let candidates = self
            .members
            .voters()
            .filter(|(id, voter)| *id != self.my_id && to.is_none_or(|to| to == voter.node));
        let heard = candidates.filter_map(|(id, voter)| {
            let progress = raft.prs().get(id).filter(|progress| progress.recent_active)?;
            Some((progress.matched, id, voter))
        });
        let best = heard.max_by_key(|(matched, id, _)| (*matched, *id));
        let Some((_, id, voter)) = best else {
            tracing::info!(?to, "there is nobody to take the leadership of the quorum");
            return;
        };
        tracing::info!(to = voter.node, "handing over the leadership of the quorum");
        self.node.transfer_leader(id);
    }
}

//! Who is in sync: the leader's proposals to the controller, and what counts while one is under way.
//!
//! The controller alone changes the in-sync set. One change is under way at a time; until metadata with a newer
//! partition epoch arrives, the watermark waits for the larger of both sets.

use tidemark_protocol::{ErrorCode, PartitionEpoch, bug};

use crate::{
    event::{Assignment, Effect, IsrChange, ReplicaId},
    followers::{Follower, InSync},
    leader::Leader,
    replica::Core,
};

/// How long after a change was proposed and not answered, or refused, the next attempt is made.
const ISR_RETRY_MS: u64 = 500;

/// A change that was proposed.
#[derive(Debug)]
pub(crate) struct PendingIsr {
    change: IsrChange,
    /// When to propose it, again in most cases; `None`: the metadata will say what became of it.
    repeat_at_ms: Option<u64>,
}

impl Leader {
    /// Takes over members and in-sync set. What is known of a follower stays, as long as it is the same run of it.
    pub(crate) fn set_members(&mut self, core: &Core, assignment: &Assignment) {
        if self.partition_epoch != assignment.partition_epoch {
            // Whatever was proposed was based on an older state: it has happened, or never will.
            self.pending_isr = None;
            self.partition_epoch = assignment.partition_epoch;
        }
        let mut before = std::mem::take(&mut self.followers);
        for member in &assignment.replicas {
            let in_isr = assignment.isr.contains(&member.id);
            if member.id == self.me.broker_id {
                assert!(in_isr, "a leader that is not in sync: {assignment:?}");
                self.me = member.replica();
                continue;
            }
            let known = before.iter().position(|old| old.member.id == member.id);
            let mut follower = match known.map(|index| before.swap_remove(index)) {
                Some(same) if same.member.replica() == member.replica() => same,
                former => Follower::new(*member, in_isr, core.log.log_end_offset, core.now_ms)
                    .in_another_run(former.as_ref()),
            };
            follower.member = *member;
            follower.set_in_isr(in_isr, core.log.log_end_offset, core.now_ms);
            if self.pending_isr.is_none() {
                follower.forget_proposal();
            }
            self.followers.push(follower);
        }
    }

    /// Committed in-sync replicas.
    pub(crate) fn isr_size(&self) -> usize {
        1 + self.followers.iter().filter(|follower| follower.is_in_sync()).count()
    }

    /// In-sync replicas, committed or proposed.
    pub(crate) fn maximal_isr_size(&self) -> usize {
        let in_either = |follower: &&Follower| follower.in_sync != InSync::No;
        1 + self.followers.iter().filter(in_either).count()
    }

    /// Fewest in-sync replicas with which anything is committed.
    pub(crate) fn min_insync(&self, core: &Core) -> usize {
        usize::from(core.config.min_insync_replicas).min(1 + self.followers.len())
    }

    pub(crate) fn isr_answered(
        &mut self,
        core: &Core,
        partition_epoch: PartitionEpoch,
        answer: Result<(), ErrorCode>,
    ) {
        let committed = self.set_of(Follower::is_in_sync);
        let Some(pending) = &mut self.pending_isr else { return };
        if pending.change.partition_epoch != partition_epoch {
            return;
        }
        match answer {
            Ok(()) => pending.repeat_at_ms = None,
            Err(ErrorCode::IneligibleReplica) if bug::is_put_back("isr-rollback-on-refusal") => {
                self.forget_proposals(core);
            }
            // Nothing was changed, and our state is the current one; but another copy of the change may be on its way
            // still, and be carried out when the replica is eligible again. So the committed set is proposed in its
            // place: that makes every copy old, and until the metadata says which of the two it was, the larger set
            // counts.
            Err(ErrorCode::IneligibleReplica) => {
                let is_withdrawn = pending.change.isr == committed;
                pending.change.isr = committed;
                let pause_ms = if is_withdrawn { ISR_RETRY_MS } else { 0 };
                pending.repeat_at_ms = Some(core.now_ms.saturating_add(pause_ms));
                self.propose_at_ms = core.now_ms.saturating_add(ISR_RETRY_MS);
            }
            Err(_) if bug::is_put_back("isr-rollback-on-any-error") => self.forget_proposals(core),
            Err(code) => {
                pending.repeat_at_ms =
                    code.is_retriable().then(|| core.now_ms.saturating_add(ISR_RETRY_MS));
            }
        }
    }

    fn forget_proposals(&mut self, core: &Core) {
        self.pending_isr = None;
        self.followers.iter_mut().for_each(Follower::forget_proposal);
        self.propose_at_ms = core.now_ms.saturating_add(ISR_RETRY_MS);
    }

    /// We, and the followers that are wanted.
    fn set_of(&self, wanted: impl Fn(&Follower) -> bool) -> Vec<ReplicaId> {
        let followers = self.followers.iter().filter(|follower| wanted(follower));
        std::iter::once(self.me)
            .chain(followers.map(|follower| follower.member.replica()))
            .collect()
    }

    /// Proposes what is to be proposed, or proposes it again.
    pub(crate) fn tend_isr(&mut self, core: &Core, effects: &mut Vec<Effect>) {
        if self.followers.is_empty() {
            return;
        }
        if let Some(PendingIsr { change, repeat_at_ms: Some(repeat_at_ms) }) = &mut self.pending_isr
            && core.now_ms >= *repeat_at_ms
        {
            *repeat_at_ms = core.now_ms.saturating_add(ISR_RETRY_MS);
            effects.push(Effect::AlterIsr(change.clone()));
        }
        if self.pending_isr.is_some() || core.now_ms < self.propose_at_ms {
            return;
        }
        let (durability, end) = (core.config.durability, core.log.log_end_offset);
        let lag_ms = core.config.replica_lag_ms;
        let behind = |follower: &Follower| {
            follower.is_in_sync() && !follower.is_caught_up(durability, end, lag_ms, core.now_ms)
        };
        if self.followers.iter().any(behind) {
            let isr = self.set_of(|follower| follower.is_in_sync() && !behind(follower));
            self.propose(core, isr, effects);
            return;
        }
        let (watermark, start_offset) = (core.high_watermark, self.start_offset);
        let mut any_joins = false;
        for follower in &mut self.followers {
            if follower.may_join(durability, watermark, start_offset) {
                follower.in_sync = InSync::Proposed;
                any_joins = true;
            }
        }
        if any_joins {
            let isr = self.set_of(|follower| follower.in_sync != InSync::No);
            self.propose(core, isr, effects);
        }
    }

    fn propose(&mut self, core: &Core, isr: Vec<ReplicaId>, effects: &mut Vec<Effect>) {
        let partition_epoch = self.partition_epoch;
        let change = IsrChange { leader_epoch: self.epoch, partition_epoch, isr };
        effects.push(Effect::AlterIsr(change.clone()));
        let repeat_at_ms = Some(core.now_ms.saturating_add(ISR_RETRY_MS));
        self.pending_isr = Some(PendingIsr { change, repeat_at_ms });
    }

    /// When time alone gives something to propose.
    pub(crate) fn next_isr_ms(&self, core: &Core) -> Option<u64> {
        if let Some(pending) = &self.pending_isr {
            return pending.repeat_at_ms;
        }
        let (durability, end) = (core.config.durability, core.log.log_end_offset);
        let lag_ms = core.config.replica_lag_ms;
        let in_isr = self.followers.iter().filter(|follower| follower.is_in_sync());
        let behind_at_ms =
            in_isr.filter_map(|follower| follower.falls_behind_at_ms(durability, end, lag_ms));
        let joins = self
            .followers
            .iter()
            .any(|follower| follower.may_join(durability, core.high_watermark, self.start_offset));
        let joins_at_ms = joins.then_some(self.propose_at_ms);
        let first_ms = behind_at_ms.chain(joins_at_ms).min()?;
        Some(first_ms.max(self.propose_at_ms))
    }
}

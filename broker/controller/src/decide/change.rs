//! The one function that computes a partition's next state. Every decision that touches a partition says what it
//! wants of it, and [`Change::build`] sees to everything that follows: a reassignment that is complete, eligible
//! replicas, the election, the epochs. It decides nothing about brokers: they are as the image shows them.

use tidemark_protocol::{BrokerId, bug};

use crate::{
    image::{Image, Partition},
    settings::TopicConfig,
};

/// What a decision wants of one partition.
pub(super) struct Change<'a> {
    /// With the brokers as they are after the decision.
    image: &'a Image,
    config: &'a TopicConfig,
    before: &'a Partition,
    replicas: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    isr: Vec<BrokerId>,
    restarted: Option<Restarted>,
    election: Choice,
    is_forced: bool,
}

/// A broker that starts anew, and what is to be thought of the data it comes with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restarted {
    pub(super) broker_id: BrokerId,
    /// It had flushed everything.
    pub(super) is_clean: bool,
    /// It has nothing of what it had.
    pub(super) is_wiped: bool,
}

/// A partition after a change.
pub(super) struct After {
    pub(super) state: Partition,
    /// It has a leader that may lack committed records.
    pub(super) is_unclean: bool,
}

/// Who may be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// The present leader if it may lead on, else the first that may in order of preference.
    Any,
    /// The first in order of preference if it may, else as `Any`.
    Preferred,
    /// The one named if it may, else as `Any`.
    Named(BrokerId),
    /// As `Any`, else whoever lives.
    Unclean,
}

/// Whom an election picked, and who is in sync and eligible with it.
struct Elected {
    leader: Option<BrokerId>,
    isr: Vec<BrokerId>,
    elr: Vec<BrokerId>,
    is_unclean: bool,
}

impl<'a> Change<'a> {
    /// No change but those that are due by themselves. `config` is the topic's after the decision.
    pub(super) fn of(image: &'a Image, config: &'a TopicConfig, before: &'a Partition) -> Self {
        Self {
            image,
            config,
            before,
            replicas: before.replicas.clone(),
            adding: before.adding.clone(),
            removing: before.removing.clone(),
            isr: before.isr.clone(),
            restarted: None,
            election: if config.unclean_leader_election { Choice::Unclean } else { Choice::Any },
            is_forced: false,
        }
    }

    pub(super) fn with_isr(mut self, isr: Vec<BrokerId>) -> Self {
        self.isr = isr;
        self
    }

    /// Takes a broker out of the in-sync set.
    pub(super) fn without(mut self, broker_id: BrokerId) -> Self {
        self.isr.retain(|id| *id != broker_id);
        self
    }

    /// Takes a broker that starts anew out of the in-sync set, and out of everything else its data is not good
    /// for any more.
    pub(super) fn restarted(mut self, restarted: Restarted) -> Self {
        self.restarted = Some(restarted);
        self.without(restarted.broker_id)
    }

    pub(super) fn preferred(mut self) -> Self {
        self.election = Choice::Preferred;
        self
    }

    pub(super) fn led_by(mut self, leader: BrokerId) -> Self {
        self.election = Choice::Named(leader);
        self
    }

    pub(super) fn unclean(mut self) -> Self {
        self.election = Choice::Unclean;
        self
    }

    /// Moves it to `target`, from where it was before any reassignment that is under way.
    pub(super) fn moved_to(mut self, target: &[BrokerId]) -> Self {
        let is_origin = |id: &BrokerId| !self.before.adding.contains(id);
        let origin = || self.before.replicas.iter().copied().filter(is_origin);
        self.removing = origin().filter(|id| !target.contains(id)).collect();
        self.adding = target.iter().copied().filter(|id| !origin().any(|old| old == *id)).collect();
        self.replicas = target.iter().copied().chain(self.removing.iter().copied()).collect();
        self
    }

    /// Takes back the reassignment that is under way.
    pub(super) fn cancelled(mut self) -> Self {
        self.replicas.retain(|id| !self.before.adding.contains(id));
        self.adding.clear();
        self.removing.clear();
        self
    }

    /// Counts as a change even if nothing of the partition changes, so that nobody goes on with what came before.
    pub(super) fn forced(mut self) -> Self {
        self.is_forced = true;
        self
    }

    /// The partition after the change; `None` when nothing changes.
    pub(super) fn build(mut self) -> Option<After> {
        self.complete_reassignment();
        let isr = self.in_order(&self.isr);
        let elr = self.eligible_replicas(&isr);
        let Elected { leader, isr, elr, is_unclean } = self.elect(isr, elr);
        // Who is elected without others in sync may be the only one who was to stay.
        self.isr = isr;
        self.complete_reassignment();
        let (isr, elr) = (self.in_order(&self.isr), self.in_order(&elr));
        let before = self.before;
        let mut after = Partition {
            elr: if self.has_enough(&isr) { Vec::new() } else { elr },
            last_known_leader: if leader.is_some() { None } else { self.last_known_leader() },
            leader,
            leader_epoch: before.leader_epoch,
            partition_epoch: before.partition_epoch,
            isr,
            replicas: self.replicas,
            adding: self.adding,
            removing: self.removing,
        };
        if after == *before && !self.is_forced {
            return None;
        }
        // Whoever still follows or believes a replica that is gone must not be believed.
        let has_lost_replica = before.replicas.iter().any(|id| !after.replicas.contains(id))
            && !bug::is_put_back("no-epoch-bump-after-reassignment");
        if after.leader != before.leader || has_lost_replica {
            after.leader_epoch = before.leader_epoch.checked_add(1).expect("elections are rare");
        }
        after.partition_epoch = before.partition_epoch.checked_add(1).expect("changes are rare");
        Some(After { state: after, is_unclean })
    }

    /// A reassignment is complete when all who stay are in sync: not when those who come are (KAFKA-15665).
    fn complete_reassignment(&mut self) {
        if self.adding.is_empty() && self.removing.is_empty() {
            return;
        }
        let stays = |id: &BrokerId| !self.removing.contains(id);
        let is_complete = if bug::is_put_back("reassignment-completes-early") {
            self.adding.iter().all(|id| self.isr.contains(id)) && self.isr.iter().any(stays)
        } else {
            self.replicas.iter().filter(|id| stays(id)).all(|id| self.isr.contains(id))
        };
        if is_complete {
            self.replicas.retain(|id| !self.removing.contains(id));
            self.adding.clear();
            self.removing.clear();
        }
    }

    /// Those of the replicas that are in `set`, in order of preference.
    fn in_order(&self, set: &[BrokerId]) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|id| set.contains(id)).collect()
    }

    /// Whether records are committed with this in-sync set.
    fn has_enough(&self, isr: &[BrokerId]) -> bool {
        isr.len() >= usize::from(self.config.min_insync_replicas).min(self.replicas.len())
    }

    /// Who has every committed record without being in sync: whoever was in sync when the set fell below its
    /// minimum, since nothing was committed from then on.
    fn eligible_replicas(&self, isr: &[BrokerId]) -> Vec<BrokerId> {
        let before = self.before;
        let had = |id: &BrokerId| before.isr.contains(id) || before.elr.contains(id);
        let unclean = self.restarted.filter(|restarted| !restarted.is_clean);
        let is_out = |id: BrokerId| unclean.is_some_and(|restarted| restarted.broker_id == id);
        let replicas = self.replicas.iter().copied();
        replicas.filter(|id| had(id) && !isr.contains(id) && !is_out(*id)).collect()
    }

    fn elect(&self, mut isr: Vec<BrokerId>, mut elr: Vec<BrokerId>) -> Elected {
        if bug::is_put_back("no-elr") {
            elr.clear();
            if isr.is_empty() {
                isr = self.in_order(&self.before.isr);
            }
        }
        if let Some(leader) = self.clean_choice(&isr, &elr) {
            if isr.is_empty() {
                isr.push(leader);
                elr.retain(|id| *id != leader);
            }
            return Elected { leader: Some(leader), isr, elr, is_unclean: false };
        }
        if isr.is_empty() && elr.is_empty() {
            let last = self.last_known_leader().filter(|id| self.may_lead(*id));
            if let Some(leader) = last {
                return Elected { leader: Some(leader), isr: vec![leader], elr, is_unclean: false };
            }
        }
        if self.election == Choice::Unclean
            && let Some(leader) = self.replicas.iter().copied().find(|id| self.may_lead(*id))
        {
            // What others have beyond this leader's log is no part of the partition any more.
            let (isr, elr) = (vec![leader], Vec::new());
            return Elected { leader: Some(leader), isr, elr, is_unclean: true };
        }
        Elected { leader: None, isr, elr, is_unclean: false }
    }

    fn clean_choice(&self, isr: &[BrokerId], elr: &[BrokerId]) -> Option<BrokerId> {
        let has_all = |id| isr.contains(&id) || (isr.is_empty() && elr.contains(&id));
        let may = |id: &BrokerId| has_all(*id) && self.may_lead(*id);
        let preferred = match self.election {
            Choice::Preferred => self.replicas.first().copied(),
            Choice::Named(leader) => Some(leader),
            Choice::Any | Choice::Unclean => None,
        };
        let present = self.before.leader;
        let others = self.replicas.iter().copied();
        preferred.into_iter().chain(present).chain(others).find(may)
    }

    fn may_lead(&self, id: BrokerId) -> bool {
        let is_eligible = self.image.is_eligible(id) || bug::is_put_back("elect-fenced-replica");
        is_eligible && self.replicas.contains(&id)
    }

    /// Who led last, as long as it is a replica and has its data.
    fn last_known_leader(&self) -> Option<BrokerId> {
        let wiped = self.restarted.filter(|restarted| restarted.is_wiped);
        let last = self.before.leader.or(self.before.last_known_leader);
        last.filter(|id| self.replicas.contains(id))
            .filter(|id| wiped.is_none_or(|restarted| restarted.broker_id != *id))
    }
}

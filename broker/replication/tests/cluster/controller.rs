//! A controller that does what the metadata's controller does for one partition, and keeps every state it has been in:
//! brokers follow them with delays and leaps.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{BrokerEpoch, BrokerId, ErrorCode};
use tidemark_replication::{Assignment, IsrChange, Member};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) epoch: BrokerEpoch,
    pub(crate) fenced: bool,
}

/// The metadata at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) brokers: BTreeMap<BrokerId, Registration>,
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) isr: BTreeSet<BrokerId>,
    pub(crate) elr: BTreeSet<BrokerId>,
    pub(crate) leader: Option<BrokerId>,
    last_leader: BrokerId,
    pub(crate) leader_epoch: u32,
    pub(crate) partition_epoch: u32,
}

impl State {
    pub(crate) fn assignment(&self) -> Assignment {
        let member = |id: &BrokerId| {
            let Registration { epoch, fenced } = self.brokers[id];
            Member { id: *id, broker_epoch: epoch, eligible: !fenced }
        };
        Assignment {
            leader: self.leader,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: self.replicas.iter().map(member).collect(),
            isr: self.isr.iter().copied().collect(),
            elr: self.elr.iter().copied().collect(),
        }
    }

    fn may_lead(&self, id: BrokerId) -> bool {
        self.replicas.contains(&id) && !self.brokers[&id].fenced
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Controller {
    pub(crate) states: Vec<State>,
    min_insync: usize,
    next_epoch: BrokerEpoch,
}

impl Controller {
    pub(crate) fn new(ids: &[BrokerId], min_insync: usize) -> Self {
        let brokers =
            ids.iter().map(|id| (*id, Registration { epoch: u64::from(*id), fenced: false }));
        let state = State {
            brokers: brokers.collect(),
            replicas: ids.to_vec(),
            isr: ids.iter().copied().collect(),
            elr: BTreeSet::new(),
            leader: Some(ids[0]),
            last_leader: ids[0],
            leader_epoch: 1,
            partition_epoch: 1,
        };
        Self { states: vec![state], min_insync, next_epoch: 100 }
    }

    pub(crate) fn now(&self) -> &State {
        self.states.last().expect("there is a first")
    }

    pub(crate) fn fence(&mut self, id: BrokerId) {
        let mut state = self.now().clone();
        state.brokers.get_mut(&id).unwrap().fenced = true;
        let isr = state.isr.iter().copied().filter(|member| *member != id).collect();
        self.set_isr(&mut state, isr, None);
        self.decide(state);
    }

    pub(crate) fn unfence(&mut self, id: BrokerId) {
        let mut state = self.now().clone();
        state.brokers.get_mut(&id).unwrap().fenced = false;
        self.decide(state);
    }

    /// A broker has started again. Without a clean shutdown nothing is believed of it any more.
    pub(crate) fn register(&mut self, id: BrokerId, is_clean: bool) -> BrokerEpoch {
        let mut state = self.now().clone();
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        state.brokers.insert(id, Registration { epoch, fenced: false });
        let isr = state.isr.iter().copied().filter(|member| *member != id).collect();
        self.set_isr(&mut state, isr, (!is_clean).then_some(id));
        if state.leader == Some(id) {
            state.leader = None;
            state.leader_epoch += 1;
        }
        self.decide(state);
        epoch
    }

    /// Takes a replica away, which always makes a new leader epoch.
    pub(crate) fn remove_replica(&mut self, id: BrokerId) {
        let mut state = self.now().clone();
        let isr: BTreeSet<_> = state.isr.iter().copied().filter(|member| *member != id).collect();
        let min = self.min_insync.min(state.replicas.len() - 1);
        // As a reassignment does: only once the others are enough.
        if state.leader.is_none() || state.leader == Some(id) || isr.len() < min {
            return;
        }
        state.replicas.retain(|replica| *replica != id);
        self.set_isr(&mut state, isr, None);
        state.elr.remove(&id);
        state.leader_epoch += 1;
        self.decide(state);
    }

    pub(crate) fn add_replica(&mut self, id: BrokerId) {
        let mut state = self.now().clone();
        if !state.replicas.contains(&id) {
            state.replicas.push(id);
            self.decide(state);
        }
    }

    pub(crate) fn elect(&mut self, id: BrokerId) {
        let mut state = self.now().clone();
        if state.isr.contains(&id) && state.may_lead(id) && state.leader != Some(id) {
            state.leader = Some(id);
            state.leader_epoch += 1;
            self.decide(state);
        }
    }

    pub(crate) fn alter_isr(
        &mut self,
        from: BrokerId,
        change: &IsrChange,
    ) -> Result<(), ErrorCode> {
        let mut state = self.now().clone();
        if change.leader_epoch > state.leader_epoch
            || change.partition_epoch > state.partition_epoch
        {
            return Err(ErrorCode::NotController);
        }
        if change.leader_epoch < state.leader_epoch || state.leader != Some(from) {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        if change.partition_epoch < state.partition_epoch {
            return Err(ErrorCode::InvalidUpdateVersion);
        }
        let isr: BTreeSet<_> = change.isr.iter().map(|member| member.broker_id).collect();
        assert!(isr.contains(&from), "a leader proposes itself: {change:?}");
        let eligible = change.isr.iter().all(|member| {
            let known = &state.brokers[&member.broker_id];
            let same_run = known.epoch == member.broker_epoch
                || tidemark_protocol::bug::is_put_back("no-broker-epoch-check");
            state.replicas.contains(&member.broker_id) && !known.fenced && same_run
        });
        if !eligible {
            return Err(ErrorCode::IneligibleReplica);
        }
        self.set_isr(&mut state, isr, None);
        self.decide_anew(state);
        Ok(())
    }

    fn set_isr(&self, state: &mut State, isr: BTreeSet<BrokerId>, unclean: Option<BrokerId>) {
        let known: BTreeSet<_> = state.isr.union(&state.elr).copied().collect();
        let min = self.min_insync.min(state.replicas.len());
        state.elr = if isr.len() >= min {
            BTreeSet::new()
        } else {
            known.into_iter().filter(|id| !isr.contains(id) && Some(*id) != unclean).collect()
        };
        state.isr = isr;
    }

    /// Elects if need be, and makes the state the current one if it differs.
    fn decide(&mut self, state: State) {
        if state != *self.now() {
            self.decide_anew(state);
        }
    }

    /// Elects if need be, and makes the state the current one: even the same again has a new epoch.
    fn decide_anew(&mut self, mut state: State) {
        let keeps = state.leader.is_some_and(|id| state.isr.contains(&id) && state.may_lead(id));
        if !keeps {
            let candidates = if !state.isr.is_empty() {
                state.isr.clone()
            } else if !state.elr.is_empty() {
                state.elr.clone()
            } else {
                BTreeSet::from([state.last_leader])
            };
            let elected = candidates.into_iter().find(|id| state.may_lead(*id));
            if let Some(id) = elected.filter(|_| state.isr.is_empty()) {
                let isr = BTreeSet::from([id]);
                self.set_isr(&mut state, isr, None);
            }
            if state.leader != elected {
                state.leader = elected;
                state.leader_epoch += 1;
            }
        }
        state.last_leader = state.leader.unwrap_or(state.last_leader);
        state.partition_epoch += 1;
        self.states.push(state);
    }
}

//! Groups of the classic protocol: a barrier, a generation, and a leader among the members that assigns.
//!
//! ```text
//!   empty ──join──► preparing ──all joined, or time is up──► completing ──leader's sync──► stable
//!                      ▲  └────────nobody joined──► empty         │                          │
//!                      └───────── a member comes, goes or changes ┴──────────────────────────┘
//! ```
//!
//! The log has complete generations only: a generation whose leader has assigned, and the one in which the last
//! member left. What is between them is soft: after a failover the members of the last complete generation are told
//! to join anew, as after any other disturbance. This file is the state; the verbs are in files of their own.

mod join;
mod leave;
mod rebalance;
mod sync;

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{ErrorCode, Failure};

pub use self::{
    join::{JoinGroup, JoinedGroup, JoinedMember},
    leave::{ClassicHeartbeat, LeaveGroup, LeavingMember},
    sync::{SyncGroup, SyncedGroup},
};
use super::{
    GroupCoordinator, GroupDescription, GroupState, MemberDescription, Timer,
    commit::Within,
    record::{Change, ClassicGeneration, ClassicMember, Epochs, MemberState},
    unknown_member,
};
use crate::decision::{Now, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing {
        /// The group was empty: it waits for more members, whoever has come already.
        is_first: bool,
        /// Somebody came since the timer was set.
        has_grown: bool,
        /// When members that have not come are given up.
        deadline_ms: u64,
    },
    Completing,
    Stable,
}

/// A classic group at work.
#[derive(Clone, Debug)]
pub(super) struct Rebalance {
    phase: Phase,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Peer>,
    /// Ids given to members that are to come back with them.
    promised: BTreeSet<String>,
    /// Members that have not asked for their assignment in this generation.
    unsynced: BTreeSet<String>,
}

/// A member at work.
#[derive(Clone, Debug)]
struct Peer {
    instance: Option<String>,
    client_id: String,
    host: String,
    session_timeout_ms: u32,
    rebalance_timeout_ms: u32,
    /// What it can do, best first, each with its metadata.
    protocols: Vec<(String, Vec<u8>)>,
    assignment: Vec<u8>,
    /// Requests that wait.
    join: Option<Token>,
    sync: Option<Token>,
}

impl Peer {
    fn metadata(&self, protocol: &str) -> Option<&[u8]> {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.as_slice())
    }
}

impl Rebalance {
    fn new(generation: i32) -> Self {
        Self {
            phase: Phase::Empty,
            generation,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            promised: BTreeSet::new(),
            unsynced: BTreeSet::new(),
        }
    }

    /// The group as it was when its last complete generation was written.
    fn from_log(classic: &ClassicGeneration) -> Self {
        let peer = |member: &ClassicMember| Peer {
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            host: member.host.clone(),
            session_timeout_ms: member.session_timeout_ms,
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            protocols: vec![(
                classic.protocol.clone().unwrap_or_default(),
                member.metadata.clone(),
            )],
            assignment: member.assignment.clone(),
            join: None,
            sync: None,
        };
        Self {
            phase: if classic.members.is_empty() { Phase::Empty } else { Phase::Stable },
            protocol_type: classic.protocol_type.clone(),
            protocol: classic.protocol.clone(),
            leader: classic.leader.clone(),
            members: classic.members.iter().map(|(id, one)| (id.clone(), peer(one))).collect(),
            ..Self::new(classic.generation)
        }
    }

    fn to_log(&self) -> ClassicGeneration {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let member = |peer: &Peer| ClassicMember {
            instance: peer.instance.clone(),
            client_id: peer.client_id.clone(),
            host: peer.host.clone(),
            session_timeout_ms: peer.session_timeout_ms,
            rebalance_timeout_ms: peer.rebalance_timeout_ms,
            metadata: peer.metadata(protocol).unwrap_or_default().to_vec(),
            assignment: peer.assignment.clone(),
        };
        ClassicGeneration {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(|(id, peer)| (id.clone(), member(peer))).collect(),
        }
    }

    fn instance(&self, instance: &str) -> Option<&str> {
        let found =
            self.members.iter().find(|(_, peer)| peer.instance.as_deref() == Some(instance));
        found.map(|(id, _)| id.as_str())
    }

    /// The protocol that most members like best, of those that all of them speak.
    fn vote(&self) -> Option<String> {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for peer in self.members.values() {
            let shared = peer.protocols.iter().find(|(name, _)| self.is_shared(name));
            if let Some((name, _)) = shared {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        let winner = votes.into_iter().find(|(_, count)| *count == most);
        winner.map(|(name, _)| name.to_owned())
    }

    fn is_shared(&self, protocol: &str) -> bool {
        self.members.values().all(|peer| peer.metadata(protocol).is_some())
    }

    fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|peer| peer.rebalance_timeout_ms).max().unwrap_or(0).into()
    }

    /// The member, which must be the process that has its instance's place, if it names an instance.
    fn require(&self, group: &str, id: &str, instance: Option<&str>) -> Result<&Peer, Failure> {
        match instance.map(|instance| self.instance(instance)) {
            Some(Some(holder)) if holder != id => {
                let message = format!("member {holder:?} has taken over this instance's place");
                return Err(Failure::new(ErrorCode::FencedInstance, message));
            }
            Some(None) => return Err(unknown_member(group, id)),
            Some(Some(_)) | None => {}
        }
        self.members.get(id).ok_or_else(|| unknown_member(group, id))
    }

    fn require_generation(&self, generation: i32) -> Result<(), Failure> {
        if generation == self.generation {
            return Ok(());
        }
        let message = format!("the group is in generation {}, not {generation}", self.generation);
        Err(Failure::new(ErrorCode::IllegalGeneration, message))
    }
}

fn rebalance_in_progress(group: &str) -> Failure {
    let message = format!("the members of group {group:?} are joining anew");
    Failure::new(ErrorCode::RebalanceInProgress, message)
}

impl GroupCoordinator {
    fn classic(&self, group: &str) -> Option<&Rebalance> {
        self.live.get(group)?.classic.as_ref()
    }

    fn classic_mut(&mut self, group: &str) -> &mut Rebalance {
        self.live(group).classic.as_mut().expect("the caller found the group")
    }

    pub(super) fn is_classic(&self, group: &str) -> bool {
        self.classic(group).is_some()
    }

    pub(super) fn has_classic_members(&self, group: &str) -> bool {
        self.classic(group).is_some_and(|classic| !classic.members.is_empty())
    }

    pub(super) fn classic_state(&self, group: &str) -> Option<GroupState> {
        Some(match self.classic(group)?.phase {
            Phase::Empty => GroupState::Empty,
            Phase::Preparing { .. } => GroupState::PreparingRebalance,
            Phase::Completing => GroupState::CompletingRebalance,
            Phase::Stable => GroupState::Stable,
        })
    }

    pub(super) fn member_count(&self, group: &str) -> usize {
        match self.classic(group) {
            Some(classic) => classic.members.len(),
            None => self.state.group(group).map_or(0, |group| group.members.len()),
        }
    }

    pub(super) fn revive_classic(&mut self, now: Now, name: &str) {
        let group = self.state.group(name).and_then(|group| group.classic.as_ref());
        let Some(classic) = group.map(Rebalance::from_log) else { return };
        let members: Vec<String> = classic.members.keys().cloned().collect();
        self.live(name).classic = Some(classic);
        for member in members {
            self.touch_classic(now, name, &member);
        }
    }

    /// Makes a group that has no members a classic one. Its generation goes on from the other protocol's epoch.
    fn begin_classic(&mut self, name: &str) {
        if self.is_classic(name) {
            return;
        }
        let group = self.state.group(name);
        let epochs = group.and_then(|group| group.epochs);
        let has_topics = group.is_some_and(|group| group.topics.is_some());
        let classic = Rebalance::new(epochs.map_or(0, |epochs| epochs.epoch));
        if let Some(Epochs { .. }) = epochs {
            assert!(!has_topics, "a group without members is subscribed to nothing");
            self.write(Change::Classic(name.to_owned(), Some(classic.to_log())));
            self.write(Change::Epochs(name.to_owned(), None));
        }
        self.live(name).classic = Some(classic);
    }

    /// Ends a classic group that has no members; tells its generation.
    pub(super) fn end_classic(&mut self, name: &str) -> i32 {
        let live = self.live.get_mut(name).and_then(|live| live.classic.take());
        let generation = live.as_ref().map_or(0, |classic| classic.generation);
        for member in live.into_iter().flat_map(|classic| classic.promised) {
            self.deadlines.cancel(&Timer::PendingJoin { group: name.to_owned(), member });
        }
        self.deadlines.cancel(&Timer::Join { group: name.to_owned() });
        self.deadlines.cancel(&Timer::Sync { group: name.to_owned() });
        if self.state.group(name).is_some_and(|group| group.classic.is_some()) {
            self.write(Change::Classic(name.to_owned(), None));
        }
        generation
    }

    /// A classic member lives: its session starts anew.
    pub(super) fn touch_classic(&mut self, now: Now, group: &str, member: &str) {
        let peer = self.classic(group).and_then(|classic| classic.members.get(member));
        let Some(timeout_ms) = peer.map(|peer| peer.session_timeout_ms) else { return };
        let timer = Timer::Session { group: group.to_owned(), member: member.to_owned() };
        self.deadlines.set(timer, now.mono_ms + u64::from(timeout_ms));
    }

    /// Whether a member of a classic group may commit.
    pub(super) fn check_classic_commit(
        &self,
        name: &str,
        member: &str,
        generation: i32,
        instance: Option<&str>,
        within: Within,
    ) -> Result<(), Failure> {
        let classic = self.classic(name).ok_or_else(|| unknown_member(name, member))?;
        classic.require(name, member, instance)?;
        classic.require_generation(generation)?;
        match (classic.phase, within) {
            // What it commits for may be somebody else's in the generation that is being made. In a transaction that is no
            // harm: whoever gets the partition waits for the end of the transaction. And Kafka's producers take this
            // answer for the end of the producer.
            (Phase::Completing, Within::Nothing) => Err(rebalance_in_progress(name)),
            _ => Ok(()),
        }
    }

    pub(super) fn describe_classic(&self, name: &str, description: &mut GroupDescription) {
        let Some(classic) = self.classic(name) else { return };
        description.epoch = classic.generation;
        description.protocol.clone_from(&classic.protocol);
        let member = |(id, peer): (&String, &Peer)| MemberDescription {
            member: id.clone(),
            instance: peer.instance.clone(),
            client_id: peer.client_id.clone(),
            host: peer.host.clone(),
            epoch: classic.generation,
            state: MemberState::Stable,
            is_away: false,
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            target: BTreeSet::new(),
            classic_assignment: peer.assignment.clone(),
            session_deadline_ms: self
                .deadlines
                .get(&Timer::Session { group: name.to_owned(), member: id.clone() }),
            revocation_deadline_ms: None,
        };
        description.members = classic.members.iter().map(member).collect();
    }
}

//! The group coordinator: one per partition of the internal topic of groups.
//!
//! This file is the shell: loading, the table of requests, timers, and the one way in which records are written.
//! What a request does is in a file per family. A refusal leaves everything as it was.

pub mod assignor;
mod classic;
mod commit;
mod consumer;
mod describe;
mod expire;
mod membership;
mod offsets;
mod reconcile;
pub mod record;
pub mod request;
mod seek;
pub mod state;
mod subscription;
mod target;
mod transactional;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tidemark_protocol::{ErrorCode, Failure, Offset};

pub use self::{
    assignor::Assignor,
    classic::{
        ClassicHeartbeat, JoinGroup, JoinedGroup, JoinedMember, LeaveGroup, LeavingMember,
        SyncGroup, SyncedGroup,
    },
    describe::{GroupDescription, GroupListing, GroupState, MemberDescription},
    request::*,
    state::State,
    transactional::Verification,
};
use self::{classic::Rebalance, record::Change, target::Cause, transactional::Guards};
use crate::{
    deadlines::Deadlines,
    decision::{Decision, Now, Reply, Token},
    limits::{DECISION_BYTES_MAX, NAME_BYTES_MAX, REMOVALS_KEPT},
    record::{LoadError, Record},
    topics::Topics,
};

/// Epoch of a heartbeat that joins.
pub const JOIN_EPOCH: i32 = 0;
/// Epoch of a heartbeat that leaves for good.
pub const LEAVE_EPOCH: i32 = -1;
/// Epoch of a heartbeat of a static member that leaves and will be back.
pub const LEAVE_STATIC_EPOCH: i32 = -2;

/// What the coordinator comes to with a call.
pub type GroupDecision = Decision<GroupResponse, GroupEffect>;

/// What an operator may set. The defaults are those of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    pub session_timeout_ms: u64,
    pub heartbeat_interval_ms: u64,
    /// Interval while a member is on its way to its target.
    pub reconcile_interval_ms: u64,
    /// What a member's rebalance timeout may be.
    pub rebalance_timeout_ms_max: u32,
    pub members_max: usize,
    /// For groups whose members have no preference.
    pub assignor: Assignor,
    /// How long the offsets of a group without members are kept. `None`: as long as their topic.
    pub offset_retention_ms: Option<u64>,
    /// How long an idle transactional producer is remembered.
    pub producer_retention_ms: u64,
    /// How long the first generation of a classic group waits for more members.
    pub initial_rebalance_delay_ms: u64,
    /// What a classic member's session timeout may be.
    pub classic_session_timeout_ms: (u32, u32),
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            session_timeout_ms: 45_000,
            heartbeat_interval_ms: 3_000,
            reconcile_interval_ms: 200,
            rebalance_timeout_ms_max: 24 * 60 * 60 * 1000,
            members_max: 5_000,
            assignor: Assignor::Sticky,
            offset_retention_ms: None,
            producer_retention_ms: 7 * 24 * 60 * 60 * 1000,
            initial_rebalance_delay_ms: 1_000,
            classic_session_timeout_ms: (6_000, 1_800_000),
        }
    }
}

/// What can run out, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A member has not been heard of.
    Session { group: String, member: String },
    /// A member has not given up what it was told to.
    Revocation { group: String, member: String },
    /// A classic group waits for its members to join.
    Join { group: String },
    /// A classic group waits for its members, the leader among them, to ask for their assignment.
    Sync { group: String },
    /// A classic member was given an id and has not come back with it.
    PendingJoin { group: String, member: String },
    /// Look for offsets and producers that have been idle for too long.
    Expire,
    /// Something did not fit the last decision.
    Sweep,
}

/// What is known of a group beyond its log.
#[derive(Clone, Debug, Default)]
struct Live {
    /// Last sequence of each member's heartbeats.
    sequences: BTreeMap<String, u64>,
    classic: Option<Rebalance>,
    /// The last ones, oldest first.
    removals: VecDeque<Removal>,
}

/// Reads a coordinator's log. Serves nothing.
#[derive(Clone, Debug, Default)]
pub struct GroupLoader {
    state: State,
    next_offset: Offset,
}

impl GroupLoader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record. Offsets may have gaps, where compaction removed records.
    pub fn replay(&mut self, offset: Offset, record: &Record) -> Result<(), LoadError> {
        if offset < self.next_offset {
            return Err(LoadError::Order { offset, expected: self.next_offset });
        }
        let change = Change::decode(record).map_err(|error| LoadError::Record { offset, error })?;
        self.state.apply(offset, change);
        self.next_offset = offset + 1;
        Ok(())
    }

    /// The state, once everything has been replayed.
    pub fn state(mut self) -> Result<State, LoadError> {
        self.state.check()?;
        Ok(self.state)
    }

    /// The coordinator, and what has to happen first. Every member gets a fresh session. `topics` must be at least as
    /// new as the metadata that made this broker the coordinator, see [`Topics`].
    pub fn finish(
        mut self,
        log_end_offset: Offset,
        config: GroupConfig,
        topics: Arc<Topics>,
        now: Now,
    ) -> Result<(GroupCoordinator, GroupDecision), LoadError> {
        if log_end_offset < self.next_offset {
            let (offset, expected) = (log_end_offset, self.next_offset);
            return Err(LoadError::Order { offset, expected });
        }
        self.state.check()?;
        let mut coordinator = GroupCoordinator {
            config,
            state: self.state,
            topics: Arc::default(),
            live: BTreeMap::new(),
            deadlines: Deadlines::default(),
            guards: Guards::default(),
            unsettled: BTreeMap::new(),
            out: Output::new(log_end_offset),
        };
        coordinator.revive(now);
        let decision = coordinator.on_topics(topics);
        Ok((coordinator, decision))
    }
}

/// Groups, their members and their offsets, as far as they belong to one partition of the internal topic.
#[derive(Debug)]
pub struct GroupCoordinator {
    config: GroupConfig,
    state: State,
    topics: Arc<Topics>,
    live: BTreeMap<String, Live>,
    deadlines: Deadlines<Timer>,
    guards: Guards,
    /// Groups whose targets are to be looked at, when there is room in a decision.
    unsettled: BTreeMap<String, Cause>,
    out: Output,
}

/// A decision in the making.
#[derive(Debug)]
struct Output {
    base_offset: Offset,
    records: Vec<Record>,
    records_bytes: usize,
    replies: Vec<Reply<GroupResponse>>,
    effects: Vec<GroupEffect>,
    /// Members whose next heartbeat would bring something new, by group.
    nudges: BTreeSet<(String, String)>,
}

impl Output {
    fn new(base_offset: Offset) -> Self {
        Self {
            base_offset,
            records: Vec::new(),
            records_bytes: 0,
            replies: Vec::new(),
            effects: Vec::new(),
            nudges: BTreeSet::new(),
        }
    }

    /// Whether what can wait has to.
    fn is_full(&self) -> bool {
        self.records_bytes >= DECISION_BYTES_MAX
    }
}

/// What a request comes to: an answer now, or `None` for one that comes with a later decision.
type Outcome = Result<Option<GroupResponse>, Failure>;

impl GroupCoordinator {
    /// What the log says, uncommitted records included.
    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// Decides a request. It is answered once, in this decision or in a later one.
    pub fn handle(&mut self, now: Now, token: Token, request: GroupRequest) -> GroupDecision {
        let outcome = self.dispatch(now, token, request);
        let (written, refused) = (self.out.records.len(), outcome.is_err());
        assert!(!refused || written == 0, "refused after {written} records: {outcome:?}");
        if let Some(outcome) = outcome.transpose() {
            self.reply(token, outcome);
        }
        self.decide()
    }

    /// Lets time pass.
    pub fn on_timer(&mut self, now: Now) -> GroupDecision {
        while !self.out.is_full()
            && let Some(timer) = self.deadlines.pop_expired(now.mono_ms)
        {
            match timer {
                Timer::Session { group, member } => self.session_expired(now, &group, &member),
                Timer::Revocation { group, member } => {
                    self.revocation_expired(now, &group, &member);
                }
                Timer::Join { group } => self.join_expired(now, &group),
                Timer::Sync { group } => self.sync_expired(now, &group),
                Timer::PendingJoin { group, member } => {
                    self.pending_join_expired(now, &group, &member);
                }
                Timer::Expire => self.expire(now),
                Timer::Sweep => self.drop_offsets_of_deleted_topics(),
            }
        }
        self.settle();
        self.decide()
    }

    /// Takes the topics as they are now: deletes the offsets of those that are gone, and gives new partitions to
    /// members. Never older than the ones before.
    pub fn on_topics(&mut self, topics: Arc<Topics>) -> GroupDecision {
        self.topics = topics;
        self.drop_offsets_of_deleted_topics();
        for (group, _) in self.state.groups() {
            self.unsettled.entry(group.to_owned()).or_insert(Cause::Topics);
        }
        self.settle();
        self.decide()
    }

    fn dispatch(&mut self, now: Now, token: Token, request: GroupRequest) -> Outcome {
        use GroupResponse as R;
        let answer = match request {
            GroupRequest::Heartbeat(heartbeat) => R::Heartbeat(self.heartbeat(now, &heartbeat)?),
            GroupRequest::JoinGroup(join) => return self.join_group(now, token, join),
            GroupRequest::SyncGroup(sync) => return self.sync_group(now, token, sync),
            GroupRequest::ClassicHeartbeat(heartbeat) => {
                self.classic_heartbeat(now, &heartbeat)?;
                R::ClassicHeartbeat
            }
            GroupRequest::LeaveGroup(leave) => R::LeaveGroup(self.leave_group(now, &leave)?),
            GroupRequest::CommitOffsets(commit) => {
                R::CommitOffsets(self.commit_offsets(now, commit)?)
            }
            GroupRequest::FetchOffsets(fetch) => R::FetchOffsets(self.fetch_offsets(&fetch)?),
            GroupRequest::DeleteOffsets(delete) => R::DeleteOffsets(self.delete_offsets(&delete)?),
            GroupRequest::SeekOffsets(seek) => R::SeekOffsets(self.seek_offsets(now, &seek)?),
            GroupRequest::UndoSeek(undo) => R::UndoSeek(self.undo_seek(now, &undo)?),
            GroupRequest::SeekHistory { group } => R::SeekHistory(self.seek_history(&group)?),
            GroupRequest::CommitTransactionalOffsets(commit) => {
                R::CommitTransactionalOffsets(self.commit_transactional_offsets(now, &commit)?)
            }
            GroupRequest::EndTransaction(end) => {
                self.end_transaction(now, end)?;
                R::EndTransaction
            }
            GroupRequest::ListGroups => R::ListGroups(self.list_groups()),
            GroupRequest::DescribeGroup { group } => R::DescribeGroup(self.describe_group(&group)?),
            GroupRequest::DeleteGroup { group } => {
                self.delete_group(&group)?;
                R::DeleteGroup
            }
            GroupRequest::RemoveMember(remove) => {
                self.remove_member(now, &remove)?;
                R::RemoveMember
            }
        };
        Ok(Some(answer))
    }

    /// Writes a record and lives by it. The only way in which the state changes.
    fn write(&mut self, change: Change) {
        let offset = self.out.base_offset + self.out.records.len() as u64;
        let record = change.encode();
        self.out.records_bytes += record.bytes();
        self.out.records.push(record);
        self.state.apply(offset, change);
    }

    fn reply(&mut self, token: Token, outcome: Result<GroupResponse, Failure>) {
        self.out.replies.push(Reply { token, outcome });
    }

    fn effect(&mut self, effect: GroupEffect) {
        self.out.effects.push(effect);
    }

    fn nudge(&mut self, group: &str, member: &str) {
        self.out.nudges.insert((group.to_owned(), member.to_owned()));
    }

    fn live(&mut self, group: &str) -> &mut Live {
        if !self.live.contains_key(group) {
            self.live.insert(group.to_owned(), Live::default());
        }
        self.live.get_mut(group).expect("it was put there")
    }

    fn remember_removal(&mut self, group: &str, removal: Removal) {
        let removals = &mut self.live(group).removals;
        if removals.len() == REMOVALS_KEPT {
            removals.pop_front();
        }
        removals.push_back(removal.clone());
        self.effect(GroupEffect::Removed { group: group.to_owned(), removal });
    }

    fn decide(&mut self) -> GroupDecision {
        let next_offset = self.out.base_offset + self.out.records.len() as u64;
        let mut out = std::mem::replace(&mut self.out, Output::new(next_offset));
        let is_there = |(group, member): &(String, String)| {
            self.state.group(group).is_some_and(|group| group.members.contains_key(member))
        };
        let nudges = out.nudges.into_iter().filter(is_there);
        out.effects.extend(nudges.map(|(group, member)| GroupEffect::Nudge { group, member }));
        Decision {
            base_offset: out.base_offset,
            records: out.records,
            replies: out.replies,
            effects: out.effects,
            wake_at_ms: self.deadlines.next_ms(),
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    let message = format!("a {what} has 1 to {NAME_BYTES_MAX} bytes; this one has {}", name.len());
    Err(Failure::new(ErrorCode::InvalidGroup, message))
}

fn unknown_group(group: &str) -> Failure {
    Failure::new(ErrorCode::UnknownGroup, format!("there is no group {group:?}"))
}

fn unknown_member(group: &str, member: &str) -> Failure {
    let message = format!("group {group:?} has no member {member:?}: it left, or was removed");
    Failure::new(ErrorCode::UnknownMember, message)
}

//! Consumer groups: who coordinates, membership, committed offsets, and what an operator asks and changes.
//!
//! Everything but [`FindCoordinatorRequest`], [`ListGroupsRequest`] and [`MeasureLagRequest`] is for the coordinator of the
//! group. Groups are told apart by name; partitions by topic id, as everywhere.

use serde::{Deserialize, Serialize};

use super::data::wire_enum;
use crate::{
    BrokerId, Failure, LeaderEpoch, Offset, TimestampMs, TopicPartition,
    message::{Api, Request},
};

/// What is coordinated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum CoordinatorKind {
    /// A consumer group, by its name.
    Group,
    /// A transactional producer, by its transactional id.
    Transaction,
}

wire_enum!(CoordinatorKind { Group = 0, Transaction = 1 });

/// Asks any broker who coordinates a group or transactional id. Makes the internal topic if there is none yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindCoordinatorRequest {
    pub kind: CoordinatorKind,
    pub key: String,
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindCoordinatorResponse {
    pub broker: BrokerId,
    /// The partition of the internal topic that the broker coordinates as the leader of.
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
}

impl Request for FindCoordinatorRequest {
    const API: Api = Api::FindCoordinator;
    type Response = FindCoordinatorResponse;
}

/// What a member wants to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSubscription {
    /// By name; they need not exist yet.
    pub topics: Vec<String>,
    /// Also every topic whose whole name matches, internal ones excepted.
    pub regex: Option<String>,
}

/// Joins a group, stays in it, leaves it. One at a time, for as long as the member lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHeartbeatRequest {
    pub group: String,
    /// Chosen by the member, random, anew for every process.
    pub member: String,
    /// 0 joins, -1 leaves, -2 leaves and keeps the place of a static member; else what the last answer told.
    pub epoch: i32,
    /// Grows with every request of the member. A request that was overtaken changes nothing.
    pub sequence: u64,
    /// Name of a static member, which keeps its place over restarts.
    pub instance: Option<String>,
    pub rack: Option<String>,
    /// For people.
    pub client_id: String,
    /// Needed to join; `None` later: unchanged.
    pub subscription: Option<GroupSubscription>,
    /// How long the member may take to give up partitions. Needed to join; `None` later: unchanged.
    pub rebalance_timeout_ms: Option<u32>,
    /// The assignor the member would like; the group goes by the majority.
    pub assignor: Option<String>,
    /// Everything the member may be consuming or about to. `None`: unchanged.
    pub owned: Option<Vec<TopicPartition>>,
    /// With a leave: the application did not come back for more within its processing deadline.
    pub missed_processing_deadline: bool,
    /// How long the answer may be held back while there is nothing new.
    pub wait_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHeartbeatResponse {
    /// To be sent in the next heartbeat.
    pub epoch: i32,
    /// When to send it, counted from this answer; 0: now.
    pub heartbeat_interval_ms: u32,
    /// How long after having sent this request the member must stop consuming unless a later one was answered.
    pub session_timeout_ms: u32,
    /// What the member may consume; everything else it must drop, and then say so. `None`: what it said to own.
    pub assignment: Option<Vec<TopicPartition>>,
}

impl Request for GroupHeartbeatRequest {
    const API: Api = Api::GroupHeartbeat;
    type Response = GroupHeartbeatResponse;
}

/// A member, as it makes itself known beside its heartbeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    pub member: String,
    pub epoch: i32,
    pub instance: Option<String>,
}

/// Commits offsets. Answered when they are on stable storage on every in-sync replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOffsetsRequest {
    pub group: String,
    /// `None`: somebody outside of the group, which must have no members.
    pub member: Option<GroupMember>,
    pub offsets: Vec<OffsetToCommit>,
    pub timeout_ms: u32,
}

/// One partition's share of a [`CommitOffsetsRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetToCommit {
    pub partition: TopicPartition,
    /// The next record to read.
    pub offset: Offset,
    /// Of the last record read.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Whatever the consumer wants to find again, at most 4096 bytes.
    pub metadata: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOffsetsResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<(), Failure>>,
}

impl Request for CommitOffsetsRequest {
    const API: Api = Api::CommitOffsets;
    type Response = CommitOffsetsResponse;
}

/// Reads committed offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOffsetsRequest {
    pub group: String,
    /// When given, only a member that is up to date is answered.
    pub member: Option<GroupMember>,
    /// `None`: all there are.
    pub partitions: Option<Vec<TopicPartition>>,
    /// Refuse partitions with an offset in a transaction that has not ended.
    pub require_stable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOffsetsResponse {
    pub partitions: Vec<FetchedOffset>,
}

/// What is committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedOffset {
    pub partition: TopicPartition,
    /// `None`: nothing is committed.
    pub outcome: Result<Option<CommittedOffset>, Failure>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedOffset {
    pub offset: Offset,
    pub leader_epoch: Option<LeaderEpoch>,
    pub metadata: String,
    pub committed_ms: TimestampMs,
}

impl Request for FetchOffsetsRequest {
    const API: Api = Api::FetchOffsets;
    type Response = FetchOffsetsResponse;
}

/// Removes committed offsets. Refused one by one for topics that members read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteOffsetsRequest {
    pub group: String,
    pub partitions: Vec<TopicPartition>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteOffsetsResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<(), Failure>>,
}

impl Request for DeleteOffsetsRequest {
    const API: Api = Api::DeleteOffsets;
    type Response = DeleteOffsetsResponse;
}

/// Sets offsets from outside, while the group has no members. What was there before can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekGroupRequest {
    pub group: String,
    /// Who asks, for the history.
    pub by: String,
    pub offsets: Vec<SeekTarget>,
    /// Only say what would change.
    pub dry_run: bool,
    pub timeout_ms: u32,
}

/// Where a group is to go on in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekTarget {
    pub partition: TopicPartition,
    pub offset: Offset,
}

/// A change of a group's offsets from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSeek {
    /// Grows within the group; `None` in the answer to a request that carries it out, or would.
    pub id: Option<u64>,
    pub at_ms: TimestampMs,
    pub by: String,
    /// The change that this one took back.
    pub undo_of: Option<u64>,
    pub changes: Vec<OffsetChange>,
}

/// One partition's part in a [`GroupSeek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetChange {
    pub partition: TopicPartition,
    /// `None`: nothing was committed.
    pub before: Option<Offset>,
    /// `None`: the committed offset was removed.
    pub after: Option<Offset>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekGroupResponse {
    /// What changed, or would.
    pub seek: GroupSeek,
}

impl Request for SeekGroupRequest {
    const API: Api = Api::SeekGroup;
    type Response = SeekGroupResponse;
}

/// Brings back what a change from outside replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSeekRequest {
    pub group: String,
    pub by: String,
    /// `None`: the last change.
    pub id: Option<u64>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSeekResponse {
    /// What changed.
    pub seek: GroupSeek,
}

impl Request for UndoSeekRequest {
    const API: Api = Api::UndoSeek;
    type Response = UndoSeekResponse;
}

/// Asks for the changes from outside that a group remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekHistoryRequest {
    pub group: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekHistoryResponse {
    /// Oldest first.
    pub seeks: Vec<GroupSeek>,
}

impl Request for SeekHistoryRequest {
    const API: Api = Api::SeekHistory;
    type Response = SeekHistoryResponse;
}

/// How a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum GroupState {
    /// No members; perhaps offsets.
    Empty,
    /// Members are on their way to what they are to have.
    Reconciling,
    Stable,
    /// Classic: members are being waited for.
    PreparingRebalance,
    /// Classic: the leader's assignment is being waited for.
    CompletingRebalance,
}

wire_enum!(GroupState {
    Empty = 0,
    Reconciling = 1,
    Stable = 2,
    PreparingRebalance = 3,
    CompletingRebalance = 4
});

/// Asks a broker for the groups that it coordinates: ask all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListGroupsRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListGroupsResponse {
    pub groups: Vec<GroupListing>,
    /// Partitions of the internal topic led here whose groups are not among them, and why.
    pub unavailable: Vec<UnavailableGroups>,
}

/// One group in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupListing {
    pub group: String,
    pub state: GroupState,
    pub is_classic: bool,
    pub members: u32,
}

/// A coordinator that cannot say which groups it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableGroups {
    pub partition: TopicPartition,
    pub failure: Failure,
}

impl Request for ListGroupsRequest {
    const API: Api = Api::ListGroups;
    type Response = ListGroupsResponse;
}

/// Asks for one group in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeGroupRequest {
    pub group: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeGroupResponse {
    pub group: String,
    pub state: GroupState,
    pub is_classic: bool,
    /// Grows with every change of members, subscriptions or topics; the generation of a classic group.
    pub epoch: i32,
    /// The assignor of a classic group's leader.
    pub protocol: Option<String>,
    pub coordinator: BrokerId,
    pub members: Vec<MemberDescription>,
    /// Who is no longer there and why, oldest first, since this coordinator began.
    pub removals: Vec<MemberRemoval>,
}

/// One member, as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDescription {
    pub member: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub epoch: i32,
    pub state: MemberState,
    /// What it may consume.
    pub assigned: Vec<TopicPartition>,
    /// What it was told to give up.
    pub revoking: Vec<TopicPartition>,
    /// What it is to have.
    pub target: Vec<TopicPartition>,
    /// When it is put out unless it is heard of, from now.
    pub session_left_ms: Option<u64>,
    /// When it is put out unless it has given up what it was told to, from now.
    pub revocation_left_ms: Option<u64>,
}

/// Where a member is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum MemberState {
    /// It has what it is to have.
    Stable,
    /// It was told to give up partitions and has not said that it did.
    Revoking,
    /// It waits for partitions that others still hold.
    Waiting,
    /// A static member that left and keeps its place.
    Away,
}

wire_enum!(MemberState { Stable = 0, Revoking = 1, Waiting = 2, Away = 3 });

/// A member that is no longer in its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRemoval {
    pub member: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub reason: RemovalReason,
    pub at_ms: TimestampMs,
}

/// Why a member is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum RemovalReason {
    Left,
    /// Its application took longer over its records than it may.
    MissedProcessingDeadline,
    /// No heartbeat within the session timeout.
    SessionTimedOut,
    /// It did not give up its partitions within its rebalance timeout.
    MissedRebalanceDeadline,
    /// An operator put it out.
    Kicked,
    /// Another process took over its place as a static member.
    Replaced,
}

wire_enum!(RemovalReason {
    Left = 0,
    MissedProcessingDeadline = 1,
    SessionTimedOut = 2,
    MissedRebalanceDeadline = 3,
    Kicked = 4,
    Replaced = 5
});

impl Request for DescribeGroupRequest {
    const API: Api = Api::DescribeGroup;
    type Response = DescribeGroupResponse;
}

/// Forgets a group without members, with its offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteGroupRequest {
    pub group: String,
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteGroupResponse {}

impl Request for DeleteGroupRequest {
    const API: Api = Api::DeleteGroup;
    type Response = DeleteGroupResponse;
}

/// Puts a member out of its group. It may join again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMemberRequest {
    pub group: String,
    /// Its id, or its name as a static member.
    pub name: String,
    pub is_instance: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMemberResponse {}

impl Request for RemoveMemberRequest {
    const API: Api = Api::RemoveMember;
    type Response = RemoveMemberResponse;
}

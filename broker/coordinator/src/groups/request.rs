//! What a group coordinator is asked, what it answers, and what it wants done besides. Plain values.

use std::collections::BTreeSet;

use tidemark_protocol::{ErrorCode, LeaderEpoch, Offset, TimestampMs, TopicId, TopicPartition};

use super::{
    classic::{ClassicHeartbeat, JoinGroup, JoinedGroup, LeaveGroup, SyncGroup, SyncedGroup},
    describe::{GroupDescription, GroupListing},
    record::Seek,
};
use crate::{ProducerEpoch, ProducerId};

/// A request to a group coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRequest {
    Heartbeat(Heartbeat),
    JoinGroup(JoinGroup),
    SyncGroup(SyncGroup),
    ClassicHeartbeat(ClassicHeartbeat),
    LeaveGroup(LeaveGroup),
    CommitOffsets(CommitOffsets),
    FetchOffsets(FetchOffsets),
    DeleteOffsets(DeleteOffsets),
    SeekOffsets(SeekOffsets),
    UndoSeek(UndoSeek),
    SeekHistory { group: String },
    CommitTransactionalOffsets(CommitTransactionalOffsets),
    EndTransaction(EndTransaction),
    ListGroups,
    DescribeGroup { group: String },
    DeleteGroup { group: String },
    RemoveMember(RemoveMember),
}

/// The answer to a request, one variant each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupResponse {
    Heartbeat(HeartbeatResponse),
    JoinGroup(JoinedGroup),
    /// To a join without a member id: come back with this one.
    MemberIdRequired {
        member: String,
    },
    SyncGroup(SyncedGroup),
    ClassicHeartbeat,
    /// For each member of the request.
    LeaveGroup(Vec<Result<(), ErrorCode>>),
    /// For each partition of the request.
    CommitOffsets(Vec<Result<(), ErrorCode>>),
    FetchOffsets(Vec<FetchedOffset>),
    /// For each partition of the request.
    DeleteOffsets(Vec<Result<(), ErrorCode>>),
    /// What changed, or would.
    SeekOffsets(Seek),
    /// What changed.
    UndoSeek(Seek),
    /// Oldest first.
    SeekHistory(Vec<(u64, Seek)>),
    CommitTransactionalOffsets(Vec<Result<(), ErrorCode>>),
    EndTransaction,
    ListGroups(Vec<GroupListing>),
    DescribeGroup(GroupDescription),
    DeleteGroup,
    RemoveMember,
}

/// The one verb of members of a group with server-side assignment: join, stay, leave, and say where one is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    pub group: String,
    /// Chosen by the member, random, anew for every process.
    pub member: String,
    /// [`super::JOIN_EPOCH`], [`super::LEAVE_EPOCH`], [`super::LEAVE_STATIC_EPOCH`], or the epoch that the last
    /// answer told.
    pub epoch: i32,
    /// Grows with every request of the member, whatever connection it goes over. A request that was overtaken
    /// changes nothing then. `None` (Kafka's clients) trusts the network to keep the order.
    pub sequence: Option<u64>,
    pub instance: Option<String>,
    pub rack: Option<String>,
    pub client_id: String,
    pub host: String,
    /// Needed to join; later `None` means unchanged.
    pub subscription: Option<Subscription>,
    /// Needed to join; later `None` means unchanged.
    pub rebalance_timeout_ms: Option<u32>,
    /// Which assignor the member would like; the group goes by the majority of those who say.
    pub assignor: Option<String>,
    /// Everything the member may be consuming or about to: what it was told to have, until it has dropped it for
    /// good. `None` means unchanged.
    pub owned: Option<BTreeSet<TopicPartition>>,
    /// With a leave: the member's application has not come back for more within its processing deadline.
    pub missed_processing_deadline: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    pub topics: BTreeSet<String>,
    /// Also every topic whose whole name matches, now and in future, internal ones excepted.
    pub regex: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// To be sent in the next heartbeat.
    pub epoch: i32,
    /// When to send it, at the latest.
    pub heartbeat_interval_ms: u64,
    /// How long after the last answered heartbeat the member must stop consuming by itself.
    pub session_timeout_ms: u64,
    /// What the member may consume: everything else it must drop, and then say so. `None` when it is what the
    /// member said to own.
    pub assignment: Option<BTreeSet<TopicPartition>>,
}

/// Who commits offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committer {
    /// Somebody outside of the group: an administrator, or a consumer that assigns partitions to itself. Only while
    /// the group has no members.
    Outside,
    /// A member, with its epoch or, in a classic group, its generation.
    Member { member: String, epoch: i32, instance: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOffsets {
    pub group: String,
    pub committer: Committer,
    pub offsets: Vec<OffsetToCommit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetToCommit {
    pub partition: TopicPartition,
    /// The next record to read.
    pub offset: Offset,
    pub leader_epoch: Option<LeaderEpoch>,
    pub metadata: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOffsets {
    pub group: String,
    /// Member and epoch, when only a member that is up to date may know.
    pub member: Option<(String, i32)>,
    /// `None`: all there are.
    pub partitions: Option<Vec<TopicPartition>>,
    /// Refuse partitions with an offset in a transaction that has not ended.
    pub require_stable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedOffset {
    pub partition: TopicPartition,
    /// `None`: nothing is committed.
    pub outcome: Result<Option<CommittedOffset>, ErrorCode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: Offset,
    pub leader_epoch: Option<LeaderEpoch>,
    pub metadata: String,
    pub committed_ms: TimestampMs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOffsets {
    pub group: String,
    pub partitions: Vec<TopicPartition>,
}

/// Sets offsets from outside, while the group has no members, and remembers what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekOffsets {
    pub group: String,
    /// Who asks, for the history.
    pub by: String,
    pub offsets: Vec<(TopicPartition, Offset)>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// Brings back what a seek replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoSeek {
    pub group: String,
    pub by: String,
    /// `None`: the last one.
    pub id: Option<u64>,
}

/// Offsets that count when, and only if, a transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitTransactionalOffsets {
    pub group: String,
    pub producer_id: ProducerId,
    pub producer_epoch: ProducerEpoch,
    /// From [`super::GroupCoordinator::begin_verification`], asked for before the transaction coordinator was.
    /// `None` when that said that none is needed.
    pub guard: Option<u64>,
    pub committer: Committer,
    pub offsets: Vec<OffsetToCommit>,
}

/// The end of a transaction, as its coordinator decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTransaction {
    pub producer_id: ProducerId,
    /// The epoch after the transaction's (KIP-890).
    pub producer_epoch: ProducerEpoch,
    pub coordinator_epoch: i32,
    pub commit: bool,
}

/// Puts a member out of its group, by id or by instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveMember {
    pub group: String,
    pub member: MemberName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberName {
    Id(String),
    Instance(String),
}

/// What the coordinator wants done or known besides its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEffect {
    /// The member's next heartbeat would bring something new: ask it to send one now.
    Nudge { group: String, member: String },
    /// For the log and the metrics.
    Removed { group: String, removal: Removal },
    /// The topic is gone, and the group's offsets in it.
    OffsetsDropped { group: String, topic_id: TopicId },
}

/// A member that is no longer in its group, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub member: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub reason: RemovalReason,
    pub at_ms: TimestampMs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    Left,
    /// It said that its application takes longer over its records than it may.
    MissedProcessingDeadline,
    /// No heartbeat within the session timeout.
    SessionTimedOut,
    /// It sent heartbeats, and did not give up its partitions (or did not join again) within its rebalance timeout.
    MissedRebalanceDeadline,
    /// An operator put it out.
    Kicked,
    /// Another process took over its place as a static member.
    Replaced,
}

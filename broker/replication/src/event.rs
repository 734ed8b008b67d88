//! What a replica is told, what it answers and what it is configured to. Plain values, no decisions.
//!
//! [`Effect`]s are carried out in their order. Those with an outcome ([`Effect::Append`], [`Effect::Truncate`],
//! [`Effect::StartAt`]) are the last of their step, and their outcome is the next event.

use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionEpoch,
    messages::{Acks, Durability, Position, ReplicaRefusal},
};

/// Names a produce request for as long as it waits. The caller chooses it and gets it back in
/// [`Effect::Reply`]; the machine only carries it.
pub type Token = u64;

/// What counts as stored for a topic: the topic setting `durability`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageDurability {
    /// On stable storage. Records are readable and acknowledged only once flushed.
    #[default]
    Disk,
    /// In the log, flushed or not. A machine that loses power may lose acknowledged records.
    Memory,
}

/// Who we are, and the settings of the topic and the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The broker this replica lives on.
    pub broker_id: BrokerId,
    pub durability: StorageDurability,
    /// Fewest in-sync replicas with which anything is committed; at least 1. More than there are replicas means
    /// all of them.
    pub min_insync_replicas: u16,
    /// How long a follower may not have caught up before it leaves the in-sync replicas.
    pub replica_lag_ms: u64,
}

/// What of the topic's settings decides when a record is committed. May change while a replica is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub durability: StorageDurability,
    /// At least 1, see [`Config::min_insync_replicas`].
    pub min_insync_replicas: u16,
}

impl Config {
    pub fn settings(&self) -> Settings {
        let Self { durability, min_insync_replicas, .. } = *self;
        Settings { durability, min_insync_replicas }
    }
}

/// A broker in one run of its process: what it did in another run says nothing of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    pub broker_id: BrokerId,
    pub broker_epoch: BrokerEpoch,
}

/// A replica of the partition, as the metadata knows its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: BrokerId,
    /// Of the run it is registered with.
    pub broker_epoch: BrokerEpoch,
    /// Registered, not fenced, not shutting down: may be in sync.
    pub eligible: bool,
}

impl Member {
    pub fn replica(&self) -> ReplicaId {
        ReplicaId { broker_id: self.id, broker_epoch: self.broker_epoch }
    }
}

/// What the metadata says about the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// A member of `isr`.
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// In order of preference; we are among them.
    pub replicas: Vec<Member>,
    /// The committed in-sync replicas: a subset of `replicas`.
    pub isr: Vec<BrokerId>,
    /// Replicas that are not in sync and may be elected all the same: they were in sync when too few were.
    pub elr: Vec<BrokerId>,
}

/// What the log is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Only committed records are ever deleted, so the watermark is here at least.
    pub log_start_offset: Offset,
    pub log_end_offset: Offset,
    /// Exclusive end of what is on stable storage; at most `log_end_offset`.
    pub flushed_offset: Offset,
    /// The newest epoch in the log's history.
    pub last_epoch: Option<LeaderEpoch>,
    /// The first record that is known to be damaged, if one is.
    pub damaged_from: Option<Offset>,
}

/// Where a leadership ends in some log: the newest epoch not above the one asked for, and the offset behind its
/// last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    pub epoch: LeaderEpoch,
    pub end_offset: Offset,
}

/// Something that happened to the replica. Time comes beside it, see [`crate::Replica::step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The metadata changed: the role follows from it, and by which rule records are committed. Changes in between may be
    /// missing, and the same may come twice, but never an older one. `settings` are of the same metadata as `assignment`:
    /// the minimum of one and the in-sync set of another would commit what those who may be elected do not have.
    Assigned { assignment: Assignment, settings: Settings, log: LogState },
    /// Leader: the log took the batches of a produce request. Sent in offset order, after
    /// [`crate::Replica::admit`].
    Produced(Produced),
    /// Leader: a produce request repeats batches that are in the log. It is answered as the append would have been. Sent
    /// after [`crate::Replica::admit`].
    Repeated(Produced),
    /// Everything below `end_offset` is on stable storage.
    Flushed { end_offset: Offset },
    /// Somebody says where it is.
    FollowerFetched(FollowerFetch),
    /// Leader: the follower's stream is gone.
    FollowerLost { follower: ReplicaId },
    /// Leader: what the controller said to the [`IsrChange`] that was based on this epoch. That it was carried out is
    /// learned from the metadata, so `Ok` only means: wait for it.
    IsrAnswered { partition_epoch: PartitionEpoch, answer: Result<(), ErrorCode> },
    /// Follower: the leader answers.
    Fetched(Fetched),
    /// Follower: the outcome of [`Effect::Append`].
    Appended { end_offset: Offset, last_epoch: LeaderEpoch },
    /// Follower: the outcome of [`Effect::Truncate`] and [`Effect::StartAt`].
    Truncated { log: LogState },
    /// Follower: an append or a truncation did not happen (a bad batch, a full disk); the log is as before. A log
    /// that failed is [`Event::StorageFailed`] instead.
    EffectRefused,
    /// The log start was raised, whoever asked for it.
    LogStartMoved { offset: Offset },
    /// Follower: a new stream to this broker stands.
    LeaderConnected { leader: BrokerId },
    /// Time passed. Every event expires deadlines; this one does nothing else.
    Tick,
    /// The log failed and takes no more writes. Final: only a restart recovers.
    StorageFailed,
    /// The replica is given up: deleted or shutting down. Final. `reason` goes to everybody who waits.
    Stop { reason: ErrorCode },
}

/// An append that succeeded and the request it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    pub token: Token,
    /// With [`Acks::None`] there is no reply.
    pub acks: Acks,
    /// Durability asked for. [`Durability::Topic`] means what the topic is configured to for [`Acks::All`];
    /// [`Acks::Leader`] asks for a copy in memory unless it names [`Durability::Disk`].
    pub durability: Durability,
    /// When to stop waiting, on the clock of [`crate::Replica::step`], in milliseconds.
    pub deadline_ms: u64,
    /// First offset appended: the log end offset until now.
    pub base_offset: Offset,
    /// The log end offset from now on.
    pub end_offset: Offset,
}

/// A follower's position, and what our log's history says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerFetch {
    /// As it introduced itself on its stream.
    pub follower: ReplicaId,
    pub position: Position,
    /// Where the position's `last_fetched_epoch` ends in our log. `None`: it names none, or the history cannot tell.
    pub epoch_end: Option<EpochEnd>,
}

/// A leader's answer to one of our positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub leader_epoch: LeaderEpoch,
    pub round: u64,
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    /// Tombstones below may be missing in what the leader sends.
    pub removals_end: Offset,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At least one batch, in the hands of whoever sends the event. [`Effect::Append`] asks for them.
    Batches,
    /// Nothing new but watermark and log start. The question stays open.
    Watermark,
    /// Our log differs: the leader's epoch ends like this. `own` is where that epoch ends in our log; `None` when our
    /// history cannot tell.
    Diverging {
        leader: EpochEnd,
        own: Option<EpochEnd>,
    },
    /// Our position is outside the leader's log.
    OutOfRange {
        log_start_offset: Offset,
        log_end_offset: Offset,
    },
    Error {
        code: ErrorCode,
    },
}

/// The position that something is an answer to. Nothing with another follower's run, epoch or round may pass for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerTo {
    pub follower: ReplicaId,
    pub leader_epoch: LeaderEpoch,
    pub round: u64,
}

impl AnswerTo {
    pub fn position(follower: ReplicaId, position: &Position) -> Self {
        Self { follower, leader_epoch: position.leader_epoch, round: position.round }
    }
}

/// A wish to change the in-sync replicas: compare-and-swap on the partition epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrChange {
    pub leader_epoch: LeaderEpoch,
    /// The state that the change is based on.
    pub partition_epoch: PartitionEpoch,
    /// All of them, the leader first.
    pub isr: Vec<ReplicaId>,
}

/// Something the caller has to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Readers may see everything below `offset`. It only goes back for a follower that is about to truncate.
    SetHighWatermark { offset: Offset },
    /// Answer a produce request. Exactly one for each [`Event::Produced`] whose acks are not none.
    Reply { token: Token, outcome: ProduceOutcome },
    /// Somebody waits for everything below `end_offset` to be flushed. Requests are cumulative: a flush that
    /// covers the highest covers all, and [`Event::Flushed`] answers them.
    RequestFlush { end_offset: Offset },
    /// Leader: into the log's epoch history, before anything is appended.
    AssignEpoch { epoch: LeaderEpoch, start_offset: Offset },
    /// Leader: to the controller. An equal one may have been asked for before.
    AlterIsr(IsrChange),
    /// Leader: send what there is from `offset` on, with the watermark as of before it is read.
    Serve { to: AnswerTo, offset: Offset },
    /// Leader: the follower has all there is; only these have moved.
    ShareWatermark { to: AnswerTo, high_watermark: Offset, log_start_offset: Offset },
    /// Leader: there is nothing for this position.
    Refuse { to: AnswerTo, refusal: ReplicaRefusal },
    /// Follower: tell the leader where we are.
    Fetch { leader: BrokerId, position: Position },
    /// Follower: append the batches that came with this event, if they continue the log, are whole, and their epochs
    /// are between the log's last one and `leader_epoch`. Before that the log takes note that tombstones below
    /// `removals_end` may be missing, if there are any.
    Append { leader_epoch: LeaderEpoch, removals_end: Offset },
    /// Follower: take back everything from `offset` on, and every leadership that begins there or later.
    Truncate { offset: Offset },
    /// Follower: drop everything; the log is empty and goes on at `offset`.
    StartAt { offset: Offset },
    /// Follower: the leader has nothing below `offset` any more. [`Event::LogStartMoved`] tells that it was done.
    SetLogStart { offset: Offset },
}

/// How a produce request ended. An error here never means that the records are gone: they are in the log
/// and may yet be committed.
pub type ProduceOutcome = Result<Receipt, ErrorCode>;

/// What was reached at the time of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub base_offset: Offset,
    pub end_offset: Offset,
    /// The epoch the records were appended in.
    pub leader_epoch: LeaderEpoch,
    /// [`Durability::Disk`] or [`Durability::Memory`], never [`Durability::Topic`].
    pub durability: Durability,
    /// Replicas known to hold the records in memory, the leader among them.
    pub replicas_memory: u16,
    /// Replicas known to hold the records on stable storage, the leader among them.
    pub replicas_durable: u16,
}

/// What a leader knows of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    pub id: BrokerId,
    /// Whether it has reported in this leader epoch; without that the offsets are 0.
    pub is_known: bool,
    pub is_in_sync: bool,
    /// In the set that was proposed last, and not in sync yet.
    pub is_proposed: bool,
    pub log_end_offset: Offset,
    pub flushed_offset: Offset,
    /// When it is last known to have had everything there was, on the clock of [`crate::Replica::step`]. While its
    /// offset is the leader's that is now, whatever this says. `None`: not in this leader epoch.
    pub caught_up_ms: Option<u64>,
}

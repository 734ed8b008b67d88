//! What a replica is told, what it answers and what it is configured to. Plain values, no decisions.

use tidemark_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset,
    messages::{Acks, Durability},
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

/// What the metadata says about the partition, and who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The broker this replica lives on; a member of `replicas`.
    pub broker_id: BrokerId,
    /// In order of preference.
    pub replicas: Vec<BrokerId>,
    /// The committed in-sync replicas: a subset of `replicas`.
    pub isr: Vec<BrokerId>,
    pub durability: StorageDurability,
    /// Fewest in-sync replicas with which anything is committed; at least 1.
    pub min_insync_replicas: u16,
}

/// Something that happened to the replica. Time comes beside it, see [`crate::Replica::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The controller made this replica the leader, and the log is open.
    BecomeLeader {
        /// Higher than every epoch this replica led in before.
        epoch: LeaderEpoch,
        /// Only committed records are ever deleted, so the watermark is here at least.
        log_start_offset: Offset,
        log_end_offset: Offset,
        /// Exclusive end of what is on stable storage; at most `log_end_offset`.
        flushed_offset: Offset,
    },
    /// The log took the batches of a produce request. Sent in offset order, after [`crate::Replica::admit`].
    Produced(Produced),
    /// Everything below `end_offset` is on stable storage.
    Flushed { end_offset: Offset },
    /// The topic's settings changed.
    SetConfig { durability: StorageDurability, min_insync_replicas: u16 },
    /// Time passed. Every event expires deadlines; this one does nothing else.
    Tick,
    /// The log failed and takes no more writes. Final: only a restart recovers.
    StorageFailed,
    /// The replica leads no more: demoted, deleted or shutting down. `reason` goes to everybody who waits.
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

/// Something the caller has to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Readers may see everything below `offset`.
    SetHighWatermark { offset: Offset },
    /// Answer a produce request. Exactly one for each [`Event::Produced`] whose acks are not none.
    Reply { token: Token, outcome: ProduceOutcome },
    /// Somebody waits for everything below `end_offset` to be flushed. Requests are cumulative: a flush that
    /// covers the highest covers all, and [`Event::Flushed`] answers them.
    RequestFlush { end_offset: Offset },
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

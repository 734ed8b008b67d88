//! What a process remembers of the requests that its coordinators have, and of what they have it do elsewhere.

use std::collections::BTreeMap;

use tidemark_broker::steered::{Asked, Compacted, CoordinatorSettings, Ticket};
use tidemark_coordinator::{
    GroupConfig, TransactionConfig,
    groups::{CommitTransactionalOffsets, GroupResponse},
    transactions::{Markers, ProducerIdentity, TransactionResponse},
};
use tidemark_protocol::{Failure, PartitionIndex, TopicPartition};

use crate::sim::{core::Micros, message::Correlation, network::ConnectionId, shape::Shape};

/// Names something that takes a while.
pub(super) type JobId = u64;

/// Who is answered over a connection.
pub(super) type Asker = (ConnectionId, Correlation);

/// Coordinators as a run draws them: everything in a transaction's life happens within a minute.
pub(super) fn settings(shape: &Shape) -> CoordinatorSettings {
    let transactions = TransactionConfig {
        epoch_max: shape.epoch_max,
        producer_ids_min: 10,
        ..TransactionConfig::default()
    };
    let groups = GroupConfig {
        session_timeout_ms: 2_000,
        heartbeat_interval_ms: 300,
        reconcile_interval_ms: 100,
        ..GroupConfig::default()
    };
    CoordinatorSettings { groups, transactions }
}

/// Who needs producer ids.
#[derive(Clone, Copy, Debug)]
pub(super) enum NeedsIds {
    Client(Asker),
    Coordinator(PartitionIndex),
}

/// Who is answered by a transaction coordinator here.
#[derive(Debug)]
pub(super) enum AskedBy {
    Peer(Asker),
    /// A partition that is led here.
    Join(JobId),
    /// Nobody waits.
    Nobody,
}

/// Who is told that markers are written.
#[derive(Debug)]
pub(super) enum MarkersFor {
    Peer(Asker),
    Coordinator(JobId),
}

/// What waits for a partition to become part of a transaction.
#[derive(Debug)]
pub(super) enum JoinFor {
    Produce,
    Offsets(Asker, PartitionIndex, Box<CommitTransactionalOffsets>),
}

/// A partition that is to become part of a transaction.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) whom: JoinFor,
    pub(super) transactional_id: String,
    pub(super) producer: ProducerIdentity,
    pub(super) partition: TopicPartition,
    pub(super) failures: u32,
    pub(super) deadline_us: Micros,
}

/// The wait for one marker.
#[derive(Debug)]
pub(super) enum Marking {
    Log(Ticket),
    Groups(Asked<GroupResponse>),
    Over(Result<(), Failure>),
}

impl Marking {
    /// Looks again. Says whether it is over.
    pub(super) fn look(&mut self) -> bool {
        let outcome = match self {
            Self::Log(ticket) => ticket.outcome().map(|outcome| outcome.map(drop)),
            Self::Groups(asked) => asked.outcome().map(|outcome| outcome.map(drop)),
            Self::Over(_) => return true,
        };
        outcome.map(|outcome| *self = Self::Over(outcome)).is_some()
    }

    pub(super) fn into_outcome(self) -> Option<Result<(), Failure>> {
        match self {
            Self::Over(outcome) => Some(outcome),
            Self::Log(_) | Self::Groups(_) => None,
        }
    }
}

/// Markers that are being written here, all of one transaction.
#[derive(Debug)]
pub(super) struct Marked {
    pub(super) whom: MarkersFor,
    pub(super) producer_id: i64,
    pub(super) coordinator_epoch: i32,
    pub(super) arrived_us: Micros,
    pub(super) markers: Vec<(TopicPartition, Marking)>,
}

/// A coordinator was told that a transaction has ended in a partition: for the oracles.
#[derive(Clone, Copy, Debug)]
pub struct ToldEnded {
    pub partition: TopicPartition,
    pub producer_id: i64,
    pub coordinator_epoch: i32,
    /// When the coordinator's request came.
    pub arrived_us: Micros,
}

/// Everything under way.
#[derive(Debug, Default)]
pub(super) struct Coordination {
    pub(super) next_job: JobId,
    pub(super) groups: Vec<(Asker, Asked<GroupResponse>)>,
    pub(super) transactions: Vec<(AskedBy, Asked<TransactionResponse>)>,
    pub(super) joining: BTreeMap<JobId, Joining>,
    pub(super) marking: Vec<Marked>,
    pub(super) told_ended: Vec<ToldEnded>,
    /// What compaction has done: for the oracles.
    pub(super) compacted: Vec<Compacted>,
    /// Markers that were sent to their partitions' leaders, and whose they are.
    pub(super) sent: BTreeMap<JobId, (PartitionIndex, Markers)>,
}

impl Coordination {
    pub(super) fn job(&mut self) -> JobId {
        self.next_job += 1;
        self.next_job
    }

    pub(super) fn waiting(&self) -> usize {
        self.groups.len()
            + self.transactions.len()
            + self.joining.len()
            + self.marking.len()
            + self.sent.len()
    }
}

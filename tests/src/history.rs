//! What clients did and what they were told: the history that [`crate::checker`] judges.
//!
//! Plain data. Whoever runs clients, on real processes or in the simulator, writes it down here; time is a number that only
//! has to grow, in nanoseconds. Nothing here knows a clock, a broker or a rule.

use std::{collections::BTreeMap, fmt, sync::Arc};

use tidemark_protocol::{LeaderEpoch, NodeId, Offset, PartitionIndex};

/// Unique over a whole history: sent once, by one operation.
pub type Value = u64;
/// One client. Its operations are ordered by when they were invoked; sends may overlap each other.
pub type ProcessId = u32;
/// Nanoseconds, on one clock for the whole history.
pub type TimeNs = u64;
/// Where an operation stands in the history.
pub type OpId = usize;

/// A partition of a topic. A topic that is deleted and created again is another topic: name it differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: Arc<str>,
    pub index: PartitionIndex,
}

impl Partition {
    pub fn new(topic: impl Into<Arc<str>>, index: PartitionIndex) -> Self {
        Self { topic: topic.into(), index }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.topic, self.index)
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It took effect.
    Ok,
    /// It took no effect and never will.
    Fail,
    /// Nobody knows, or nobody was told: it may have taken effect, or may yet.
    Info,
}

/// Whether a send whose outcome is not known is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Written at most once.
    Never,
    /// Without the broker's help: may be written twice, and late.
    Blindly,
    /// Under a sequence number: written once, in order.
    Numbered,
}

/// A transaction of a producer; unique over the history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId {
    pub producer: Arc<str>,
    /// Transactions of one producer count up.
    pub number: u64,
}

/// Who wrote, as brokers fence it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerEpoch {
    pub producer: Arc<str>,
    pub epoch: u32,
}

/// Values to one partition, next to each other and all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub partition: Partition,
    pub values: Vec<Value>,
    pub repeats: Repeats,
    /// Whether an acknowledgement means that nothing which happens in this history may lose the values.
    pub survives: bool,
    pub producer: Option<ProducerEpoch>,
    pub transaction: Option<TransactionId>,
    /// Offset of the first value, and the epoch of the leader that said so, when acknowledged.
    pub acknowledged: Option<(Offset, LeaderEpoch)>,
}

impl Send {
    /// One value outside of transactions, acknowledged by all.
    pub fn durable(partition: Partition, value: Value, repeats: Repeats) -> Self {
        Self {
            partition,
            values: vec![value],
            repeats,
            survives: true,
            producer: None,
            transaction: None,
            acknowledged: None,
        }
    }
}

/// A record that somebody read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub offset: Offset,
    pub value: Value,
    /// Of the leader that appended it.
    pub epoch: LeaderEpoch,
}

/// A member of a group, in one generation of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub group: Arc<str>,
    pub generation: u64,
    pub id: Arc<str>,
}

/// Records as one call returned them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Poll {
    /// By partition, in the order returned.
    pub records: Vec<(Partition, Vec<Read>)>,
    /// Whether records of undecided and aborted transactions were asked for.
    pub uncommitted: bool,
    pub member: Option<Member>,
    /// The transaction in whose course it was read.
    pub transaction: Option<TransactionId>,
}

/// What was asked. What was answered is filled in when it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send(Send),
    /// A consumer goes on at these offsets and reads nothing else.
    Assign(Vec<(Partition, Offset)>),
    Poll(Poll),
    /// A consumer was told that its position does not exist.
    OutOfRange {
        partition: Partition,
        position: Offset,
    },
    /// The end of what can be read, and the epoch of the leader that said so.
    ReadEnd {
        partition: Partition,
        end: Option<(Offset, LeaderEpoch)>,
    },
    CommitOffset {
        group: Arc<str>,
        partition: Partition,
        offset: Offset,
    },
    /// `offset`: what was committed, if anything was.
    FetchOffset {
        group: Arc<str>,
        partition: Partition,
        offset: Option<Offset>,
    },
    EndTransaction {
        transaction: TransactionId,
        commit: bool,
    },
    /// Records below `before` may be gone from now on.
    DeleteRecords {
        partition: Partition,
        before: Offset,
    },
}

impl Action {
    /// Its name in counts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Send(_) => "send",
            Self::Assign(_) => "assign",
            Self::Poll(_) => "poll",
            Self::OutOfRange { .. } => "out of range",
            Self::ReadEnd { .. } => "read end",
            Self::CommitOffset { .. } => "commit offset",
            Self::FetchOffset { .. } => "fetch offset",
            Self::EndTransaction { .. } => "end transaction",
            Self::DeleteRecords { .. } => "delete records",
        }
    }
}

/// One thing that a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub process: ProcessId,
    pub action: Action,
    pub invoked_ns: TimeNs,
    /// `None`: never.
    pub completed_ns: Option<TimeNs>,
    /// Of an operation that never completed: [`Outcome::Info`].
    pub outcome: Outcome,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, action, invoked_ns, outcome, .. } = self;
        let until = self.completed_ns.map_or("...".to_owned(), |at| ms(at).to_string());
        write!(out, "{:>9}..{until:<9} p{process:<3} {outcome:?} {action:?}", ms(*invoked_ns))
    }
}

fn ms(time_ns: TimeNs) -> TimeNs {
    time_ns / 1_000_000
}

/// The log of one replica, read from its disk when it had stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaLog {
    pub node: NodeId,
    pub partition: Partition,
    /// It holds all there is from `start` to `end`.
    pub start: Offset,
    pub end: Offset,
    pub records: Vec<Read>,
    /// It was in the ISR, and nobody wrote any more: whatever was acknowledged must be there.
    pub complete: bool,
}

/// Everything that clients did, in the order in which they began to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub operations: Vec<Operation>,
    pub replicas: Vec<ReplicaLog>,
    /// What was done to the system meanwhile, for whoever reads the history; no judge does.
    pub notes: Vec<(TimeNs, String)>,
    /// When faults were over and everything was up again. Whoever reads after this and does not stop before the end must
    /// see all that was acknowledged; `None`: nobody did.
    pub healed_ns: Option<TimeNs>,
}

impl History {
    /// An operation begins.
    pub fn invoke(&mut self, process: ProcessId, invoked_ns: TimeNs, action: Action) -> OpId {
        let (completed_ns, outcome) = (None, Outcome::Info);
        self.operations.push(Operation { process, action, invoked_ns, completed_ns, outcome });
        self.operations.len() - 1
    }

    /// It ended; what was answered is in its action already.
    pub fn complete(&mut self, op: OpId, completed_ns: TimeNs, outcome: Outcome) {
        let operation = &mut self.operations[op];
        assert!(operation.completed_ns.is_none(), "operations end once: {operation}");
        operation.completed_ns = Some(completed_ns);
        operation.outcome = outcome;
    }

    /// A send was acknowledged.
    pub fn acknowledge(&mut self, op: OpId, at_ns: TimeNs, offset: Offset, epoch: LeaderEpoch) {
        if let Action::Send(send) = &mut self.operations[op].action {
            send.acknowledged = Some((offset, epoch));
        }
        self.complete(op, at_ns, Outcome::Ok);
    }

    /// An operation that is over already.
    pub fn record(
        &mut self,
        process: ProcessId,
        (invoked_ns, completed_ns): (TimeNs, TimeNs),
        action: Action,
        outcome: Outcome,
    ) -> OpId {
        let op = self.invoke(process, invoked_ns, action);
        self.complete(op, completed_ns, outcome);
        op
    }

    /// All of it as text: one operation a line with its number, and what was done to the system in between.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let mut notes = self.notes.iter().peekable();
        let operations = self.operations.iter().enumerate().flat_map(move |(op, operation)| {
            let mut lines = Vec::new();
            while let Some((at, note)) = notes.next_if(|(at, _)| *at <= operation.invoked_ns) {
                lines.push(format!("        {:>9} --- {note}", ms(*at)));
            }
            lines.push(format!("{op:>7} {operation}"));
            lines
        });
        operations.chain(self.replicas.iter().map(|log| format!("{log:?}")))
    }

    /// The log start of each partition that records were deleted from, as far as deletions may have got.
    pub fn log_starts(&self) -> BTreeMap<&Partition, Offset> {
        let mut starts = BTreeMap::new();
        for operation in &self.operations {
            if let Action::DeleteRecords { partition, before } = &operation.action
                && operation.outcome != Outcome::Fail
            {
                let start = starts.entry(partition).or_insert(0);
                *start = (*before).max(*start);
            }
        }
        starts
    }
}

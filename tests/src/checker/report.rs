//! What the checker says: anomalies with evidence, and how much there was to judge.

use std::{collections::BTreeMap, fmt};

use super::{Lag, index::Index};
use crate::history::{Action, Outcome};

/// Pieces of evidence kept of each kind; all are counted.
const EVIDENCE_MAX: usize = 8;

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One offset has two values.
    InconsistentOffsets,
    /// Acknowledged, below something that was read, and read by nobody.
    LostWrite,
    /// Acknowledged, and not there for whoever read everything at the end.
    Unseen,
    /// Read, although its writer was told that it did not happen.
    AbortedRead,
    /// Read, and sent by nobody.
    InventedValue,
    /// At two offsets.
    Duplicate,
    /// A consumer stepped over something.
    PollSkip,
    /// A consumer went back.
    NonmonotonicPoll,
    /// What was sent first came last.
    NonmonotonicSend,
    /// The readable end went back, or a position that was read is out of range.
    OffsetRegression,
    /// A later offset was written by an earlier leader, or one offset by two.
    EpochRegression,
    /// Replicas differ.
    Divergence,
    /// A group's committed offset was forgotten, or an older one came back.
    CommitRegression,
    /// One generation of a group gave a partition to two members.
    DoubleDelivery,
    /// A transaction read what it had written itself.
    PrecommittedRead,
    /// A part of a committed transaction was read, the rest was not there.
    TornTransaction,
    /// A fenced producer wrote.
    ZombieWrite,
}

impl Kind {
    /// As documents call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InconsistentOffsets => "inconsistent-offsets",
            Self::LostWrite => "lost-write",
            Self::Unseen => "unseen",
            Self::AbortedRead => "aborted-read",
            Self::InventedValue => "invented-value",
            Self::Duplicate => "duplicate",
            Self::PollSkip => "poll-skip",
            Self::NonmonotonicPoll => "nonmonotonic-poll",
            Self::NonmonotonicSend => "nonmonotonic-send",
            Self::OffsetRegression => "offset-regression",
            Self::EpochRegression => "epoch-regression",
            Self::Divergence => "divergence",
            Self::CommitRegression => "commit-regression",
            Self::DoubleDelivery => "double-delivery",
            Self::PrecommittedRead => "precommitted-read",
            Self::TornTransaction => "torn-transaction",
            Self::ZombieWrite => "zombie-write",
        }
    }
}

/// One kind that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anomaly {
    pub count: usize,
    /// The first few, each a sentence.
    pub evidence: Vec<String>,
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub anomalies: BTreeMap<Kind, Anomaly>,
}

impl Findings {
    /// Counts one more; the sentence is only made for the first few.
    pub fn add(&mut self, kind: Kind, evidence: impl FnOnce() -> String) {
        let anomaly = self.anomalies.entry(kind).or_default();
        anomaly.count += 1;
        if anomaly.evidence.len() < EVIDENCE_MAX {
            anomaly.evidence.push(evidence());
        }
    }
}

/// How much there was to judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By name of the action: ok, fail, info.
    pub operations: BTreeMap<&'static str, [usize; 3]>,
    pub values_sent: usize,
    pub values_acknowledged: usize,
    pub records_read: usize,
    pub partitions: usize,
    pub replica_logs: usize,
}

impl Counts {
    pub(super) fn of(index: &Index<'_>) -> Self {
        let mut counts = Self {
            partitions: index.partitions.len(),
            replica_logs: index.history.replicas.len(),
            ..Self::default()
        };
        for operation in &index.history.operations {
            let by_outcome = counts.operations.entry(operation.action.name()).or_default();
            by_outcome[match operation.outcome {
                Outcome::Ok => 0,
                Outcome::Fail => 1,
                Outcome::Info => 2,
            }] += 1;
            match &operation.action {
                Action::Send(send) => {
                    counts.values_sent += send.values.len();
                    if operation.outcome == Outcome::Ok {
                        counts.values_acknowledged += send.values.len();
                    }
                }
                Action::Poll(poll) => {
                    counts.records_read +=
                        poll.records.iter().map(|(_, reads)| reads.len()).sum::<usize>();
                }
                _ => {}
            }
        }
        counts
    }

    /// Sends whose outcome nobody was told, of a thousand.
    pub fn indeterminate_per_mille(&self) -> usize {
        let [ok, fail, info] = self.operations.get("send").copied().unwrap_or_default();
        info * 1000 / (ok + fail + info).max(1)
    }
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub findings: Findings,
    pub counts: Counts,
    pub lag: Lag,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.anomalies.is_empty()
    }

    /// How often something of this kind was found.
    pub fn count(&self, kind: Kind) -> usize {
        self.findings.anomalies.get(&kind).map_or(0, |anomaly| anomaly.count)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { values_sent, values_acknowledged, records_read, .. } = self.counts;
        write!(out, "{values_sent} values sent, {values_acknowledged} acknowledged, ")?;
        write!(out, "{} of 1000 indeterminate; ", self.counts.indeterminate_per_mille())?;
        write!(out, "{records_read} records read from {} partitions, ", self.counts.partitions)?;
        writeln!(out, "{} replica logs compared; {}", self.counts.replica_logs, self.lag)?;
        for (name, [ok, fail, info]) in &self.counts.operations {
            writeln!(out, "  {name}: {ok} ok, {fail} fail, {info} info")?;
        }
        for (kind, anomaly) in &self.findings.anomalies {
            writeln!(out, "{}: {}", kind.name(), anomaly.count)?;
            for evidence in &anomaly.evidence {
                writeln!(out, "  {evidence}")?;
            }
        }
        if self.is_clean() { write!(out, "no anomaly") } else { Ok(()) }
    }
}

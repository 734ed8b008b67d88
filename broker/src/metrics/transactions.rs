//! What becomes of transactions, and of batches that are sent twice.

use std::fmt;

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{scrape, table};

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Its producer was told that it is committed.
    Committed,
    /// Its producer has aborted it.
    Aborted,
    TimedOut,
    /// An operator has aborted it.
    Operator,
    /// Another process has begun under its id.
    Fenced,
}

impl TransactionEnd {
    const ALL: [Self; 5] =
        [Self::Committed, Self::Aborted, Self::TimedOut, Self::Operator, Self::Fenced];

    /// The label's value.
    const fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::TimedOut => "timed_out",
            Self::Operator => "operator",
            Self::Fenced => "fenced",
        }
    }
}

/// The handles of everything that transactional and numbered producers do.
pub struct TransactionMetrics {
    ends: [Counter; TransactionEnd::ALL.len()],
    repeated: Counter,
}

impl fmt::Debug for TransactionMetrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TransactionMetrics").finish_non_exhaustive()
    }
}

impl TransactionMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let end = |end: TransactionEnd| {
            scrape::counter(recorder, &table::TRANSACTIONS_ENDED, &[end.name()])
        };
        Self {
            ends: TransactionEnd::ALL.map(end),
            repeated: scrape::counter(recorder, &table::BATCHES_REPEATED, &[]),
        }
    }

    /// Counts a transaction that was decided.
    pub fn ended(&self, end: TransactionEnd) {
        self.ends[end as usize].increment(1);
    }

    /// Counts batches that were in the log already, and were answered with their offsets.
    pub fn repeated(&self, batches: u64) {
        self.repeated.increment(batches);
    }
}

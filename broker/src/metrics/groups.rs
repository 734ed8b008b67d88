//! What members of consumer groups do: offsets committed, and members that are gone, by why.

use std::fmt;

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;
use tidemark_coordinator::groups::RemovalReason;

use super::{scrape, table};

/// The reasons, in the order of their counters.
const REASONS: [(RemovalReason, &str); 6] = [
    (RemovalReason::Left, "left"),
    (RemovalReason::MissedProcessingDeadline, "missed_processing_deadline"),
    (RemovalReason::SessionTimedOut, "session_timed_out"),
    (RemovalReason::MissedRebalanceDeadline, "missed_rebalance_deadline"),
    (RemovalReason::Kicked, "kicked"),
    (RemovalReason::Replaced, "replaced"),
];

/// The handles of everything that groups do.
pub struct GroupMetrics {
    commits: Counter,
    removals: [Counter; REASONS.len()],
}

impl fmt::Debug for GroupMetrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("GroupMetrics").finish_non_exhaustive()
    }
}

impl GroupMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let removed = |(_, label)| scrape::counter(recorder, &table::GROUP_REMOVALS, &[label]);
        Self {
            commits: scrape::counter(recorder, &table::GROUP_COMMITS, &[]),
            removals: REASONS.map(removed),
        }
    }

    /// Counts offsets that were committed.
    pub fn committed(&self, offsets: u64) {
        self.commits.increment(offsets);
    }

    /// Counts a member that is gone.
    pub fn removed(&self, reason: RemovalReason) {
        let at = REASONS.iter().position(|(known, _)| *known == reason);
        self.removals[at.expect("the list has every reason")].increment(1);
    }
}

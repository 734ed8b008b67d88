//! What replication does: bytes between brokers, and changes of leaders and in-sync sets where this broker leads.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{
    scrape::{self, Scrape},
    table,
};

/// The handles of everything between brokers.
pub struct ClusterMetrics {
    received_bytes: Counter,
    sent_bytes: Counter,
    isr_shrinks: Counter,
    isr_expands: Counter,
    leader_changes: Counter,
    unclean_elections: Counter,
    quorum_elections: Counter,
    /// Of the quorum, when this node is a controller.
    quorum: QuorumGauges,
}

/// The quorum as this controller sees it. Set by its thread, read by scrapes.
#[derive(Debug, Default)]
struct QuorumGauges {
    is_controller: AtomicU64,
    term: AtomicU64,
    /// 0: nobody.
    leader_id: AtomicU64,
    is_leader: AtomicU64,
    committed_index: AtomicU64,
    log_end_index: AtomicU64,
}

/// Where the quorum stands.
#[derive(Clone, Copy, Debug)]
pub struct QuorumState {
    pub term: u64,
    pub leader: Option<u32>,
    pub is_leader: bool,
    pub committed_index: u64,
    pub log_end_index: u64,
}

impl fmt::Debug for ClusterMetrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ClusterMetrics").finish_non_exhaustive()
    }
}

impl ClusterMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let counter = |metric| scrape::counter(recorder, metric, &[]);
        let bytes = |direction| scrape::counter(recorder, &table::REPLICATION_BYTES, &[direction]);
        Self {
            received_bytes: bytes("in"),
            sent_bytes: bytes("out"),
            isr_shrinks: counter(&table::ISR_SHRINKS),
            isr_expands: counter(&table::ISR_EXPANDS),
            leader_changes: counter(&table::LEADER_CHANGES),
            unclean_elections: counter(&table::UNCLEAN_ELECTIONS),
            quorum_elections: counter(&table::QUORUM_ELECTIONS),
            quorum: QuorumGauges::default(),
        }
    }

    /// Batches came from a leader.
    pub fn received(&self, bytes: u64) {
        self.received_bytes.increment(bytes);
    }

    /// Batches went to a follower.
    pub fn sent(&self, bytes: u64) {
        self.sent_bytes.increment(bytes);
    }

    /// The in-sync set of a partition led here went from one size to another.
    pub fn isr_changed(&self, before: usize, after: usize) {
        match after.cmp(&before) {
            std::cmp::Ordering::Less => self.isr_shrinks.increment(1),
            std::cmp::Ordering::Greater => self.isr_expands.increment(1),
            std::cmp::Ordering::Equal => {}
        }
    }

    /// This broker leads a partition that another led, or nobody.
    pub fn leader_changed(&self) {
        self.leader_changes.increment(1);
    }

    /// This controller elected a replica that was not in sync.
    pub fn unclean_election(&self) {
        self.unclean_elections.increment(1);
    }

    /// Another controller is active, or this one is again.
    pub fn quorum_elected(&self) {
        self.quorum_elections.increment(1);
    }

    /// Where the quorum stands now.
    pub fn set_quorum(&self, state: &QuorumState) {
        let set = |gauge: &AtomicU64, value| gauge.store(value, Ordering::Relaxed);
        set(&self.quorum.is_controller, 1);
        set(&self.quorum.term, state.term);
        set(&self.quorum.leader_id, state.leader.map_or(0, u64::from));
        set(&self.quorum.is_leader, state.is_leader.into());
        set(&self.quorum.committed_index, state.committed_index);
        set(&self.quorum.log_end_index, state.log_end_index);
    }

    pub(super) fn scrape(&self, scrape: &Scrape) {
        let get = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        let quorum = &self.quorum;
        if get(&quorum.is_controller) == 0 {
            return;
        }
        scrape.gauge(&table::CONTROLLER_IS_LEADER, &[], get(&quorum.is_leader));
        scrape.gauge(&table::QUORUM_TERM, &[], get(&quorum.term));
        scrape.gauge(&table::QUORUM_LEADER_ID, &[], get(&quorum.leader_id));
        scrape.gauge(&table::QUORUM_COMMITTED_INDEX, &[], get(&quorum.committed_index));
        scrape.gauge(&table::QUORUM_LOG_END_INDEX, &[], get(&quorum.log_end_index));
    }
}

//! What the broker counts and times, in Prometheus' text format.
//!
//! [`Metrics`] is passed by value; there is no global recorder, so two brokers in one process do not mix. The
//! data path touches handles that were registered before ([`RequestMetrics`], [`TopicMetrics`]); everything
//! that can be asked for is asked for at scrape time ([`ScrapeSource`]). Names are in [`table`] and nowhere else.

pub mod cluster;
pub mod connections;
pub mod disk;
pub mod groups;
mod process;
pub mod requests;
pub mod scrape;
pub mod table;
pub mod traffic;
pub mod transactions;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use metrics_exporter_prometheus::PrometheusRecorder;

use self::{
    cluster::ClusterMetrics, connections::ConnectionMetrics, groups::GroupMetrics, traffic::Topics,
    transactions::TransactionMetrics,
};
pub use self::{
    disk::DiskMetrics,
    requests::{ApiMetrics, RequestMetrics, Stage},
    scrape::{Scrape, ScrapeDetail, ScrapeSource},
    traffic::{Flow, Protocol, TopicMetrics},
    transactions::TransactionEnd,
};
use crate::{
    clock::Clock,
    health::{Health, Reason},
};

/// Everything the broker counts. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    health: Health,
    recorder: Arc<PrometheusRecorder>,
    requests: RequestMetrics,
    connections: ConnectionMetrics,
    disk: DiskMetrics,
    cluster: ClusterMetrics,
    groups: GroupMetrics,
    transactions: TransactionMetrics,
    topics: Topics,
    sources: Mutex<Vec<Weak<dyn ScrapeSource>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Metrics").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counters at zero.
    pub fn new(clock: Clock, health: Health) -> Self {
        let recorder = Arc::new(scrape::new_recorder());
        let inner = Inner {
            clock,
            health,
            requests: RequestMetrics::new(&recorder),
            connections: ConnectionMetrics::new(&recorder),
            disk: DiskMetrics::new(&recorder),
            cluster: ClusterMetrics::new(&recorder),
            groups: GroupMetrics::new(&recorder),
            transactions: TransactionMetrics::new(&recorder),
            topics: Topics::default(),
            sources: Mutex::default(),
            recorder,
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn requests(&self) -> &RequestMetrics {
        &self.inner.requests
    }

    pub fn connections(&self) -> &ConnectionMetrics {
        &self.inner.connections
    }

    pub fn disk(&self) -> &DiskMetrics {
        &self.inner.disk
    }

    pub fn cluster(&self) -> &ClusterMetrics {
        &self.inner.cluster
    }

    pub fn groups(&self) -> &GroupMetrics {
        &self.inner.groups
    }

    pub fn transactions(&self) -> &TransactionMetrics {
        &self.inner.transactions
    }

    /// The counters of a topic. Takes a lock: look them up when a partition is opened, and keep them.
    pub fn topic(&self, name: &str) -> Arc<TopicMetrics> {
        self.inner.topics.get(name)
    }

    /// Ends the series of a topic that was deleted.
    pub fn forget_topic(&self, name: &str) {
        self.inner.topics.forget(name);
    }

    /// Asks `source` at every scrape, for as long as somebody else keeps it alive.
    pub fn add_source<S: ScrapeSource + 'static>(&self, source: &Arc<S>) {
        let source: Weak<S> = Arc::downgrade(source);
        self.inner.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Everything, in Prometheus' text format, families in alphabetical order. Blocks for as long as it takes to
    /// read `/proc` and to visit every topic: milliseconds.
    pub fn render(&self, detail: ScrapeDetail) -> String {
        let scrape = Scrape::new(detail);
        self.scrape_self(&scrape);
        process::scrape(&scrape);
        let sources: Vec<_> = {
            let mut sources = self.inner.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.retain(|source| source.strong_count() > 0);
            sources.iter().filter_map(Weak::upgrade).collect()
        };
        for source in sources {
            source.scrape(&scrape);
        }

        let text = self.inner.recorder.handle().render() + &scrape.render();
        let mut families: Vec<&str> =
            text.split("\n\n").filter(|family| !family.trim().is_empty()).collect();
        families.sort_unstable();
        families.join("\n\n") + "\n"
    }

    /// Moves recorded times from their buffers into buckets. The buffers grow with every value until this is
    /// called, so a task calls it every second.
    pub fn upkeep(&self) {
        self.inner.recorder.handle().run_upkeep();
    }

    fn scrape_self(&self, scrape: &Scrape) {
        let Inner { clock, health, connections, disk, cluster, topics, .. } = &*self.inner;
        scrape.gauge(&table::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
        scrape.gauge_f64(&table::UPTIME, &[], clock.uptime().as_secs_f64());
        let started = u64::try_from(clock.started_wall_ms() / 1000).unwrap_or(0);
        scrape.gauge(&table::PROCESS_START, &[], started);
        let state = health.state();
        scrape.gauge(&table::READY, &[], state.is_ready().into());
        for reason in Reason::ALL {
            let stands = state.reasons.contains_key(reason);
            scrape.gauge(&table::HEALTH_REASON, &[reason.name()], stands.into());
        }
        connections.scrape(scrape);
        disk.scrape(scrape);
        cluster.scrape(scrape);
        topics.scrape(scrape);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidemark_protocol::{ErrorCode, message::Api};

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(Clock::start(), Health::starting())
    }

    #[test]
    fn what_was_counted_is_rendered_once_with_help_and_type() {
        let metrics = metrics();
        let produce = metrics.requests().api(Api::Produce);
        produce.received();
        produce.took(Stage::Total, Duration::from_millis(3));
        produce.failed(ErrorCode::NotLeader);
        let flow = Flow { batches: 1, records: 10, bytes: 1000 };
        metrics.topic("orders").produced(Protocol::Native, flow);
        metrics.topic("orders").produced(Protocol::Native, flow);

        let text = metrics.render(ScrapeDetail::default());
        for line in [
            "# TYPE tidemark_requests_total counter",
            "tidemark_requests_total{api=\"produce\"} 1",
            "tidemark_request_errors_total{api=\"produce\",error=\"NotLeader\"} 1",
            "tidemark_request_seconds_bucket{api=\"produce\",stage=\"total\",le=\"0.0025\"} 0",
            "tidemark_request_seconds_bucket{api=\"produce\",stage=\"total\",le=\"0.005\"} 1",
            "tidemark_records_in_total{topic=\"orders\",protocol=\"native\"} 20",
            "tidemark_ready 0",
            "tidemark_health_reason{reason=\"starting\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "no `{line}` in:\n{text}");
        }
        let mut families: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let all = families.len();
        families.dedup();
        assert_eq!(families.len(), all, "a family is rendered twice");
        assert!(families.is_sorted());
    }

    #[test]
    fn a_deleted_topic_leaves_no_series() {
        let metrics = metrics();
        let topic = metrics.topic("gone");
        topic.consumed(Protocol::Native, Flow { batches: 1, records: 1, bytes: 1 });
        assert!(metrics.render(ScrapeDetail::default()).contains("\"gone\""));
        metrics.forget_topic("gone");
        assert!(!metrics.render(ScrapeDetail::default()).contains("\"gone\""));
    }

    #[test]
    fn unknown_apis_cannot_fill_the_memory() {
        let metrics = metrics();
        for number in 1000..2000 {
            metrics.requests().unsupported(number);
        }
        let text = metrics.render(ScrapeDetail::default());
        let series =
            text.lines().filter(|line| line.starts_with("tidemark_api_unsupported_total{"));
        assert_eq!(series.count(), 33);
        assert!(text.contains("tidemark_api_unsupported_total{api=\"other\"} 968"));
    }

    #[test]
    fn sources_are_asked_for_partitions_only_when_the_scrape_wants_them() {
        struct Logs;
        impl ScrapeSource for Logs {
            fn scrape(&self, scrape: &Scrape) {
                scrape.gauge(&table::PARTITIONS, &["leader"], 1);
                if scrape.wants_partitions() {
                    scrape.gauge(&table::LOG_END_OFFSET, &["orders", "0"], 42);
                }
            }
        }
        let metrics = metrics();
        let logs = Arc::new(Logs);
        metrics.add_source(&logs);
        let plain = metrics.render(ScrapeDetail::default());
        assert!(
            plain.contains("tidemark_partitions{role=\"leader\"} 1")
                && !plain.contains("log_end_offset")
        );
        let detailed = metrics.render(ScrapeDetail { partitions: true });
        assert!(detailed.contains("tidemark_log_end_offset{topic=\"orders\",partition=\"0\"} 42"));
        drop(logs);
        assert!(!metrics.render(ScrapeDetail::default()).contains("tidemark_partitions"));
    }
}

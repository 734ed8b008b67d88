//! One scrape: the series whose truth lies elsewhere, read at the moment somebody asks.
//!
//! Log sizes, offsets, free space and the counters of topics are not maintained in the exporter. Each scrape
//! gets an empty recorder, sources fill it, it is rendered and thrown away. So a deleted topic leaves no series
//! behind, and the hot path pays for none of this.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use super::table::{Kind, METRICS, Metric};

const METADATA: Metadata<'static> = Metadata::new("tidemark", Level::INFO, None);

/// What a scrape asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrapeDetail {
    /// Also the series that exist once per partition: there may be a hundred thousand of them.
    pub partitions: bool,
}

/// A part of the broker that knows values which are worth a series.
pub trait ScrapeSource: Send + Sync {
    /// Adds the values of now. Called on a blocking thread; must not wait for anything.
    fn scrape(&self, scrape: &Scrape);
}

/// Where sources put their values.
#[derive(Debug)]
pub struct Scrape {
    recorder: PrometheusRecorder,
    detail: ScrapeDetail,
}

impl Scrape {
    pub(super) fn new(detail: ScrapeDetail) -> Self {
        Self { recorder: new_recorder(), detail }
    }

    /// Whether series per partition were asked for.
    pub fn wants_partitions(&self) -> bool {
        self.detail.partitions
    }

    /// Sets a gauge. `labels` are values, in the order of the metric's label names.
    pub fn gauge(&self, metric: &Metric, labels: &[&str], value: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; exact below 2^53")]
        self.gauge_f64(metric, labels, value as f64);
    }

    /// Sets a gauge that is not a whole number.
    pub fn gauge_f64(&self, metric: &Metric, labels: &[&str], value: f64) {
        gauge(&self.recorder, metric, labels).set(value);
    }

    /// Sets a counter whose count is kept elsewhere.
    pub fn counter(&self, metric: &Metric, labels: &[&str], value: u64) {
        counter(&self.recorder, metric, labels).absolute(value);
    }

    pub(super) fn render(&self) -> String {
        self.recorder.handle().render()
    }
}

/// A recorder that knows the buckets and the help of every metric.
pub(super) fn new_recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        if let Kind::Histogram(buckets) = metric.kind {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder
                .set_buckets_for_metric(matcher, buckets)
                .expect("every histogram in the table has buckets");
        }
    }
    let recorder = builder.build_recorder();
    for metric in METRICS {
        let (name, help) = (metric.name.into(), metric.help.into());
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
        }
    }
    recorder
}

pub(super) fn counter(recorder: &PrometheusRecorder, metric: &Metric, labels: &[&str]) -> Counter {
    assert_eq!(metric.kind, Kind::Counter, "{} is not a counter", metric.name);
    recorder.register_counter(&key(metric, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, metric: &Metric, labels: &[&str]) -> Gauge {
    assert_eq!(metric.kind, Kind::Gauge, "{} is not a gauge", metric.name);
    recorder.register_gauge(&key(metric, labels), &METADATA)
}

pub(super) fn histogram(
    recorder: &PrometheusRecorder,
    metric: &Metric,
    labels: &[&str],
) -> Histogram {
    assert!(matches!(metric.kind, Kind::Histogram(_)), "{} is not a histogram", metric.name);
    recorder.register_histogram(&key(metric, labels), &METADATA)
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    assert_eq!(metric.labels.len(), values.len(), "{} takes {:?}", metric.name, metric.labels);
    let pairs = metric.labels.iter().zip(values);
    let labels =
        pairs.map(|(name, value)| Label::new(*name, (*value).to_owned())).collect::<Vec<_>>();
    Key::from_parts(metric.name, labels)
}

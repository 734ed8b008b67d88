//! What a benchmark reports, for people and as JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidemark_client::Compression;

use super::Subject;
use crate::{
    output::{Page, Report, Rows, Tone},
    produce::Tuning,
    quantity,
};

/// Longest latency told apart; anything longer counts as this.
const LATENCY_MAX: Duration = Duration::from_mins(10);

/// An empty histogram of microseconds, three digits exact.
pub(super) fn histogram() -> Histogram<u64> {
    let highest = u64::try_from(LATENCY_MAX.as_micros()).expect("ten minutes");
    Histogram::new_with_bounds(1, highest, 3).expect("the bounds are constants")
}

pub(super) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
}

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    benchmark: &'static str,
    topic: String,
    partitions: u32,
    record_bytes: u64,
    records: u64,
    /// Of values.
    bytes: u64,
    elapsed_seconds: f64,
    records_per_second: f64,
    /// Millions of bytes, not MiB.
    megabytes_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<LoadReport>,
    /// `null` when none was measured.
    latency: Option<Latency>,
}

/// How the load was made.
#[derive(Debug, Serialize)]
pub(super) struct LoadReport {
    pub(super) producers: u32,
    /// `null` is as fast as it goes.
    pub(super) rate: Option<f64>,
    acks: String,
    durability: String,
    compression: String,
    batch_bytes: u64,
    linger_ms: u64,
}

/// In milliseconds.
#[derive(Debug, Serialize)]
struct Latency {
    /// What is measured.
    of: &'static str,
    samples: u64,
    mean_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

impl LoadReport {
    pub(super) fn new(producers: u32, rate: Option<f64>, tuning: &Tuning) -> Self {
        let compression: Compression = tuning.compression;
        Self {
            producers,
            rate,
            acks: format!("{:?}", tuning.acks).to_lowercase(),
            durability: format!("{:?}", tuning.durability).to_lowercase(),
            compression: compression.to_string(),
            batch_bytes: tuning.batch_bytes,
            linger_ms: u64::try_from(tuning.linger.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Latency {
    #[expect(clippy::cast_precision_loss, reason = "microseconds up to ten minutes")]
    fn new(of: &'static str, histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1_000.0;
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        Self {
            of,
            samples: histogram.len(),
            mean_ms: histogram.mean().round() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(histogram.max()),
        }
    }
}

impl BenchReport {
    pub(super) fn new(
        benchmark: &'static str,
        subject: &Subject,
        records: u64,
        bytes: u64,
        elapsed: Duration,
    ) -> Self {
        Self {
            benchmark,
            topic: subject.name.clone(),
            partitions: subject.partitions,
            record_bytes: bytes / records.max(1),
            records,
            bytes,
            elapsed_seconds: elapsed.as_secs_f64(),
            records_per_second: quantity::per_second(records, elapsed),
            megabytes_per_second: quantity::per_second(bytes, elapsed) / 1e6,
            load: None,
            latency: None,
        }
    }

    pub(super) fn with_load(self, load: LoadReport) -> Self {
        Self { load: Some(load), ..self }
    }

    pub(super) fn with_latency(self, of: &'static str, histogram: &Histogram<u64>) -> Self {
        let latency = (!histogram.is_empty()).then(|| Latency::new(of, histogram));
        Self { latency, ..self }
    }
}

impl Report for BenchReport {
    const SCHEMA: &'static str = "tidemark/bench/1";

    fn page(&self, page: &mut Page) {
        page.line(
            &format!(
                "{}: {} of {} in {}, {}",
                self.benchmark,
                quantity::counted(self.records, "record"),
                quantity::bytes(self.record_bytes),
                quantity::duration(Duration::from_secs_f64(self.elapsed_seconds)),
                quantity::counted(self.partitions.into(), "partition"),
            ),
            Tone::Plain,
        );
        let throughput = format!(
            "{} records/s, {:.1} MB/s",
            quantity::rate(self.records_per_second),
            self.megabytes_per_second
        );
        page.fields(&[("throughput", throughput)]);
        let Some(latency) = &self.latency else { return };
        page.fields(&[("latency", latency.of.to_owned())]);
        let mut rows = Rows::new(&[">P50", ">P90", ">P99", ">P99.9", ">MAX", ">SAMPLES"]);
        let times =
            [latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms];
        let mut row: Vec<String> = times.iter().map(|ms| format!("{ms:.3} ms")).collect();
        row.push(quantity::count(latency.samples));
        rows.push(row);
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        vec![self.topic.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject { name: "bench-1".to_owned(), partitions: 2, created: true }
    }

    #[test]
    fn a_report_has_rates_and_percentiles_in_milliseconds() {
        let mut latency = histogram();
        for millis in 1..=1000 {
            record(&mut latency, Duration::from_millis(millis));
        }
        let report =
            BenchReport::new("produce", &subject(), 1_000, 2_000_000, Duration::from_secs(2))
                .with_latency("to acknowledgement", &latency);
        assert!((report.records_per_second - 500.0).abs() < 1e-6);
        assert!((report.megabytes_per_second - 1.0).abs() < 1e-6);
        assert_eq!(report.record_bytes, 2_000);
        let latency = report.latency.expect("latency was measured");
        assert!((latency.p50_ms - 500.0).abs() < 1.0, "{}", latency.p50_ms);
        assert!((latency.p99_ms - 990.0).abs() < 1.0, "{}", latency.p99_ms);
        assert!((latency.max_ms - 1_000.0).abs() < 1.0, "{}", latency.max_ms);
    }

    #[test]
    fn nothing_measured_is_no_latency_and_absurd_ones_are_limited() {
        let report = BenchReport::new("consume", &subject(), 0, 0, Duration::ZERO)
            .with_latency("x", &histogram());
        assert!(report.latency.is_none());
        let mut latency = histogram();
        record(&mut latency, Duration::from_hours(5));
        assert_eq!(latency.len(), 1);
    }
}

//! What the disk side does: group commits, reads, deletions, damage, recovery.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{
    scrape::{self, Scrape},
    table,
};

/// Whether a read was served from bytes that were surely in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Hot,
    Cold,
}

/// Why records were deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    Size,
    Time,
    /// A client asked for it.
    Trim,
}

/// The handles of everything that touches the disk.
pub struct DiskMetrics {
    fsync_seconds: Histogram,
    fsync_batch_bytes: Histogram,
    fsync_batch_partitions: Histogram,
    read_bytes: [Counter; 2],
    deleted_bytes: [Counter; 3],
    compaction_read_bytes: Counter,
    compaction_written_bytes: Counter,
    checksum_failures: Counter,
    recovery_ms: AtomicU64,
}

impl fmt::Debug for DiskMetrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("DiskMetrics").finish_non_exhaustive()
    }
}

impl DiskMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        let counter = |metric, label| scrape::counter(recorder, metric, &[label]);
        Self {
            fsync_seconds: scrape::histogram(recorder, &table::FSYNC_SECONDS, &[]),
            fsync_batch_bytes: scrape::histogram(recorder, &table::FSYNC_BATCH_BYTES, &[]),
            fsync_batch_partitions: scrape::histogram(
                recorder,
                &table::FSYNC_BATCH_PARTITIONS,
                &[],
            ),
            read_bytes: ["hot", "cold"].map(|tier| counter(&table::READ_BYTES, tier)),
            deleted_bytes: ["size", "time", "trim"]
                .map(|reason| counter(&table::RETENTION_DELETED, reason)),
            compaction_read_bytes: counter(&table::COMPACTION_BYTES, "read"),
            compaction_written_bytes: counter(&table::COMPACTION_BYTES, "written"),
            checksum_failures: scrape::counter(recorder, &table::CHECKSUM_FAILURES, &[]),
            recovery_ms: AtomicU64::new(0),
        }
    }

    /// One group commit that succeeded.
    #[expect(clippy::cast_precision_loss, reason = "histograms take floats; exact below 2^53")]
    pub fn flushed(&self, elapsed: Duration, bytes: u64, partitions: usize) {
        self.fsync_seconds.record(elapsed);
        self.fsync_batch_bytes.record(bytes as f64);
        self.fsync_batch_partitions.record(partitions as f64);
    }

    pub fn read(&self, tier: Tier, bytes: u64) {
        self.read_bytes[tier as usize].increment(bytes);
    }

    pub fn deleted(&self, reason: Deletion, bytes: u64) {
        self.deleted_bytes[reason as usize].increment(bytes);
    }

    pub fn compacted(&self, read_bytes: u64, written_bytes: u64) {
        self.compaction_read_bytes.increment(read_bytes);
        self.compaction_written_bytes.increment(written_bytes);
    }

    /// Stored data was found damaged.
    pub fn checksum_failed(&self) {
        self.checksum_failures.increment(1);
    }

    /// All logs are open.
    pub fn recovered(&self, elapsed: Duration) {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.recovery_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn scrape(&self, scrape: &Scrape) {
        let recovery = Duration::from_millis(self.recovery_ms.load(Ordering::Relaxed));
        scrape.gauge_f64(&table::RECOVERY_SECONDS, &[], recovery.as_secs_f64());
    }
}

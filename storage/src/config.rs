//! What a log is told about itself: its identity and its limits. Plain values.

use tidemark_protocol::{LeaderEpoch, Offset, TimestampMs, TopicPartition, limits};

/// Smallest segment a log may be configured to, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Largest segment a log may be configured to, in bytes: positions in the index are 32 bits wide.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;

/// Most bytes one append may have: what fits a frame, and thus a request.
pub const APPEND_BYTES_MAX: u64 = limits::FRAME_BYTES_MAX as u64;

/// Which partition's data this is. Data that says otherwise is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    pub partition: TopicPartition,
}

/// What happens to old records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleanup {
    /// Whole segments go when they are too old or the log too large.
    pub delete: bool,
    /// Records that a newer one with the same key supersedes go.
    pub compact: bool,
}

/// The settings of one log. All may change while it is open; see [`crate::Log::set_config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment that would grow beyond this is closed and another begun.
    /// Clamped to [`SEGMENT_BYTES_MIN`]`..=`[`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// A segment whose first batch is this old is closed.
    pub segment_ms: u64,
    /// Oldest segments are deleted while the rest is at least this large. `None`: never for size.
    pub retention_bytes: Option<u64>,
    /// Segments whose newest record is this old are deleted. `None`: never for age.
    pub retention_ms: Option<u64>,
    pub cleanup: Cleanup,
    /// How long compaction keeps tombstones.
    pub delete_retention_ms: u64,
    /// How old a record must be before compaction may drop it.
    pub min_compaction_lag_ms: u64,
    /// About one index entry for this many bytes of batches.
    pub index_interval_bytes: u64,
    /// Largest batch an append accepts, header included.
    pub max_batch_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3600 * 1000,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3600 * 1000),
            cleanup: Cleanup { delete: true, compact: false },
            delete_retention_ms: 24 * 3600 * 1000,
            min_compaction_lag_ms: 0,
            index_interval_bytes: 4096,
            max_batch_bytes: 1 << 20,
        }
    }
}

impl LogConfig {
    pub(crate) fn segment_limit(&self) -> u64 {
        self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
    }
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record of the first batch.
    pub base_offset: Offset,
    /// Offset after the last record: the new log end offset.
    pub next_offset: Offset,
    pub bytes: u64,
    pub leader_epoch: LeaderEpoch,
    /// Newest timestamp among the batches.
    pub max_timestamp_ms: TimestampMs,
}

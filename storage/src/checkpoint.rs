//! What a log knows to be durable, small enough to be written for ten thousand logs every second.
//!
//! A checkpoint lets a log open without reading what it proves: recovery starts at its tip. It
//! proves, too: less in the log than it says, without a truncation recorded since, is corruption.

use serde::{Deserialize, Serialize};
use tidemark_protocol::Offset;

use crate::{epochs::EpochStart, index::IndexEntry, log::Summary, segment::first_entry};

/// What one log knows to be durable. Made by [`crate::Log::checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which life of the directory this is about.
    pub(crate) incarnation: u64,
    pub log_start: Offset,
    /// Everything from the log start up to here was durable.
    pub flushed_offset: Offset,
    /// All segments in front of the tip's.
    pub(crate) sealed: Vec<SegmentMark>,
    /// Where the durable part ends; `None`: nothing was.
    pub(crate) tip: Option<Tip>,
    /// Truncations the log had seen.
    pub(crate) truncations: u64,
    /// The leader-epoch history.
    pub(crate) epochs: Vec<EpochStart>,
    /// What the batches come to, up to `flushed_offset` at most. Set by whoever makes summaries, small ones only: all
    /// checkpoints are in one file.
    #[serde(default)]
    pub summary: Option<Summary>,
    /// The log was closed after this and nothing was written since: there is nothing to scan. Set
    /// by whoever found the mark of a clean shutdown, never stored.
    #[serde(skip)]
    pub clean: bool,
}

/// A complete segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentMark {
    pub base: Offset,
    pub end: IndexEntry,
}

/// A position at the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tip {
    pub segment_base: Offset,
    pub at: IndexEntry,
    /// Where the batch that ends here starts; recovery checks that it is still there.
    pub last_batch: u64,
    /// When the segment's first batch was appended, if that is known.
    pub created_ms: Option<u64>,
    /// The segment takes no more batches.
    pub rolled: bool,
}

impl Tip {
    /// The start of a segment of which nothing is known.
    pub(crate) fn at_start(base: Offset, salt: u32) -> Self {
        Self {
            segment_base: base,
            at: first_entry(base, salt),
            last_batch: 0,
            created_ms: None,
            rolled: false,
        }
    }
}

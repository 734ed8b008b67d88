//! `quarantine`: offsets whose bytes are damaged on disk.
//!
//! Recorded so that nobody is served them by luck, and so that an operator finds them. The list is
//! advice, not truth: when the file cannot be written or read, the damage itself is still there to
//! be found again.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use tidemark_protocol::Offset;

use super::Shared;
use crate::{
    disk::Disk,
    state_file::{self, Kind},
};

pub(super) const QUARANTINE_FILE: &str = "quarantine";
const QUARANTINE_BYTES_MAX: usize = 1 << 20;

/// Adds a range, merged with what it touches; returns the merged one.
pub(super) fn add<D: Disk>(shared: &Shared<D>, range: Range<Offset>) -> Range<Offset> {
    let state_files = shared.state_files();
    let mut ranges = Vec::clone(&shared.quarantine.load());
    let merged = merge(&mut ranges, range);
    store(shared, ranges, state_files.deleted);
    merged
}

/// Forgets damage outside `kept`: those offsets are not in the log any more.
pub(super) fn clip<D: Disk>(shared: &Shared<D>, kept: &Range<Offset>) {
    if shared.quarantine.load().is_empty() {
        return;
    }
    let state_files = shared.state_files();
    let ranges = shared.quarantine.load();
    let clipped: Vec<_> = ranges
        .iter()
        .map(|range| range.start.max(kept.start)..range.end.min(kept.end))
        .filter(|range| !range.is_empty())
        .collect();
    if clipped != **ranges {
        store(shared, clipped, state_files.deleted);
    }
}

/// The first damaged offset of the log, as far as is known.
pub(super) fn first<D: Disk>(shared: &Shared<D>) -> Option<Offset> {
    let quarantine = shared.quarantine.load();
    let log_start = shared.log_start.load(Ordering::Acquire);
    let first = quarantine.iter().find(|range| range.end > log_start)?.start.max(log_start);
    (first < shared.log_end.load(Ordering::Acquire)).then_some(first)
}

/// Reads the file at open.
pub(super) fn load<D: Disk>(shared: &Shared<D>) {
    let path = shared.path(QUARANTINE_FILE);
    let ranges: Option<Vec<Range<Offset>>> =
        state_file::read_cache(shared.disk(), &path, Kind::Quarantine, QUARANTINE_BYTES_MAX);
    let mut merged = Vec::new();
    for range in ranges.unwrap_or_default().into_iter().filter(|range| !range.is_empty()) {
        merge(&mut merged, range);
    }
    shared.quarantine.store(Arc::new(merged));
}

fn store<D: Disk>(shared: &Shared<D>, ranges: Vec<Range<Offset>>, deleted: bool) {
    let path = shared.path(QUARANTINE_FILE);
    if !deleted
        && let Err(error) = state_file::write(shared.disk(), &path, Kind::Quarantine, &ranges)
    {
        tracing::warn!(%error, "damaged offsets are not recorded");
    }
    shared.quarantine.store(Arc::new(ranges));
}

/// Merges a range into ordered, disjoint ones; returns what it became.
fn merge(ranges: &mut Vec<Range<Offset>>, range: Range<Offset>) -> Range<Offset> {
    let first = ranges.partition_point(|other| other.end < range.start);
    let last = ranges.partition_point(|other| other.start <= range.end);
    let mut merged = range;
    for other in ranges.drain(first..last) {
        merged = merged.start.min(other.start)..merged.end.max(other.end);
    }
    ranges.insert(first, merged.clone());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut ranges = Vec::new();
        for range in [10..20, 40..50, 60..70, 20..25, 0..5] {
            merge(&mut ranges, range);
        }
        assert_eq!(ranges, [0..5, 10..25, 40..50, 60..70]);
        assert_eq!(merge(&mut ranges, 24..60), 10..70);
        assert_eq!(ranges, [0..5, 10..70]);
    }
}

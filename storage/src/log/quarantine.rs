//! `quarantine`: offsets whose bytes are damaged on disk.
//!
//! Recorded so that nobody is served them by luck, and so that an operator finds them. What is not
//! on the list is found again: the damage itself is still there. But what is on it counts, so that
//! an offset must be off the file before anything else is written there.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use tidemark_protocol::Offset;

use super::Shared;
use crate::{
    disk::{Disk, DiskError},
    state_file::{self, Kind},
};

pub(super) const QUARANTINE_FILE: &str = "quarantine";
const QUARANTINE_BYTES_MAX: usize = 1 << 20;

/// Adds a range, merged with what it touches; returns the merged one.
pub(super) fn add<D: Disk>(shared: &Shared<D>, range: Range<Offset>) -> Range<Offset> {
    let state_files = shared.state_files();
    let mut ranges = Vec::clone(&shared.quarantine.load());
    let merged = merge(&mut ranges, range);
    if !state_files.deleted
        && let Err(error) = write(shared, &ranges)
    {
        tracing::warn!(%error, "damaged offsets are not recorded");
    }
    shared.quarantine.store(Arc::new(ranges));
    merged
}

/// Forgets damage outside `kept`: those offsets are not in the log any more, and what is going to be
/// there is not damaged.
///
/// # Errors
///
/// When neither the list can be replaced nor the file be removed.
pub(super) fn clip<D: Disk>(shared: &Shared<D>, kept: &Range<Offset>) -> Result<(), DiskError> {
    if shared.quarantine.load().is_empty() {
        return Ok(());
    }
    let state_files = shared.state_files();
    let ranges = shared.quarantine.load();
    let clipped: Vec<_> = ranges
        .iter()
        .map(|range| range.start.max(kept.start)..range.end.min(kept.end))
        .filter(|range| !range.is_empty())
        .collect();
    if clipped == **ranges {
        return Ok(());
    }
    if !state_files.deleted
        && let Err(error) = write(shared, &clipped)
    {
        tracing::warn!(%error, "the list of damaged offsets is dropped: what is damaged will be found again");
        remove(shared)?;
    }
    shared.quarantine.store(Arc::new(clipped));
    Ok(())
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

fn write<D: Disk>(shared: &Shared<D>, ranges: &Vec<Range<Offset>>) -> Result<(), DiskError> {
    let path = shared.path(QUARANTINE_FILE);
    state_file::write(shared.disk(), &path, Kind::Quarantine, ranges)
}

fn remove<D: Disk>(shared: &Shared<D>) -> Result<(), DiskError> {
    match shared.disk().unlink(&shared.path(QUARANTINE_FILE)) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    shared.disk().sync_dir(&shared.dir)
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

//! Reading: whole batches, sliced out of the map.
//!
//! A reader never takes a lock that the owner takes on its way. It loads the log end first and the
//! segment list second, so the list covers the end; a truncation in between shows as a segment that
//! is no longer in the list, and the read starts over.
//!
//! What this process wrote a moment ago is *hot*: certainly in memory, served without looking at
//! more than a few headers. Everything else is *cold*: brought into memory first, so that a read
//! error is an error and not a signal, and verified (CRC, contiguity, checksum chain) before it is
//! served. Damage is quarantined: recorded, refused from then on, and never deleted.

mod cold;

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use tidemark_protocol::{Offset, TimestampMs, batch::Batch, ids::NO_TIMESTAMP};

use super::{Shared, quarantine, shown};
use crate::{
    disk::{Disk, DiskFile},
    error::ReadError,
    index::IndexEntry,
    segment::{OpenFile, Segment},
    walk::{Walk, WalkError},
};

/// How far behind the log end data counts as certainly in memory.
const HOT_BYTES: u64 = 64 << 20;
/// A truncation or deletion that runs alongside makes a read start over; more often than this in
/// one read and something else is wrong.
const ATTEMPTS_MAX: usize = 8;

/// May a read wait for the disk?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Only answer what is certainly in memory; never blocks.
    Hot,
    /// Read from disk if need be, and verify what is read.
    Any,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Whole batches, one after the other. Empty when there is nothing below the upper bound yet.
    Batches {
        bytes: Bytes,
        /// Where to read on.
        next_offset: Offset,
    },
    /// Not certainly in memory: ask again with [`Residency::Any`], where blocking is allowed.
    Cold,
}

/// A view of a log for reading. Cheap to clone, usable from any thread, alive for as long as it is
/// kept (a deleted log reads as out of range).
#[derive(Debug)]
pub struct LogReader<D: Disk> {
    shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Why an attempt to read did not end in an answer.
enum Stop {
    Failed(ReadError),
    /// The log changed underneath: start over.
    Changed,
}

impl<E: Into<ReadError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What one read is after.
#[derive(Clone, Copy)]
struct Wanted {
    offset: Offset,
    upper_bound: Offset,
    max_bytes: u64,
    residency: Residency,
}

impl<D: Disk> LogReader<D> {
    pub(super) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// Offset of the oldest record that may be read.
    pub fn log_start_offset(&self) -> Offset {
        self.shared.log_start.load(Ordering::Acquire)
    }

    /// See [`super::Log::removals_end`]. Asked after a read, it covers what was read.
    pub fn removals_end(&self) -> Offset {
        self.shared.removals_end.load(Ordering::Acquire)
    }

    /// Offset after the last record.
    pub fn log_end_offset(&self) -> Offset {
        self.shared.log_end.load(Ordering::Acquire)
    }

    /// Everything below is durable.
    pub fn flushed_offset(&self) -> Offset {
        self.shared.flushed.load(Ordering::Acquire)
    }

    /// Bytes of batches in the log.
    pub fn size_bytes(&self) -> u64 {
        self.shared.segments.load().iter().map(|segment| segment.end()).sum()
    }

    pub fn segment_count(&self) -> usize {
        self.shared.segments.load().len()
    }

    /// Newest timestamp in the log, [`NO_TIMESTAMP`] when there is none.
    pub fn max_timestamp_ms(&self) -> TimestampMs {
        let segments = self.shared.segments.load();
        segments.iter().map(|segment| segment.max_timestamp()).max().map_or(NO_TIMESTAMP, shown)
    }

    /// Ranges of offsets whose bytes are damaged, in order.
    pub fn quarantined(&self) -> Arc<Vec<Range<Offset>>> {
        self.shared.quarantine.load_full()
    }

    /// The first offset known to be damaged, if one is.
    pub fn damaged_from(&self) -> Option<Offset> {
        quarantine::first(&self.shared)
    }

    /// Whole batches from the one that contains `offset` (or, after compaction, follows it), all
    /// below `upper_bound`, about `max_bytes` of them and at least one.
    ///
    /// The first batch may begin before `offset`. `offset` may be the log end; beyond it, or below
    /// the log start, is [`ReadError::OutOfRange`].
    pub fn read(
        &self,
        offset: Offset,
        upper_bound: Offset,
        max_bytes: usize,
        residency: Residency,
    ) -> Result<ReadOutcome, ReadError> {
        let wanted = Wanted { offset, upper_bound, max_bytes: max_bytes as u64, residency };
        self.attempt(|| self.try_read(wanted))
    }

    /// The first record whose timestamp is at least `timestamp`, below `upper_bound`; its offset
    /// and timestamp. May read from disk.
    pub fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
        upper_bound: Offset,
    ) -> Result<Option<(Offset, TimestampMs)>, ReadError> {
        self.attempt(|| self.try_offset_for_timestamp(timestamp, upper_bound))
    }

    fn attempt<T>(&self, mut read: impl FnMut() -> Result<T, Stop>) -> Result<T, ReadError> {
        for _ in 1..ATTEMPTS_MAX {
            match read() {
                Ok(answer) => return Ok(answer),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Changed) => {}
            }
        }
        match read() {
            Ok(answer) => Ok(answer),
            Err(Stop::Failed(error)) => Err(error),
            // Whatever was asked for keeps being deleted.
            Err(Stop::Changed) => Err(self.out_of_range(self.log_start_offset())),
        }
    }

    fn out_of_range(&self, offset: Offset) -> ReadError {
        let range = self.log_start_offset()..self.log_end_offset();
        ReadError::OutOfRange { offset, range }
    }

    fn try_read(&self, wanted: Wanted) -> Result<ReadOutcome, Stop> {
        let log_end = self.log_end_offset();
        if wanted.offset > log_end || wanted.offset < self.log_start_offset() {
            return Err(self.out_of_range(wanted.offset).into());
        }
        let nothing = nothing(wanted);
        let upper_bound = wanted.upper_bound.min(log_end);
        if wanted.offset >= upper_bound {
            return Ok(nothing);
        }
        let mut wanted = wanted;
        let segments = self.shared.segments.load_full();
        let first = segments.partition_point(|segment| segment.base <= wanted.offset);
        for index in first.saturating_sub(1)..segments.len() {
            let segment = &segments[index];
            if segment.base >= upper_bound {
                break;
            }
            // Compaction may have removed what was asked for, up to the end of a segment.
            wanted.offset = wanted.offset.max(segment.base);
            wanted.upper_bound = self.sound_until(wanted.offset)?.min(upper_bound);
            let hot_from = hot_from(&segments[index..]);
            if let Some(outcome) = self.read_segment(segment, wanted, hot_from)? {
                return Ok(outcome);
            }
        }
        Ok(nothing)
    }

    /// Reads in one segment; `None` when it holds nothing at or after the offset.
    fn read_segment(
        &self,
        segment: &Arc<Segment<D>>,
        wanted: Wanted,
        hot_from: u64,
    ) -> Result<Option<ReadOutcome>, Stop> {
        if wanted.residency == Residency::Hot {
            let Some(file) = segment.open_file() else { return Ok(Some(ReadOutcome::Cold)) };
            return match segment.floor(|entry| entry.offset <= wanted.offset) {
                Some(floor) if floor.position >= hot_from => {
                    self.read_hot(segment, &file, floor, wanted)
                }
                _ => Ok(Some(ReadOutcome::Cold)),
            };
        }
        let floor = match segment.floor(|entry| entry.offset <= wanted.offset) {
            Some(floor) => floor,
            None => self.load_and_floor(segment, |entry| entry.offset <= wanted.offset)?,
        };
        let file = self.open(segment)?;
        if floor.position >= hot_from {
            return self.read_hot(segment, &file, floor, wanted);
        }
        self.read_cold(segment, &file, floor, wanted)
    }

    fn open(&self, segment: &Arc<Segment<D>>) -> Result<Arc<OpenFile<D>>, Stop> {
        match segment.file() {
            Err(_) if !self.is_listed(segment) => Err(Stop::Changed),
            other => Ok(other?),
        }
    }

    fn load_and_floor(
        &self,
        segment: &Arc<Segment<D>>,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> Result<IndexEntry, Stop> {
        let older = match segment.load_older() {
            Err(_) if !self.is_listed(segment) => return Err(Stop::Changed),
            other => other?,
        };
        Ok(segment.floor_in(&older, before))
    }

    fn is_listed(&self, segment: &Arc<Segment<D>>) -> bool {
        self.shared.segments.load().iter().any(|listed| Arc::ptr_eq(listed, segment))
    }

    fn read_hot(
        &self,
        segment: &Arc<Segment<D>>,
        file: &Arc<OpenFile<D>>,
        floor: IndexEntry,
        wanted: Wanted,
    ) -> Result<Option<ReadOutcome>, Stop> {
        let mut walk = Walk::new(Arc::clone(file), floor.position, segment.end(), false);
        let mut start = None;
        let mut next_offset = floor.offset;
        loop {
            let header = match walk.peek() {
                Ok(Some(header)) => Some(header),
                Ok(None) => break,
                Err(WalkError::Disk(error)) => return Err(error.into()),
                Err(WalkError::NoBatch) => None,
            };
            let header = header.filter(|header| header.base_offset == next_offset);
            let position = walk.position();
            let Some(header) = header else {
                if start.is_some() {
                    // Behind what is served; whoever reads there meets it.
                    break;
                }
                return self.damage(segment, file, position, next_offset);
            };
            if header.next_offset() > wanted.upper_bound {
                if start.is_some() {
                    break;
                }
                // That it is not served is an answer, and what says how far it reaches may be damaged.
                return match walk.batch(&header) {
                    Err(WalkError::Disk(error)) => Err(error.into()),
                    Ok(batch) if batch.verify_crc().is_ok() => Ok(Some(nothing(wanted))),
                    _ => self.damage(segment, file, position, next_offset),
                };
            }
            if header.next_offset() > wanted.offset {
                let first = *start.get_or_insert(position);
                if position > first
                    && position + header.batch_bytes as u64 > first + wanted.max_bytes
                {
                    break;
                }
                if position == first {
                    // The index knows a batch boundary close to where this read ends.
                    let until = first + wanted.max_bytes;
                    let near = segment.recent.last_where(|entry| {
                        entry.position <= until && entry.offset <= wanted.upper_bound
                    });
                    if let Some(near) = near.filter(|near| near.position > position) {
                        next_offset = near.offset;
                        walk.seek(near.position);
                        continue;
                    }
                }
            }
            next_offset = header.next_offset();
            walk.skip(&header);
        }
        Ok(answer(segment, file, start, walk.position(), next_offset))
    }

    /// Up to where nothing is known to be damaged; refuses an offset that is.
    fn sound_until(&self, offset: Offset) -> Result<Offset, ReadError> {
        let quarantine = self.shared.quarantine.load();
        match quarantine.iter().find(|range| range.end > offset) {
            Some(range) if range.start <= offset => {
                Err(ReadError::Corrupt { range: range.clone() })
            }
            Some(range) => Ok(range.start),
            None => Ok(Offset::MAX),
        }
    }

    /// The bytes at `position`, where a batch at `offset` should be, are not it: quarantines
    /// everything up to the next place that is known to be good.
    fn damage<T>(
        &self,
        segment: &Arc<Segment<D>>,
        file: &Arc<OpenFile<D>>,
        position: u64,
        offset: Offset,
    ) -> Result<T, Stop> {
        let end = self.good_after(segment, file, position, offset);
        self.quarantine(segment, offset..end)
    }

    /// Refuses offsets from now on, unless what was read was being deleted meanwhile.
    fn quarantine<T>(&self, segment: &Arc<Segment<D>>, range: Range<Offset>) -> Result<T, Stop> {
        if !self.is_listed(segment) {
            return Err(Stop::Changed);
        }
        tracing::error!(
            segment = %segment.path().display(), ?range,
            "corrupt data on disk: quarantined, not served"
        );
        let range = quarantine::add(&self.shared, range);
        Err(ReadError::Corrupt { range }.into())
    }

    fn good_after(
        &self,
        segment: &Arc<Segment<D>>,
        file: &Arc<OpenFile<D>>,
        position: u64,
        offset: Offset,
    ) -> Offset {
        // If the header still leads to a batch that continues it, only this one batch is bad.
        let end = segment.end();
        let mut walk = Walk::new(Arc::clone(file), position, end, true);
        if let Ok(Some(header)) = walk.peek()
            && header.base_offset == offset
        {
            walk.skip(&header);
            let continued = match walk.peek() {
                Ok(Some(next)) => next.base_offset == header.next_offset(),
                Ok(None) => true,
                Err(_) => false,
            };
            if continued {
                return header.next_offset();
            }
        }
        // Otherwise nothing up to the next boundary that the index knows.
        let older = segment.load_older().unwrap_or_default();
        if let Some(next) = segment.entry_after(&older, position).filter(|e| e.offset > offset) {
            return next.offset;
        }
        let segments = self.shared.segments.load();
        let next = segments.iter().find(|other| other.base > segment.base);
        next.map_or_else(|| self.log_end_offset(), |next| next.base)
    }

    fn try_offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
        upper_bound: Offset,
    ) -> Result<Option<(Offset, TimestampMs)>, Stop> {
        let upper_bound = upper_bound.min(self.log_end_offset());
        let log_start = self.log_start_offset();
        let segments = self.shared.segments.load_full();
        for segment in segments.iter().take_while(|segment| segment.base < upper_bound) {
            if segment.max_timestamp() < timestamp {
                continue;
            }
            let before = |entry: &IndexEntry| entry.max_timestamp < timestamp;
            let floor = self.load_and_floor(segment, before)?;
            let file = self.open(segment)?;
            let mut walk = Walk::new(Arc::clone(&file), floor.position, segment.end(), true);
            let mut expected = floor.offset;
            loop {
                let batch = match next_batch(&mut walk, timestamp) {
                    Ok(Some(found)) => found,
                    Ok(None) => break,
                    Err(WalkError::Disk(error)) => return Err(error.into()),
                    Err(WalkError::NoBatch) => {
                        return self.damage(segment, &file, walk.position(), expected);
                    }
                };
                if batch.header.base_offset >= upper_bound {
                    return Ok(None);
                }
                let position = walk.position() - batch.header.batch_bytes as u64;
                if batch.verify_crc().is_err() {
                    return self.damage(segment, &file, position, batch.header.base_offset);
                }
                let Ok(records) = batch.records() else {
                    return self.damage(segment, &file, position, batch.header.base_offset);
                };
                let hit = records
                    .iter()
                    .find(|record| record.timestamp_ms >= timestamp && record.offset >= log_start);
                if let Some(record) = hit {
                    let found = (record.offset, record.timestamp_ms);
                    return Ok((record.offset < upper_bound).then_some(found));
                }
                expected = batch.header.next_offset();
            }
        }
        Ok(None)
    }
}

/// The next batch with a record at or after `timestamp`; the walk is behind it then.
fn next_batch<D: Disk>(
    walk: &mut Walk<D>,
    timestamp: TimestampMs,
) -> Result<Option<Batch>, WalkError> {
    while let Some(header) = walk.peek()? {
        if header.max_timestamp >= timestamp {
            let batch = walk.batch(&header)?;
            walk.skip(&header);
            return Ok(Some(batch));
        }
        walk.skip(&header);
    }
    Ok(None)
}

/// There is nothing to serve at the offset that is wanted.
fn nothing(wanted: Wanted) -> ReadOutcome {
    ReadOutcome::Batches { bytes: Bytes::new(), next_offset: wanted.offset }
}

fn answer<D: Disk>(
    segment: &Segment<D>,
    file: &OpenFile<D>,
    start: Option<u64>,
    end: u64,
    next_offset: Offset,
) -> Option<ReadOutcome> {
    let start = start.filter(|start| *start < end)?;
    debug_assert!(end <= segment.end());
    Some(ReadOutcome::Batches { bytes: file.file.slice(start..end), next_offset })
}

/// The position in the first of these segments, which reach to the log end, from which on its
/// bytes are hot; beyond its end when none are.
fn hot_from<D: Disk>(segments: &[Arc<Segment<D>>]) -> u64 {
    let mut behind = 0;
    for later in &segments[1..] {
        behind += later.end();
        if behind >= HOT_BYTES {
            return u64::MAX;
        }
    }
    let segment = &segments[0];
    segment.verified_from.max(segment.end().saturating_sub(HOT_BYTES - behind))
}

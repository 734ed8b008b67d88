//! Appending: assign offsets, write to the segment's file, publish.
//!
//! Space first (so that a full disk leaves the log as it was), then payload, then header, then the
//! segment's end, then the log end offset, each visible to readers only after what it covers.

use std::sync::{Arc, atomic::Ordering};

use tidemark_protocol::{
    LeaderEpoch, Offset, TimestampMs,
    batch::{Batch, BatchHeader, stamp},
};

use super::{Dirty, Log, Tail, shown};
use crate::{
    compaction::cut_empty,
    config::{APPEND_BYTES_MAX, Appended},
    disk::{Disk, DiskError, DiskFile},
    error::AppendError,
    index::{IndexEntry, NO_MAX_TIMESTAMP},
    segment::{self, OpenFile, Segment, SegmentStart, first_entry},
};

/// Most offsets one segment may span, as in Kafka: its tools keep them relative in 31 bits.
const SEGMENT_OFFSETS_MAX: u64 = i32::MAX as u64;

impl<D: Disk> Log<D> {
    /// Appends batches as their leader: gives them the next offsets and `leader_epoch`. All of them
    /// or none. The batches' contents are the caller's responsibility.
    pub fn append(
        &mut self,
        batches: &[Batch],
        leader_epoch: LeaderEpoch,
        now_ms: u64,
    ) -> Result<Appended, AppendError> {
        if let Some(latest) = self.epochs.latest()
            && leader_epoch < latest
        {
            return Err(AppendError::StaleEpoch { given: leader_epoch, latest });
        }
        let max_bytes = self.config.max_batch_bytes;
        for batch in batches {
            let bytes = batch.bytes().len() as u64;
            if bytes > max_bytes {
                return Err(AppendError::TooLarge { bytes, max_bytes });
            }
        }
        let mut next = self.log_end_offset();
        let placed = batches.iter().map(|batch| {
            let base = next;
            next += u64::from(batch.header.last_offset_delta) + 1;
            Placed { batch, base, epoch: leader_epoch }
        });
        self.write(&placed.collect::<Vec<_>>(), now_ms)
    }

    /// Appends batches that already have offsets and epochs, as a follower gets them. All of them or
    /// none. Offsets must continue the log (compaction leaves no gaps) and epochs must not go back.
    pub fn append_as_follower(
        &mut self,
        batches: &[Batch],
        now_ms: u64,
    ) -> Result<Appended, AppendError> {
        let mut expected = self.log_end_offset();
        let mut latest = self.epochs.latest().unwrap_or(0);
        let cut = batches.first().and_then(|first| cut_empty(&first.header, expected));
        let (cut, rest) = match &cut {
            Some(cut) => (std::slice::from_ref(cut), &batches[1..]),
            None => (&[][..], batches),
        };
        for Batch { header, .. } in cut.iter().chain(rest) {
            if header.base_offset != expected {
                return Err(AppendError::NotContiguous { given: header.base_offset, expected });
            }
            if header.leader_epoch < latest {
                return Err(AppendError::StaleEpoch { given: header.leader_epoch, latest });
            }
            expected = header.next_offset();
            latest = header.leader_epoch;
        }
        let placed = cut.iter().chain(rest).map(|batch| Placed {
            batch,
            base: batch.header.base_offset,
            epoch: batch.header.leader_epoch,
        });
        self.write(&placed.collect::<Vec<_>>(), now_ms)
    }

    fn write(&mut self, placed: &[Placed<'_>], now_ms: u64) -> Result<Appended, AppendError> {
        if self.shared.is_fenced() {
            return Err(AppendError::Fenced);
        }
        let (Some(first), Some(last)) = (placed.first(), placed.last()) else {
            return Err(AppendError::Empty);
        };
        let bytes = placed.iter().map(|placed| placed.batch.bytes().len() as u64).sum();
        if bytes > APPEND_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes, max_bytes: APPEND_BYTES_MAX });
        }
        let next_offset = last.next_offset();
        let file = self.tail_for(bytes, next_offset, now_ms)?;
        let tail = self.tail.as_ref().expect("`tail_for` leaves a tail");
        let (segment, start) = (Arc::clone(&tail.segment), tail.at.position);
        segment.allocate(&file, start + bytes)?;
        if let Err(error) = copy(&file, start, placed) {
            // Whole batches may be in place beyond the end, where a recovery would believe them.
            if file.file.zero(start..start + bytes).is_err() {
                self.shared.fenced.store(true, Ordering::Release);
            }
            return Err(error.into());
        }
        self.note_dirty(&segment, file, start);
        let max_timestamp = self.index(placed);
        for placed in placed {
            self.assign_epoch(placed.epoch, placed.base);
        }
        let tail = self.tail.as_mut().expect("it was there");
        tail.created_ms.get_or_insert(now_ms);
        segment.publish(tail.at.position, tail.at.max_timestamp);
        self.shared.log_end.store(next_offset, Ordering::Release);
        Ok(Appended {
            base_offset: first.base,
            next_offset,
            bytes,
            leader_epoch: last.epoch,
            max_timestamp_ms: shown(max_timestamp),
        })
    }

    /// The file of a tail that has room for `bytes` more; rolls and creates as need be.
    fn tail_for(
        &mut self,
        bytes: u64,
        next_offset: Offset,
        now_ms: u64,
    ) -> Result<Arc<OpenFile<D>>, AppendError> {
        let limit = self.config.segment_limit();
        if let Some(tail) = &self.tail {
            let size = tail.at.position + bytes;
            let full = size > limit.min(tail.segment.capacity_bytes());
            let wide = next_offset - tail.segment.base > SEGMENT_OFFSETS_MAX;
            if tail.at.position > 0 && (full || wide) {
                self.roll();
            }
        }
        match &self.tail {
            Some(tail) if !tail.rolled => match self.dirty.last() {
                Some(dirty) if Arc::ptr_eq(&dirty.segment, &tail.segment) => {
                    Ok(Arc::clone(&dirty.file))
                }
                _ => Ok(tail.segment.file()?),
            },
            _ => self.begin_segment(bytes, limit.max(APPEND_BYTES_MAX), now_ms),
        }
    }

    fn begin_segment(
        &mut self,
        bytes: u64,
        capacity_bytes: u64,
        now_ms: u64,
    ) -> Result<Arc<OpenFile<D>>, AppendError> {
        if !self.dir_exists {
            create_dirs(self.shared.disk(), &self.shared.dir)?;
            self.dir_exists = true;
        }
        if !self.meta_written {
            // Batches without a name would be taken for those of whichever partition comes to this place next.
            self.meta.write_undurably(self.shared.disk(), &self.shared.dir)?;
            self.meta_written = true;
        }
        let base = self.log_end_offset();
        let salt = self.meta.salt(base);
        let start = SegmentStart::empty(base, salt, capacity_bytes);
        let segment = Segment::create(&self.shared.files, &self.shared.dir, base, start, bytes)?;
        let file = segment.file()?;
        self.names_created += 1;
        self.segments_with(|list| list.push(Arc::clone(&segment)));
        self.tail = Some(Tail {
            segment,
            at: first_entry(base, salt),
            last_batch: 0,
            indexed: 0,
            index_saved: 0,
            created_ms: Some(now_ms),
            rolled: false,
        });
        Ok(file)
    }

    /// Closes the last segment if it has anything in it; the next append begins another.
    pub(super) fn roll(&mut self) {
        let Some(tail) = &mut self.tail else { return };
        if tail.rolled || tail.at.position == 0 {
            return;
        }
        tail.rolled = true;
        tail.segment.seal(tail.at);
        match self.dirty.last_mut() {
            Some(dirty) if Arc::ptr_eq(&dirty.segment, &tail.segment) => dirty.seal = Some(tail.at),
            _ => {
                // Flushed already; the seal is still to be written.
                let Ok(file) = tail.segment.file() else { return };
                let from = tail.at.position;
                let segment = Arc::clone(&tail.segment);
                self.dirty.push(Dirty { segment, file, from, seal: Some(tail.at) });
            }
        }
    }

    fn note_dirty(&mut self, segment: &Arc<Segment<D>>, file: Arc<OpenFile<D>>, from: u64) {
        let known = self.dirty.last().is_some_and(|dirty| Arc::ptr_eq(&dirty.segment, segment));
        if !known {
            segment.set_pinned(true);
            self.dirty.push(Dirty { segment: Arc::clone(segment), file, from, seal: None });
        }
    }

    /// Moves the tail behind the batches, adding index entries on the way. Returns their newest
    /// timestamp.
    fn index(&mut self, placed: &[Placed<'_>]) -> TimestampMs {
        let tail = self.tail.as_mut().expect("there is a tail to append to");
        let interval = self.config.index_interval_bytes;
        let mut newest = NO_MAX_TIMESTAMP;
        for placed in placed {
            if tail.at.position >= tail.indexed + interval {
                tail.segment.recent.push(tail.at);
                tail.indexed = tail.at.position;
            }
            let timestamp = placed.batch.header.max_timestamp;
            newest = newest.max(timestamp);
            tail.last_batch = tail.at.position;
            tail.at = IndexEntry {
                offset: placed.next_offset(),
                position: tail.at.position + placed.batch.bytes().len() as u64,
                chain: segment::chain(tail.at.chain, &placed.header()),
                max_timestamp: tail.at.max_timestamp.max(timestamp),
            };
        }
        newest
    }
}

/// A batch and where it goes.
struct Placed<'a> {
    batch: &'a Batch,
    base: Offset,
    epoch: LeaderEpoch,
}

impl Placed<'_> {
    fn next_offset(&self) -> Offset {
        self.base + u64::from(self.batch.header.last_offset_delta) + 1
    }

    /// The header as it goes to disk.
    fn header(&self) -> [u8; BatchHeader::BYTES] {
        let mut header = [0; BatchHeader::BYTES];
        header.copy_from_slice(&self.batch.bytes()[..BatchHeader::BYTES]);
        stamp(&mut header, self.base, self.epoch);
        header
    }
}

/// Copies batches into the file, each one's header after its payload.
fn copy<D: Disk>(file: &OpenFile<D>, start: u64, placed: &[Placed<'_>]) -> Result<(), DiskError> {
    let mut position = start;
    for placed in placed {
        let bytes = placed.batch.bytes();
        let payload = &bytes[BatchHeader::BYTES..];
        file.file.write_at(position + BatchHeader::BYTES as u64, payload)?;
        file.file.write_at(position, &placed.header())?;
        position += bytes.len() as u64;
    }
    Ok(())
}

/// Creates a directory and those above it that are missing.
pub(super) fn create_dirs<D: Disk>(disk: &D, dir: &std::path::Path) -> Result<(), DiskError> {
    match disk.create_dir(dir) {
        Err(error) if error.is_not_found() => {
            let Some(parent) = dir.parent() else { return Err(error) };
            create_dirs(disk, parent)?;
            disk.create_dir(dir)
        }
        Err(DiskError::Exists { .. }) => Ok(()),
        other => other,
    }
}

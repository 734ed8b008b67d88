//! Reading what this process did not just write: every batch that is served is verified.
//!
//! The CRC covers a batch from its attributes on. What it leaves out - offset, length, epoch - is
//! covered by the checksum chain from one index entry to the next, so a read walks on to the next
//! entry behind what it serves.

use std::sync::Arc;

use super::{LogReader, ReadOutcome, Stop, Wanted, answer, nothing};
use crate::{
    disk::{Disk, DiskError},
    index::IndexEntry,
    segment::{OpenFile, Segment},
    walk::{Walk, WalkError},
};

/// A verifying walk through a segment.
struct Verified<'a, D: Disk> {
    segment: &'a Segment<D>,
    walk: Walk<D>,
    at: IndexEntry,
    /// The last boundary that agreed with the index.
    confirmed: IndexEntry,
}

/// What the walk met.
enum Met {
    /// A batch, and the boundary behind it.
    Batch(IndexEntry),
    End,
    /// No batch that belongs here.
    Damage,
    /// Some header between the last confirmed boundary and this one was changed.
    BrokenChain(IndexEntry),
}

impl<D: Disk> Verified<'_, D> {
    /// Looks at the next batch; `check_crc` asks for its CRC, given its boundary.
    fn next(&mut self, check_crc: impl FnOnce(&IndexEntry) -> bool) -> Result<Met, DiskError> {
        match self.try_next(check_crc) {
            Ok(met) => Ok(met),
            Err(WalkError::NoBatch) => Ok(Met::Damage),
            Err(WalkError::Disk(error)) => Err(error),
        }
    }

    fn try_next(&mut self, check_crc: impl FnOnce(&IndexEntry) -> bool) -> Result<Met, WalkError> {
        let Some(header) = self.walk.peek()? else { return Ok(Met::End) };
        if header.base_offset != self.at.offset {
            return Ok(Met::Damage);
        }
        let next = self.walk.boundary_after(&self.at, &header)?;
        if check_crc(&next) && self.walk.batch(&header)?.verify_crc().is_err() {
            return Ok(Met::Damage);
        }
        if let Some(noted) = self.segment.noted_at(next.position) {
            if noted.chain != next.chain || noted.offset != next.offset {
                return Ok(Met::BrokenChain(noted));
            }
            self.confirmed = next;
        }
        self.walk.skip(&header);
        self.at = next;
        Ok(Met::Batch(next))
    }

    fn is_confirmed(&self) -> bool {
        self.at.position == self.confirmed.position
    }
}

impl<D: Disk> LogReader<D> {
    /// Reads in one segment from a boundary on; `None` when it holds nothing that is wanted.
    pub(super) fn read_cold(
        &self,
        segment: &Arc<Segment<D>>,
        file: &Arc<OpenFile<D>>,
        floor: IndexEntry,
        wanted: Wanted,
    ) -> Result<Option<ReadOutcome>, Stop> {
        let walk = Walk::new(Arc::clone(file), floor.position, segment.end(), true);
        let mut verified = Verified { segment, walk, at: floor, confirmed: floor };
        let mut start = None;
        let mut end = floor;
        let mut complete = false;
        while !(complete && verified.is_confirmed()) {
            let position = verified.at.position;
            let fits = |next: &IndexEntry| {
                let size = next.position - start.unwrap_or(position);
                next.offset <= wanted.upper_bound && (start.is_none() || size <= wanted.max_bytes)
            };
            let holds = |next: &IndexEntry| !complete && next.offset > wanted.offset;
            let serves = |next: &IndexEntry| holds(next) && fits(next);
            // One that holds what is wanted and reaches beyond what may be served counts as verified, too: that it is not
            // served is an answer, and what says how far it reaches may be damaged.
            match verified.next(|next| serves(next) || start.is_none() && holds(next))? {
                Met::End => break,
                Met::Batch(next) if serves(&next) => {
                    start.get_or_insert(position);
                    end = next;
                }
                Met::Batch(next) => complete |= next.offset > wanted.offset,
                // Behind what is served; whoever reads there meets it.
                Met::Damage if complete => break,
                Met::Damage if start.is_some() => break,
                Met::Damage => {
                    return self.damage(segment, file, position, verified.at.offset);
                }
                Met::BrokenChain(noted) => {
                    let good = verified.confirmed;
                    if start.is_some_and(|start| start < good.position) {
                        end = good;
                        break;
                    }
                    return self.quarantine(segment, good.offset..noted.offset);
                }
            }
        }
        Ok(if start.is_none() && complete {
            Some(nothing(wanted))
        } else {
            answer(segment, file, start, end.position, end.offset)
        })
    }
}

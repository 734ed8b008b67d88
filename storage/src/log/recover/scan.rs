//! Reading one segment batch by batch, believing nothing.

use std::sync::Arc;

use tidemark_protocol::{LeaderEpoch, Offset, batch::BatchHeader};

use crate::{
    checkpoint::Tip,
    disk::{Disk, DiskError, DiskFile},
    epochs::EpochHistory,
    index::{IndexEntry, IndexFile},
    segment::{OpenFile, Segment},
    walk::{Walk, WalkError},
};

/// Why a scan stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// What follows is no batch that belongs here: nothing, or damage.
    NoBatch,
    /// What follows is to be truncated.
    Cut,
}

/// A scan under way.
#[derive(Debug)]
pub(super) struct Scan<D: Disk> {
    walk: Walk<D>,
    at: IndexEntry,
    last_batch: u64,
    epoch: LeaderEpoch,
    /// The history as the log found it, and the same corrected by every batch.
    found: EpochHistory,
    epochs: EpochHistory,
    cut: Option<Offset>,
    /// What the index file says, to be checked on the way; ends with its seal.
    known: Vec<IndexEntry>,
    /// The last boundary that agreed with it, and the history up to there.
    confirmed: (IndexEntry, EpochHistory),
    /// Whether the running checksum covers only what was confirmed: not behind damage.
    chain_holds: bool,
    indexed: u64,
}

impl<D: Disk> Scan<D> {
    pub(super) fn new(
        file: &Arc<OpenFile<D>>,
        from: Tip,
        epochs: &EpochHistory,
        cut: Option<Offset>,
    ) -> Self {
        let walk = Walk::new(Arc::clone(file), from.at.position, file.file.len(), true);
        Self {
            walk,
            at: from.at,
            last_batch: from.last_batch,
            epoch: epoch_before(epochs, from.at.offset),
            found: epochs.clone(),
            epochs: epochs.clone(),
            cut,
            known: Vec::new(),
            confirmed: (from.at, epochs.clone()),
            chain_holds: true,
            indexed: from.at.position,
        }
    }

    /// Checks boundaries against an index file on the way.
    pub(super) fn expect(&mut self, index: Option<&IndexFile>) {
        let Some(index) = index else { return };
        self.known = index.entries.iter().chain([&index.seal]).copied().collect();
        self.known.retain(|entry| entry.position > self.at.position);
    }

    pub(super) fn at(&self) -> IndexEntry {
        self.at
    }

    pub(super) fn last_batch(&self) -> u64 {
        self.last_batch
    }

    /// The leader-epoch history that fits what was scanned.
    pub(super) fn take_epochs(&mut self) -> EpochHistory {
        std::mem::take(&mut self.epochs)
    }

    /// The boundary behind the batch that was just refused, if its header still leads to a batch
    /// that continues it, and to what the index file knows: then its records are damaged and
    /// nothing else.
    pub(super) fn behind_one_batch(&mut self) -> Option<IndexEntry> {
        let at = self.at;
        self.walk.seek(at.position);
        let header = self.walk.peek().ok().flatten().filter(|header| self.belongs(header))?;
        let next = self.walk.boundary_after(&at, &header).ok()?;
        self.walk.seek(next.position);
        let follower = self.walk.peek().ok().flatten()?;
        (follower.base_offset == next.offset && self.leads_to_known(next)).then_some(next)
    }

    /// Whether the running checksum, continued from here, comes out as the index file says. If not,
    /// a header was changed, and what follows could not be confirmed either.
    fn leads_to_known(&mut self, mut at: IndexEntry) -> bool {
        let Some(known) = self.known.iter().find(|entry| entry.position >= at.position).copied()
        else {
            return true;
        };
        self.walk.seek(at.position);
        while at.position < known.position {
            if !matches!(self.walk.step(&mut at), Ok(true)) {
                return false;
            }
        }
        (at.position, at.offset, at.chain) == (known.position, known.offset, known.chain)
    }

    /// The first boundary behind the current one that the index file vouches for.
    pub(super) fn known_after(&self) -> Option<IndexEntry> {
        let at = self.at;
        let behind = |entry: &&IndexEntry| entry.position > at.position && entry.offset > at.offset;
        self.known.iter().find(behind).copied()
    }

    /// Continues at a boundary that is known to be good.
    pub(super) fn resume(&mut self, segment: &Segment<D>, entry: IndexEntry) {
        // Readers have to get past the damage, too.
        segment.recent.push(entry);
        self.chain_holds = self.known.contains(&entry);
        self.at = entry;
        self.confirmed = (entry, self.epochs.clone());
        self.walk.seek(entry.position);
    }

    /// Reads on until something stops it, adding to the segment's index.
    pub(super) fn run(
        &mut self,
        segment: &Segment<D>,
        index_interval_bytes: u64,
    ) -> Result<Stop, DiskError> {
        loop {
            let header = match self.walk.peek() {
                Ok(Some(header)) => header,
                Ok(None) | Err(WalkError::NoBatch) => return Ok(Stop::NoBatch),
                Err(WalkError::Disk(error)) => return Err(error),
            };
            if !self.belongs(&header) {
                return Ok(Stop::NoBatch);
            }
            if self.cut.is_some_and(|cut| header.next_offset() > cut) {
                return Ok(Stop::Cut);
            }
            match self.walk.batch(&header) {
                Ok(batch) if batch.verify_crc().is_ok() => {}
                Err(WalkError::Disk(error)) => return Err(error),
                Ok(_) | Err(WalkError::NoBatch) => return Ok(Stop::NoBatch),
            }
            let mut next = match self.walk.boundary_after(&self.at, &header) {
                Ok(next) => next,
                Err(WalkError::Disk(error)) => return Err(error),
                Err(WalkError::NoBatch) => return Ok(Stop::NoBatch),
            };
            if self.is_contradicted(&header, next)? {
                return Ok(Stop::NoBatch);
            }
            self.epochs.observe(header.leader_epoch, header.base_offset);
            if !self.confirm(&mut next) {
                // Some header since the last confirmed boundary was changed, outside its CRC.
                (self.at, self.epochs) = self.confirmed.clone();
                self.epoch = epoch_before(&self.epochs, self.at.offset);
                return Ok(Stop::NoBatch);
            }
            if self.at.position >= self.indexed + index_interval_bytes {
                segment.recent.push(self.at);
                self.indexed = self.at.position;
            }
            self.epoch = header.leader_epoch;
            self.last_batch = self.at.position;
            self.at = next;
            self.walk.skip(&header);
        }
    }

    fn belongs(&self, header: &BatchHeader) -> bool {
        header.base_offset == self.at.offset && header.leader_epoch >= self.epoch
    }

    /// Whether a batch bears an epoch that the history does not know there, and is followed by a batch of an earlier one.
    /// Epochs never go back, and no checksum of a batch covers its epoch: a bit of it is rotten. Believed, it would cut
    /// off everything behind it.
    fn is_contradicted(
        &mut self,
        header: &BatchHeader,
        next: IndexEntry,
    ) -> Result<bool, DiskError> {
        if self.found.epoch_at(header.base_offset) == Some(header.leader_epoch) {
            return Ok(false);
        }
        self.walk.seek(next.position);
        let follower = match self.walk.peek() {
            Ok(follower) => follower,
            Err(WalkError::NoBatch) => None,
            Err(WalkError::Disk(error)) => return Err(error),
        };
        let goes_back = follower.filter(|follower| {
            follower.base_offset == next.offset && follower.leader_epoch < header.leader_epoch
        });
        let is_sound = match goes_back.map(|follower| self.walk.batch(&follower)) {
            None | Some(Err(WalkError::NoBatch)) => false,
            Some(Ok(follower)) => follower.verify_crc().is_ok(),
            Some(Err(WalkError::Disk(error))) => return Err(error),
        };
        self.walk.seek(self.at.position);
        Ok(is_sound)
    }

    /// Compares a boundary with what the index file says of it, if anything.
    fn confirm(&mut self, boundary: &mut IndexEntry) -> bool {
        let found = self.known.binary_search_by_key(&boundary.position, |entry| entry.position);
        let Ok(index) = found else { return true };
        let known = self.known[index];
        if self.chain_holds && (known.chain != boundary.chain || known.offset != boundary.offset) {
            return false;
        }
        self.chain_holds = true;
        boundary.chain = known.chain;
        self.confirmed = (*boundary, self.epochs.clone());
        true
    }
}

/// The epoch of the batch in front of `offset`.
fn epoch_before(epochs: &EpochHistory, offset: Offset) -> LeaderEpoch {
    offset.checked_sub(1).and_then(|before| epochs.epoch_at(before)).unwrap_or(0)
}

/// Whether the last batch in front of a checkpoint's tip is still what it was.
pub(super) fn confirms<D: Disk>(file: &Arc<OpenFile<D>>, tip: &Tip) -> Result<bool, DiskError> {
    if tip.at.position == 0 {
        return Ok(true);
    }
    if tip.at.position > file.file.len() {
        return Ok(false);
    }
    let mut walk = Walk::new(Arc::clone(file), tip.last_batch, tip.at.position, true);
    let batch = match walk.peek() {
        Ok(Some(header)) => walk.batch(&header),
        Ok(None) => return Ok(false),
        Err(error) => Err(error),
    };
    match batch {
        Ok(batch) => Ok(batch.verify_crc().is_ok()
            && batch.header.next_offset() == tip.at.offset
            && tip.last_batch + batch.header.batch_bytes as u64 == tip.at.position),
        Err(WalkError::NoBatch) => Ok(false),
        Err(WalkError::Disk(error)) => Err(error),
    }
}

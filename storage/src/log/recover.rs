//! Opening a log: what the checkpoint proves is believed, what lies behind it is read.
//!
//! A scan walks batches (sane header, CRC, the expected offset, an epoch that does not go back) and
//! stops at the first that fails. Bytes behind that point were never known to be durable: a torn
//! tail, zeroed so that no later recovery finds them again. Unless something *proves* that more was
//! durable - the checkpoint, or the seal of an index - in which case this is corruption: reported,
//! quarantined, left where it is, and the log goes on behind it.
//!
//! Recovery may itself be interrupted anywhere and run again.

mod plan;
mod scan;
mod torn;

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use plan::Plan;
use scan::{Scan, Stop};
use tidemark_protocol::Offset;

use super::{Dirty, Log, Tail, flush::EPOCHS_FILE, quarantine};
use crate::{
    checkpoint::{Checkpoint, Tip},
    config::{APPEND_BYTES_MAX, LogConfig, LogIdentity},
    disk::{Disk, DiskError, DiskFile},
    epochs::{EpochHistory, EpochStart},
    error::OpenError,
    meta::PartitionMeta,
    segment::{OpenFile, Segment, SegmentStart},
    segment_files::SegmentFiles,
    state_file::{self, Kind},
};

const EPOCHS_BYTES_MAX: usize = 16 << 20;
/// What is written again at once.
const REWRITE_BYTES: u64 = 1 << 20;

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether a checkpoint spared reading the whole log.
    pub from_checkpoint: bool,
    pub scanned_bytes: u64,
    /// Bytes behind the last good batch, removed: a write that a crash interrupted.
    pub torn_bytes: u64,
    /// Whole batches among them: appended, but never known to be durable. A copy is kept in `torn/`.
    pub torn_batches: u64,
    /// Segments behind the torn one; moved to `torn/`.
    pub segments_removed: usize,
    /// Durable once, damaged or missing now.
    pub corrupt: Vec<Range<Offset>>,
    /// A truncation that a crash had interrupted was completed.
    pub truncation_completed: bool,
}

/// What a log's small files say about where it begins and ends, before it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// What lies below may be there in part: its deletion was decided.
    pub log_start: Offset,
    /// What lies from here on may be there in part: a truncation or a restart was not completed.
    pub cut: Option<Offset>,
}

impl Extent {
    /// Reads it and changes nothing. For whoever knows more about the log's contents than the log does.
    pub fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Self, OpenError> {
        plan::read_extent(disk, dir)
    }
}

/// A log being opened.
struct Opening<D: Disk> {
    log: Log<D>,
    plan: Plan,
    report: Recovery,
    /// Offset that the next batch must have.
    expected: Offset,
}

impl<D: Disk> Log<D> {
    /// Opens the log in `dir`, or an empty one if there is nothing. `checkpoint` is what the data
    /// directory's checkpoint file says of it; without one, everything is read.
    pub fn open(
        files: &SegmentFiles<D>,
        dir: &Path,
        identity: LogIdentity,
        config: LogConfig,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(Self, Recovery), OpenError> {
        let disk = files.disk();
        let names = match disk.list(dir) {
            Err(error) if error.is_not_found() => None,
            other => Some(other?),
        };
        let dir_exists = names.is_some();
        let names = names.unwrap_or_default();
        let meta = PartitionMeta::read(disk, dir, identity)?;
        let incarnation = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.incarnation);
        let has_meta = meta.is_some();
        let summary = checkpoint.as_ref().and_then(|checkpoint| {
            let summary = checkpoint.summary.clone()?;
            Some((checkpoint.incarnation, (checkpoint.truncations, summary)))
        });
        let mut meta = meta.unwrap_or(PartitionMeta { partition: identity.partition, incarnation });
        let plan = Plan::make(disk, dir, &meta, &names, checkpoint)?;
        if let Some(restart) = plan.truncations.restart {
            meta.incarnation = restart.incarnation;
        }
        let mut log = Self::empty(files, dir, meta, config);
        log.dir_exists = dir_exists;
        // Only a flush that completed shows that the names of directory and identity are durable.
        log.meta_written = has_meta;
        log.meta_durable = has_meta && plan.tip.is_some();
        log.opened_summary =
            summary.filter(|(incarnation, _)| *incarnation == meta.incarnation).map(|it| it.1);
        let mut opening =
            Opening { expected: plan.log_start, plan, log, report: Recovery::default() };
        opening.run()?;
        Ok((opening.log, opening.report))
    }
}

impl<D: Disk> Opening<D> {
    fn run(&mut self) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.log.shared);
        if self.plan.has_quarantine {
            quarantine::load(&shared);
        }
        for leftover in &self.plan.leftovers {
            shared.disk().unlink(&shared.path(leftover))?;
        }
        for &base in &self.plan.obsolete {
            torn::set_aside(&shared, base, false)?;
        }
        self.log.truncations = self.plan.truncations.clone();
        self.log.replaced = std::mem::take(&mut self.plan.replaced);
        shared.removals_end.store(self.plan.removals_end, Ordering::Release);
        shared.state_files().truncations = self.log.truncations.count();
        self.load_epochs();
        self.adopt_sealed();
        for range in std::mem::take(&mut self.plan.missing) {
            self.corrupt(range);
        }
        self.report.from_checkpoint = self.plan.tip.is_some();
        match self.plan.tip {
            // A truncation may have left an empty segment behind the tip's: scanned, it is found.
            Some(tip) if self.plan.clean && self.plan.scan == [tip.segment_base] => {
                self.adopt_tip(&tip);
            }
            _ => self.scan_all()?,
        }
        self.settle()
    }

    fn load_epochs(&mut self) {
        let mut entries = self.plan.epochs.take();
        if self.plan.has_epochs && !(self.plan.clean && entries.is_some()) {
            let path = self.log.shared.path(EPOCHS_FILE);
            let disk = self.log.shared.disk();
            let stored: Option<Vec<EpochStart>> =
                state_file::read_cache(disk, &path, Kind::Epochs, EPOCHS_BYTES_MAX);
            entries = stored.or(entries);
        }
        let history = EpochHistory::from_entries(entries.unwrap_or_default());
        self.log.epochs = history.unwrap_or_default();
    }

    /// Takes over the segments that the checkpoint vouches for.
    fn adopt_sealed(&mut self) {
        let sealed = std::mem::take(&mut self.plan.sealed);
        let mut list = Vec::with_capacity(sealed.len() + 1);
        let shared = &self.log.shared;
        for mark in sealed {
            let start = SegmentStart {
                recent_from: mark.end,
                end: mark.end.position,
                max_timestamp: mark.end.max_timestamp,
                verified_from: u64::MAX,
                salt: self.log.meta.salt(mark.base),
                capacity_bytes: mark.end.position,
            };
            let segment = Segment::new(&shared.files, &shared.dir, mark.base, start);
            segment.seal(mark.end);
            list.push(Arc::new(segment));
            self.expected = mark.end.offset;
        }
        self.log.segments_with(|segments| *segments = list);
    }

    /// Continues where the log was closed, without looking.
    fn adopt_tip(&mut self, tip: &Tip) {
        let segment = self.segment(tip, tip.at.position);
        self.push_tail(segment, tip);
        self.log.durable = Some(*tip);
        self.expected = tip.at.offset;
    }

    fn segment(&self, from: &Tip, end: u64) -> Arc<Segment<D>> {
        let shared = &self.log.shared;
        let start = SegmentStart {
            recent_from: from.at,
            end,
            max_timestamp: from.at.max_timestamp,
            verified_from: from.at.position,
            salt: self.log.meta.salt(from.segment_base),
            capacity_bytes: self.log.config.segment_limit().max(APPEND_BYTES_MAX),
        };
        Arc::new(Segment::new(&shared.files, &shared.dir, from.segment_base, start))
    }

    fn push_tail(&mut self, segment: Arc<Segment<D>>, tip: &Tip) {
        if let Some(before) = &self.log.tail {
            before.segment.seal(before.at);
        }
        self.log.segments_with(|list| list.push(Arc::clone(&segment)));
        self.log.tail = Some(Tail {
            segment,
            at: tip.at,
            last_batch: tip.last_batch,
            indexed: tip.at.position,
            index_saved: 0,
            created_ms: tip.created_ms,
            rolled: tip.rolled,
        });
    }

    /// Reads every segment from the plan's start on, until one ends early.
    fn scan_all(&mut self) -> Result<(), OpenError> {
        let bases = std::mem::take(&mut self.plan.scan);
        if self.plan.tip.is_none()
            && let Some(&first) = bases.first()
            && self.log.segment_count() == 0
        {
            if first > self.plan.log_start && first >= self.plan.proven {
                // Retention says what it deletes: segments that were never flushed are gone from
                // the front, and what came behind them has lost its place.
                return self.discard(&bases);
            }
            self.expected = first;
            self.plan.log_start = self.plan.log_start.max(first);
        }
        for (index, &base) in bases.iter().enumerate() {
            let from_tip = self.plan.tip.is_some_and(|tip| tip.segment_base == base);
            if !self.may_follow(base) && !from_tip {
                if base < self.expected || self.expected >= self.plan.proven {
                    return self.discard(&bases[index..]);
                }
                // Something in between was durable and is gone.
                self.corrupt(self.expected..base);
            }
            if !self.scan_one(base, bases.get(index + 1).copied())? {
                return self.discard(&bases[index + 1..]);
            }
        }
        Ok(())
    }

    /// Whether a segment may start at `base`: where the one before ended, or behind a gap that was
    /// trimmed away.
    fn may_follow(&self, base: Offset) -> bool {
        base == self.expected || (base > self.expected && base <= self.plan.log_start)
    }

    /// Scans one segment. Returns whether the next one may follow.
    fn scan_one(&mut self, base: Offset, next_base: Option<Offset>) -> Result<bool, OpenError> {
        let meta = self.log.meta;
        let start = Tip::at_start(base, meta.salt(base));
        let mut from = self.plan.tip.filter(|tip| tip.segment_base == base).unwrap_or(start);
        let mut segment = self.segment(&from, from.at.position);
        let file = segment.file()?;
        if !scan::confirms(&file, &from)? {
            tracing::error!(segment = %segment.path().display(), "not what the checkpoint says");
            from = start;
            segment = self.segment(&from, 0);
            segment.adopt(Arc::clone(&file));
        }
        let index = if from.at.position == 0 {
            plan::read_index(self.log.shared.disk(), &self.log.shared.dir, &meta, base)
        } else {
            None
        };
        let mut scan = Scan::new(&file, from, &self.log.epochs, self.plan.cut);
        scan.expect(index.as_ref());
        self.expected = from.at.offset;
        self.push_tail(Arc::clone(&segment), &from);
        let stop = loop {
            let stop = scan.run(&segment, self.log.config.index_interval_bytes)?;
            let at = scan.at();
            let complete = next_base == Some(at.offset);
            if stop == Stop::Cut || at.offset >= self.plan.proven || complete {
                break stop;
            }
            // Durable once, bad now: the log goes on at the next place that is known to be good.
            let tip = self.plan.tip.filter(|tip| tip.segment_base == base).map(|tip| tip.at);
            let tip = tip.filter(|tip| tip.position > at.position && tip.offset > at.offset);
            let near = scan.behind_one_batch();
            // What is known may lie where the file does not reach any more.
            let next = near.or_else(|| scan.known_after()).or(tip);
            if let Some(entry) = next.filter(|entry| entry.position <= file.file.len()) {
                self.corrupt(at.offset..entry.offset);
                scan.resume(&segment, entry);
            } else {
                let until = next_base.unwrap_or(self.plan.proven);
                self.finish_scan(&segment, &file, &mut scan, from.at.position)?;
                self.corrupt(at.offset..until);
                self.leave_damaged(until);
                return Ok(true);
            }
        };
        self.finish_scan(&segment, &file, &mut scan, from.at.position)?;
        if next_base.is_some_and(|next| self.may_follow(next)) {
            return Ok(true);
        }
        let cleared = torn::clear(&self.log.shared, &segment, &file, stop != Stop::Cut)?;
        if self.plan.cut.is_some() {
            torn::clear_unseen(&segment, &file)?;
        }
        self.report.torn_bytes += cleared.bytes;
        self.report.torn_batches += cleared.batches;
        Ok(false)
    }

    /// Publishes what a scan found and marks it as not yet flushed.
    fn finish_scan(
        &mut self,
        segment: &Arc<Segment<D>>,
        file: &Arc<OpenFile<D>>,
        scan: &mut Scan<D>,
        from: u64,
    ) -> Result<(), OpenError> {
        let at = scan.at();
        write_again(file, from..at.position)?;
        self.report.scanned_bytes += at.position - from;
        segment.publish(at.position, at.max_timestamp);
        let epochs = scan.take_epochs();
        if epochs != self.log.epochs {
            self.log.epochs = epochs;
            self.log.epochs_version += 1;
        }
        if at.position > from {
            segment.set_pinned(true);
            self.log.dirty.push(Dirty {
                segment: Arc::clone(segment),
                file: Arc::clone(file),
                from,
                seal: None,
            });
        }
        if let Some(tail) = &mut self.log.tail {
            tail.at = at;
            tail.last_batch = scan.last_batch();
            tail.indexed = at.position;
            tail.rolled &= at.position == from;
        }
        self.expected = at.offset;
        Ok(())
    }

    /// The log continues at `end`, in another segment; this one's damaged rest stays as evidence.
    fn leave_damaged(&mut self, end: Offset) {
        self.expected = end;
        if let Some(tail) = &mut self.log.tail {
            tail.rolled = true;
        }
    }

    /// Removes segments behind the end of the log.
    fn discard(&mut self, bases: &[Offset]) -> Result<(), OpenError> {
        for &base in bases {
            torn::set_aside(&self.log.shared, base, self.plan.cut.is_none())?;
            self.report.segments_removed += 1;
        }
        Ok(())
    }

    fn corrupt(&mut self, range: Range<Offset>) {
        // What was given up anyway is not missed.
        let range = range.start.max(self.plan.log_start)..range.end;
        if range.is_empty() {
            return;
        }
        tracing::error!(
            dir = %self.log.shared.dir.display(), ?range,
            "offsets that were durable are missing or damaged"
        );
        let range = quarantine::add(&self.log.shared, range);
        self.report.corrupt.retain(|other| other.end < range.start || other.start > range.end);
        self.report.corrupt.push(range);
    }

    /// Ends the opening: the offsets, the epochs, the seals of all but the last segment.
    fn settle(&mut self) -> Result<(), OpenError> {
        let proven = self.plan.proven;
        if self.expected < proven {
            self.corrupt(self.expected..proven);
            self.leave_damaged(proven);
        }
        if let Some(tail) = &self.log.tail
            && tail.rolled
        {
            tail.segment.seal(tail.at);
        }
        let log = &mut self.log;
        let shared = Arc::clone(&log.shared);
        let end = self.expected.max(self.plan.log_start);
        let log_start = self.plan.log_start;
        shared.log_start.store(log_start, Ordering::Release);
        shared.log_end.store(end, Ordering::Release);
        shared.flushed.store(proven.clamp(log_start, end), Ordering::Release);
        // Damage that a reader found, and that is now no part of the log: the next batch is not to be taken for it.
        quarantine::clip(&shared, &(log_start..end))?;
        if end > self.expected
            && let Some(tail) = &mut log.tail
        {
            // Everything was trimmed away: the next batch is not where the last one ended.
            tail.segment.seal(tail.at);
            tail.rolled = true;
        }
        self.seal_all_but_the_last();
        let log = &mut self.log;
        if !self.plan.clean && log.epochs.truncate_from_end(end) {
            log.epochs_version += 1;
            // At once: other leaders may write where the forgotten ones never did.
            match log.save_own_epochs() {
                Err(error) if error.is_full() => tracing::warn!(%error, "epochs are not saved"),
                other => other?,
            }
        }
        if log.epochs.truncate_from_start(log_start) {
            log.epochs_version += 1;
        }
        match log.clip_removals(end) {
            Err(error) if error.is_full() => tracing::warn!(%error, "removals are not saved"),
            other => other?,
        }
        if log.dirty.is_empty() {
            log.durable = log.tip();
        } else {
            log.durable = self.plan.tip;
        }
        if !self.plan.clean {
            // Names that a flush never covered may be among what was found.
            log.names_created = 1;
        }
        if let Some(restart) = log.truncations.restart {
            self.report.truncation_completed = true;
            log.complete_restart(restart.offset)?;
        } else if log.truncations.pending.take().is_some() {
            self.report.truncation_completed = true;
            self.complete_truncation()?;
        }
        let front = self.log.front(false);
        self.log.delete_front(front)?;
        Ok(())
    }

    fn complete_truncation(&mut self) -> Result<(), OpenError> {
        let log = &mut self.log;
        let disk = log.shared.disk();
        if let Some(tail) = &log.tail {
            match disk.unlink(&tail.segment.index_path()) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => disk.sync_dir(&log.shared.dir)?,
            }
        }
        log.epochs_version += 1;
        log.shared.save_epochs(log.epochs_version, log.epochs.entries())?;
        log.epochs_saved = log.epochs_version;
        log.forget_replacements(log.log_end_offset())?;
        log.save_truncations()?;
        Ok(())
    }

    /// Segments that others follow take no more batches.
    fn seal_all_but_the_last(&mut self) {
        let Some(tail) = &self.log.tail else { return };
        for dirty in &mut self.log.dirty {
            if !Arc::ptr_eq(&dirty.segment, &tail.segment) || tail.rolled {
                dirty.seal = dirty.segment.sealed();
            }
        }
    }
}

/// Writes what is there once more, so that the next flush writes it for sure. A flush that failed in an earlier life may
/// have left pages that look clean and are on no disk: they are read as if all were well, no flush touches them, and a
/// loss of power takes them away. Where that is refused, as on a full disk whose file system never overwrites, the log
/// does not open: it would count as durable what may not be.
fn write_again<D: Disk>(file: &OpenFile<D>, range: Range<u64>) -> Result<(), DiskError> {
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        // Bounded by the constant.
        buffer.resize((range.end - at).min(REWRITE_BYTES) as usize, 0);
        file.file.read_at(at, &mut buffer)?;
        file.file.write_at(at, &buffer)?;
        at += buffer.len() as u64;
    }
    Ok(())
}

//! What to believe and what to read, decided from the directory's names and the checkpoint.

use std::{ops::Range, path::Path};

use tidemark_protocol::Offset;

use crate::{
    checkpoint::{Checkpoint, SegmentMark, Tip},
    compaction::CLEANED_EXTENSION,
    disk::{DirEntry, Disk},
    epochs::EpochStart,
    error::OpenError,
    index::IndexFile,
    log::{
        compact::{REPLACED_BYTES_MAX, REPLACED_FILE, Replaced},
        flush::EPOCHS_FILE,
        quarantine::QUARANTINE_FILE,
        removals,
        retention::{LOG_START_BYTES_MAX, LOG_START_FILE},
    },
    meta::PartitionMeta,
    segment::{INDEX_FILE_BYTES_MAX, base_of},
    state_file::{self, Kind},
    truncations::{TRUNCATIONS_BYTES_MAX, TRUNCATIONS_FILE, Truncations},
};

/// The decisions.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nothing was written since the checkpoint.
    pub clean: bool,
    pub log_start: Offset,
    /// Everything below was durable once.
    pub proven: Offset,
    /// A truncation to here was not completed.
    pub cut: Option<Offset>,
    /// Where reading begins; `None`: at the start of the first segment in `scan`.
    pub tip: Option<Tip>,
    /// Segments to take over unread.
    pub sealed: Vec<SegmentMark>,
    /// Base offsets of the segments to read.
    pub scan: Vec<Offset>,
    /// Segments below the log start that the checkpoint does not know.
    pub obsolete: Vec<Offset>,
    /// Offsets that the checkpoint vouches for and whose files are missing or too short.
    pub missing: Vec<Range<Offset>>,
    pub epochs: Option<Vec<EpochStart>>,
    pub has_epochs: bool,
    pub has_quarantine: bool,
    /// Files that a crash left half written.
    pub leftovers: Vec<String>,
    pub truncations: Truncations,
    /// Segment files that compaction replaced, or was about to.
    pub replaced: Vec<Replaced>,
    /// Behind every tombstone that may be missing.
    pub removals_end: Offset,
}

impl Plan {
    pub(super) fn make<D: Disk>(
        disk: &D,
        dir: &Path,
        meta: &PartitionMeta,
        names: &[DirEntry],
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, OpenError> {
        let has = |name: &str| names.iter().any(|entry| entry.name == name);
        let mut plan = Self {
            has_epochs: has(EPOCHS_FILE),
            has_quarantine: has(QUARANTINE_FILE),
            leftovers: leftovers(names),
            ..Self::default()
        };
        if has(TRUNCATIONS_FILE) {
            let path = dir.join(TRUNCATIONS_FILE);
            let stored = state_file::read(disk, &path, Kind::Truncations, TRUNCATIONS_BYTES_MAX)?;
            plan.truncations = stored.unwrap_or_default();
            plan.cut = plan.truncations.pending;
        }
        if let Some(restart) = plan.truncations.restart {
            return Ok(Self {
                log_start: restart.offset,
                obsolete: names.iter().filter_map(|entry| base_of(&entry.name, "log")).collect(),
                truncations: plan.truncations,
                leftovers: plan.leftovers,
                has_quarantine: plan.has_quarantine,
                replaced: stored_replacements(disk, dir, names)?,
                removals_end: removals::stored(disk, dir, names)?,
                ..Self::default()
            });
        }
        if has(LOG_START_FILE) {
            let path = dir.join(LOG_START_FILE);
            let stored = state_file::read(disk, &path, Kind::LogStart, LOG_START_BYTES_MAX)?;
            plan.log_start = stored.unwrap_or(0);
        }
        plan.replaced = stored_replacements(disk, dir, names)?;
        plan.removals_end = removals::stored(disk, dir, names)?;
        let files: Vec<(Offset, u64)> = names
            .iter()
            .filter_map(|entry| Some((base_of(&entry.name, "log")?, entry.bytes)))
            .collect();
        match checkpoint.filter(|checkpoint| checkpoint.incarnation == meta.incarnation) {
            Some(checkpoint) => plan.believe(checkpoint, &files),
            None => plan.believe_seals(disk, dir, meta, names, &files),
        }
        if plan.proven <= plan.log_start {
            // All of it was given up.
            plan.proven = 0;
        }
        Ok(plan)
    }

    fn believe(&mut self, checkpoint: Checkpoint, files: &[(Offset, u64)]) {
        let bytes_of =
            |base: Offset| files.iter().find(|&&(other, _)| other == base).map(|&(_, bytes)| bytes);
        self.log_start = self.log_start.max(checkpoint.log_start);
        self.epochs = Some(checkpoint.epochs);
        // A truncation since then took back what the checkpoint knew.
        let lowest = self.truncations.lowest_since(checkpoint.truncations);
        let limit = lowest.unwrap_or(Offset::MAX).min(self.cut.unwrap_or(Offset::MAX));
        self.proven = checkpoint.flushed_offset.min(limit);
        let tip = checkpoint.tip.filter(|tip| tip.at.offset <= limit);
        self.clean = checkpoint.clean && lowest.is_none() && self.cut.is_none();
        // Whole segments missing at the front are what retention deletes.
        let first = files.first().map_or(Offset::MAX, |&(base, _)| base);
        let replaced = |base| {
            let entry = self
                .replaced
                .iter()
                .find(|entry| entry.base == base && bytes_of(base) == Some(entry.file_bytes))?;
            Some(SegmentMark { base, end: entry.end })
        };
        // A segment may have been compacted since, that of the tip too if it was rolled.
        let rolled = tip.and_then(|tip| replaced(tip.segment_base));
        let tip = tip.filter(|_| rolled.is_none());
        let kept: Vec<_> = checkpoint
            .sealed
            .into_iter()
            .map(|mark| replaced(mark.base).unwrap_or(mark))
            .chain(rolled)
            .filter(|mark| mark.end.offset <= limit)
            .collect();
        let mut next = 0;
        for mark in kept.into_iter().skip_while(|mark| mark.base < first) {
            match bytes_of(mark.base) {
                Some(bytes) if bytes >= mark.end.position => self.sealed.push(mark),
                _ => self.missing.push(mark.base.max(self.log_start)..mark.end.offset),
            }
            next = mark.end.offset;
        }
        let tip = tip.filter(|tip| {
            next = tip.segment_base;
            let bytes = bytes_of(tip.segment_base);
            if bytes.is_none_or(|bytes| bytes < tip.at.position) {
                // Lost, unless it was given up.
                self.missing.push(tip.segment_base.max(self.log_start)..tip.at.offset);
            }
            bytes.is_some()
        });
        if let Some(first) = self.sealed.first().map(|mark| mark.base).or(tip.map(|_| next)) {
            self.log_start = self.log_start.max(first);
        }
        self.tip = tip;
        let (scan, known): (Vec<_>, Vec<_>) =
            files.iter().map(|&(base, _)| base).partition(|&base| base >= next);
        self.scan = scan;
        // Deleted, and brought back by a loss of power.
        self.obsolete = known;
        self.obsolete.retain(|base| {
            *base < self.log_start && !self.sealed.iter().any(|mark| mark.base == *base)
        });
    }

    /// Without a checkpoint: everything is read, but the seals of indexes prove what was durable.
    fn believe_seals<D: Disk>(
        &mut self,
        disk: &D,
        dir: &Path,
        meta: &PartitionMeta,
        names: &[DirEntry],
        files: &[(Offset, u64)],
    ) {
        for base in names.iter().filter_map(|entry| base_of(&entry.name, "index")) {
            if let Some(index) = read_index(disk, dir, meta, base)
                && files.iter().any(|&(other, _)| other == base)
            {
                self.proven = self.proven.max(index.seal.offset);
            }
        }
        self.proven = self.proven.min(self.cut.unwrap_or(Offset::MAX));
        self.scan = files.iter().map(|&(base, _)| base).collect();
    }
}

/// See [`super::Extent::read`].
pub(super) fn read_extent<D: Disk>(disk: &D, dir: &Path) -> Result<super::Extent, OpenError> {
    let log_start = dir.join(LOG_START_FILE);
    let log_start = state_file::read(disk, &log_start, Kind::LogStart, LOG_START_BYTES_MAX)?;
    let truncations = dir.join(TRUNCATIONS_FILE);
    let truncations: Option<Truncations> =
        state_file::read(disk, &truncations, Kind::Truncations, TRUNCATIONS_BYTES_MAX)?;
    let cut = truncations.and_then(|truncations| match truncations.restart {
        Some(_) => Some(0),
        None => truncations.pending,
    });
    Ok(super::Extent { log_start: log_start.unwrap_or(0), cut })
}

/// The index file of a segment, if there is one that fits.
pub(super) fn read_index<D: Disk>(
    disk: &D,
    dir: &Path,
    meta: &PartitionMeta,
    base: Offset,
) -> Option<IndexFile> {
    let path = dir.join(format!("{base:020}.index"));
    state_file::read_cache(disk, &path, Kind::Index, INDEX_FILE_BYTES_MAX)
        .filter(|index: &IndexFile| index.is_consistent(base, meta.salt(base)))
}

fn stored_replacements<D: Disk>(
    disk: &D,
    dir: &Path,
    names: &[DirEntry],
) -> Result<Vec<Replaced>, OpenError> {
    if !names.iter().any(|entry| entry.name == REPLACED_FILE) {
        return Ok(Vec::new());
    }
    let path = dir.join(REPLACED_FILE);
    let stored = state_file::read(disk, &path, Kind::Compacted, REPLACED_BYTES_MAX)?;
    Ok(stored.unwrap_or_default())
}

/// What an interrupted replacement of a small file leaves behind.
fn leftovers(names: &[DirEntry]) -> Vec<String> {
    let unfinished = |entry: &&DirEntry| {
        !entry.is_dir && (has_extension(entry, "tmp") || has_extension(entry, CLEANED_EXTENSION))
    };
    names.iter().filter(unfinished).map(|entry| entry.name.clone()).collect()
}

fn has_extension(entry: &DirEntry, extension: &str) -> bool {
    Path::new(&entry.name).extension().is_some_and(|found| found == extension)
}

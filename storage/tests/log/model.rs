//! A log that cannot be wrong (a list of batches in memory), and the comparison of a real one with it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidemark_protocol::{
    LeaderEpoch, Offset, TimestampMs, TopicId, TopicPartition,
    batch::{Batch, BatchBuilder, Compression, stamp},
};
use tidemark_storage::{
    Checkpoint, Cleanup, CompactionBounds, Disk, Log, LogConfig, LogIdentity, LogReader,
    ReadOutcome, Recovery, Residency, SegmentFiles, StorageError,
};

pub(crate) const TOPICS: &str = "data/topics";

/// Small segments and dense indexes, so that a few kilobytes meet every boundary there is.
pub(crate) fn small_config() -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        segment_ms: 10_000,
        retention_bytes: None,
        retention_ms: Some(50_000),
        cleanup: Cleanup { delete: true, compact: false },
        delete_retention_ms: 1000,
        min_compaction_lag_ms: 0,
        index_interval_bytes: 256,
        max_batch_bytes: 64 << 10,
    }
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity { partition: TopicPartition { topic_id: TopicId([7; 16]), partition: 3 } }
}

/// A batch of `values`, not yet stamped.
pub(crate) fn batch(codec: Compression, timestamp_ms: TimestampMs, values: &[Vec<u8>]) -> Batch {
    let mut builder = BatchBuilder::new(codec);
    for (delta, value) in (0..).zip(values) {
        builder.push(timestamp_ms + delta, None, Some(value), &[]);
    }
    parse(builder.build().unwrap())
}

pub(crate) fn parse(mut bytes: Bytes) -> Batch {
    Batch::parse(&mut bytes).unwrap()
}

/// A batch as the log must hold it.
#[derive(Clone, Debug)]
pub(crate) struct ModelBatch {
    pub base: Offset,
    pub next: Offset,
    pub epoch: LeaderEpoch,
    pub bytes: Bytes,
    /// Offset and timestamp of each record.
    pub records: Vec<(Offset, TimestampMs)>,
}

/// What the log must be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub batches: Vec<ModelBatch>,
    pub log_start: Offset,
    pub log_end: Offset,
    /// Leader epochs and where they start, as noted.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
}

impl Model {
    pub(crate) fn latest_epoch(&self) -> LeaderEpoch {
        self.epochs.last().map_or(0, |last| last.0)
    }

    pub(crate) fn append(&mut self, batch: &Batch, epoch: LeaderEpoch) {
        let base = self.log_end;
        let mut bytes = batch.bytes().to_vec();
        stamp(&mut bytes, base, epoch);
        let stamped = parse(bytes.into());
        let records = stamped.records().unwrap();
        let next = stamped.header.next_offset();
        self.batches.push(ModelBatch {
            base,
            next,
            epoch,
            bytes: stamped.bytes().clone(),
            records: records.iter().map(|r| (r.offset, r.timestamp_ms)).collect(),
        });
        self.assign_epoch(epoch, base);
        self.log_end = next;
    }

    pub(crate) fn assign_epoch(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.epochs.last().is_some_and(|last| last.0 == epoch && start >= last.1) {
            return;
        }
        self.epochs.retain(|entry| entry.0 < epoch && entry.1 < start);
        self.epochs.push((epoch, start));
    }

    /// Removes everything from `offset` on, whole batches.
    pub(crate) fn truncate(&mut self, offset: Offset) {
        self.batches.retain(|batch| batch.next <= offset);
        self.log_end =
            self.batches.last().map_or(self.log_start, |last| last.next).min(self.log_end);
        self.log_end = self.log_end.max(self.log_start);
        self.epochs.retain(|entry| entry.1 < offset);
    }

    /// Drops everything and goes on at `offset`.
    pub(crate) fn restart(&mut self, offset: Offset) {
        *self = Self { log_start: offset, log_end: offset, ..Self::default() };
    }

    /// The boundary at or below `offset`, where a truncation to it ends up.
    pub(crate) fn boundary(&self, offset: Offset) -> Offset {
        let below = self.batches.iter().map(|batch| batch.next).filter(|next| *next <= offset);
        below.max().unwrap_or(self.log_start)
    }

    /// The batches that have records at or after the log start.
    pub(crate) fn visible(&self) -> impl Iterator<Item = &ModelBatch> {
        self.batches.iter().filter(|batch| batch.next > self.log_start)
    }

    pub(crate) fn first_at_or_after(
        &self,
        timestamp: TimestampMs,
        upper_bound: Offset,
    ) -> Option<(Offset, TimestampMs)> {
        self.batches
            .iter()
            .flat_map(|batch| &batch.records)
            .find(|(offset, at)| *at >= timestamp && *offset >= self.log_start)
            .copied()
            .filter(|(offset, _)| *offset < upper_bound)
    }

    /// Checks one read against the model: whole batches, the right ones, about as many as asked.
    pub(crate) fn check_read<D: Disk>(
        &self,
        reader: &LogReader<D>,
        offset: Offset,
        upper_bound: Offset,
        max_bytes: usize,
    ) -> Offset {
        let context = format!("read at {offset} below {upper_bound}, {max_bytes} bytes");
        let outcome = reader
            .read(offset, upper_bound, max_bytes, Residency::Any)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let ReadOutcome::Batches { mut bytes, next_offset } = outcome else {
            panic!("{context}: a read that may block is never cold");
        };
        if let Ok(ReadOutcome::Batches { bytes: hot, .. }) =
            reader.read(offset, upper_bound, max_bytes, Residency::Hot)
        {
            assert_eq!(hot.is_empty(), bytes.is_empty(), "{context}: hot and cold differ");
        }
        let mut expected = self.batches.iter().filter(|b| b.next > offset && b.next <= upper_bound);
        let mut end = offset;
        let mut taken = 0;
        while !bytes.is_empty() {
            let batch = expected.next().unwrap_or_else(|| panic!("{context}: too much"));
            assert!(bytes.starts_with(&batch.bytes), "{context}: batch at {}", batch.base);
            bytes = bytes.slice(batch.bytes.len()..);
            taken += batch.bytes.len();
            assert!(end == offset || taken <= max_bytes, "{context}: {taken} bytes are too many");
            end = batch.next;
        }
        if end == offset {
            assert!(expected.next().is_none(), "{context}: nothing, though there is something");
        }
        assert_eq!(next_offset, end, "{context}: where to read on");
        end
    }

    /// Compares everything that can be seen of a log with the model.
    pub(crate) fn check<D: Disk>(&self, log: &Log<D>) {
        assert_eq!(log.log_start_offset(), self.log_start, "log start");
        assert_eq!(log.log_end_offset(), self.log_end, "log end");
        assert!(log.flushed_offset() <= self.log_end, "flushed beyond the end");
        let reader = log.reader();
        let mut offset = self.log_start;
        while offset < self.log_end {
            let next = self.check_read(&reader, offset, self.log_end, 1500);
            assert!(next > offset, "no progress at {offset}");
            offset = next;
        }
        for pair in self.visible().collect::<Vec<_>>().windows(2) {
            if pair[0].epoch != pair[1].epoch {
                let end = log.end_offset_for_epoch(pair[0].epoch);
                let end = end.map(|end| (end.epoch, end.end_offset));
                assert_eq!(end, Some((pair[0].epoch, self.end_of(pair[0].epoch))), "epoch end");
            }
        }
    }

    fn end_of(&self, epoch: LeaderEpoch) -> Offset {
        let above = self.epochs.iter().find(|entry| entry.0 > epoch);
        above.map_or(self.log_end, |entry| entry.1)
    }

    /// Takes the end of the log that came back, which must be the end of a batch and not below
    /// `durable`, as the new end.
    pub(crate) fn accept_end(&mut self, log_end: Offset, durable: Offset) {
        assert!(log_end >= durable, "lost: the log ends at {log_end}, {durable} was flushed");
        assert!(log_end <= self.log_end, "the log ends at {log_end}, beyond {}", self.log_end);
        assert_eq!(self.boundary(log_end).max(self.log_start), log_end, "a batch was cut");
        let epochs = std::mem::take(&mut self.epochs);
        self.truncate(log_end);
        self.epochs = epochs.into_iter().filter(|entry| entry.1 < log_end).collect();
    }
}

/// Where logs live on a disk, and how to open them.
#[derive(Clone, Debug)]
pub(crate) struct Place<D: Disk> {
    pub disk: D,
    pub dir: PathBuf,
}

impl<D: Disk> Place<D> {
    /// Prepares the directories that a data directory has.
    pub(crate) fn prepare(disk: D, root: &Path) -> Self {
        let topics = root.join(TOPICS);
        let data = topics.parent().unwrap();
        disk.create_dir(data).unwrap();
        disk.create_dir(&topics).unwrap();
        disk.sync_dir(root).unwrap();
        disk.sync_dir(data).unwrap();
        Self { disk, dir: topics.join("orders/3") }
    }

    /// Few open files, so that closing and reopening them is part of every test.
    fn files(&self) -> SegmentFiles<D> {
        SegmentFiles::new(self.disk.clone(), 2)
    }

    pub(crate) fn create(&self, config: &LogConfig) -> Log<D> {
        Log::create(&self.files(), &self.dir, identity(), config.clone(), 1).unwrap()
    }

    pub(crate) fn open(
        &self,
        config: &LogConfig,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(Log<D>, Recovery), tidemark_storage::OpenError> {
        Log::open(&self.files(), &self.dir, identity(), config.clone(), checkpoint)
    }
}

/// Compaction with nothing in its way.
pub(crate) fn all<D: Disk>(log: &Log<D>) -> CompactionBounds {
    CompactionBounds { decided: log.log_end_offset(), removals_max: Offset::MAX }
}

/// Flushes what there is to flush, on this thread.
pub(crate) fn flush<D: Disk>(log: &mut Log<D>) -> Result<(), StorageError> {
    while let Some(job) = log.flush_job() {
        let done = job.run()?;
        log.flushed(done);
    }
    Ok(())
}

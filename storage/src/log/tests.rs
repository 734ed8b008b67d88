//! Tests of a whole log on the real disk: what the model-based and crash tests cannot see, such as
//! files, damage to single bytes, and what is open.

mod recovery;
mod retention;

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tempfile::TempDir;
use tidemark_protocol::{
    TopicId, TopicPartition,
    batch::{Batch, BatchBuilder, Compression, batches},
};

use super::*;
use crate::{
    AppendError,
    disk::RealDisk,
    error::ReadError,
    meta::{is_nobodys_log_dir, log_dir_owner},
};

const NOW: u64 = 1_000_000;
const IDENTITY: LogIdentity =
    LogIdentity { partition: TopicPartition { topic_id: TopicId([9; 16]), partition: 4 } };

struct Bench {
    _temp: TempDir,
    dir: PathBuf,
    files: SegmentFiles<RealDisk>,
    config: LogConfig,
}

impl Bench {
    fn new() -> Self {
        Self::with_open_files(100)
    }

    fn with_open_files(max: usize) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("topic").join("4");
        let config = LogConfig { segment_bytes: 64 << 10, ..LogConfig::default() };
        Self { _temp: temp, dir, files: SegmentFiles::new(RealDisk::new(), max), config }
    }

    fn create(&self) -> Log<RealDisk> {
        Log::create(&self.files, &self.dir, IDENTITY, self.config.clone(), NOW).unwrap()
    }

    fn open(&self, checkpoint: Option<Checkpoint>) -> (Log<RealDisk>, Recovery) {
        Log::open(&self.files, &self.dir, IDENTITY, self.config.clone(), checkpoint).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The log's files with this extension, in order of their names.
    fn names(&self, extension: &str) -> Vec<String> {
        let entries = self.files.disk().list(&self.dir).unwrap();
        let names = entries.into_iter().map(|entry| entry.name);
        names.filter(|name| Path::new(name).extension().is_some_and(|it| it == extension)).collect()
    }
}

/// A batch of `records` records of about `bytes` bytes in all, with timestamps from `timestamp` on.
fn batch(records: u32, bytes: usize, timestamp: i64) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = vec![b'v'; bytes / records as usize];
    for at in timestamp..timestamp + i64::from(records) {
        builder.push(at, Some(b"key"), Some(&value), &[]);
    }
    Batch::parse(&mut builder.build().unwrap()).unwrap()
}

fn fill(log: &mut Log<RealDisk>, batches: usize) {
    for _ in 0..batches {
        let timestamp = 1000 * i64::try_from(log.log_end_offset()).unwrap();
        log.append(&[batch(5, 1000, timestamp)], 1, NOW).unwrap();
    }
}

fn flush(log: &mut Log<RealDisk>) {
    while let Some(job) = log.flush_job() {
        let done = job.run().unwrap();
        log.flushed(done);
    }
}

/// Base offsets of all batches from `offset` to the log end, read as a consumer does.
fn read_all(log: &Log<RealDisk>, mut offset: Offset) -> Vec<Offset> {
    let reader = log.reader();
    let mut bases = Vec::new();
    while offset < reader.log_end_offset() {
        let outcome = reader.read(offset, Offset::MAX, 8 << 10, Residency::Any).unwrap();
        let ReadOutcome::Batches { bytes, next_offset } = outcome else { panic!("cold") };
        assert!(next_offset > offset, "a read that gets nowhere");
        for batch in batches(bytes) {
            let batch = batch.unwrap();
            batch.verify_crc().unwrap();
            bases.push(batch.header.base_offset);
        }
        offset = next_offset;
    }
    bases
}

fn every_fifth(range: Range<Offset>) -> Vec<Offset> {
    range.step_by(5).collect()
}

fn hot(log: &Log<RealDisk>, offset: Offset) -> ReadOutcome {
    log.reader().read(offset, Offset::MAX, 100, Residency::Hot).unwrap()
}

#[test]
fn a_log_that_was_never_written_to_has_no_files() {
    let bench = Bench::new();
    let mut log = bench.create();
    log.assign_epoch(3, 0);
    assert!(log.flush_job().is_none());
    log.close().unwrap();
    assert!(!bench.dir.exists());
    let (log, recovery) = bench.open(None);
    assert_eq!((log.log_end_offset(), recovery), (0, Recovery::default()));
    assert!(!bench.dir.exists());
}

#[test]
fn batches_get_offsets_and_epoch_and_come_back() {
    let bench = Bench::new();
    let mut log = bench.create();
    let appended = log.append(&[batch(3, 300, 7), batch(2, 200, 9)], 5, NOW).unwrap();
    assert_eq!((appended.base_offset, appended.next_offset), (0, 5));
    assert_eq!(appended.max_timestamp_ms, 10);
    let outcome = log.reader().read(0, 5, 1 << 20, Residency::Hot).unwrap();
    let ReadOutcome::Batches { bytes, next_offset } = outcome else { panic!("cold") };
    let found: Vec<_> = batches(bytes).map(|batch| batch.unwrap().header).collect();
    assert_eq!(found.iter().map(|header| header.base_offset).collect::<Vec<_>>(), [0, 3]);
    assert!(found.iter().all(|header| header.leader_epoch == 5));
    assert_eq!(next_offset, 5);
    assert_eq!(log.epochs().entries(), [crate::EpochStart { epoch: 5, start: 0 }]);
}

#[test]
fn a_read_stops_at_the_upper_bound_and_at_max_bytes_but_gives_one_batch() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 40);
    let read = |offset, bound, max, residency| {
        let outcome = log.reader().read(offset, bound, max, residency).unwrap();
        let ReadOutcome::Batches { bytes, next_offset } = outcome else { panic!("cold") };
        (batches(bytes).count(), next_offset)
    };
    for residency in [Residency::Hot, Residency::Any] {
        assert_eq!(read(7, Offset::MAX, 1, residency), (1, 10), "the batch that holds offset 7");
        assert_eq!(read(7, 10, 1 << 20, residency), (1, 10));
        assert_eq!(read(7, 9, 1 << 20, residency), (0, 7), "no part of a batch");
        assert_eq!(read(0, 100, 1 << 20, residency), (20, 100));
        assert_eq!(read(200, 200, 1 << 20, residency), (0, 200));
        let (count, next) = read(0, Offset::MAX, 10_000, residency);
        assert_eq!(next, 5 * count as u64);
        assert!((8..=9).contains(&count), "{count}");
    }
    let error = log.reader().read(201, 201, 1, Residency::Any).unwrap_err();
    assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
}

#[test]
fn an_older_epoch_or_a_gap_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    let mut log = bench.create();
    log.append(&[batch(5, 100, 0)], 4, NOW).unwrap();
    let error = log.append(&[batch(5, 100, 0)], 3, NOW).unwrap_err();
    assert!(matches!(error, AppendError::StaleEpoch { given: 3, latest: 4 }), "{error}");
    let error = log.append_as_follower(&[batch(5, 100, 0)], NOW).unwrap_err();
    assert!(matches!(error, AppendError::NotContiguous { given: 0, expected: 5 }), "{error}");
    assert_eq!(log.log_end_offset(), 5);
}

#[test]
fn segments_roll_by_size_and_by_age() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    assert!((3..6).contains(&log.segment_count()), "{}", log.segment_count());
    let before = log.segment_count();
    log.roll_if_due(NOW + bench.config.segment_ms - 1);
    fill(&mut log, 1);
    assert_eq!(log.segment_count(), before);
    log.roll_if_due(NOW + bench.config.segment_ms);
    fill(&mut log, 1);
    assert_eq!(log.segment_count(), before + 1);
    assert_eq!(read_all(&log, 0), every_fifth(0..log.log_end_offset()));
}

#[test]
fn the_flushed_offset_follows_flushes_and_not_appends() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 2);
    let job = log.flush_job().unwrap();
    assert!(log.flush_job().is_none(), "one at a time");
    fill(&mut log, 2);
    assert_eq!(log.flushed_offset(), 0);
    let done = job.run().unwrap();
    assert_eq!(done.flushed_offset(), Some(10));
    log.flushed(done);
    assert_eq!((log.flushed_offset(), log.log_end_offset()), (10, 20));
    flush(&mut log);
    assert_eq!(log.flushed_offset(), 20);
    assert!(log.flush_job().is_none());
}

#[test]
fn a_dropped_flush_job_leaves_everything_dirty() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 2);
    drop(log.flush_job().unwrap());
    flush(&mut log);
    assert_eq!(log.flushed_offset(), 10);
}

#[test]
fn rolled_segments_are_sealed_and_stay_readable() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    let old = log.reader();
    flush(&mut log);
    let indexes = bench.names("index").len();
    assert_eq!(indexes, log.segment_count() - 1);
    assert_eq!(read_all(&log, 0), every_fifth(0..1000));
    assert_eq!(old.log_end_offset(), 1000);
    assert!(matches!(hot(&log, 995), ReadOutcome::Batches { .. }));
}

#[test]
fn a_timestamp_finds_the_first_record_at_or_after_it() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    flush(&mut log);
    let reader = log.reader();
    let find = |timestamp| reader.offset_for_timestamp(timestamp, Offset::MAX).unwrap();
    assert_eq!(find(-5), Some((0, 0)));
    assert_eq!(find(3), Some((3, 3)));
    assert_eq!(find(5), Some((5, 5000)));
    assert_eq!(find(500_002), Some((502, 500_002)));
    assert_eq!(find(995_004), Some((999, 995_004)));
    assert_eq!(find(995_005), None);
    assert_eq!(reader.offset_for_timestamp(5, 5).unwrap(), None, "above the bound");
}

#[test]
fn more_segments_than_may_be_open_are_closed_and_opened_again() {
    let bench = Bench::with_open_files(2);
    let mut log = bench.create();
    fill(&mut log, 600);
    assert!(bench.files.open_count() > 2, "what is not flushed stays open");
    flush(&mut log);
    assert_eq!(read_all(&log, 0), every_fifth(0..3000));
    assert!(bench.files.open_count() <= 3, "{}", bench.files.open_count());
    fill(&mut log, 3);
    assert_eq!(read_all(&log, 2990), every_fifth(2990..3015));
}

#[test]
fn truncation_removes_the_end_for_good() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    flush(&mut log);
    let checkpoint = log.checkpoint();
    log.truncate(502).unwrap();
    assert_eq!((log.log_end_offset(), log.flushed_offset()), (500, 500));
    assert_eq!(read_all(&log, 0), every_fifth(0..500));
    log.append(&[batch(5, 1000, 0)], 2, NOW).unwrap();
    log.truncate(500).unwrap();
    assert_eq!(log.epochs().latest(), Some(1));
    fill(&mut log, 1);
    flush(&mut log);
    drop(log);
    for checkpoint in [Some(checkpoint), None] {
        let (log, recovery) = bench.open(checkpoint);
        assert_eq!(log.log_end_offset(), 505);
        assert_eq!(recovery.corrupt, []);
        assert_eq!(read_all(&log, 0), every_fifth(0..505));
    }
}

#[test]
fn truncating_at_the_start_or_beyond_the_end_is_well_defined() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 100);
    log.assign_epoch(7, 500);
    log.truncate(500).unwrap();
    assert_eq!(log.epochs().latest(), Some(1), "an epoch without records goes");
    log.truncate(0).unwrap();
    assert_eq!((log.log_end_offset(), log.segment_count()), (0, 1));
    fill(&mut log, 2);
    assert_eq!(read_all(&log, 0), [0, 5]);
}

#[test]
fn a_deleted_log_leaves_nothing_and_its_readers_find_nothing() {
    let bench = Bench::new();
    let mut log = bench.create();
    fill(&mut log, 200);
    let job = log.flush_job().unwrap();
    let reader = log.reader();
    log.delete().unwrap();
    assert!(!bench.dir.exists());
    assert!(matches!(job.run(), Err(crate::FlushError::Deleted)));
    assert!(!bench.dir.exists());
    let outcome = reader.read(0, Offset::MAX, 100, Residency::Any).unwrap();
    assert_eq!(outcome, ReadOutcome::Batches { bytes: Bytes::new(), next_offset: 0 });
}

/// Flips one bit of a file.
fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

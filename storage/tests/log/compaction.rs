//! Compaction against a model: whoever reads the whole log ends up with the same newest value for
//! every key, before and after, and after a crash at any operation of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bytes::Bytes;
use proptest::prelude::*;
use tidemark_protocol::{
    Offset,
    batch::{Batch, BatchBuilder, Compression, Record, batches},
};
use tidemark_storage::{
    Checkpoint, Cleanup, Compacted, CompactionBounds, Disk, Log, LogConfig, ReadOutcome, RealDisk,
    Residency, StorageError, testing::SimDisk,
};

use crate::model::{Place, all, flush, parse, small_config};

pub(crate) const DELETE_RETENTION_MS: u64 = 1000;

pub(crate) fn config() -> LogConfig {
    LogConfig {
        cleanup: Cleanup { delete: false, compact: true },
        delete_retention_ms: DELETE_RETENTION_MS,
        ..small_config()
    }
}

/// Key, and value unless it is a tombstone. Without a key: a record of its own.
type Entry = (Option<u8>, Option<usize>);

pub(crate) fn keyed(codec: Compression, timestamp: i64, entries: &[Entry]) -> Batch {
    let mut builder = BatchBuilder::new(codec);
    for (key, value) in entries {
        let key = key.map(|key| [b'k', key]);
        let value = value.map(|len| vec![len.to_le_bytes()[0]; len]);
        let key = key.as_ref().map(<[u8; 2]>::as_slice);
        // A record with neither would say nothing.
        let value = if key.is_none() { value.or(Some(vec![0])) } else { value };
        builder.push(timestamp, key, value.as_deref(), &[]);
    }
    parse(builder.build().unwrap())
}

/// Everything that was ever appended.
#[derive(Clone, Default)]
pub(crate) struct History {
    records: BTreeMap<Offset, Record>,
}

impl History {
    pub(crate) fn append<D: Disk>(
        &mut self,
        log: &mut Log<D>,
        batch: &Batch,
        now_ms: u64,
    ) -> Result<(), tidemark_storage::AppendError> {
        let base = log.log_end_offset();
        for mut record in batch.records().unwrap() {
            record.offset += base;
            self.records.insert(record.offset, record);
        }
        log.append(std::slice::from_ref(batch), 1, now_ms).map(drop)
    }

    /// The newest value of every key below `end`, and every record without a key.
    fn state(&self, end: Offset) -> State {
        state(self.records.range(..end).map(|(_, record)| record))
    }

    /// Checks what a log holds against what was appended.
    fn check<D: Disk>(&self, log: &Log<D>) {
        let end = log.log_end_offset();
        let found = contents(log);
        for record in &found {
            assert_eq!(Some(record), self.records.get(&record.offset), "a record has changed");
        }
        assert_eq!(state(found.iter()), self.state(end), "the newest values");
        let held: BTreeSet<Offset> = found.iter().map(|record| record.offset).collect();
        let mut last = BTreeMap::new();
        for record in self.records.range(..end).map(|(_, record)| record) {
            if let Some(key) = &record.key {
                last.insert(key, record.offset);
            }
        }
        let gone = last.values().filter(|offset| !held.contains(offset)).max();
        let gone_end = gone.map_or(0, |offset| offset + 1);
        assert!(log.removals_end() >= gone_end, "nobody would know that {gone:?} was there");
    }
}

type State = (BTreeMap<Bytes, Bytes>, BTreeSet<Offset>);

fn state<'a>(records: impl Iterator<Item = &'a Record>) -> State {
    let mut newest = BTreeMap::new();
    let mut keyless = BTreeSet::new();
    for record in records {
        match (&record.key, &record.value) {
            (None, _) => drop(keyless.insert(record.offset)),
            (Some(key), None) => drop(newest.remove(key)),
            (Some(key), Some(value)) => drop(newest.insert(key.clone(), value.clone())),
        }
    }
    (newest, keyless)
}

/// All records of a log, whose batches must follow each other without gaps.
pub(crate) fn contents<D: Disk>(log: &Log<D>) -> Vec<Record> {
    let reader = log.reader();
    let (mut offset, end) = (log.log_start_offset(), log.log_end_offset());
    let mut records = Vec::new();
    while offset < end {
        let outcome = reader.read(offset, end, 1000, Residency::Any).expect("it reads");
        let ReadOutcome::Batches { bytes, next_offset } = outcome else {
            panic!("this read may block")
        };
        for batch in batches(bytes) {
            let batch = batch.unwrap();
            batch.verify_crc().unwrap();
            assert_eq!(batch.header.base_offset, offset, "a gap between batches");
            offset = batch.header.next_offset();
            records.extend(batch.records().unwrap());
        }
        assert_eq!(next_offset, offset);
    }
    records
}

pub(crate) fn compact<D: Disk>(
    log: &mut Log<D>,
    now_ms: u64,
    keys_max: usize,
) -> Result<Option<Compacted>, StorageError> {
    compact_within(log, all(log), now_ms, keys_max)
}

pub(crate) fn compact_within<D: Disk>(
    log: &mut Log<D>,
    bounds: CompactionBounds,
    now_ms: u64,
    keys_max: usize,
) -> Result<Option<Compacted>, StorageError> {
    let Some(job) = log.compaction_job(bounds, now_ms) else { return Ok(None) };
    assert!(log.compaction_job(bounds, now_ms).is_none(), "one at a time");
    let done = job.with_keys_max(keys_max).run()?;
    log.install_compaction(done).map(Some)
}

/// Keys that occur more than once below `end`.
fn duplicates(records: &[Record], end: Offset) -> Vec<Bytes> {
    let mut seen = BTreeSet::new();
    let keys = records.iter().filter(|record| record.offset < end).filter_map(|r| r.key.clone());
    keys.filter(|key| !seen.insert(key.clone())).collect()
}

fn roll<D: Disk>(log: &mut Log<D>, now_ms: &mut u64) {
    *now_ms += 20_000;
    log.roll_if_due(*now_ms);
}

/// Appends until there are segments, ends with one record in a segment of its own.
pub(crate) fn fill<D: Disk>(log: &mut Log<D>, history: &mut History, now_ms: &mut u64) {
    for round in 0..40_usize {
        let key = (round % 7).to_le_bytes()[0];
        let entries = [(Some(key), Some(200 + round)), (None, Some(round)), (Some(99), Some(5))];
        history.append(log, &keyed(Compression::None, 1000, &entries), *now_ms).unwrap();
    }
    history.append(log, &keyed(Compression::None, 1000, &[(Some(3), None)]), *now_ms).unwrap();
    roll(log, now_ms);
    history.append(log, &keyed(Compression::None, 1000, &[(None, None)]), *now_ms).unwrap();
    flush(log).unwrap();
}

#[test]
fn one_pass_leaves_the_newest_record_of_each_key_and_every_record_without_one() {
    let place = Place::prepare(SimDisk::new(1), Path::new("/"));
    let (mut log, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    let (reader, before) = (log.reader(), log.size_bytes());
    let outcome = reader.read(0, 100, 5000, Residency::Any).unwrap();
    let compacted = compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
    assert!(compacted.segments >= 2 && compacted.bytes > before / 2, "{compacted:?} of {before}");
    assert_eq!(log.size_bytes(), before - compacted.bytes);
    history.check(&log);
    let end = log.log_end_offset() - 1;
    let records = contents(&log);
    assert_eq!(duplicates(&records, end), Vec::<Bytes>::new());
    assert_eq!(records.iter().filter(|record| record.key.is_none()).count(), 41);
    let ReadOutcome::Batches { bytes, .. } = outcome else { panic!("it was read") };
    for batch in batches(bytes) {
        batch.unwrap().verify_crc().expect("a slice from before is as it was");
    }
    assert!(compact(&mut log, now_ms, 1000).unwrap().is_none(), "nothing left to do");

    let mut checkpoint = log.close().unwrap();
    checkpoint.clean = true;
    let (log, recovery) = place.open(&config(), Some(checkpoint)).unwrap();
    assert_eq!((recovery.corrupt.len(), recovery.scanned_bytes), (0, 0));
    history.check(&log);
}

/// Copies whole batches from a leader's log, as a follower gets them, until both end alike or the follower is at `until`.
fn follow(leader: &Log<SimDisk>, follower: &mut Log<SimDisk>, until: Offset) {
    let reader = leader.reader();
    while follower.log_end_offset() < until.min(leader.log_end_offset()) {
        let at = follower.log_end_offset();
        let outcome = reader.read(at, Offset::MAX, 1, Residency::Any).unwrap();
        let ReadOutcome::Batches { bytes, .. } = outcome else { panic!("this read may block") };
        let read: Vec<_> = batches(bytes).map(Result::unwrap).collect();
        follower.append_as_follower(&read, 1000).unwrap();
    }
}

#[test]
fn a_follower_between_two_batches_that_were_emptied_and_merged_goes_on() {
    let place = Place::prepare(SimDisk::new(8), Path::new("/"));
    let (mut leader, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    for _ in 0..20 {
        let batch = keyed(Compression::None, 1000, &[(Some(1), Some(300))]);
        history.append(&mut leader, &batch, now_ms).unwrap();
    }
    roll(&mut leader, &mut now_ms);
    history.append(&mut leader, &keyed(Compression::None, 1000, &[(None, None)]), now_ms).unwrap();
    flush(&mut leader).unwrap();
    let place = Place::prepare(SimDisk::new(9), Path::new("/"));
    let mut follower = place.create(&config());
    follow(&leader, &mut follower, 3);
    compact(&mut leader, now_ms, 1000).unwrap().expect("a pass is due");
    follow(&leader, &mut follower, Offset::MAX);
    assert_eq!(follower.log_end_offset(), leader.log_end_offset());
    history.check(&follower);
}

#[test]
fn a_tombstone_is_readable_for_its_time_and_then_goes() {
    let place = Place::prepare(SimDisk::new(1), Path::new("/"));
    let (mut log, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    let tombstones = |log: &Log<SimDisk>| {
        contents(log).iter().filter(|r| r.key.is_some() && r.value.is_none()).count()
    };
    compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
    assert_eq!(tombstones(&log), 1);
    assert!(compact(&mut log, now_ms + DELETE_RETENTION_MS - 1, 1000).unwrap().is_none());
    assert_eq!(tombstones(&log), 1, "its time is not up");
    compact(&mut log, now_ms + DELETE_RETENTION_MS, 1000).unwrap().expect("it is due");
    assert_eq!(tombstones(&log), 0);
    history.check(&log);
    assert!(compact(&mut log, now_ms + 9 * DELETE_RETENTION_MS, 1000).unwrap().is_none());
}

#[test]
fn young_unflushed_and_uncommitted_records_are_left_alone() {
    let place = Place::prepare(SimDisk::new(1), Path::new("/"));
    let settings = LogConfig { min_compaction_lag_ms: 5000, ..config() };
    let (mut log, mut history, mut now_ms) = (place.create(&settings), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    let end = all(&log);
    assert!(log.compaction_job(end, 5999).is_none(), "the records are from 1000");
    assert!(
        log.compaction_job(CompactionBounds { decided: 2, ..end }, 6000).is_none(),
        "nothing but two records is committed"
    );
    assert!(log.compaction_job(end, 6000).is_some());
    let other = LogConfig { cleanup: Cleanup { delete: true, compact: false }, ..settings };
    log.set_config(other);
    assert!(log.compaction_job(end, 90_000).is_none(), "not asked for");
}

#[test]
fn damage_is_not_compacted_away() {
    let disk = SimDisk::new(1);
    let place = Place::prepare(disk.clone(), Path::new("/"));
    let (mut log, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    disk.bit_rot(&place.dir.join("00000000000000000000.log"), 700, 1);
    let size = log.size_bytes();
    let refused = compact(&mut log, now_ms, 1000);
    assert!(matches!(refused, Err(StorageError::Read(_))), "{refused:?}");
    assert_eq!(log.size_bytes(), size);
}

/// A workload with compaction in it, for as long as the disk lets it.
fn workload(
    place: &Place<SimDisk>,
    history: &mut History,
    flushed: &mut Offset,
) -> Option<Checkpoint> {
    let (mut log, mut now_ms) = (place.create(&config()), 1000);
    let mut checkpoint = None;
    let mut run = || -> Option<()> {
        for round in 0..6_usize {
            for index in 0..9_usize {
                let key = (index % 4 + round % 2).to_le_bytes()[0];
                let value = (index != 7).then_some(300 + 10 * round + index);
                let entries = [(Some(key), value), (Some(50 + key), Some(2))];
                history.append(&mut log, &keyed(Compression::None, 1000, &entries), now_ms).ok()?;
            }
            now_ms += 20_000;
            log.roll_if_due(now_ms);
            let outcome = flush(&mut log);
            *flushed = log.flushed_offset();
            outcome.ok()?;
            if round % 3 == 0 {
                checkpoint = Some(log.checkpoint());
            }
            if round >= 1 {
                compact(&mut log, now_ms, 1000).ok()?;
            }
        }
        Some(())
    };
    // Stopped or not, what counts is what is on the disk.
    let _stopped = run();
    checkpoint
}

#[test]
fn after_a_loss_of_power_at_any_operation_no_value_is_lost_and_none_comes_back() {
    let start = |seed| {
        let disk = SimDisk::new(seed);
        (disk.clone(), Place::prepare(disk, Path::new("/")))
    };
    let (disk, place) = start(0);
    let (mut history, mut flushed) = (History::default(), 0);
    workload(&place, &mut history, &mut flushed);
    let operations = disk.operations();
    assert_eq!(flushed, 6 * 9 * 2, "the workload runs to its end");
    for stop_at in 4..=operations {
        let (disk, place) = start(stop_at);
        disk.stop_at(stop_at);
        let (mut history, mut flushed) = (History::default(), 0);
        let checkpoint = workload(&place, &mut history, &mut flushed);
        for seed in 0..3 {
            let fork = disk.fork(stop_at << 8 | seed);
            if seed == 0 {
                fork.crash();
            } else {
                fork.power_loss();
            }
            let place = Place { disk: fork.clone(), ..place.clone() };
            let check = || {
                let believed = checkpoint.clone().filter(|_| seed != 1);
                let (mut log, recovery) = place.open(&config(), believed).unwrap();
                assert_eq!(recovery.corrupt, [], "a crash is not corruption");
                assert!(log.log_end_offset() >= flushed, "lost what was flushed");
                history.check(&log);
                // Two more passes, the second of which drops tombstones.
                flush(&mut log).unwrap();
                let mut now_ms = 1_000_000;
                for _ in 0..2 {
                    compact(&mut log, now_ms, 1000).unwrap();
                    history.check(&log);
                    now_ms += DELETE_RETENTION_MS;
                }
                drop(log);
                fork.power_loss();
                let (log, recovery) = place.open(&config(), None).unwrap();
                assert_eq!(recovery.corrupt, [], "a crash is not corruption");
                history.check(&log);
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
            assert!(outcome.is_ok(), "stopped at {stop_at}, seed {seed}\n{:#?}", disk.trace());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append { codec: usize, entries: Vec<Entry> },
    Roll,
    Compact { keys_max: usize },
    Wait,
    Reopen { with_checkpoint: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let key = proptest::option::weighted(0.9, 0_u8..12);
    let entry = (key, proptest::option::weighted(0.8, 0_usize..300));
    prop_oneof![
        10 => (0_usize..5, proptest::collection::vec(entry, 1..8))
            .prop_map(|(codec, entries)| Step::Append { codec, entries }),
        2 => Just(Step::Roll),
        3 => (8_usize..40).prop_map(|keys_max| Step::Compact { keys_max }),
        1 => Just(Step::Wait),
        1 => any::<bool>().prop_map(|with_checkpoint| Step::Reopen { with_checkpoint }),
    ]
}

fn run<D: Disk>(place: &Place<D>, crash: impl Fn(), steps: &[Step]) {
    let mut log = Some(place.create(&config()));
    let (mut history, mut now_ms, mut checkpoint) = (History::default(), 1000, None);
    for step in steps {
        let open = log.as_mut().unwrap();
        match step {
            Step::Append { codec, entries } => {
                let batch = keyed(Compression::ALL[*codec], 1000, entries);
                history.append(open, &batch, now_ms).unwrap();
            }
            Step::Roll => {
                roll(open, &mut now_ms);
                flush(open).unwrap();
                checkpoint = Some(open.checkpoint());
            }
            Step::Compact { keys_max } => {
                flush(open).unwrap();
                compact(open, now_ms, *keys_max).unwrap();
                history.check(open);
            }
            Step::Wait => now_ms += DELETE_RETENTION_MS,
            Step::Reopen { with_checkpoint } => {
                flush(open).unwrap();
                let end = open.log_end_offset();
                drop(log.take());
                crash();
                let believed = checkpoint.clone().filter(|_| *with_checkpoint);
                let (reopened, recovery) = place.open(&config(), believed).unwrap();
                assert_eq!(recovery.corrupt, []);
                assert_eq!(reopened.log_end_offset(), end);
                history.check(&reopened);
                log = Some(reopened);
            }
        }
    }
    history.check(log.as_ref().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn compaction_on_the_simulated_disk_is_like_the_model(
        seed: u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let disk = SimDisk::new(seed);
        let place = Place::prepare(disk.clone(), Path::new("/"));
        run(&place, || disk.power_loss(), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20) })]

    #[test]
    fn compaction_on_the_real_disk_is_like_the_model(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let root = tempfile::tempdir().unwrap();
        run(&Place::prepare(RealDisk::new(), root.path()), || {}, &steps);
    }
}

/// Readers hold segments that compaction replaces, and reopen files by names that mean something
/// else by then.
#[test]
fn readers_beside_compaction_see_whole_batches_and_no_damage() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::prepare(RealDisk::new(), root.path());
    let (mut log, mut history, mut now_ms) = (place.create(&config()), History::default(), 1000);
    fill(&mut log, &mut history, &mut now_ms);
    let done = std::sync::atomic::AtomicBool::new(false);
    let reader = log.reader();
    std::thread::scope(|scope| {
        let readers = [700, 3000].map(|max_bytes| {
            let (reader, done) = (reader.clone(), &done);
            scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    read_through(&reader, max_bytes);
                    rounds += 1;
                }
                rounds
            })
        });
        for _ in 0..25 {
            fill(&mut log, &mut history, &mut now_ms);
            compact(&mut log, now_ms, 1000).unwrap().expect("a pass is due");
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        for reader in readers {
            assert!(reader.join().expect("no reader panics") > 0, "they read meanwhile");
        }
    });
    assert!(reader.quarantined().is_empty());
    history.check(&log);
}

fn read_through<D: Disk>(reader: &tidemark_storage::LogReader<D>, max_bytes: usize) {
    let (mut offset, end) = (reader.log_start_offset(), reader.log_end_offset());
    while offset < end {
        let outcome = reader.read(offset, end, max_bytes, Residency::Any).expect("no damage");
        let ReadOutcome::Batches { bytes, next_offset } = outcome else { panic!("it may block") };
        for batch in batches(bytes) {
            let batch = batch.expect("whole batches");
            batch.verify_crc().expect("intact batches");
            assert!(batch.header.base_offset <= offset && batch.header.next_offset() > offset);
            offset = batch.header.next_offset();
        }
        assert_eq!(next_offset, offset);
    }
}

/// The one way a deleted value could come back: a pass that is interrupted marks the tombstone but
/// leaves the value, and a later one, interrupted too, drops the tombstone and leaves the value.
#[test]
fn two_losses_of_power_in_two_passes_bring_no_deleted_value_back() {
    let setting = config();
    let original = SimDisk::new(0);
    let place = Place::prepare(original.clone(), Path::new("/"));
    let (mut log, mut history, mut now_ms) = (place.create(&setting), History::default(), 1000);
    for entry in [(Some(1), Some(9)), (Some(1), None), (None, Some(1))] {
        history.append(&mut log, &keyed(Compression::None, 1000, &[entry]), now_ms).unwrap();
        roll(&mut log, &mut now_ms);
    }
    flush(&mut log).unwrap();
    drop(log);
    // A pass at the given time, stopped after some operations, on a disk that loses power then.
    let interrupted_pass = |disk: &SimDisk, now_ms, operations, seed| {
        let disk = disk.fork(seed);
        let place = Place { disk: disk.clone(), ..place.clone() };
        let (mut log, recovery) = place.open(&setting, None).unwrap();
        assert_eq!(recovery.corrupt, []);
        history.check(&log);
        flush(&mut log).unwrap();
        disk.stop_at(disk.operations() + operations);
        let stopped = compact(&mut log, now_ms, 1000).is_err();
        drop(log);
        disk.power_loss();
        stopped.then_some(disk)
    };
    let (mut pairs, later) = (0, now_ms + 10 * DELETE_RETENTION_MS);
    for first in 0.. {
        let mut seeds = (0..3).filter_map(|seed| interrupted_pass(&original, now_ms, first, seed));
        let Some(disk) = seeds.next() else { break };
        for disk in std::iter::once(disk).chain(seeds) {
            for second in 0.. {
                let mut seeds = (0..2).filter_map(|s| interrupted_pass(&disk, later, second, s));
                let Some(disk) = seeds.next() else { break };
                for disk in std::iter::once(disk).chain(seeds) {
                    let place = Place { disk, ..place.clone() };
                    history.check(&place.open(&setting, None).unwrap().0);
                    pairs += 1;
                }
            }
        }
    }
    assert!(pairs > 300, "{pairs} pairs of crashes");
}

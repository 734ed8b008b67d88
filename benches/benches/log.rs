//! One log on the real disk: appends that nobody flushes, and reads of what was just appended.
//!
//! Whatever the kernel writes back meanwhile is part of the figure; a temporary folder in memory (`TMPDIR`) leaves it out.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark_benches::load;
use tidemark_protocol::{TopicId, TopicPartition, batch::Batch};
use tidemark_storage::{
    Log, LogConfig, LogIdentity, ReadOutcome, RealDisk, Residency, SegmentFiles,
};

const BATCH_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 1 << 20;
/// A log is as long as this before it is deleted and another begun, in batches: 256 MiB.
const LOG_BATCHES: u64 = 4096;
/// What is read lies in the last bytes appended, in batches: 32 MiB.
const READ_BATCHES: u64 = 512;

fn create(dir: &Path) -> Log<RealDisk> {
    let partition = TopicPartition { topic_id: TopicId([7; 16]), partition: 0 };
    let files = SegmentFiles::new(RealDisk::new(), 16);
    Log::create(&files, dir, LogIdentity { partition }, LogConfig::default(), 0)
        .expect("an empty folder takes a log")
}

fn append(log: &mut Log<RealDisk>, batch: &Batch) {
    log.append(std::slice::from_ref(batch), 0, 0).expect("there is space");
}

/// The time of so many appends, without that of creating and deleting logs.
fn append_many(dir: &Path, batch: &Batch, mut count: u64) -> Duration {
    let mut took = Duration::ZERO;
    while count > 0 {
        let round = count.min(LOG_BATCHES);
        let mut log = create(dir);
        let began = Instant::now();
        for _ in 0..round {
            append(&mut log, batch);
        }
        took += began.elapsed();
        log.delete().expect("its files are ours");
        count -= round;
    }
    took
}

fn logs(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("log");
    let mut bytes: Bytes = load::batch(1024, BATCH_BYTES);
    let batch = Batch::parse(&mut bytes).expect("just built");

    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Bytes(batch.bytes().len() as u64));
    group.bench_function("append 64 KiB, not flushed", |bencher| {
        bencher.iter_custom(|count| append_many(&dir, &batch, count));
    });

    let mut log = create(&dir);
    (0..READ_BATCHES).for_each(|_| append(&mut log, &batch));
    let (reader, end) = (log.reader(), log.log_end_offset());
    // Not bytes: a read finds its batches and touches none of them.
    group.throughput(Throughput::Elements(1));
    group.bench_function("read 1 MiB, hot", |bencher| {
        let mut offset = 0;
        bencher.iter(|| {
            let read = reader.read(black_box(offset), end, READ_BYTES, Residency::Hot);
            let Ok(ReadOutcome::Batches { bytes, next_offset }) = read else {
                panic!("hot data is served at once, not {read:?}");
            };
            offset = if next_offset < end { next_offset } else { 0 };
            bytes
        });
    });
    group.finish();
    log.delete().expect("its files are ours");
}

criterion_group!(benches, logs);
criterion_main!(benches);

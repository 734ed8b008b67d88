//! A partition that leaves and comes back, stopped at every operation of the disk.

use std::{error::Error, path::Path};

use bytes::Bytes;
use tidemark_controller::TopicConfig;
use tidemark_protocol::{
    TopicId,
    batch::{Batch, BatchBuilder, Compression, batches},
    messages::TopicSettings,
};
use tidemark_storage::{
    Checkpoints, DataDirIdentity, LockedDataDir, ReadOutcome, Residency, disk::SimDisk,
};

use super::*;

const ID: TopicPartition = TopicPartition { topic_id: TopicId([7; 16]), partition: 3 };
const BEFORE: [u8; 6] = [1, 2, 3, 4, 5, 6];
const AFTER: [u8; 3] = [7, 8, 9];
const VALUE_BYTES: usize = 3000;
/// Losses of power tried at each operation, each with choices of its own.
const SEEDS: u64 = 8;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How far a process had come when the disk stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Starting,
    FirstFlushed,
    Leaving,
    Back,
    BackAndFlushed,
}

fn topic() -> Topic {
    Topic {
        id: ID.topic_id,
        name: "t".into(),
        settings: TopicSettings::default(),
        // Each batch has a segment to itself: the smallest there is takes no second value.
        config: TopicConfig { segment_bytes: 1, ..TopicConfig::default() },
        partitions: Vec::new(),
    }
}

fn start(disk: &SimDisk) -> Outcome<(DataDir<Disk>, LogDirs, Checkpoints)> {
    let identity =
        DataDirIdentity { cluster_id: "c".to_owned(), node_id: 1, directory_id: [7; 16] };
    let locked = LockedDataDir::lock(Disk::from(disk.clone()), Path::new("/data"), "a test")?;
    let data_dir = locked.open(identity)?;
    let checkpoints = data_dir.load_checkpoints()?;
    let left_behind =
        LeftBehind::new(data_dir.disk().clone(), data_dir.root(), data_dir.topics_dir());
    let files = SegmentFiles::new(data_dir.disk().clone(), 16);
    let dirs = LogDirs { files, topics_dir: data_dir.topics_dir(), left_behind };
    Ok((data_dir, dirs, checkpoints))
}

fn write(log: &mut Log, values: &[u8]) -> Outcome<()> {
    for value in values {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1000, None, Some(&[*value; VALUE_BYTES]), &[]);
        let batch = Batch::parse(&mut builder.build()?)?;
        log.append(std::slice::from_ref(&batch), 1, 1000)?;
    }
    Ok(())
}

fn flush(log: &mut Log) -> Outcome<()> {
    while let Some(job) = log.flush_job() {
        log.flushed(job.run()?);
    }
    Ok(())
}

fn checkpoint(data_dir: &DataDir<Disk>, log: &Log) -> Outcome<()> {
    data_dir.begin_checkpoints();
    Ok(data_dir.write_checkpoints(&[(ID, log.checkpoint())])?)
}

/// A log is flushed and noted in the checkpoint file, deleted, and created and flushed anew.
fn leave_and_come_back(disk: &SimDisk, stage: &mut Stage) -> Outcome<()> {
    let (data_dir, dirs, _) = start(disk)?;
    let topic = topic();
    let (mut log, _) = dirs.open(&topic, ID, None, (Stray::MoveAside, 1000))?;
    write(&mut log, &BEFORE)?;
    flush(&mut log)?;
    *stage = Stage::FirstFlushed;
    assert!(log.segment_count() > 3);
    checkpoint(&data_dir, &log)?;
    *stage = Stage::Leaving;
    LogDirs::forget(&data_dir, &[ID]);
    dirs.delete(log)?;
    *stage = Stage::Back;
    let (mut log, _) = dirs.open(&topic, ID, None, (Stray::MoveAside, 2000))?;
    write(&mut log, &AFTER)?;
    flush(&mut log)?;
    *stage = Stage::BackAndFlushed;
    checkpoint(&data_dir, &log)
}

/// What a process finds that is started with metadata in which the partition is here.
fn found(disk: &SimDisk) -> Vec<u8> {
    let (_data_dir, dirs, mut checkpoints) = start(disk).unwrap();
    let checkpoint = checkpoints.take_logs().remove(&ID);
    let opened = dirs.open(&topic(), ID, checkpoint.as_ref(), (Stray::Keep, 3000));
    let (log, _) = opened.unwrap();
    let reader = log.reader();
    assert!(reader.quarantined().is_empty(), "a crash is not damage");
    assert_eq!(log.log_start_offset(), 0, "nothing is missing at the front");
    let mut values = Vec::new();
    while (values.len() as u64) < log.log_end_offset() {
        let read = reader.read(values.len() as u64, log.log_end_offset(), 1000, Residency::Any);
        let Ok(ReadOutcome::Batches { bytes, .. }) = read else { panic!("{read:?}") };
        values.extend(values_of(bytes));
    }
    values
}

fn values_of(bytes: Bytes) -> Vec<u8> {
    let records = batches(bytes).flat_map(|batch| batch.unwrap().records().unwrap());
    records.map(|record| record.value.unwrap()[0]).collect()
}

fn check(disk: &SimDisk, stage: Stage) {
    let values = found(disk);
    let is_expected = match stage {
        Stage::Starting => BEFORE.starts_with(&values),
        Stage::FirstFlushed => values == BEFORE,
        Stage::Leaving => values == BEFORE || values.is_empty(),
        Stage::Back => AFTER.starts_with(&values),
        Stage::BackAndFlushed => values == AFTER,
    };
    assert!(is_expected, "{values:?}");
}

fn stopped_at_every_operation(seeds: u64, end: impl Fn(&SimDisk)) {
    for stop_at in 1.. {
        let disk = SimDisk::new(stop_at);
        disk.stop_at(stop_at);
        let mut stage = Stage::Starting;
        let outcome = leave_and_come_back(&disk, &mut stage);
        if !disk.is_stopped() {
            outcome.unwrap();
            assert_eq!(stage, Stage::BackAndFlushed);
            return;
        }
        for seed in 0..seeds {
            let fork = disk.fork(stop_at << 8 | seed);
            end(&fork);
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(&fork, stage);
            }));
            assert!(
                checked.is_ok(),
                "stopped at operation {stop_at} ({:?}), {stage:?}, seed {seed}\n{:#?}",
                disk.stopped(),
                disk.trace()
            );
        }
    }
}

#[test]
fn a_loss_of_power_leaves_one_life_of_a_partition_that_came_back() {
    stopped_at_every_operation(SEEDS, SimDisk::power_loss);
}

#[test]
fn a_kill_leaves_one_life_of_a_partition_that_came_back() {
    stopped_at_every_operation(1, SimDisk::crash);
}

/// A full disk refuses the checkpoint file until the deletion has made room.
#[test]
fn what_could_not_be_forgotten_is_forgotten_once_there_is_room() {
    let disk = SimDisk::new(1);
    let (data_dir, dirs, _) = start(&disk).unwrap();
    let (mut log, _) = dirs.open(&topic(), ID, None, (Stray::MoveAside, 1000)).unwrap();
    write(&mut log, &BEFORE).unwrap();
    flush(&mut log).unwrap();
    checkpoint(&data_dir, &log).unwrap();
    let full = |capacity_bytes| tidemark_storage::testing::Faults {
        capacity_bytes,
        ..tidemark_storage::testing::Faults::default()
    };
    disk.set_faults(full(Some(disk.used_bytes())));
    assert!(!LogDirs::forget(&data_dir, &[ID]));
    dirs.delete(log).unwrap();
    assert!(LogDirs::forget(&data_dir, &[ID]));
    drop(data_dir);
    disk.power_loss();
    assert!(found(&disk).is_empty());
}

//! The same start with metadata that is older than the logs as on a steered broker, on threads.

use std::path::Path;

use tidemark_storage::{LockedDataDir, disk::SimDisk};

use super::*;
use crate::{
    broker::testing,
    clock::Clock,
    disk::SegmentFiles,
    disk_watch::DiskWatch,
    flusher::Flusher,
    health::Health,
    left_behind::LeftBehind,
    metrics::Metrics,
    partitions::Partitions,
    shard::{Shard, ShardConfig},
    steered::{
        replicas::Kept,
        tests::{OLD, ROOT, first_process, history, identity, image, rot},
    },
    tasks::Tasks,
};

#[tokio::test]
async fn damage_in_a_log_that_the_first_metadata_does_not_know_is_not_a_torn_end() {
    let disk = SimDisk::new(1);
    let mut first = first_process(&disk);
    first.write_checkpoints().unwrap();
    drop(first);
    disk.crash();
    rot(&disk);

    let locked = LockedDataDir::lock(Disk::from(disk), Path::new(ROOT), "a test").unwrap();
    let data_dir = Arc::new(locked.open(identity()).unwrap());
    let partitions = Partitions::expecting(data_dir.load_checkpoints().unwrap().take_logs());
    let (clock, health, tasks) = (Clock::start(), Health::starting(), Tasks::new(Shutdown::new()));
    let metrics = Metrics::new(clock.clone(), health.clone());
    let disk_watch = DiskWatch::new(ROOT.into(), 0, health.clone());
    let flusher = Flusher::start(&tasks, &clock, &metrics).unwrap();
    let config = ShardConfig { index: 0, queue_max: 100, flush_interval: Duration::from_secs(1) };
    let around = (clock, metrics, health, disk_watch);
    let (clock, metrics, _, disk_watch) = around.clone();
    let port = Arc::<Kept>::default();
    let (shard, handle) =
        Shard::new(config, clock, metrics, disk_watch, flusher.clone(), port as Arc<_>);
    drop(tasks.spawn_thread("shard-0", move || shard.run()).unwrap());

    let known = (image(history().len()), partitions);
    let (broker, _senders) = testing::broker(tasks.clone(), handle.clone(), known, around);
    let (disk, topics_dir) = (data_dir.disk().clone(), data_dir.topics_dir());
    let left_behind = LeftBehind::new(disk.clone(), data_dir.root(), topics_dir.clone());
    let dirs = LogDirs { files: SegmentFiles::new(disk, 16), topics_dir, left_behind };
    let (assigned_in, assigned) = watch::channel(0);
    let mut assignments = Assignments::new(Arc::clone(&broker), data_dir, dirs, assigned_in);
    assignments.open_existing(&image(OLD)).await;
    assert_eq!((broker.partitions.count(), broker.partitions.not_open()), (0, 1));
    let image = image(history().len());
    assignments.follow(image.clone()).await;
    assert_eq!(*assigned.borrow(), image.metadata_index());
    assert_eq!((broker.partitions.count(), broker.partitions.not_open()), (1, 0));
    assert!(broker.partitions.are_damaged());

    handle.ask(|reply| Command::Close { reply }).await.unwrap();
    flusher.close();
    tasks.finished(RETRY_INTERVAL).await.unwrap();
}

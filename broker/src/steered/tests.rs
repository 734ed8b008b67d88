//! Starts with metadata that is older than the logs.

use tidemark_controller::{IncarnationId, MetadataRecord};
use tidemark_protocol::{
    DirectoryId, TopicId,
    batch::{BatchBuilder, Compression},
    messages::TopicSettings,
};
use tidemark_storage::Disk as _;

use super::*;

const ID: TopicPartition = TopicPartition { topic_id: TopicId([7; 16]), partition: 0 };
pub(crate) const ROOT: &str = "/data";
/// What the first process is registered with, and the second.
const EPOCHS: [BrokerEpoch; 2] = [0, 3];
/// Entries that the second process knows at first: the topic is not among them.
pub(crate) const OLD: usize = 2;

/// The broker registers, a topic is created, and the broker registers once more.
pub(crate) fn history() -> Vec<Vec<MetadataRecord>> {
    let registered = |incarnation: u8| MetadataRecord::BrokerRegistered {
        broker_id: 1,
        incarnation: IncarnationId([incarnation; 16]),
        directory: DirectoryId([1; 16]),
        host: "one".to_owned(),
        port: 9092,
        rack: None,
    };
    let unfenced = |broker_epoch| MetadataRecord::BrokerChanged {
        broker_id: 1,
        broker_epoch,
        fenced: false,
        in_controlled_shutdown: false,
        draining: false,
    };
    let settings = TopicSettings::default();
    let topic = MetadataRecord::TopicCreated { id: ID.topic_id, name: "t".to_owned(), settings };
    let (topic_id, first_partition, replicas) = (ID.topic_id, 0, vec![vec![1]]);
    let partitions = MetadataRecord::PartitionsAdded { topic_id, first_partition, replicas };
    vec![
        vec![registered(1)],
        vec![unfenced(EPOCHS[0])],
        vec![topic, partitions],
        vec![registered(2)],
        vec![unfenced(EPOCHS[1])],
    ]
}

pub(crate) fn image(entries: usize) -> Image {
    let mut image = Image::default();
    for (index, records) in (0..).zip(history().into_iter().take(entries)) {
        image.apply(index, &records).unwrap();
    }
    image
}

pub(crate) fn identity() -> DataDirIdentity {
    DataDirIdentity { cluster_id: "c".to_owned(), node_id: 1, directory_id: [7; 16] }
}

fn start(disk: &SimDisk) -> Steered {
    let config = SteeredConfig {
        broker_id: 1,
        shards: 1,
        queue_max: 100,
        flush_interval: Duration::from_secs(1),
        disk_reserve_bytes: 0,
        open_files_max: 16,
        replica_lag_ms: 10_000,
        coordinators: CoordinatorSettings::default(),
    };
    Steered::open(disk, Path::new(ROOT), identity(), Arc::default(), config).unwrap()
}

/// The first process, with what it was given on the disk.
pub(crate) fn first_process(disk: &SimDisk) -> Steered {
    let mut broker = start(disk);
    broker.open_logs(&image(OLD));
    broker.registered(EPOCHS[0]);
    broker.follow(&image(OLD + 1));
    for value in [b"a", b"b"] {
        let mut batch = BatchBuilder::new(Compression::None);
        batch.push(1000, None, Some(value), &[]);
        let produce = SteeredProduce {
            partition: ID,
            leader_epoch: None,
            acks: Acks::All,
            durability: Durability::Disk,
            timeout_ms: 1000,
            batches: batch.build().unwrap(),
            guard: None,
        };
        let mut ticket = broker.produce(&produce).unwrap();
        broker.wake();
        for flush in broker.take_flushes() {
            broker.run_flush(flush);
        }
        broker.wake();
        ticket.outcome().expect("it is flushed").unwrap();
    }
    broker
}

/// Damages the last byte that the log has.
pub(crate) fn rot(disk: &SimDisk) {
    let path = Path::new(ROOT).join("topics/t/0/00000000000000000000.log");
    let bytes = disk.read_file(&path, 64 << 20).unwrap().unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.bit_rot(&path, last as u64, 0);
}

/// The second process, until its registration has come to it.
fn follow_on(broker: &mut Steered) {
    broker.registered(EPOCHS[1]);
    broker.follow(&image(history().len()));
}

/// Older metadata does not speak of every log that was closed, and to be clean is a claim for all of them.
/// A process that wrote its checkpoints and was killed, and the next one, whose metadata does not speak of its log yet.
fn killed_and_on_old_metadata(disk: &SimDisk) -> Steered {
    let mut broker = first_process(disk);
    broker.write_checkpoints().unwrap();
    drop(broker);
    disk.crash();
    let mut broker = start(disk);
    broker.open_logs(&image(OLD));
    broker
}

#[test]
fn logs_that_were_closed_in_order_are_opened_by_metadata_that_speaks_of_them_all() {
    let disk = SimDisk::new(1);
    assert!(first_process(&disk).close().unwrap());
    let mut broker = start(&disk);
    assert_eq!(broker.opens_from(), image(OLD + 1).metadata_index());
    broker.open_logs(&image(OLD + 1));
    assert_eq!(broker.previous_broker_epoch(), Some(EPOCHS[0]));
    assert!(broker.partitions.get(ID).is_some());
    drop(broker);
    // That was a crash: nothing is claimed, and what there is need not wait.
    disk.crash();
    let broker = start(&disk);
    assert_eq!((broker.opens_from(), broker.previous_broker_epoch()), (1, None));
}

#[test]
fn who_stops_before_every_log_was_looked_for_has_not_stopped_cleanly() {
    let disk = SimDisk::new(1);
    let broker = killed_and_on_old_metadata(&disk);
    assert!(!broker.close().unwrap());
    rot(&disk);
    let mut broker = start(&disk);
    broker.open_logs(&image(OLD));
    follow_on(&mut broker);
    assert!(broker.is_damaged(ID), "its checkpoint was forgotten");
}

/// A partition that comes here again later is another log.
#[test]
fn what_is_not_here_any_more_when_this_run_is_registered_is_forgotten() {
    let disk = SimDisk::new(1);
    let mut broker = killed_and_on_old_metadata(&disk);
    assert!(broker.partitions.checkpoint_of(ID).is_some());
    let mut image = image(history().len());
    let gone = MetadataRecord::TopicDeleted { topic_id: ID.topic_id };
    image.apply(image.metadata_index(), &[gone]).unwrap();
    broker.registered(EPOCHS[1]);
    broker.follow(&image);
    assert_eq!(broker.partitions.checkpoint_of(ID), None);
    assert!(broker.close().unwrap());
}

#[test]
fn damage_in_a_log_that_the_first_metadata_does_not_know_is_not_a_torn_end() {
    for is_killed_again in [false, true] {
        let disk = SimDisk::new(1);
        let mut broker = first_process(&disk);
        broker.write_checkpoints().unwrap();
        drop(broker);
        disk.crash();
        rot(&disk);
        let mut broker = start(&disk);
        broker.open_logs(&image(OLD));
        if is_killed_again {
            broker.write_checkpoints().unwrap();
            drop(broker);
            disk.crash();
            broker = start(&disk);
            broker.open_logs(&image(OLD));
        }
        follow_on(&mut broker);
        assert!(broker.is_damaged(ID), "killed again: {is_killed_again}");
    }
}

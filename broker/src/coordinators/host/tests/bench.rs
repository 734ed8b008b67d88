//! A host, a partition on a simulated disk whose shard the test wakes, and a clock that stands until the test moves it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tidemark_controller::{Image, IncarnationId, MetadataRecord, TopicConfig};
use tidemark_protocol::{
    BrokerId, DirectoryId, Failure, LeaderEpoch, NodeId, Offset, TopicId, TopicPartition,
    messages::{TopicSettings, WantedState},
};
use tidemark_replication::{Assignment, Config as ReplicaConfig, Member};
use tidemark_storage::{LogIdentity, disk::SimDisk};
use tokio::sync::{oneshot, watch};

use super::super::{Ask, Host, State};
use crate::{
    broker::Broker,
    clock::{Clock, ClockHands},
    config::Config,
    control::Control,
    coordinators::{self, Coordinator, Handle, Nudges, testing::Counter},
    disk::{Disk, Log, SegmentFiles},
    disk_watch::DiskWatch,
    flusher::Flusher,
    health::Health,
    lag::LagWatch,
    member::Standing,
    metrics::Metrics,
    partitions::{PartitionView, Partitions},
    peers::{Addresses, Peers},
    producer_ids::ProducerIdBlocks,
    producers::Producers,
    reads::ColdReads,
    replicas::{Sessions, Streams},
    shard::{Adoption, Assigned, Command, Shard, ShardConfig, ShardHandle, log_config},
    steered::replicas::Kept,
    tasks::{Shutdown, Tasks},
};

pub(super) const ME: BrokerId = 1;
const OTHER: BrokerId = 2;
pub(super) const ID: TopicPartition = TopicPartition { topic_id: TopicId([7; 16]), partition: 0 };
const LOG_DIR: &str = "/data/topics/__counters/0";

pub(super) type Answer = oneshot::Receiver<Result<Offset, Failure>>;

type Senders = (watch::Sender<Arc<Image>>, watch::Sender<u64>, watch::Sender<Standing>);

pub(super) struct Bench {
    pub(super) host: Host<Counter>,
    pub(super) handle: Handle<Counter>,
    pub(super) view: Arc<PartitionView>,
    pub(super) disk: SimDisk,
    pub(super) shutdown: Shutdown,
    shard: Shard,
    shard_handle: ShardHandle,
    flusher: Flusher,
    clock: Clock,
    metrics: Metrics,
    hands: Arc<ClockHands>,
    now_ms: u64,
    partition_epoch: u32,
    /// What the broker is told through.
    _senders: Senders,
}

/// Two brokers, and a topic with a replica on each.
fn image() -> Image {
    let registered = |broker_id| MetadataRecord::BrokerRegistered {
        broker_id,
        incarnation: IncarnationId([1; 16]),
        directory: DirectoryId([1; 16]),
        host: "here".to_owned(),
        port: 9092,
        rack: None,
    };
    let (name, settings) = (Counter::TOPIC.to_owned(), TopicSettings::default());
    let topic = MetadataRecord::TopicCreated { id: ID.topic_id, name, settings };
    let (topic_id, first_partition, replicas) = (ID.topic_id, 0, vec![vec![ME, OTHER]]);
    let partitions = MetadataRecord::PartitionsAdded { topic_id, first_partition, replicas };
    let mut image = Image::default();
    for (index, records) in
        [vec![registered(ME)], vec![registered(OTHER)], vec![topic, partitions]].iter().enumerate()
    {
        image.apply(index as u64, records).unwrap();
    }
    image
}

/// A broker that knows the metadata, and has no partition yet.
fn broker(
    tasks: Tasks,
    shard: ShardHandle,
    (clock, metrics, health, disk_watch): (Clock, Metrics, Health, DiskWatch),
) -> (Arc<Broker>, Senders) {
    let (images_in, images) = watch::channel(Arc::new(image()));
    let (leader, assigned, standing) =
        (watch::channel(None), watch::channel(0), watch::channel(Standing::default()));
    let addresses = Addresses::new(BTreeMap::<NodeId, String>::new(), images.clone());
    let (peers, _losses) = Peers::new(tasks.clone(), addresses);
    let broker = Broker {
        id: ME,
        cluster_id: "c".to_owned(),
        directory: DirectoryId([1; 16]),
        incarnation: IncarnationId([1; 16]),
        config: Config::with(&[("data_dir", "/data")]).unwrap(),
        clock,
        metrics,
        health,
        tasks,
        control: Control::new(ME, None, peers, leader.1),
        images,
        shards: vec![shard],
        partitions: Partitions::default(),
        cold_reads: ColdReads::inline(),
        disk_watch,
        assigned: assigned.1,
        behind_since: watch::Sender::new(None),
        standing: standing.1,
        wanted: watch::Sender::new(WantedState::Active),
        sessions: Arc::<Sessions>::default(),
        streams: Arc::<Streams>::default(),
        connections: AtomicU64::default(),
        groups: coordinators::channel().0,
        transactions: coordinators::channel().0,
        nudges: Nudges::default(),
        lag: LagWatch::default(),
        producer_ids: ProducerIdBlocks::default(),
    };
    (Arc::new(broker), (images_in, assigned.0, standing.0))
}

impl Bench {
    pub(super) fn new() -> Self {
        let hands = Arc::<ClockHands>::default();
        let clock = Clock::with_hands(Arc::clone(&hands));
        let health = Health::starting();
        let metrics = Metrics::new(clock.clone(), health.clone());
        let disk_watch = DiskWatch::new("/data".into(), 0, health.clone());
        let (flusher, port) = (Flusher::by_hand(), Arc::<Kept>::default());
        let config =
            ShardConfig { index: 0, queue_max: 100, flush_interval: Duration::from_secs(1) };
        let (shard, shard_handle) = Shard::new(
            config,
            clock.clone(),
            metrics.clone(),
            disk_watch.clone(),
            flusher.clone(),
            port as Arc<_>,
        );
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let around = (clock.clone(), metrics.clone(), health, disk_watch);
        let (broker, senders) = broker(tasks, shard_handle.clone(), around);
        let disk = SimDisk::new(1);
        let (view, log) = open(&disk, &metrics, &shard_handle);
        broker.partitions.insert(Arc::clone(&view));
        let (handle, mailbox) = coordinators::channel();
        let host = Host::new(broker, mailbox);
        let mut bench = Self {
            host,
            handle,
            view,
            disk,
            shutdown,
            shard,
            shard_handle,
            flusher,
            clock,
            metrics,
            hands,
            now_ms: 0,
            partition_epoch: 0,
            _senders: senders,
        };
        bench.adopt(log);
        bench
    }

    fn adopt(&mut self, log: Log) {
        let producers = Producers::load(&log).unwrap();
        let replica = ReplicaConfig {
            broker_id: ME,
            durability: tidemark_replication::StorageDurability::Disk,
            min_insync_replicas: 1,
            replica_lag_ms: 10_000,
        };
        let view = Arc::clone(&self.view);
        let adoption = Adoption { log, producers, view, replica, assignment: None };
        let (reply, mut adopted) = oneshot::channel();
        self.tell(Command::Adopt { adoption: Box::new(adoption), reply });
        adopted.try_recv().expect("it is served");
    }

    fn tell(&mut self, command: Command) {
        assert!(self.shard_handle.try_send(command).is_ok(), "there is room");
        self.work();
    }

    /// Lets the shard do all there is, flushes included. Says whether there were any.
    pub(super) fn work(&mut self) -> bool {
        let mut has_flushed = false;
        loop {
            self.shard.wake();
            let flushes = self.flusher.take_waiting();
            if flushes.is_empty() {
                return has_flushed;
            }
            has_flushed = true;
            for flush in flushes {
                self.flusher.run(flush, &self.clock, &self.metrics);
            }
        }
    }

    /// The metadata says who leads, who is in sync, and how many are to be.
    pub(super) fn assign(
        &mut self,
        leader: BrokerId,
        leader_epoch: LeaderEpoch,
        (isr, min_insync_replicas): (&[BrokerId], u16),
    ) {
        self.partition_epoch += 1;
        let member = |id| Member { id, broker_epoch: 1, eligible: true };
        let assignment = Assignment {
            leader: Some(leader),
            leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: vec![member(ME), member(OTHER)],
            isr: isr.to_vec(),
            elr: Vec::new(),
        };
        let config = TopicConfig { min_insync_replicas, ..TopicConfig::default() };
        let assigned = Box::new(Assigned { config, assignment });
        self.tell(Command::Assign { partition: ID, assigned });
    }

    /// This broker leads, and needs nobody else.
    pub(super) fn lead(&mut self, leader_epoch: LeaderEpoch) {
        self.assign(ME, leader_epoch, (&[ME], 1));
    }

    /// The other broker leads.
    pub(super) fn follow(&mut self, leader_epoch: LeaderEpoch) {
        self.assign(OTHER, leader_epoch, (&[OTHER], 1));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now_ms += u64::try_from(time.as_millis()).unwrap();
        self.hands.set(self.now_ms, 0);
    }

    /// Asks, as whoever's request the host has just taken.
    pub(super) fn ask(&mut self) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.host.asked(Ask::Request { partition: ID.partition, request: (), reply });
        answer
    }

    /// Why a request is refused at once.
    pub(super) fn refusal(&mut self) -> Failure {
        self.ask().try_recv().expect("it is answered at once").unwrap_err()
    }

    /// What a turn of the host does when nothing in particular has happened.
    pub(super) async fn turn(&mut self) {
        self.host.keep_time();
        self.host.append().await;
        self.work();
    }

    /// Waits for the log to be read, and takes the outcome over.
    pub(super) async fn loaded(&mut self) {
        assert!(self.is_loading(), "nothing is read");
        let loaded = self.host.loaded.recv().await.unwrap();
        self.host.take_over(loaded);
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(self.host.slots[0].state, State::Loading { .. })
    }

    /// Lets the host do everything that has come up, until nothing more does.
    pub(super) async fn settle(&mut self) {
        loop {
            self.turn().await;
            let mut goes_on = false;
            while let Some(Some(appended)) = self.host.appends.next().now_or_never() {
                self.host.appended(appended);
                goes_on = true;
            }
            for slot in self.host.waiter.changed().now_or_never().unwrap_or_default() {
                self.host.look_at(slot as usize);
                goes_on = true;
            }
            if self.is_loading() {
                self.loaded().await;
                goes_on = true;
            }
            if !goes_on {
                return;
            }
        }
    }
}

fn open(disk: &SimDisk, metrics: &Metrics, shard: &ShardHandle) -> (Arc<PartitionView>, Log) {
    let files = SegmentFiles::new(Disk::from(disk.clone()), 16);
    let identity = LogIdentity { partition: ID };
    let config = log_config(&TopicConfig::default());
    let (log, _) = Log::open(&files, Path::new(LOG_DIR), identity, config, None).unwrap();
    let (name, topic) = (Counter::TOPIC, metrics.topic(Counter::TOPIC));
    let view = PartitionView::new(ID, name.into(), topic, log.reader(), shard.clone());
    (Arc::new(view), log)
}

/// Damages the log where its first record is.
pub(super) fn rot(disk: &SimDisk) {
    disk.bit_rot(&Path::new(LOG_DIR).join("00000000000000000000.log"), 70, 0);
}

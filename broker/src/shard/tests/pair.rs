//! Two shards with a replica of one partition each, on simulated disks, and what carries over between them.

use std::{
    ops::{Index, IndexMut},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tidemark_controller::TopicConfig;
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, TopicId, TopicPartition,
    batch::{BatchBuilder, Compression, batches},
    messages::{Acks, Durability, ReplicaPush, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, Assignment, Config, Member, ReplicaId, StorageDurability};
use tidemark_storage::{Checkpoint, Disk as _, LogIdentity, ReadOutcome, Residency, disk::SimDisk};
use tokio::sync::oneshot;

use super::super::{
    Adoption, Assigned, Command, FollowerPosition, LeaderAnswer, Produce, ProduceOutcome, Shard,
    ShardConfig, ShardHandle, log_config,
};
use crate::{
    clock::{Clock, ClockHands},
    disk::{Disk, Log, SegmentFiles},
    disk_watch::{DiskSpace, DiskWatch},
    flusher::Flusher,
    health::Health,
    janitor::store_summaries,
    metrics::{Metrics, Protocol},
    partitions::PartitionView,
    producers::Producers,
    reads::{ColdReads, Read, read_for_replica},
    steered::{LogEnds, PortEffect, replicas::Kept},
};

pub(super) const ID: TopicPartition = TopicPartition { topic_id: TopicId([7; 16]), partition: 3 };
const LOG_DIR: &str = "/data/topics/t/3";
const BATCH_BYTES_MAX: usize = 1 << 20;
/// When records are written.
const WALL_MS: i64 = 1_700_000_000_000;

/// One broker.
pub(super) struct Node {
    pub(super) disk: SimDisk,
    pub(super) view: Arc<PartitionView>,
    pub(super) port: Arc<Kept>,
    me: ReplicaId,
    shard: Shard,
    handle: ShardHandle,
    flusher: Flusher,
    disk_watch: DiskWatch,
    metrics: Metrics,
    clock: Clock,
}

/// Both, and time.
pub(super) struct Pair {
    nodes: Vec<Node>,
    hands: Arc<ClockHands>,
    now_ms: u64,
    pub(super) wall_ms: i64,
    partition_epoch: u32,
    /// The topic's, from the next metadata on.
    pub(super) config: TopicConfig,
    /// Whether the metadata lets followers be in sync.
    pub(super) eligible: bool,
    /// Done to batches on their way.
    pub(super) damage: Option<fn(&mut Vec<u8>)>,
    /// What the last answer without batches said.
    pub(super) refused: Option<ReplicaRefusal>,
}

/// A batch of `records` records.
pub(super) fn batch(records: u32, seed: u8) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for index in 0..records {
        builder.push(WALL_MS, None, Some(&[seed, index.to_le_bytes()[0]]), &[]);
    }
    builder.build().unwrap()
}

fn open_log(disk: &SimDisk, checkpoint: Option<Checkpoint>) -> Log {
    let files = SegmentFiles::new(Disk::from(disk.clone()), 16);
    let identity = LogIdentity { partition: ID };
    let config = log_config(&TopicConfig::default());
    let (log, recovery) =
        Log::open(&files, Path::new(LOG_DIR), identity, config, checkpoint).expect("it opens");
    assert!(recovery.corrupt.is_empty(), "{recovery:?}");
    log
}

impl Node {
    fn start(
        id: BrokerId,
        disk: SimDisk,
        checkpoint: Option<Checkpoint>,
        broker_epoch: u64,
        hands: &Arc<ClockHands>,
    ) -> Self {
        let clock = Clock::with_hands(Arc::clone(hands));
        let health = Health::starting();
        let metrics = Metrics::new(clock.clone(), health.clone());
        let disk_watch = DiskWatch::new("/data".into(), 0, health);
        let (flusher, port) = (Flusher::by_hand(), Arc::<Kept>::default());
        let config =
            ShardConfig { index: 0, queue_max: 1000, flush_interval: Duration::from_secs(1) };
        let (shard, handle) = Shard::new(
            config,
            clock.clone(),
            metrics.clone(),
            disk_watch.clone(),
            flusher.clone(),
            Arc::clone(&port) as Arc<_>,
        );
        let log = open_log(&disk, checkpoint);
        let topic = metrics.topic("t");
        let view = PartitionView::new(ID, "t".into(), topic, log.reader(), handle.clone());
        let me = ReplicaId { broker_id: id, broker_epoch };
        let view = Arc::new(view);
        let mut node =
            Self { disk, view, port, me, shard, handle, flusher, disk_watch, metrics, clock };
        node.adopt(log);
        node
    }

    fn adopt(&mut self, log: Log) {
        let producers = Producers::load(&log).expect("the disk works");
        let replica = Config {
            broker_id: self.me.broker_id,
            durability: StorageDurability::Disk,
            min_insync_replicas: 1,
            replica_lag_ms: 10_000,
        };
        let view = Arc::clone(&self.view);
        let adoption = Adoption { log, producers, view, replica, assignment: None };
        self.ask(|reply| Command::Adopt { adoption: Box::new(adoption), reply });
    }

    pub(super) fn tell(&self, command: Command) {
        assert!(self.handle.try_send(command).is_ok(), "there is room");
    }

    pub(super) fn ask<T>(&mut self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        self.tell(command(reply));
        self.shard.wake();
        answer.try_recv().expect("it answers at once")
    }

    /// Does everything there is to do, flushes included.
    pub(super) fn work(&mut self) {
        loop {
            self.shard.wake();
            let flushes = self.flusher.take_waiting();
            if flushes.is_empty() {
                return;
            }
            for flush in flushes {
                self.flusher.run(flush, &self.clock, &self.metrics);
            }
        }
    }

    pub(super) fn trim(&mut self, before: Option<Offset>) -> Result<Offset, Failure> {
        self.ask(|reply| Command::Trim { partition: ID, before, reply })
    }

    pub(super) fn upkeep(&mut self) {
        self.ask(|reply| Command::Upkeep { partitions: vec![ID], reply });
    }

    /// Writes down what a checkpoint would have: the summaries.
    pub(super) fn store_summaries(&mut self) -> usize {
        let noted = self.ask(|reply| Command::Checkpoints { partitions: vec![ID], reply });
        let count = noted.summaries.len();
        store_summaries(noted.summaries);
        count
    }

    pub(super) fn release(&mut self) {
        self.take_log();
    }

    fn take_log(&mut self) -> Log {
        let reason = ErrorCode::UnknownTopicOrPartition;
        let released = self.ask(|reply| Command::Release { partition: ID, reason, reply });
        released.expect("it has a log")
    }

    /// The partition leaves and comes back, empty, and only then a flush is run that was asked for before.
    pub(super) fn come_back_before_a_flush(&mut self) {
        self.shard.wake();
        let flushes = self.flusher.take_waiting();
        assert!(!flushes.is_empty(), "nothing is to be flushed");
        self.take_log().delete().expect("the disk works");
        let log = open_log(&self.disk, None);
        let topic = self.metrics.topic("t");
        let view = PartitionView::new(ID, "t".into(), topic, log.reader(), self.handle.clone());
        self.view = Arc::new(view);
        self.adopt(log);
        for flush in flushes {
            self.flusher.run(flush, &self.clock, &self.metrics);
        }
        self.work();
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.disk_watch.failure()
    }

    pub(super) fn space_is_back(&self) {
        self.disk_watch.observe(DiskSpace { free_bytes: 1 << 40, total_bytes: 1 << 40 });
    }
}

impl Pair {
    pub(super) fn new() -> Self {
        let hands = Arc::<ClockHands>::default();
        hands.set(0, WALL_MS);
        let node = |id: u32| {
            let disk = SimDisk::new(id.into());
            for dir in ["/data", "/data/topics"] {
                disk.create_dir(Path::new(dir)).unwrap();
            }
            disk.sync_dir(Path::new("/")).unwrap();
            disk.sync_dir(Path::new("/data")).unwrap();
            Node::start(id, disk, None, 10, &hands)
        };
        Self {
            nodes: vec![node(1), node(2)],
            hands,
            now_ms: 0,
            wall_ms: WALL_MS,
            partition_epoch: 0,
            config: TopicConfig { min_insync_replicas: 1, ..TopicConfig::default() },
            eligible: true,
            damage: None,
            refused: None,
        }
    }

    /// The metadata says to both who leads.
    pub(super) fn lead(&mut self, leader: BrokerId, epoch: LeaderEpoch, isr: &[BrokerId]) {
        self.assign(1, leader, epoch, isr);
        self.assign(2, leader, epoch, isr);
    }

    /// The metadata comes to one of them.
    pub(super) fn assign(
        &mut self,
        node: BrokerId,
        leader: BrokerId,
        leader_epoch: LeaderEpoch,
        isr: &[BrokerId],
    ) {
        self.partition_epoch += 1;
        let member = |node: &Node| {
            let ReplicaId { broker_id: id, broker_epoch } = node.me;
            Member { id, broker_epoch, eligible: self.eligible }
        };
        let assignment = Assignment {
            leader: Some(leader),
            leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: self.nodes.iter().map(member).collect(),
            isr: isr.to_vec(),
            elr: Vec::new(),
        };
        let assigned = Box::new(Assigned { config: self.config, assignment });
        self[node].tell(Command::Assign { partition: ID, assigned });
        self[node].work();
    }

    pub(super) fn produce(
        &mut self,
        node: BrokerId,
        records: u32,
        acks: Acks,
    ) -> oneshot::Receiver<ProduceOutcome> {
        let seed = self.ends(node).log_end_offset.to_le_bytes()[0];
        self.produce_batches(node, batch(records, seed), acks)
    }

    pub(super) fn produce_batches(
        &mut self,
        node: BrokerId,
        bytes: Bytes,
        acks: Acks,
    ) -> oneshot::Receiver<ProduceOutcome> {
        let (produce, outcome) = self.request(node, bytes, acks);
        self[node].tell(Command::Produce(produce));
        outcome
    }

    /// A request that has not been sent, and the wait for its outcome.
    pub(super) fn request(
        &self,
        node: BrokerId,
        bytes: Bytes,
        acks: Acks,
    ) -> (Produce, oneshot::Receiver<ProduceOutcome>) {
        let (reply, outcome) = oneshot::channel();
        let produce = Produce {
            partition: ID,
            batches: batches(bytes).map(Result::unwrap).collect(),
            leader_epoch: None,
            base_offset: None,
            guard: None,
            unverified: None,
            acks,
            durability: Durability::Topic,
            deadline_ms: u64::MAX,
            protocol: Protocol::Native,
            queued_at: self[node].clock.now(),
            reply,
        };
        (produce, outcome)
    }

    /// Carries everything over, until nobody has anything more to say.
    pub(super) fn pump(&mut self) {
        self.pump_without(|_| false);
    }

    /// The same, but some of it gets lost.
    pub(super) fn pump_without(&mut self, lost: impl Fn(&PortEffect) -> bool) {
        for _ in 0..200 {
            let mut carried = false;
            for id in [1, 2] {
                self[id].work();
                for effect in self[id].port.take().into_iter().filter(|effect| !lost(effect)) {
                    carried = true;
                    self.carry(id, &effect);
                }
            }
            if !carried {
                return;
            }
        }
        panic!("they do not come to rest");
    }

    /// Whatever they have to say gets lost.
    pub(super) fn drop_effects(&mut self) {
        for node in &mut self.nodes {
            node.work();
            node.port.take();
        }
    }

    pub(super) fn wait_ms(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// The machine loses power and starts again, with whatever its disk has.
    pub(super) fn lose_power(&mut self, id: BrokerId) {
        self.restart(id, None);
    }

    fn restart(&mut self, id: BrokerId, checkpoint: Option<Checkpoint>) {
        let node = &self[id];
        let (disk, broker_epoch) = (node.disk.clone(), node.me.broker_epoch + 1);
        disk.power_loss();
        self[id] = Node::start(id, disk, checkpoint, broker_epoch, &Arc::clone(&self.hands));
    }

    /// A bit of its first segment rots, in front of what its checkpoint says is durable, and the machine starts again.
    pub(super) fn rot(&mut self, id: BrokerId, position: u64) {
        let noted = self[id].ask(|reply| Command::Checkpoints { partitions: vec![ID], reply });
        let checkpoint = noted.checkpoints.into_iter().next().map(|(_, checkpoint)| checkpoint);
        let segment = Path::new(LOG_DIR).join(format!("{:020}.log", 0));
        self[id].disk.bit_rot(&segment, position, 0);
        self.restart(id, checkpoint);
    }

    pub(super) fn ends(&self, id: BrokerId) -> LogEnds {
        let view = &self[id].view;
        LogEnds {
            log_start_offset: view.reader.log_start_offset(),
            removals_end: view.reader.removals_end(),
            high_watermark: view.high_watermark(),
            flushed_offset: view.reader.flushed_offset(),
            log_end_offset: view.reader.log_end_offset(),
            leader_epoch: view.leader_epoch(None).ok(),
        }
    }

    /// Everything in a log, as it would be read.
    pub(super) fn bytes(&self, id: BrokerId) -> Bytes {
        let LogEnds { log_start_offset, log_end_offset, .. } = self.ends(id);
        let (mut offset, mut all) = (log_start_offset, BytesMut::new());
        while offset < log_end_offset {
            let reader = &self[id].view.reader;
            let read =
                reader.read(offset, log_end_offset, BATCH_BYTES_MAX, Residency::Any).unwrap();
            let ReadOutcome::Batches { bytes, next_offset } = read else { panic!("cold") };
            all.extend_from_slice(&bytes);
            offset = next_offset;
        }
        all.freeze()
    }

    pub(super) fn read_for_replica(
        &self,
        id: BrokerId,
        leader_epoch: LeaderEpoch,
        offset: Offset,
    ) -> Result<Read, Failure> {
        let Node { view, metrics, .. } = &self[id];
        let pool = ColdReads::inline();
        let read = read_for_replica(&pool, view, leader_epoch, offset, BATCH_BYTES_MAX, metrics);
        read.now_or_never().expect("an inline read waits for nobody")
    }

    fn carry(&mut self, from: BrokerId, effect: &PortEffect) {
        match *effect {
            PortEffect::Position { leader, partition, position } => {
                let follower = self[from].me;
                let position = FollowerPosition { partition, follower, position };
                self[leader].tell(Command::FollowerPosition(position));
            }
            PortEffect::Serve { to, offset, .. } => {
                match self.read_for_replica(from, to.leader_epoch, offset) {
                    Ok(read) => {
                        let ends = (read.high_watermark, read.log_start_offset);
                        self.answer(from, to, ends, &read.bytes, None);
                    }
                    Err(Failure { code, .. }) => {
                        let refusal = Some(ReplicaRefusal::Error { code });
                        self.answer(from, to, (0, 0), &Bytes::new(), refusal);
                    }
                }
            }
            PortEffect::ShareWatermark { to, high_watermark, log_start_offset, .. } => {
                self.answer(from, to, (high_watermark, log_start_offset), &Bytes::new(), None);
            }
            PortEffect::Refuse { to, refusal, .. } => {
                self.answer(from, to, (0, 0), &Bytes::new(), Some(refusal));
            }
            // Nobody decides here.
            PortEffect::AlterIsr { .. } => {}
        }
    }

    fn answer(
        &mut self,
        leader: BrokerId,
        to: AnswerTo,
        (high_watermark, log_start_offset): (Offset, Offset),
        bytes: &Bytes,
        refusal: Option<ReplicaRefusal>,
    ) {
        let mut bytes = bytes.to_vec();
        if let Some(damage) = self.damage
            && !bytes.is_empty()
        {
            damage(&mut bytes);
        }
        self.refused = refusal.or(self.refused);
        let push = ReplicaPush {
            partition: ID,
            leader_epoch: to.leader_epoch,
            round: to.round,
            high_watermark,
            log_start_offset,
            removals_end: self.ends(leader).removals_end,
            batch_bytes: u32::try_from(bytes.len()).unwrap(),
            refusal,
        };
        if self[to.follower.broker_id].me == to.follower {
            let answer = LeaderAnswer::new(leader, push, bytes.into());
            self[to.follower.broker_id].tell(Command::LeaderAnswer(Box::new(answer)));
        }
    }
}

impl Index<BrokerId> for Pair {
    type Output = Node;

    fn index(&self, id: BrokerId) -> &Node {
        &self.nodes[id as usize - 1]
    }
}

impl IndexMut<BrokerId> for Pair {
    /// Whoever is worked with sees the time as it is.
    fn index_mut(&mut self, id: BrokerId) -> &mut Node {
        self.hands.set(self.now_ms, self.wall_ms);
        &mut self.nodes[id as usize - 1]
    }
}

//! A broker's shards without threads, for whoever steers time and disk: a simulator.
//!
//! [`Steered`] owns what a data directory and its shards consist of, and does one thing when it is told to: open logs,
//! follow an image, let the shards wake, run a flush. What happens then is the code that runs in a real broker. It
//! contains no decisions of its own, and it starts nothing: between two calls nothing happens.

mod assign;
mod compact;
mod coordinators;
mod hosted;
mod observe;
pub(crate) mod replicas;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tidemark_controller::Image;
use tidemark_coordinator::{
    GroupCoordinator, TransactionCoordinator,
    producer_state::{Guard, Marker},
};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{Acks, Durability, Isolation, ProduceReceipt, ProducerIdentity, StablePart},
};
use tidemark_storage::{
    DataDir, DataDirIdentity, DiskError, LockedDataDir, OpenError, disk::SimDisk,
};
use tokio::sync::oneshot;

pub use self::{
    compact::Compacted,
    coordinators::{Asked, Effects},
    hosted::CoordinatorSettings,
    observe::SeenReplica,
    replicas::{LogEnds, PortEffect},
};
use self::{compact::Compaction, hosted::Hosted, observe::Glances, replicas::Kept};
pub use crate::service::transactions::join::is_worth_another_try as is_join_worth_another_try;
use crate::{
    clock::{Clock, ClockHands},
    disk::{Disk, SegmentFiles},
    disk_watch::DiskWatch,
    flusher::{Flush, Flusher},
    health::Health,
    janitor,
    left_behind::LeftBehind,
    log_dirs::LogDirs,
    metrics::{Metrics, Protocol},
    partitions::{Partitions, unknown_partition},
    reads::{self, ColdReads, Wanted},
    relinquish,
    replicas::ReplicaPort,
    service::produce::validate,
    shard::{self, Command, Shard, ShardConfig, ShardHandle, Unverified},
};

/// What a steered broker is made with.
#[derive(Clone, Debug)]
pub struct SteeredConfig {
    pub broker_id: BrokerId,
    pub shards: usize,
    /// Commands that may wait in front of a shard.
    pub queue_max: usize,
    pub flush_interval: Duration,
    /// Produce is refused below so much free space.
    pub disk_reserve_bytes: u64,
    /// Segment files that may be open.
    pub open_files_max: usize,
    /// How long a follower may not have caught up before it leaves the in-sync replicas.
    pub replica_lag_ms: u64,
    pub coordinators: CoordinatorSettings,
}

/// The shards of one broker process, and its data directory.
#[derive(Debug)]
pub struct Steered {
    config: SteeredConfig,
    clock: Clock,
    metrics: Metrics,
    disk_watch: DiskWatch,
    flusher: Flusher,
    shards: Vec<OneShard>,
    partitions: Partitions,
    cold_reads: ColdReads,
    data_dir: DataDir<Disk>,
    dirs: LogDirs,
    previous_broker_epoch: Option<BrokerEpoch>,
    /// Metadata that goes so far speaks of every log that was closed in order.
    metadata_index: u64,
    /// The partitions here are as this image says.
    followed: Image,
    /// What this run is registered with.
    broker_epoch: Option<BrokerEpoch>,
    port: Arc<Kept>,
    glances: Glances,
    flushes: BTreeMap<FlushId, Flush>,
    next_flush: FlushId,
    groups: Hosted<GroupCoordinator>,
    transactions: Hosted<TransactionCoordinator>,
    compaction: Option<Compaction>,
}

struct OneShard {
    shard: Shard,
    handle: ShardHandle,
}

impl std::fmt::Debug for OneShard {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.handle.fmt(out)
    }
}

/// Names a flush that waits to be run.
pub type FlushId = u64;

/// One partition's share of a produce request.
#[derive(Clone, Debug)]
pub struct SteeredProduce {
    pub partition: TopicPartition,
    pub leader_epoch: Option<LeaderEpoch>,
    pub acks: Acks,
    pub durability: Durability,
    pub timeout_ms: u64,
    pub batches: Bytes,
    /// The coordinator of the batches' transaction has agreed since [`Ticket::unverified`] gave this.
    pub guard: Option<Guard>,
}

/// The wait for a produce.
#[derive(Debug)]
pub struct Ticket {
    outcome: oneshot::Receiver<Result<ProduceReceipt, Failure>>,
    unverified: Option<oneshot::Receiver<Unverified>>,
}

impl Ticket {
    /// With what the produce is to be handed in once more, when the coordinator of its transaction has been asked and
    /// agrees. To be looked at before [`Self::outcome`], which knows nothing then.
    pub fn unverified(&mut self) -> Option<Guard> {
        self.unverified.as_mut()?.try_recv().ok().map(|unverified| unverified.guard)
    }

    /// The outcome, once there is one.
    pub fn outcome(&mut self) -> Option<Result<ProduceReceipt, Failure>> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Failure::new(
                ErrorCode::NotLeaderAfterAppend,
                "the broker stopped before the outcome was known",
            ))),
        }
    }
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct SteeredRead {
    pub bytes: Bytes,
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    pub leader_epoch: LeaderEpoch,
    pub next_offset: Offset,
    /// For readers of what is decided only.
    pub stable: Option<StablePart>,
}

impl Steered {
    /// Takes the data directory. No log is open yet.
    pub fn open(
        disk: &SimDisk,
        root: &Path,
        identity: DataDirIdentity,
        hands: Arc<ClockHands>,
        config: SteeredConfig,
    ) -> Result<Self, OpenError> {
        let clock = Clock::with_hands(hands);
        let health = Health::starting();
        let metrics = Metrics::new(clock.clone(), health.clone());
        let locked = LockedDataDir::lock(Disk::from(disk.clone()), root, "a simulator")?;
        let data_dir = locked.open(identity)?;
        let mut checkpoints = data_dir.load_checkpoints()?;
        let left_behind =
            LeftBehind::new(data_dir.disk().clone(), data_dir.root(), data_dir.topics_dir());
        let files = SegmentFiles::new(data_dir.disk().clone(), config.open_files_max);
        let dirs = LogDirs { files, topics_dir: data_dir.topics_dir(), left_behind };
        let disk_watch = DiskWatch::new(root.to_owned(), config.disk_reserve_bytes, health);
        let flusher = Flusher::by_hand();
        let port = Arc::<Kept>::default();
        let shard = |index| {
            let config = ShardConfig {
                index,
                queue_max: config.queue_max,
                flush_interval: config.flush_interval,
            };
            let (shard, handle) = Shard::new(
                config,
                clock.clone(),
                metrics.clone(),
                disk_watch.clone(),
                flusher.clone(),
                Arc::clone(&port) as Arc<dyn ReplicaPort>,
            );
            OneShard { shard, handle }
        };
        Ok(Self {
            shards: (0..config.shards).map(shard).collect(),
            previous_broker_epoch: checkpoints.clean_epoch(),
            metadata_index: checkpoints.metadata_index(),
            partitions: Partitions::expecting(checkpoints.take_logs()),
            cold_reads: ColdReads::inline(),
            followed: Image::default(),
            broker_epoch: None,
            glances: Glances::default(),
            flushes: BTreeMap::new(),
            next_flush: 0,
            groups: Hosted::default(),
            transactions: Hosted::default(),
            compaction: None,
            port,
            config,
            clock,
            metrics,
            disk_watch,
            flusher,
            data_dir,
            dirs,
        })
    }

    /// The least metadata index of an image to open logs by.
    pub fn opens_from(&self) -> u64 {
        self.metadata_index.max(1)
    }

    /// The broker epoch of the last process, if it shut down cleanly and none of the logs that are open is damaged.
    pub fn previous_broker_epoch(&self) -> Option<BrokerEpoch> {
        self.previous_broker_epoch.filter(|_| !self.partitions.are_damaged())
    }

    /// What the controller is to be asked for because of the disk: that others lead.
    pub fn relinquish(&self) -> Vec<tidemark_controller::Command> {
        let Self { followed, config, disk_watch, partitions, .. } = self;
        relinquish::commands(followed, config.broker_id, disk_watch, partitions)
    }

    /// Whether this broker knows that its log of a partition is damaged.
    pub fn is_damaged(&self, id: TopicPartition) -> bool {
        self.partitions.get(id).is_some_and(|view| view.reader.damaged_from().is_some())
    }

    /// Where the controller's log is.
    pub fn metadata_dir(&self) -> PathBuf {
        self.data_dir.metadata_dir()
    }

    /// Lets every shard do what has come up, until nothing more does.
    pub fn wake(&mut self) {
        for one in &mut self.shards {
            one.shard.wake();
        }
    }

    /// How long the shards may be left alone if nothing arrives.
    pub fn wake_in(&self) -> Duration {
        let each = self.shards.iter().map(|one| one.shard.wake_in());
        let shards = each.min().expect("a broker has a shard");
        shards.min(self.coordinators_wake_in())
    }

    /// Flushes that have come up, in the order in which threads would begin them. Each waits for its
    /// [`Self::run_flush`].
    pub fn take_flushes(&mut self) -> Vec<FlushId> {
        let begin = |flush| {
            self.next_flush += 1;
            self.flushes.insert(self.next_flush, flush);
            self.next_flush
        };
        self.flusher.take_waiting().into_iter().map(begin).collect()
    }

    /// Runs a flush. Its owner learns the outcome when it wakes.
    pub fn run_flush(&mut self, id: FlushId) {
        if let Some(flush) = self.flushes.remove(&id) {
            self.flusher.run(flush, &self.clock, &self.metrics);
        }
    }

    /// Hands batches to their shard, after the checks that a request goes through.
    pub fn produce(&mut self, produce: &SteeredProduce) -> Result<Ticket, Failure> {
        let id = produce.partition;
        let topic = self.followed.topic_by_id(id.topic_id).ok_or_else(|| unknown_partition(id))?;
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        let batches = validate(&produce.batches, &topic.config)?;
        let (reply, outcome) = oneshot::channel();
        let (asks, unverified) = oneshot::channel();
        let command = Command::Produce(shard::Produce {
            partition: id,
            batches,
            leader_epoch: produce.leader_epoch,
            base_offset: None,
            guard: produce.guard,
            unverified: Some(asks),
            acks: produce.acks,
            durability: produce.durability,
            deadline_ms: self.clock.monotonic_ms() + produce.timeout_ms,
            protocol: Protocol::Native,
            queued_at: self.clock.now(),
            reply,
        });
        self.tell(view.shard.index, command);
        Ok(Ticket { outcome, unverified: Some(unverified) })
    }

    /// Hands the end of a transaction to the shard of one of its partitions.
    pub fn write_marker(
        &mut self,
        id: TopicPartition,
        producer: ProducerIdentity,
        marker: Marker,
        timeout_ms: u64,
    ) -> Result<Ticket, Failure> {
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        let (reply, outcome) = oneshot::channel();
        let deadline_ms = self.clock.monotonic_ms() + timeout_ms;
        let write = shard::WriteMarker { partition: id, producer, marker, deadline_ms, reply };
        self.tell(view.shard.index, Command::WriteMarker(write));
        Ok(Ticket { outcome, unverified: None })
    }

    /// Reads what is committed, or only what is decided, as a client does.
    pub fn read(
        &mut self,
        id: TopicPartition,
        leader_epoch: Option<LeaderEpoch>,
        (offset, max_bytes): (Offset, usize),
        isolation: Isolation,
    ) -> Result<SteeredRead, Failure> {
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        let wanted = Wanted { leader_epoch, offset, max_bytes, isolation };
        let read = reads::read(&self.cold_reads, &view, wanted, &self.metrics);
        let read = read.now_or_never().expect("an inline read waits for nobody")?;
        Ok(SteeredRead {
            bytes: read.bytes,
            high_watermark: read.high_watermark,
            log_start_offset: read.log_start_offset,
            leader_epoch: read.leader_epoch,
            next_offset: read.next_offset,
            stable: read.stable,
        })
    }

    /// Rolls, applies retention, looks at the free space: what time asks of a broker.
    pub fn upkeep(&mut self) {
        if let Ok(space) = janitor::space(&self.data_dir) {
            self.disk_watch.observe(space);
        }
        for index in 0..self.shards.len() {
            let partitions = self.held_by(index);
            let (reply, _done) = oneshot::channel();
            self.tell(index, Command::Upkeep { partitions, reply });
        }
        self.wake();
        self.metrics.upkeep();
    }

    /// Writes down what is durable, as a broker does from time to time.
    pub fn write_checkpoints(&mut self) -> Result<(), DiskError> {
        self.data_dir.begin_checkpoints();
        let mut logs = self.partitions.not_open_checkpoints();
        for index in 0..self.shards.len() {
            let partitions = self.held_by(index);
            let noted = self.ask(index, |reply| Command::Checkpoints { partitions, reply });
            logs.extend(noted.checkpoints);
            janitor::store_summaries(noted.summaries);
        }
        self.data_dir.write_checkpoints(&logs.into_iter().collect::<Vec<_>>())
    }

    /// Why the directory takes no more writes, if it does not.
    pub fn disk_failure(&self) -> Option<&str> {
        self.disk_watch.failure()
    }

    /// Flushes and closes every log. Says whether that makes a clean shutdown; if so it is written down.
    pub fn close(mut self) -> Result<bool, DiskError> {
        let mut closed = shard::Closed::default();
        self.data_dir.begin_checkpoints();
        let mut not_open = self.partitions.not_open_checkpoints();
        for index in 0..self.shards.len() {
            let (reply, mut answer) = oneshot::channel();
            self.tell(index, Command::Close { reply });
            while self.shards[index].shard.wake() {
                self.take_flushes();
                let flushes: Vec<_> = self.flushes.keys().copied().collect();
                assert!(!flushes.is_empty(), "a shard that closes waits for a flush");
                for flush in flushes {
                    self.run_flush(flush);
                }
            }
            let mut one = answer.try_recv().expect("a shard that has ended has answered");
            closed.checkpoints.append(&mut one.checkpoints);
            closed.unclean += one.unclean;
        }
        if closed.unclean > 0 || self.disk_watch.failure().is_some() {
            return Ok(false);
        }
        if self.partitions.not_open() > 0 {
            not_open.extend(closed.checkpoints);
            self.data_dir.write_checkpoints(&not_open.into_iter().collect::<Vec<_>>())?;
            return Ok(false);
        }
        let metadata_index = self.followed.metadata_index();
        self.data_dir.close(&closed.checkpoints, self.broker_epoch, metadata_index)?;
        Ok(true)
    }

    fn held_by(&self, index: usize) -> Vec<TopicPartition> {
        let views = self.partitions.all();
        let mut ids: Vec<_> =
            views.iter().filter(|view| view.shard.index == index).map(|view| view.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Sends to a shard. One whose mailbox is full is let work first: nobody else will.
    fn tell(&mut self, index: usize, command: Command) {
        let one = &mut self.shards[index];
        if let Err(command) = one.handle.try_send(command) {
            one.shard.wake();
            let sent = one.handle.try_send(command);
            assert!(sent.is_ok(), "a shard that has worked has room");
        }
    }

    fn ask<T>(&mut self, index: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        self.tell(index, command(reply));
        loop {
            let goes_on = self.shards[index].shard.wake();
            match answer.try_recv() {
                Ok(answer) => return answer,
                Err(_) => assert!(goes_on, "a shard that serves answers"),
            }
        }
    }
}

#[cfg(test)]
mod tests;

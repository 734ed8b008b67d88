//! A shard: one thread that owns some of the partitions, and is the only one to change them.
//!
//! Commands come through a bounded mailbox, outcomes of flushes through a channel of their own, time through
//! the wait in between. Each wake handles what is there, then begins the flushes that came up, so that one
//! flush covers all of it. The thread never waits for the disk beyond what an append or a deletion does itself,
//! and never for a socket.

mod closing;
mod effects;
mod markers;
mod partition;
mod produce;
mod replicate;
mod seen;
mod upkeep;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use tidemark_protocol::{BrokerId, ErrorCode, Failure, Offset, PartitionEpoch, TopicPartition};
use tidemark_replication::{Assignment, Event, ReplicaId, Token};
use tidemark_storage::Checkpoint;
use tokio::sync::{mpsc, oneshot};

pub use self::seen::SeenReplica;
pub(crate) use self::{
    closing::Closed,
    markers::WriteMarker,
    partition::{log_config, storage_durability},
    produce::{Produce, ProduceOutcome, Unverified},
    replicate::{Assigned, FollowerPosition, LeaderAnswer},
    seen::Glance,
};
use self::{closing::Closing, partition::Partition, produce::Awaiting, replicate::Incoming};
use crate::{
    clock::Clock,
    disk::{CompactionDone, CompactionJob, Log, SummaryJob},
    disk_watch::DiskWatch,
    flusher::{Flushed, FlushedSender, Flusher},
    metrics::Metrics,
    partitions::{PartitionView, unknown_partition},
    producers::Producers,
    replicas::ReplicaPort,
};

/// Commands and flushes handled before the next look at the other queue and at the time.
const COMMANDS_PER_WAKE_MAX: usize = 256;
/// How long after a flush met a full disk it is tried again.
const FLUSH_RETRY: Duration = Duration::from_millis(500);
/// Deadlines are kept to within this.
const EXPIRY_STEP_MS: u64 = 10;

/// Something that only the owner of a partition can do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Append batches.
    Produce(Produce),
    /// Append the end of a transaction.
    WriteMarker(WriteMarker),
    /// Take over an open log. The reply comes when it is served as its state says, leadership included.
    Adopt { adoption: Box<Adoption>, reply: oneshot::Sender<()> },
    /// Take over what the metadata says of a partition: its settings, whom it follows, whether it leads, who is in sync.
    Assign { partition: TopicPartition, assigned: Box<Assigned> },
    /// A follower says where it is.
    FollowerPosition(FollowerPosition),
    /// The stream of a follower is gone.
    FollowerLost { partition: TopicPartition, follower: ReplicaId },
    /// A leader answers a position.
    LeaderAnswer(Box<LeaderAnswer>),
    /// A new stream to this leader stands.
    LeaderConnected { leader: BrokerId },
    /// The controller has answered a change of the in-sync replicas that was based on this epoch.
    IsrAnswered {
        partition: TopicPartition,
        partition_epoch: PartitionEpoch,
        answer: Result<(), ErrorCode>,
    },
    /// Reply when everything sent before has been done.
    Barrier { reply: oneshot::Sender<()> },
    /// Give a partition up, its log with it; everybody who waits is answered with `reason`. `None`: it is not
    /// here.
    Release { partition: TopicPartition, reason: ErrorCode, reply: oneshot::Sender<Option<Log>> },
    /// Raise the log start offset, to at most the high watermark, which `None` stands for.
    Trim {
        partition: TopicPartition,
        before: Option<Offset>,
        reply: oneshot::Sender<Result<Offset, Failure>>,
    },
    /// Roll by age and apply retention, in a few partitions.
    Upkeep { partitions: Vec<TopicPartition>, reply: oneshot::Sender<()> },
    /// A job that compacts the log, if there is something to compact.
    BeginCompaction { partition: TopicPartition, reply: oneshot::Sender<Option<CompactionJob>> },
    /// Put what a compaction wrote in place of what it read.
    InstallCompaction { partition: TopicPartition, done: CompactionDone },
    /// What is durable of a few partitions.
    Checkpoints { partitions: Vec<TopicPartition>, reply: oneshot::Sender<Noted> },
    /// Answer everybody who waits, flush and close every log, and end.
    Close { reply: oneshot::Sender<Closed> },
}

/// What a log knows to be durable.
pub(crate) type LogCheckpoint = (TopicPartition, Checkpoint);

/// What there is to write down of a few logs.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) checkpoints: Vec<LogCheckpoint>,
    /// To be run, where it may block.
    pub(crate) summaries: Vec<SummaryJob>,
}

/// A log and what its owner has to know.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) log: Log,
    pub(crate) producers: Producers,
    pub(crate) view: Arc<PartitionView>,
    pub(crate) replica: tidemark_replication::Config,
    /// What to do at once; `None`: nothing yet.
    pub(crate) assignment: Option<Assignment>,
}

/// Sends commands to a shard. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    /// Tells one shard from the other.
    pub(crate) index: usize,
    mailbox: mpsc::Sender<Command>,
}

impl ShardHandle {
    /// Waits for room in the mailbox: this is how a busy shard slows its producers down.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Failure> {
        self.mailbox.send(command).await.map_err(|_closed| stopping())
    }

    /// Like [`Self::send`] without the wait: gives the command back when there is no room, or nobody there.
    #[expect(clippy::result_large_err, reason = "whoever finds no room keeps the command")]
    pub(crate) fn try_send(&self, command: Command) -> Result<(), Command> {
        self.mailbox.try_send(command).map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Sends what `command` makes of a reply channel, and waits for the reply.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_closed| stopping())
    }
}

fn stopping() -> Failure {
    Failure::new(ErrorCode::NotReady, "the broker is stopping")
}

/// What a shard is made with.
#[derive(Clone, Debug)]
pub(crate) struct ShardConfig {
    pub(crate) index: usize,
    /// Commands that may wait in the mailbox.
    pub(crate) queue_max: usize,
    /// How often logs whose topics do not ask for durability are flushed.
    pub(crate) flush_interval: Duration,
}

/// What the partitions of a shard act through.
#[derive(Debug)]
struct Hands {
    clock: Clock,
    /// The clock as of this wake, monotonic and wall.
    now_ms: u64,
    wall_ms: u64,
    metrics: Metrics,
    disk_watch: DiskWatch,
    flusher: Flusher,
    flushed: FlushedSender,
    port: Arc<dyn ReplicaPort>,
    /// What came with the answer of a leader that is being dealt with.
    incoming: Incoming,
    /// Produce requests in the hands of a replica.
    awaiting: HashMap<Token, Awaiting>,
    next_token: Token,
    effects: Vec<tidemark_replication::Effect>,
    /// Partitions that want a flush, to be begun at the end of this wake. May name one twice.
    flush_soon: Vec<TopicPartition>,
    /// Partitions with unflushed data that nobody waits for.
    flush_later: Vec<TopicPartition>,
    /// Partitions whose flush met a full disk.
    flush_again: Vec<TopicPartition>,
    /// When to look for expired requests; may be too early.
    next_expiry_ms: u64,
}

/// By partition. A look at all of them goes in an order that follows from what happened before, and from nothing
/// else: a run from a seed can be repeated.
type Partitions = HashMap<TopicPartition, Partition, BuildHasherDefault<DefaultHasher>>;

/// The owner of some partitions.
pub(crate) struct Shard {
    config: ShardConfig,
    mailbox: mpsc::Receiver<Command>,
    flushes: mpsc::UnboundedReceiver<Flushed>,
    partitions: Partitions,
    hands: Hands,
    next_background_flush: Instant,
    next_flush_retry: Option<Instant>,
    /// It ends as soon as everything is flushed.
    closing: Option<Closing>,
}

impl Shard {
    pub(crate) fn new(
        config: ShardConfig,
        clock: Clock,
        metrics: Metrics,
        disk_watch: DiskWatch,
        flusher: Flusher,
        port: Arc<dyn ReplicaPort>,
    ) -> (Self, ShardHandle) {
        let (sender, mailbox) = mpsc::channel(config.queue_max);
        let (flushed, flushes) = mpsc::unbounded_channel();
        let next_background_flush = clock.now() + config.flush_interval;
        let hands = Hands {
            clock,
            now_ms: 0,
            wall_ms: 0,
            metrics,
            disk_watch,
            flusher,
            flushed,
            port,
            incoming: None,
            awaiting: HashMap::new(),
            next_token: 0,
            effects: Vec::new(),
            flush_soon: Vec::new(),
            flush_later: Vec::new(),
            flush_again: Vec::new(),
            next_expiry_ms: u64::MAX,
        };
        let handle = ShardHandle { index: config.index, mailbox: sender };
        let shard = Self {
            config,
            mailbox,
            flushes,
            partitions: Partitions::default(),
            hands,
            next_background_flush,
            next_flush_retry: None,
            closing: None,
        };
        (shard, handle)
    }

    /// Serves until told to close, or until every handle is gone. Give it a thread of its own: the wait below
    /// uses tokio's timer and channels, on a runtime that runs nothing else.
    pub(crate) fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => tracing::error!(%error, "a shard cannot start"),
        }
    }

    async fn serve(&mut self) {
        let mut commands = Vec::with_capacity(COMMANDS_PER_WAKE_MAX);
        let mut flushes = Vec::new();
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                _ = self.flushes.recv_many(&mut flushes, COMMANDS_PER_WAKE_MAX) => {}
                count = self.mailbox.recv_many(&mut commands, COMMANDS_PER_WAKE_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
            if !self.turn(&mut commands, &mut flushes) {
                return;
            }
        }
    }

    /// A wake without the wait in front of it, for whoever steers time. Says whether the shard goes on.
    pub(crate) fn wake(&mut self) -> bool {
        let (mailbox, flushes) = (&mut self.mailbox, &mut self.flushes);
        let commands = std::iter::from_fn(|| mailbox.try_recv().ok());
        let mut commands: Vec<_> = commands.take(COMMANDS_PER_WAKE_MAX).collect();
        let flushes = std::iter::from_fn(|| flushes.try_recv().ok());
        let mut flushes: Vec<_> = flushes.take(COMMANDS_PER_WAKE_MAX).collect();
        self.turn(&mut commands, &mut flushes)
    }

    /// How long it may be left alone if nothing arrives.
    pub(crate) fn wake_in(&self) -> Duration {
        self.wake_at().saturating_duration_since(self.hands.clock.now())
    }

    /// What one wake does with what has arrived. Says whether the shard goes on.
    fn turn(&mut self, commands: &mut Vec<Command>, flushes: &mut Vec<Flushed>) -> bool {
        self.hands.look_at_clock();
        for flushed in flushes.drain(..) {
            self.flushed(flushed);
        }
        for command in commands.drain(..) {
            // Whoever asks a shard that closes is told so by the end of the reply channel.
            if self.closing.is_none() {
                self.handle(command);
            }
        }
        if self.closing.is_some() {
            return !self.end_if_flushed();
        }
        self.keep_time();
        self.begin_flushes();
        true
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Produce(produce) => self.produce(produce),
            Command::WriteMarker(write) => self.write_marker(write),
            Command::Adopt { adoption, reply } => {
                self.adopt(*adoption);
                // Whoever asked may have stopped.
                reply.send(()).ok();
            }
            Command::Assign { partition, assigned } => self.assign(partition, *assigned),
            Command::FollowerPosition(position) => self.follower_position(position),
            Command::FollowerLost { partition, follower } => {
                self.step_one(partition, Event::FollowerLost { follower });
            }
            Command::LeaderAnswer(answer) => self.leader_answer(*answer),
            Command::LeaderConnected { leader } => self.leader_connected(leader),
            Command::IsrAnswered { partition, partition_epoch, answer } => {
                self.step_one(partition, Event::IsrAnswered { partition_epoch, answer });
            }
            Command::Barrier { reply } => {
                reply.send(()).ok();
            }
            Command::Release { partition, reason, reply } => {
                drop(reply.send(self.release(partition, reason)));
            }
            Command::Trim { partition, before, reply } => {
                drop(reply.send(self.trim(partition, before)));
            }
            Command::Upkeep { partitions, reply } => {
                self.upkeep(&partitions);
                reply.send(()).ok();
            }
            Command::BeginCompaction { partition, reply } => {
                drop(reply.send(self.begin_compaction(partition)));
            }
            Command::InstallCompaction { partition, done } => {
                self.install_compaction(partition, done);
            }
            Command::Checkpoints { partitions, reply } => {
                drop(reply.send(self.checkpoints(&partitions)));
            }
            Command::Close { reply } => self.close(reply),
        }
    }

    fn adopt(&mut self, adoption: Adoption) {
        let Adoption { log, producers, view, replica, assignment } = adoption;
        let id = view.id;
        let partition = Partition::new((log, producers), view, replica);
        let before = self.partitions.insert(id, partition);
        assert!(before.is_none(), "partition {id} has two logs");
        if let Some(assignment) = assignment
            && let Some(partition) = self.partitions.get_mut(&id)
        {
            let settings = partition.replica.config().settings();
            partition.assign(assignment, settings, &mut self.hands);
        }
    }

    fn release(&mut self, id: TopicPartition, reason: ErrorCode) -> Option<Log> {
        let mut partition = self.partitions.remove(&id)?;
        partition.step(Event::Stop { reason }, &mut self.hands);
        Some(partition.log)
    }

    fn trim(&mut self, id: TopicPartition, before: Option<Offset>) -> Result<Offset, Failure> {
        let partition = self.partitions.get_mut(&id).ok_or_else(|| unknown_partition(id))?;
        partition.trim(before, &mut self.hands)
    }

    fn flushed(&mut self, flushed: Flushed) {
        let Some(partition) = self.partitions.get_mut(&flushed.partition) else { return };
        if flushed.log != partition.token {
            // Of the log that was here before: what is durable of it says nothing about this one.
            return;
        }
        let succeeded = flushed.outcome.is_ok();
        partition.flushed(flushed.outcome, &mut self.hands);
        if let Some(closing) = &mut self.closing {
            closing.flushed(partition, succeeded, &mut self.hands);
        } else if !self.hands.flush_again.is_empty() {
            self.next_flush_retry.get_or_insert(self.hands.clock.now() + FLUSH_RETRY);
        }
    }

    /// When to wake although nothing arrives.
    fn wake_at(&self) -> Instant {
        let mut wake_at = self.next_background_flush;
        if let Some(retry) = self.next_flush_retry {
            wake_at = wake_at.min(retry);
        }
        if self.hands.next_expiry_ms < u64::MAX {
            let in_ms = self.hands.next_expiry_ms.saturating_sub(self.hands.now_ms);
            wake_at = wake_at.min(self.hands.clock.now() + Duration::from_millis(in_ms));
        }
        wake_at
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        let now = self.hands.clock.now();
        if now >= self.next_background_flush {
            self.next_background_flush = now + self.config.flush_interval;
            for id in std::mem::take(&mut self.hands.flush_later) {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.flush_in_background(&mut self.hands);
                }
            }
        }
        if self.next_flush_retry.is_some_and(|retry| now >= retry) {
            self.next_flush_retry = None;
            let again = std::mem::take(&mut self.hands.flush_again);
            self.hands.flush_soon.extend(again);
        }
        if self.hands.now_ms >= self.hands.next_expiry_ms {
            self.expire();
        }
    }

    fn expire(&mut self) {
        let mut next_ms = u64::MAX;
        for partition in self.partitions.values_mut() {
            let due = |partition: &Partition| partition.next_deadline_ms().unwrap_or(u64::MAX);
            if due(partition) <= self.hands.now_ms {
                partition.step(Event::Tick, &mut self.hands);
            }
            next_ms = next_ms.min(due(partition));
        }
        self.hands.next_expiry_ms = next_ms.max(self.hands.now_ms + EXPIRY_STEP_MS);
        if next_ms == u64::MAX {
            self.hands.next_expiry_ms = u64::MAX;
        }
    }

    fn begin_flushes(&mut self) {
        for id in std::mem::take(&mut self.hands.flush_soon) {
            if let Some(partition) = self.partitions.get_mut(&id) {
                partition.begin_flush(true, &mut self.hands);
            }
        }
    }

    fn checkpoints(&mut self, ids: &[TopicPartition]) -> Noted {
        let mut noted = Noted::default();
        for id in ids {
            let Some(partition) = self.partitions.get_mut(id) else { continue };
            noted.checkpoints.push((*id, partition.checkpoint(false)));
            // Early summaries cost more than they save where there are many: one at a time.
            noted.summaries.extend(partition.summary_job(noted.summaries.is_empty()));
        }
        noted
    }
}

impl Hands {
    fn look_at_clock(&mut self) {
        self.now_ms = self.clock.monotonic_ms();
        self.wall_ms = u64::try_from(self.clock.wall_ms()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests;

//! Follows the committed metadata: opens the logs of partitions assigned to this broker, hands them to their
//! shards, leads what it is told to lead, and deletes what is gone.
//!
//! It compares the image it last followed with the newest, so that a burst of changes costs one comparison,
//! and topics that share their memory in both are not looked at. Disk work is done on blocking threads, several
//! logs at a time. A log that cannot be opened is reported and tried again; it holds up no other.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tidemark_controller::{Image, Partition, Topic};
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, TopicPartition};
use tidemark_storage::{Checkpoint, Checkpoints};
use tokio::sync::{oneshot, watch};

use crate::{
    broker::Broker,
    disk::Log,
    health::Reason,
    log_dirs::LogDirs,
    partitions::PartitionView,
    shard::{Adoption, Command, ShardHandle, storage_durability},
    tasks::Shutdown,
};

/// Logs opened or deleted at the same time.
const DISK_JOBS_MAX: usize = 16;
/// How often logs that could not be opened are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long a follower may not have caught up before it leaves the in-sync replicas.
const REPLICA_LAG_MS: u64 = 10_000;

/// Opens and deletes logs, and tells their shards.
pub(crate) struct Assignments {
    broker: Arc<Broker>,
    dirs: LogDirs,
    /// The partitions here are as this image says, except for those noted as unopened.
    followed: Image,
    assigned: watch::Sender<u64>,
}

/// A log to be opened.
struct Opening {
    id: TopicPartition,
    topic: Arc<Topic>,
    assigned: Arc<Partition>,
    /// Lead at once; a log from before this process waits until the restart is in the metadata.
    lead: bool,
    checkpoint: Option<Checkpoint>,
}

impl Assignments {
    /// `assigned` is told how far this has come.
    pub(crate) fn new(
        broker: Arc<Broker>,
        dirs: LogDirs,
        assigned: watch::Sender<u64>,
    ) -> Self {
        Self { broker, dirs, followed: Image::default(), assigned }
    }

    /// Opens the logs of everything that was assigned to this broker before it started. They are not led yet.
    pub(crate) async fn open_existing(&mut self, image: &Image, mut checkpoints: Checkpoints) {
        let mut openings = Vec::new();
        for topic in image.topics() {
            for (id, assigned) in self.assigned_here(topic) {
                let checkpoint = checkpoints.take(id);
                let (topic, assigned) = (Arc::clone(topic), Arc::clone(assigned));
                openings.push(Opening { id, topic, assigned, lead: false, checkpoint });
            }
        }
        self.open(openings).await;
        self.followed = image.clone();
    }

    /// Follows every image that comes, until shutdown.
    pub(crate) async fn run(mut self, mut images: watch::Receiver<Arc<Image>>, shutdown: Shutdown) {
        loop {
            let has_unopened = !self.broker.partitions.unopened().is_empty();
            tokio::select! {
                () = shutdown.started() => return,
                changed = images.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let image = Image::clone(&images.borrow_and_update());
                    self.follow(image).await;
                }
                () = tokio::time::sleep(RETRY_INTERVAL), if has_unopened => self.retry().await,
            }
        }
    }

    async fn follow(&mut self, image: Image) {
        // Topics missing from an older image would be taken for deleted.
        assert!(
            image.metadata_index() >= self.followed.metadata_index(),
            "the metadata went back from {} to {}",
            self.followed.metadata_index(),
            image.metadata_index()
        );
        let before = std::mem::replace(&mut self.followed, image.clone());
        let mut releases = Vec::new();
        for topic in before.topics().filter(|topic| image.topic_by_id(topic.id).is_none()) {
            releases.extend(self.assigned_here(topic).map(|(id, _)| id));
            self.broker.metrics.forget_topic(&topic.name);
        }
        // Before anything is created: a topic may have come back under its old name.
        self.delete(releases, &before).await;

        let mut openings = Vec::new();
        for topic in image.topics() {
            let known = before.topic_by_id(topic.id);
            if known.is_some_and(|known| Arc::ptr_eq(known, topic)) {
                continue;
            }
            for (id, assigned) in self.assigned_here(topic) {
                match self.broker.partitions.get(id) {
                    Some(view) => self.update(&view, known, topic, assigned).await,
                    None => openings.push(Opening {
                        id,
                        topic: Arc::clone(topic),
                        assigned: Arc::clone(assigned),
                        lead: true,
                        checkpoint: None,
                    }),
                }
            }
        }
        self.open(openings).await;
        if self.broker.tasks.shutdown().has_started() {
            return;
        }
        // What was only sent so far, to lead and to configure, has to be done before it is called done.
        for shard in &self.broker.shards {
            shard.ask(|reply| Command::Barrier { reply }).await.ok();
        }
        self.assigned.send_replace(image.metadata_index());
    }

    async fn retry(&mut self) {
        let image = self.followed.clone();
        let unopened = self.broker.partitions.unopened().into_keys();
        let openings = unopened.filter_map(|id| {
            let topic = Arc::clone(image.topic_by_id(id.topic_id)?);
            let assigned = Arc::clone(topic.partition(id.partition)?);
            Some(Opening { id, topic, assigned, lead: true, checkpoint: None })
        });
        let openings = openings.collect();
        self.open(openings).await;
    }

    /// The partitions of a topic that have a replica here.
    fn assigned_here<'t>(
        &self,
        topic: &'t Topic,
    ) -> impl Iterator<Item = (TopicPartition, &'t Arc<Partition>)> + use<'t> {
        let (topic_id, broker_id) = (topic.id, self.broker.id);
        let all = topic.partitions.iter().zip(0..);
        all.filter(move |(assigned, _)| assigned.replicas.contains(&broker_id))
            .map(move |(assigned, partition)| (TopicPartition { topic_id, partition }, assigned))
    }

    /// Passes on what has changed for a partition that is open.
    async fn update(
        &self,
        view: &PartitionView,
        known: Option<&Arc<Topic>>,
        topic: &Topic,
        assigned: &Partition,
    ) {
        let partition = view.id;
        if known.is_none_or(|known| known.config != topic.config) {
            let config = topic.config;
            self.tell(&view.shard, Command::Configure { partition, config }).await;
        }
        let before = known.and_then(|known| known.partition(partition.partition));
        let led_before = before.and_then(|before| self.leads(before));
        if let Some(epoch) = self.leads(assigned)
            && led_before != Some(epoch)
        {
            self.tell(&view.shard, Command::Lead { partition, epoch }).await;
        }
    }

    /// The epoch in which this broker leads, if it does.
    fn leads(&self, assigned: &Partition) -> Option<LeaderEpoch> {
        (assigned.leader == Some(self.broker.id)).then_some(assigned.leader_epoch)
    }

    /// Opens logs and hands them over; leaves off when the broker is told to stop.
    async fn open(&self, openings: Vec<Opening>) {
        let (broker, wanted) = (&self.broker, openings.len());
        let is_starting = self.followed.metadata_index() == 0;
        let now_ms = u64::try_from(broker.clock.wall_ms()).unwrap_or(0);
        let mut unopened = broker.partitions.unopened();
        let jobs = openings.into_iter().map(|mut opening| {
            if let Some(known) = unopened.remove(&opening.id) {
                opening.checkpoint = known;
            }
            let dirs = self.dirs.clone();
            tokio::task::spawn_blocking(move || {
                let Opening { id, topic, checkpoint, .. } = &opening;
                let log = dirs.open(topic, *id, checkpoint.as_ref(), now_ms);
                (opening, log)
            })
        });
        let mut opened = stream::iter(jobs).buffer_unordered(DISK_JOBS_MAX);
        let mut adopting = Vec::new();
        let shutdown = broker.tasks.shutdown();
        while let Some(Some(job)) = shutdown.or_stop(opened.next()).await {
            match job {
                Ok((opening, Ok(log))) => {
                    broker.partitions.remove_unopened(opening.id);
                    adopting.push(self.adopt(opening, log).await);
                }
                Ok((opening, Err(error))) => {
                    let (topic, partition) = (&opening.topic.name, opening.id.partition);
                    // Said once, and tried again and again.
                    if broker.partitions.add_unopened(opening.id, opening.checkpoint) {
                        tracing::error!(%topic, partition, %error, "a log cannot be opened");
                    }
                }
                Err(error) => tracing::error!(%error, "a log was not opened"),
            }
            if is_starting {
                let progress = format!("recovering logs {} of {wanted}", adopting.len());
                broker.health.raise(Reason::Starting, progress);
            }
        }
        drop(opened);
        for (view, adopted) in adopting {
            // Only now: whoever finds the view may send to the shard, and finds it leading.
            if adopted.await.is_ok() {
                self.broker.partitions.insert(view);
            }
        }
    }

    /// Hands a log to its shard; the receiver completes when the shard serves it.
    async fn adopt(
        &self,
        opening: Opening,
        log: Log,
    ) -> (Arc<PartitionView>, oneshot::Receiver<()>) {
        let Opening { id, topic, assigned, lead, .. } = opening;
        let shard = self.shard_of(id);
        let metrics = self.broker.metrics.topic(&topic.name);
        let view =
            PartitionView::new(id, Arc::clone(&topic.name), metrics, log.reader(), shard.clone());
        let view = Arc::new(view);
        let adoption = Adoption {
            log,
            view: Arc::clone(&view),
            replica: tidemark_replication::Config {
                broker_id: self.broker.id,
                durability: storage_durability(topic.config.durability),
                min_insync_replicas: topic.config.min_insync_replicas,
                replica_lag_ms: REPLICA_LAG_MS,
            },
            leader_epoch: if lead { self.leads(&assigned) } else { None },
        };
        let (reply, adopted) = oneshot::channel();
        self.tell(&shard, Command::Adopt { adoption: Box::new(adoption), reply }).await;
        (view, adopted)
    }

    fn shard_of(&self, id: TopicPartition) -> ShardHandle {
        let seed: u32 = id.topic_id.0.iter().map(|byte| u32::from(*byte)).sum();
        let index = seed.wrapping_add(id.partition) as usize % self.broker.shards.len();
        self.broker.shards[index].clone()
    }

    /// Takes partitions of topics that `image` has away from their shards and deletes their files.
    async fn delete(&self, ids: Vec<TopicPartition>, image: &Image) {
        let mut logs = Vec::with_capacity(ids.len());
        for partition in ids {
            if self.broker.partitions.remove_unopened(partition) {
                self.delete_unopened(partition, image).await;
            }
            let Some(view) = self.broker.partitions.remove(partition) else { continue };
            view.set_deleted();
            let reason = ErrorCode::UnknownTopicOrPartition;
            let released =
                view.shard.ask(|reply| Command::Release { partition, reason, reply }).await;
            logs.extend(released.ok().flatten());
        }
        let jobs = logs.into_iter().map(|log| {
            let dirs = self.dirs.clone();
            tokio::task::spawn_blocking(move || dirs.delete(log))
        });
        let mut deleted = stream::iter(jobs).buffer_unordered(DISK_JOBS_MAX);
        while let Some(outcome) = deleted.next().await {
            if let Ok(Err(error)) = outcome {
                tracing::error!(%error, "files of a deleted partition are left behind");
            }
        }
    }

    async fn delete_unopened(&self, id: TopicPartition, image: &Image) {
        let Some(topic) = image.topic_by_id(id.topic_id) else { return };
        let (dirs, topic) = (self.dirs.clone(), Arc::clone(topic));
        let delete = move || dirs.delete_unopened(&topic, id.partition);
        let deleted = tokio::task::spawn_blocking(delete).await;
        if let Ok(Err(error)) = deleted {
            tracing::error!(%error, "files of a deleted partition are left behind");
        }
    }

    async fn tell(&self, shard: &ShardHandle, command: Command) {
        if let Err(Failure { message, .. }) = shard.send(command).await {
            tracing::debug!(%message, "a shard is gone");
        }
    }
}

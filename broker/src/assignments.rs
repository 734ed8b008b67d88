//! Follows the committed metadata: opens the logs of partitions assigned to this broker, hands them to their
//! shards, tells them whom to lead or follow, and deletes what is gone.
//!
//! It compares the image it last followed with the newest, so that a burst of changes costs one comparison. Disk work is
//! done on blocking threads, several logs at a time. A log that cannot be opened is reported and tried again; it holds up
//! no other.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tidemark_controller::{
    Image,
    plan::{self, Placed},
};
use tidemark_protocol::{ErrorCode, Failure, TopicPartition};
use tidemark_replication::Assignment;
use tidemark_storage::DataDir;
use tokio::sync::{oneshot, watch};

use crate::{
    broker::Broker,
    disk::{Disk, Log},
    health::Reason,
    log_dirs::{LogDirs, Stray},
    partitions::PartitionView,
    producers::Producers,
    roles,
    shard::{Adoption, Assigned, Command, ShardHandle},
    tasks::Shutdown,
};

/// Logs opened or deleted at the same time.
const DISK_JOBS_MAX: usize = 16;
/// How often logs that could not be opened are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Opens and deletes logs, and tells their shards.
pub(crate) struct Assignments {
    broker: Arc<Broker>,
    data_dir: Arc<DataDir<Disk>>,
    dirs: LogDirs,
    /// The partitions here are as this image says, except for those noted as unopened.
    followed: Image,
    assigned: watch::Sender<u64>,
}

/// A log to be opened.
struct Opening {
    placed: Placed,
    /// `None`: a log from before this process, which has no role until the restart is in the metadata.
    assignment: Option<Assignment>,
}

impl Opening {
    fn new(placed: Placed, assignment: Assignment) -> Self {
        Self { placed, assignment: Some(assignment) }
    }
}

impl Assignments {
    /// `assigned` is told how far this has come.
    pub(crate) fn new(
        broker: Arc<Broker>,
        data_dir: Arc<DataDir<Disk>>,
        dirs: LogDirs,
        assigned: watch::Sender<u64>,
    ) -> Self {
        Self { broker, data_dir, dirs, followed: Image::default(), assigned }
    }

    /// Opens the logs of everything that was assigned to this broker before it started. They have no role yet.
    pub(crate) async fn open_existing(&mut self, image: &Image) {
        let held = plan::difference(&self.followed, image, self.broker.id).open;
        let openings = held.into_iter().map(|placed| Opening { placed, assignment: None });
        self.open(openings.collect()).await;
        self.followed = image.clone();
    }

    /// Follows every image that comes, until shutdown.
    pub(crate) async fn run(mut self, mut images: watch::Receiver<Arc<Image>>, shutdown: Shutdown) {
        // What came while logs were opened.
        images.mark_changed();
        loop {
            // Before this run is registered, what is followed speaks of the one before.
            let may_retry =
                self.is_registered(&self.followed) && !self.broker.partitions.unopened().is_empty();
            tokio::select! {
                () = shutdown.started() => return,
                changed = images.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let image = Image::clone(&images.borrow_and_update());
                    if self.may_follow(&image) {
                        self.broker.behind_since.send_replace(Some(self.broker.clock.now()));
                        self.follow(image).await;
                        self.broker.behind_since.send_replace(None);
                    }
                }
                () = tokio::time::sleep(RETRY_INTERVAL), if may_retry => self.retry().await,
            }
        }
    }

    /// Until this run of the broker is registered, the metadata speaks of the one before: what that one led, this one
    /// must not lead in the same epoch, since it may lack records that others have of it. And whoever fetches the
    /// metadata from the beginning again has older images for a while.
    fn may_follow(&self, image: &Image) -> bool {
        image.metadata_index() > self.followed.metadata_index() && self.is_registered(image)
    }

    fn is_registered(&self, image: &Image) -> bool {
        let registered = image.broker(self.broker.id);
        registered.is_some_and(|broker| broker.incarnation == self.broker.incarnation)
    }

    async fn follow(&mut self, image: Image) {
        let before = std::mem::replace(&mut self.followed, image.clone());
        let difference = plan::difference(&before, &image, self.broker.id);
        for topic in &difference.deleted_topics {
            self.broker.metrics.forget_topic(&topic.name);
        }
        // Before anything is created: a topic may have come back under its old name.
        self.delete(difference.delete, ErrorCode::UnknownTopicOrPartition).await;
        self.delete(difference.release, ErrorCode::NotLeader).await;
        let mut openings = Vec::new();
        for placed in difference.assign {
            let assignment = roles::assignment(&image, &placed.partition);
            match self.broker.partitions.get(placed.id) {
                Some(view) => self.update(&view, &placed, assignment).await,
                // Not opened so far; it is tried again when its turn comes.
                None => openings.push(Opening::new(placed, assignment)),
            }
        }
        for placed in difference.open {
            let assignment = roles::assignment(&image, &placed.partition);
            openings.push(Opening::new(placed, assignment));
        }
        self.open(openings).await;
        if self.broker.tasks.shutdown().has_started() {
            return;
        }
        // What was only sent so far, to lead and to configure, has to be done before it is called done.
        for shard in &self.broker.shards {
            shard.ask(|reply| Command::Barrier { reply }).await.ok();
        }
        // What is followed is of this run, and everything in it has been looked for.
        self.broker.partitions.end_expecting();
        self.assigned.send_replace(image.metadata_index());
    }

    async fn retry(&mut self) {
        let image = self.followed.clone();
        let unopened = self.broker.partitions.unopened().into_iter();
        let openings = unopened.filter_map(|id| {
            let topic = Arc::clone(image.topic_by_id(id.topic_id)?);
            let partition = Arc::clone(topic.partition(id.partition)?);
            let assignment = roles::assignment(&image, &partition);
            Some(Opening::new(Placed { id, topic, partition }, assignment))
        });
        let openings = openings.collect();
        self.open(openings).await;
    }

    /// Passes on what has changed for a partition that is open.
    async fn update(&self, view: &PartitionView, placed: &Placed, assignment: Assignment) {
        let assigned = Box::new(Assigned { config: placed.topic.config, assignment });
        self.tell(&view.shard, Command::Assign { partition: view.id, assigned }).await;
    }

    /// Opens logs and hands them over; leaves off when the broker is told to stop.
    async fn open(&self, openings: Vec<Opening>) {
        let (broker, wanted) = (&self.broker, openings.len());
        let is_starting = self.followed.metadata_index() == 0;
        let now_ms = u64::try_from(broker.clock.wall_ms()).unwrap_or(0);
        let jobs = openings.into_iter().map(|opening| {
            let dirs = self.dirs.clone();
            let checkpoint = broker.partitions.checkpoint_of(opening.placed.id);
            tokio::task::spawn_blocking(move || {
                let Opening { placed: Placed { id, topic, .. }, assignment } = &opening;
                // Metadata that gives a role is that of this run: newer than everything before it.
                let stray = if assignment.is_some() { Stray::MoveAside } else { Stray::Keep };
                let log = dirs.open(topic, *id, checkpoint.as_ref(), (stray, now_ms));
                (opening, log)
            })
        });
        let mut opened = stream::iter(jobs).buffer_unordered(DISK_JOBS_MAX);
        let mut adopting = Vec::new();
        let shutdown = broker.tasks.shutdown();
        while let Some(Some(job)) = shutdown.or_stop(opened.next()).await {
            match job {
                Ok((opening, Ok(opened))) => adopting.push(self.adopt(opening, opened).await),
                Ok((opening, Err(error))) => {
                    let Placed { id, topic, .. } = &opening.placed;
                    let (topic, partition) = (&topic.name, id.partition);
                    // Said once, and tried again and again.
                    if broker.partitions.add_unopened(*id) {
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
                let id = view.id;
                broker.partitions.insert(view);
                broker.partitions.remove_unopened(id);
            }
        }
    }

    /// Hands a log to its shard; the receiver completes when the shard serves it.
    async fn adopt(
        &self,
        opening: Opening,
        (log, producers): (Log, Producers),
    ) -> (Arc<PartitionView>, oneshot::Receiver<()>) {
        let Opening { placed: Placed { id, topic, .. }, assignment, .. } = opening;
        let shard = self.broker.shard_of(id).clone();
        let metrics = self.broker.metrics.topic(&topic.name);
        let view =
            PartitionView::new(id, Arc::clone(&topic.name), metrics, log.reader(), shard.clone());
        let view = Arc::new(view);
        let lag_ms = self.broker.config.replica_lag_timeout.as_millis();
        let lag_ms = u64::try_from(lag_ms).unwrap_or(u64::MAX);
        let replica = roles::config(self.broker.id, &topic, lag_ms);
        let view_of_shard = Arc::clone(&view);
        let adoption = Adoption { log, producers, view: view_of_shard, replica, assignment };
        let (reply, adopted) = oneshot::channel();
        self.tell(&shard, Command::Adopt { adoption: Box::new(adoption), reply }).await;
        (view, adopted)
    }

    /// Takes partitions away from their shards and deletes their files; `reason` goes to everybody who waits.
    async fn delete(&self, gone: Vec<Placed>, reason: ErrorCode) {
        let mut logs = Vec::with_capacity(gone.len());
        let mut unopened = Vec::new();
        for placed in &gone {
            let partition = placed.id;
            if self.broker.partitions.remove_unopened(partition) {
                unopened.push(placed);
            }
            let Some(view) = self.broker.partitions.remove(partition) else { continue };
            view.set_deleted();
            let released =
                view.shard.ask(|reply| Command::Release { partition, reason, reply }).await;
            logs.extend(released.ok().flatten());
        }
        // From here on no shard gives out a checkpoint of them.
        let ids: Vec<_> = gone.iter().map(|placed| placed.id).collect();
        let are_forgotten = self.forget(ids.clone()).await;
        for placed in unopened {
            self.delete_unopened(placed).await;
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
        if !are_forgotten {
            self.forget(ids).await;
        }
    }

    /// See [`LogDirs::forget`].
    async fn forget(&self, logs: Vec<TopicPartition>) -> bool {
        let data_dir = Arc::clone(&self.data_dir);
        let forget = move || LogDirs::forget(&data_dir, &logs);
        tokio::task::spawn_blocking(forget).await.unwrap_or(false)
    }

    async fn delete_unopened(&self, placed: &Placed) {
        let (dirs, topic, id) = (self.dirs.clone(), Arc::clone(&placed.topic), placed.id);
        let delete = move || dirs.delete_unopened(&topic, id);
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

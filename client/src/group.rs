//! The consumer with a group: it shares topics with other members, and commits how far it has come.
//!
//! Membership is a task of its own ([`member`]), so is committing ([`commits`]); reading is done by a [`Consumer`] whose
//! partitions come and go. What the group decides is carried out while the program polls: only then is it known that the
//! program is done with its records. It refuses to hand out a record of a partition that it knows to be another's.

mod commits;
mod config;
mod member;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemark_protocol::{
    Offset, PartitionIndex, TopicPartition,
    messages::{
        CoordinatorKind, FetchOffsetsRequest, GroupMember, MetadataRequest, OffsetToCommit,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::config::{GroupConfig, StartAt};
use self::{
    commits::{COMMITS_QUEUED_MAX, Commit, Committer},
    member::{Loss, Member, Membership, Processing, Reading, Standing},
    waiting::Waiting,
};
use crate::{
    cluster::{Cluster, Repeat, Target},
    consumer::{Consumer, ConsumerConfig, OutOfRange, Position},
    coordinator::Coordinator,
    error::GroupError,
    record::ConsumedRecord,
    tasks,
};

/// How long giving up partitions waits for the commit of what was read of them.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before partitions are looked up again that could not be begun.
const BEGIN_PAUSE: Duration = Duration::from_millis(100);

/// What a poll changed about what is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These are read from now on.
    Assigned(Vec<(Arc<str>, PartitionIndex)>),
    /// These are given up; what was read of them can still be committed until this call returns.
    Revoked(Vec<(Arc<str>, PartitionIndex)>),
    /// These may be read by others already, without having been given up: nothing of them can be committed any more.
    Lost(Vec<(Arc<str>, PartitionIndex)>),
}

type OnRebalance = Box<dyn FnMut(&Rebalance) + Send + Sync>;

/// A member of a consumer group. Made by [`crate::Client::group_consumer`].
///
/// Every record goes to one member of the group, unless one dies or is too slow: then what it had not committed goes to
/// another again. Records that a poll returned count as done at the next poll, unless `auto_commit` is off.
///
/// Dropping it ends the heartbeats without a goodbye: others get its partitions when its session has timed out.
/// [`GroupConsumer::close`] is the better way.
pub struct GroupConsumer {
    config: Arc<GroupConfig>,
    cluster: Arc<Cluster>,
    coordinator: Coordinator,
    consumer: Consumer,
    /// What is read, with the names of the topics.
    held: BTreeMap<TopicPartition, Held>,
    membership: watch::Receiver<Membership>,
    reading: watch::Sender<Reading>,
    processing: Arc<Processing>,
    commits: mpsc::Sender<Commit>,
    commit_failed: Arc<AtomicBool>,
    next_auto_commit: Option<Instant>,
    on_rebalance: Option<OnRebalance>,
    waiting: Waiting,
    closing: CancellationToken,
    member: Option<JoinHandle<()>>,
    committer: JoinHandle<()>,
    id: Arc<str>,
}

#[derive(Debug)]
struct Held {
    topic: Arc<str>,
    /// What is committed, or is about to be.
    committed: Option<Offset>,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("GroupConsumer")
            .field("group", &self.config.group)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// The program is polling; when this ends it has records to work on.
struct Polling<'a>(&'a Processing);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

impl GroupConsumer {
    pub(crate) fn start(cluster: Arc<Cluster>, config: GroupConfig) -> Self {
        let config = Arc::new(config);
        let group: Arc<str> = config.group.as_str().into();
        let id: Arc<str> = member_id(&cluster.config().client_id).into();
        let (membership_in, membership) = watch::channel(Membership {
            incarnation: 0,
            epoch: 0,
            assigned: Arc::default(),
            standing: Standing::In,
            waits: None,
        });
        let (reading, reading_out) = watch::channel(Reading::default());
        let processing = Arc::new(Processing::new());
        let closing = CancellationToken::new();
        let coordinator =
            || Coordinator::new(cluster.clone(), CoordinatorKind::Group, group.clone());
        let member = Member {
            id: id.clone(),
            config: config.clone(),
            coordinator: coordinator(),
            membership: membership_in,
            reading: reading_out,
            processing: processing.clone(),
            closing: closing.clone(),
            sequence: 0,
        };
        let (commits, queue) = mpsc::channel(COMMITS_QUEUED_MAX);
        let commit_failed = Arc::<AtomicBool>::default();
        let committer = Committer {
            group: config.group.clone(),
            member: id.clone(),
            instance: config.instance.clone(),
            coordinator: coordinator(),
            membership: membership.clone(),
            queue,
            failed: commit_failed.clone(),
            timeout: cluster.config().request_timeout,
        };
        let out_of_range = match config.start_at {
            StartAt::Earliest => OutOfRange::Earliest,
            StartAt::Latest => OutOfRange::Latest,
            StartAt::Error => OutOfRange::Error,
        };
        let reads = ConsumerConfig { out_of_range, ..config.consumer.clone() };
        Self {
            coordinator: coordinator(),
            consumer: Consumer::new(cluster.clone(), reads),
            held: BTreeMap::new(),
            membership,
            reading,
            processing,
            commits,
            commit_failed,
            next_auto_commit: config.auto_commit.map(|every| Instant::now() + every),
            on_rebalance: None,
            waiting: Waiting::default(),
            closing,
            member: Some(tasks::spawn("group-member", &group, member.run())),
            committer: tasks::spawn("group-committer", &group, committer.run()),
            id,
            cluster,
            config,
        }
    }

    /// Calls `on_rebalance`, within a poll, whenever what is read has changed.
    #[must_use]
    pub fn on_rebalance(
        mut self,
        on_rebalance: impl FnMut(&Rebalance) + Send + Sync + 'static,
    ) -> Self {
        self.on_rebalance = Some(Box::new(on_rebalance));
        self
    }

    /// Calls `on_waiting`, within a poll, when this member's instance is the name of another member that has neither left nor
    /// timed out: with who that is, and until when it has the place. Once, however long that takes.
    #[must_use]
    pub fn on_waiting(mut self, on_waiting: impl FnMut(&str) + Send + Sync + 'static) -> Self {
        self.waiting = Waiting::on(on_waiting);
        self
    }

    /// The id under which the group knows this member.
    pub fn member_id(&self) -> &str {
        &self.id
    }

    /// How the group knows this member now: for [`crate::TransactionalProducer::send_offsets`], which the group refuses once the
    /// member was put out or the partition was taken from it. The epoch is 0 until the group has answered.
    pub fn member(&self) -> GroupMember {
        GroupMember {
            member: self.id.to_string(),
            epoch: self.membership.borrow().epoch,
            instance: self.config.instance.clone(),
        }
    }

    /// The next records, at most `poll_records_max`; waits for the first one, none when there is none within `max_wait`.
    ///
    /// What earlier polls returned counts as done from now on. Dropping the future loses nothing.
    pub async fn poll(&mut self, max_wait: Duration) -> Result<Vec<ConsumedRecord>, GroupError> {
        let deadline = Instant::now() + max_wait;
        let processing = self.processing.clone();
        processing.set(None);
        let _polling = Polling(&processing);
        self.auto_commit();
        loop {
            let retry_at = self.follow().await?;
            let wake_at = retry_at.map_or(deadline, |at| at.min(deadline));
            if self.held.is_empty() {
                tokio::select! {
                    changed = self.membership.changed() => changed.map_err(|_| GroupError::Closed)?,
                    () = sleep_until(wake_at) => {}
                }
            } else {
                let left = wake_at.saturating_duration_since(Instant::now());
                tokio::select! {
                    records = self.consumer.poll(left) => {
                        let records = records?;
                        // What was lost meanwhile may be another's by now.
                        if !records.is_empty() && !self.is_lost() {
                            return Ok(records);
                        }
                    }
                    changed = self.membership.changed() => changed.map_err(|_| GroupError::Closed)?,
                }
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
        }
    }

    /// What is read now, sorted.
    pub fn assignment(&self) -> Vec<(Arc<str>, PartitionIndex)> {
        self.consumer.assignment()
    }

    /// Offset of the next record to be returned; `None` for a partition that is not assigned.
    pub fn position(&self, topic: &str, partition: PartitionIndex) -> Option<Offset> {
        self.consumer.position(topic, partition)
    }

    /// Records between the position and the last end heard of, of everything assigned.
    pub fn lag(&self, topic: &str, partition: PartitionIndex) -> Option<u64> {
        self.consumer.lag(topic, partition)
    }

    /// Asks the brokers for the end of every assigned partition.
    pub async fn end_offsets(&self) -> Result<Vec<(Arc<str>, PartitionIndex, Offset)>, GroupError> {
        Ok(self.consumer.end_offsets().await?)
    }

    /// Hands out nothing of this partition until [`GroupConsumer::resume`]. It stays assigned.
    pub fn pause(&mut self, topic: &str, partition: PartitionIndex) -> Result<(), GroupError> {
        Ok(self.consumer.pause(topic, partition)?)
    }

    /// Ends a [`GroupConsumer::pause`].
    pub fn resume(&mut self, topic: &str, partition: PartitionIndex) -> Result<(), GroupError> {
        Ok(self.consumer.resume(topic, partition)?)
    }

    /// Goes on elsewhere in an assigned partition. Commits nothing by itself.
    pub async fn seek(
        &mut self,
        topic: &str,
        partition: PartitionIndex,
        position: Position,
    ) -> Result<(), GroupError> {
        Ok(self.consumer.seek(topic, partition, position).await?)
    }

    /// Commits everything that polls have returned, and waits until that is safe.
    pub async fn commit(&mut self) -> Result<(), GroupError> {
        let offsets = self.uncommitted(|_| true);
        self.send_commit(offsets).await
    }

    /// Commits everything that polls have returned, without waiting. What fails is logged, and part of the next commit.
    pub fn commit_in_background(&mut self) {
        let offsets = self.uncommitted(|_| true);
        // Full: the next one covers it.
        if !offsets.is_empty() && self.commits.try_send(Commit { offsets, reply: None }).is_err() {
            self.forget_committed();
        }
    }

    /// Commits these offsets (of the next record to be read), each with words of the program's own, at most 4096 bytes.
    pub async fn commit_offsets<T: AsRef<str>>(
        &mut self,
        offsets: impl IntoIterator<Item = (T, PartitionIndex, Offset, String)>,
    ) -> Result<(), GroupError> {
        let mut wanted = BTreeMap::new();
        for (topic, partition, offset, metadata) in offsets {
            let topic = topic.as_ref();
            let is_it = |(id, held): &(&TopicPartition, &mut Held)| {
                id.partition == partition && &*held.topic == topic
            };
            let Some((id, held)) = self.held.iter_mut().find(is_it) else {
                return Err(GroupError::NotAssigned { topic: topic.into(), partition });
            };
            held.committed = Some(offset);
            wanted.insert(*id, to_commit(*id, offset, metadata));
        }
        self.send_commit(wanted).await
    }

    /// Commits what is done, unless `auto_commit` is off, and says goodbye, so that others go on at once.
    pub async fn close(mut self) -> Result<(), GroupError> {
        let committed = if self.config.auto_commit.is_some() && self.is_in() {
            self.commit().await
        } else {
            self.send_commit(BTreeMap::new()).await
        };
        self.closing.cancel();
        if let Some(member) = self.member.take() {
            // It ends by itself: saying goodbye has a deadline.
            drop(member.await);
        }
        committed
    }

    fn is_in(&self) -> bool {
        matches!(self.membership.borrow().standing, Standing::In) && !self.is_lost()
    }

    /// Whether everything that is held was lost, and is to be dropped.
    fn is_lost(&self) -> bool {
        self.membership.borrow().incarnation != self.reading.borrow().incarnation
    }

    /// Begins a commit when it is due.
    fn auto_commit(&mut self) {
        let Some(every) = self.config.auto_commit else { return };
        if self.next_auto_commit.is_some_and(|at| at <= Instant::now()) {
            self.next_auto_commit = Some(Instant::now() + every);
            self.commit_in_background();
        }
    }

    /// What polls have returned and no commit covers, which is about to be committed.
    fn uncommitted(
        &mut self,
        wanted: impl Fn(&TopicPartition) -> bool,
    ) -> BTreeMap<TopicPartition, OffsetToCommit> {
        if self.commit_failed.swap(false, Ordering::Relaxed) {
            self.forget_committed();
        }
        let mut offsets = BTreeMap::new();
        for (id, held) in self.held.iter_mut().filter(|(id, _)| wanted(id)) {
            let Some(position) = self.consumer.position(&held.topic, id.partition) else {
                continue;
            };
            if held.committed != Some(position) {
                held.committed = Some(position);
                offsets.insert(*id, to_commit(*id, position, String::new()));
            }
        }
        offsets
    }

    /// Commits, after everything that was asked for before.
    async fn send_commit(
        &mut self,
        offsets: BTreeMap<TopicPartition, OffsetToCommit>,
    ) -> Result<(), GroupError> {
        let (reply, outcome) = oneshot::channel();
        let commit = Commit { offsets, reply: Some(reply) };
        let sent = self.commits.send(commit).await;
        let committed = match sent {
            Ok(()) => outcome.await.unwrap_or(Err(GroupError::Closed)),
            Err(_closed) => Err(GroupError::Closed),
        };
        if committed.is_err() {
            self.forget_committed();
        }
        committed
    }

    /// Nobody knows what is committed: the next commit says everything again.
    fn forget_committed(&mut self) {
        for held in self.held.values_mut() {
            held.committed = None;
        }
    }

    /// Carries out what the group has decided. Says when to try again what could not be done yet.
    async fn follow(&mut self) -> Result<Option<Instant>, GroupError> {
        let membership = self.membership.borrow_and_update().clone();
        self.waiting.tell(membership.waits.as_deref());
        match &membership.standing {
            Standing::Failed(error) => return Err(error.clone().into()),
            _ if membership.incarnation != self.reading.borrow().incarnation => {
                self.drop_everything(membership.incarnation).await?;
                if let Standing::Lost(Loss::MissedProcessingDeadline) = membership.standing {
                    let (group, after) = (self.config.group.clone(), self.config.max_poll_interval);
                    return Err(GroupError::MissedProcessingDeadline { group, after });
                }
                return Ok(None);
            }
            Standing::Lost(_) | Standing::In => {}
        }
        let gone: Vec<_> =
            self.held.keys().filter(|id| !membership.assigned.contains(id)).copied().collect();
        if !gone.is_empty() {
            self.give_up(&gone).await;
        }
        let new: Vec<_> =
            membership.assigned.iter().filter(|id| !self.held.contains_key(id)).copied().collect();
        if new.is_empty() { Ok(None) } else { self.begin(new).await }
    }

    async fn drop_everything(&mut self, incarnation: u64) -> Result<(), GroupError> {
        let held = std::mem::take(&mut self.held);
        let lost = named(&held);
        let nothing: [(&str, PartitionIndex, Position); 0] = [];
        self.consumer.assign(nothing).await?;
        self.reading.send_replace(Reading { incarnation, partitions: BTreeSet::new() });
        if !lost.is_empty() {
            self.tell(&Rebalance::Lost(lost));
        }
        Ok(())
    }

    async fn give_up(&mut self, gone: &[TopicPartition]) {
        let leaving: BTreeMap<_, _> =
            gone.iter().filter_map(|id| Some((*id, self.held.get(id)?))).collect();
        let names: Vec<_> =
            leaving.iter().map(|(id, held)| (held.topic.clone(), id.partition)).collect();
        let offsets = match self.config.auto_commit {
            Some(_) => self.uncommitted(|id| gone.contains(id)),
            None => BTreeMap::new(),
        };
        // Also what was asked for before: soon it would be refused.
        let committing = self.send_commit(offsets);
        match tokio::time::timeout(LAST_COMMIT_TIMEOUT, committing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "partitions are given up without a commit"),
            Err(_elapsed) => tracing::warn!("partitions are given up before their commit is safe"),
        }
        self.tell(&Rebalance::Revoked(names.clone()));
        self.consumer.remove(names);
        for id in gone {
            self.held.remove(id);
        }
        self.report();
    }

    /// Begins to read partitions, each where the group has committed.
    async fn begin(&mut self, mut new: Vec<TopicPartition>) -> Result<Option<Instant>, GroupError> {
        // First it is said that they are read, then it is looked whether they still may be: whatever the coordinator hears from
        // now on has them, or has them taken away already.
        let reading = self.held.keys().chain(&new).copied().collect();
        self.reading.send_modify(|known| known.partitions = reading);
        new.retain(|id| self.membership.borrow().assigned.contains(id));
        let begun = self.try_begin(&new).await;
        if self.is_lost() {
            let named =
                new.iter().filter_map(|id| Some((self.held.remove(id)?.topic, id.partition)));
            self.consumer.remove(named.collect::<Vec<_>>());
        }
        self.report();
        match begun {
            Ok(()) => Ok(None),
            Err(error) if error.is_retriable() => {
                tracing::debug!(group = self.config.group, %error, "partitions are begun later");
                Ok(Some(Instant::now() + BEGIN_PAUSE))
            }
            Err(error) => Err(error),
        }
    }

    async fn try_begin(&mut self, new: &[TopicPartition]) -> Result<(), GroupError> {
        let deadline = self.cluster.deadline();
        let request = FetchOffsetsRequest {
            group: self.config.group.clone(),
            member: None,
            partitions: Some(new.to_vec()),
            require_stable: true,
        };
        let found = self.coordinator.ask(&request, Repeat::Question, deadline).await?;
        let names = self.names_of(new, deadline).await?;
        let mut begun = Vec::with_capacity(new.len());
        for one in found.partitions {
            let id = one.partition;
            // A topic that was deleted meanwhile is soon not assigned any more.
            let Some(topic) = names.get(&id).cloned() else { continue };
            let committed = one.outcome.map_err(|failure| GroupError::CommitRefused { failure })?;
            let committed = committed.map(|committed| committed.offset);
            let position = match (committed, self.config.start_at) {
                (Some(offset), _) => Position::Offset(offset),
                (None, StartAt::Earliest) => Position::Earliest,
                (None, StartAt::Latest) => Position::Latest,
                (None, StartAt::Error) => {
                    let (group, partition) = (self.config.group.clone(), id.partition);
                    return Err(GroupError::NothingCommitted { group, topic, partition });
                }
            };
            begun.push((id, topic, position, committed));
        }
        let wanted = begun.iter().map(|(id, topic, position, _)| (topic, id.partition, *position));
        self.consumer.add(wanted.collect::<Vec<_>>()).await?;
        let names = begun.iter().map(|(id, topic, ..)| (topic.clone(), id.partition)).collect();
        for (id, topic, _, committed) in begun {
            self.held.insert(id, Held { topic, committed });
        }
        self.tell(&Rebalance::Assigned(names));
        Ok(())
    }

    /// The topics' names, as far as there are such topics.
    async fn names_of(
        &self,
        partitions: &[TopicPartition],
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Arc<str>>, GroupError> {
        let mut metadata = self.cluster.metadata();
        let topics: BTreeSet<_> = partitions.iter().map(|id| id.topic_id).collect();
        let unknown: Vec<_> =
            topics.into_iter().filter(|id| metadata.name_of(*id).is_none()).collect();
        if !unknown.is_empty() {
            let request = MetadataRequest { topics: Some(Vec::new()), topic_ids: unknown };
            let asked = self.cluster.ask(&Target::Any, &request, Repeat::Question, deadline);
            metadata = self.cluster.learn(asked.await?, &[]);
        }
        let name = |id: &TopicPartition| Some((*id, metadata.name_of(id.topic_id)?.clone()));
        Ok(partitions.iter().filter_map(name).collect())
    }

    /// Tells the member what is read.
    fn report(&self) {
        let partitions: BTreeSet<_> = self.held.keys().copied().collect();
        self.reading.send_modify(|reading| reading.partitions = partitions);
    }

    fn tell(&mut self, rebalance: &Rebalance) {
        tracing::debug!(group = self.config.group, ?rebalance, "rebalanced");
        if let Some(on_rebalance) = &mut self.on_rebalance {
            on_rebalance(rebalance);
        }
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        if let Some(member) = &self.member {
            member.abort();
        }
        self.committer.abort();
    }
}

fn named(held: &BTreeMap<TopicPartition, Held>) -> Vec<(Arc<str>, PartitionIndex)> {
    held.iter().map(|(id, held)| (held.topic.clone(), id.partition)).collect()
}

fn to_commit(partition: TopicPartition, offset: Offset, metadata: String) -> OffsetToCommit {
    OffsetToCommit { partition, offset, leader_epoch: None, metadata }
}

/// Random, and anew for every member; with a name in front that tells a person whose it is.
fn member_id(client_id: &str) -> String {
    let name: String = client_id.chars().filter(char::is_ascii_graphic).take(64).collect();
    format!("{name}-{:016x}", tasks::random_u64())
}

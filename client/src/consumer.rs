//! The consumer without a group: assigned partitions, read in order, from where the caller says.
//!
//! Sessions (one per broker) read ahead in tasks of their own, within a window of bytes. Everything that
//! needs a decision happens here, while the caller polls: finding leaders, starting sessions again at the
//! position after a loss, and choosing what to do about an offset that is not there. It refuses to commit
//! offsets or to share partitions with others.

mod ahead;
mod attach;
mod config;
mod session;
mod slots;
mod window;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::Stream;
use tidemark_protocol::{Offset, PartitionIndex};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    admin::OffsetSpec,
    cluster::Cluster,
    error::{AdminError, ConsumeError},
    partitions,
    pool::Pool,
    record::{ConsumedBatch, ConsumedRecord},
    tasks::Backoff,
};
use ahead::ReadAhead;
pub use config::{ConsumerConfig, OutOfRange, Position, Transport};
use session::{EVENTS_QUEUED_MAX, Event, Session, SessionId, Starter};
use slots::Slots;

/// How long a poll that has something to hand out looks for readers of other partitions.
const ATTACH_PATIENCE: Duration = Duration::from_millis(200);

/// Reads partitions. Made by [`crate::Client::consumer`]; connections close when it is dropped.
///
/// Survives lost connections and restarted brokers: it goes on at its position as soon as it can. Records of
/// a partition come in order of offset, each once per consumer.
///
/// ```
/// # use tidemark_client::{Client, ClientConfig, NewTopic, ProducerConfig, testing::FakeBroker};
/// use std::time::Duration;
/// use tidemark_client::{ConsumerConfig, Position, ProducerRecord};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = FakeBroker::start().await?;
/// # let client = Client::connect(ClientConfig::new(broker.address())).await?;
/// # client.admin().create_topic(NewTopic::new("orders")).await?;
/// # let producer = client.producer(ProducerConfig::default());
/// # producer.send(ProducerRecord::to("orders").value("two teas")).await?.await?;
/// let mut consumer = client.consumer(ConsumerConfig::default());
/// consumer.assign_topic("orders", Position::Earliest).await?;
/// for record in consumer.poll(Duration::from_secs(5)).await? {
///     assert_eq!(record.value.as_deref(), Some(&b"two teas"[..]));
/// }
/// # assert_eq!(consumer.position("orders", 0), Some(1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Consumer {
    cluster: Arc<Cluster>,
    config: Arc<ConsumerConfig>,
    starter: Starter,
    slots: Slots,
    ahead: ReadAhead,
    sessions: HashMap<Arc<str>, Session>,
    events: mpsc::Receiver<(SessionId, Event)>,
    next_session: SessionId,
    /// Sessions that read what is not to be read any more.
    renewed: BTreeSet<SessionId>,
    backoff: Backoff,
    /// Not before this is anything tried again.
    not_before: Option<Instant>,
    /// Leaders must be asked for before sessions are started.
    leaders_stale: bool,
    /// Met while there were records to hand out first.
    failure: Option<ConsumeError>,
}

impl Consumer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ConsumerConfig) -> Self {
        let config = Arc::new(config);
        let (to_consumer, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let starter = Starter {
            cluster: cluster.clone(),
            pool: Arc::new(Pool::new(cluster.config().clone())),
            config: config.clone(),
            events: to_consumer,
        };
        Self {
            starter,
            slots: Slots::default(),
            ahead: ReadAhead::new(config.verify_crc),
            sessions: HashMap::new(),
            events,
            next_session: 1,
            renewed: BTreeSet::new(),
            backoff: cluster.backoff(),
            not_before: None,
            leaders_stale: false,
            failure: None,
            cluster,
            config,
        }
    }

    /// Reads these partitions and no others from now on. Positions other than offsets are looked up before
    /// this returns: `Latest` means the end at the time of this call.
    pub async fn assign<T: AsRef<str>>(
        &mut self,
        partitions: impl IntoIterator<Item = (T, PartitionIndex, Position)>,
    ) -> Result<(), ConsumeError> {
        let wanted: Vec<(Arc<str>, PartitionIndex, Position)> = partitions
            .into_iter()
            .map(|(topic, partition, position)| (topic.as_ref().into(), partition, position))
            .collect();
        let offsets = self.resolve(&wanted).await?;
        let assigned = wanted.into_iter().zip(offsets);
        let assigned = assigned.map(|((topic, partition, _), offset)| (topic, partition, offset));
        self.sessions.clear();
        self.renewed.clear();
        self.ahead.clear();
        self.failure = None;
        self.slots = Slots::new(assigned.collect());
        self.wake();
        Ok(())
    }

    /// Reads these partitions as well; those that are assigned already stay where they are. Reading of the others goes on.
    /// Positions other than offsets are looked up before this returns.
    pub async fn add<T: AsRef<str>>(
        &mut self,
        partitions: impl IntoIterator<Item = (T, PartitionIndex, Position)>,
    ) -> Result<(), ConsumeError> {
        let mut wanted: Vec<(Arc<str>, PartitionIndex, Position)> = partitions
            .into_iter()
            .map(|(topic, partition, position)| (topic.as_ref().into(), partition, position))
            .collect();
        wanted.retain(|(topic, partition, _)| self.slots.find(topic, *partition).is_none());
        wanted.dedup_by(|left, right| (&left.0, left.1) == (&right.0, right.1));
        let offsets = self.resolve(&wanted).await?;
        for ((topic, partition, _), offset) in wanted.into_iter().zip(offsets) {
            if self.slots.find(&topic, partition).is_none() {
                self.slots.add(topic, partition, offset);
            }
        }
        self.wake();
        Ok(())
    }

    /// Reads these partitions no more. Reading of the others goes on.
    pub fn remove<T: AsRef<str>>(
        &mut self,
        partitions: impl IntoIterator<Item = (T, PartitionIndex)>,
    ) {
        for (topic, partition) in partitions {
            if let Some(at) = self.slots.find(topic.as_ref(), partition) {
                let reader = self.slots.remove(at);
                self.renewed.extend(reader);
            }
        }
    }

    /// Reads all partitions that the topic has now, and no others.
    pub async fn assign_topic(
        &mut self,
        topic: &str,
        position: Position,
    ) -> Result<(), ConsumeError> {
        let known = self.cluster.topic(topic, self.cluster.deadline()).await?;
        let known = known.ok_or_else(|| ConsumeError::UnknownTopic { topic: topic.into() })?;
        let partitions = 0..known.partition_count();
        self.assign(partitions.map(|partition| (&*known.name, partition, position))).await
    }

    /// What is assigned, sorted.
    pub fn assignment(&self) -> Vec<(Arc<str>, PartitionIndex)> {
        let named = self.slots.iter().map(|slot| (slot.topic.clone(), slot.partition));
        let mut assignment: Vec<_> = named.collect();
        assignment.sort();
        assignment
    }

    /// Goes on elsewhere in an assigned partition. What was read ahead is dropped.
    pub async fn seek(
        &mut self,
        topic: &str,
        partition: PartitionIndex,
        position: Position,
    ) -> Result<(), ConsumeError> {
        let at = self.slot(topic, partition)?;
        let offsets = self.resolve(&[(topic.into(), partition, position)]).await?;
        let slot = self.slots.get_mut(at);
        slot.position = offsets[0];
        slot.reset = None;
        self.stop_reading(at);
        self.wake();
        Ok(())
    }

    /// Hands out nothing of this partition until [`Consumer::resume`]. What was read ahead of it is dropped.
    pub fn pause(&mut self, topic: &str, partition: PartitionIndex) -> Result<(), ConsumeError> {
        let at = self.slot(topic, partition)?;
        if !std::mem::replace(&mut self.slots.get_mut(at).paused, true) {
            self.stop_reading(at);
        }
        Ok(())
    }

    /// Ends a [`Consumer::pause`].
    pub fn resume(&mut self, topic: &str, partition: PartitionIndex) -> Result<(), ConsumeError> {
        let at = self.slot(topic, partition)?;
        self.slots.get_mut(at).paused = false;
        Ok(())
    }

    /// The next records, at most `poll_records_max`; waits for the first one, none when there is none within
    /// `max_wait`. Dropping the future loses nothing.
    pub async fn poll(&mut self, max_wait: Duration) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        let take = |ahead: &mut ReadAhead, slots: &mut Slots| ahead.record(slots);
        self.gather(Instant::now() + max_wait, take).await
    }

    /// Like [`Consumer::poll`], but whole batches as they are stored, at most `poll_records_max` of them,
    /// without looking at their records. Positions move past whole batches.
    pub async fn poll_batches(
        &mut self,
        max_wait: Duration,
    ) -> Result<Vec<ConsumedBatch>, ConsumeError> {
        let take = |ahead: &mut ReadAhead, slots: &mut Slots| ahead.batch(slots);
        self.gather(Instant::now() + max_wait, take).await
    }

    /// The next record, however long it takes. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<ConsumedRecord, ConsumeError> {
        loop {
            if let Some(record) = self.ahead.record(&mut self.slots) {
                return record;
            }
            self.progress(None).await?;
        }
    }

    /// The records without end. An error is an item like others: the next item tries again.
    pub fn stream(&mut self) -> impl Stream<Item = Result<ConsumedRecord, ConsumeError>> + '_ {
        futures_util::stream::unfold(self, |consumer| async move {
            Some((consumer.next().await, consumer))
        })
    }

    /// Offset of the next record to be returned; `None` for a partition that is not assigned.
    pub fn position(&self, topic: &str, partition: PartitionIndex) -> Option<Offset> {
        Some(self.slots.get(self.slots.find(topic, partition)?).position)
    }

    /// Records between the position and the last end heard of. Asks nobody; `None` before a broker has said
    /// anything, and for a partition that is not assigned.
    pub fn lag(&self, topic: &str, partition: PartitionIndex) -> Option<u64> {
        let slot = self.slots.get(self.slots.find(topic, partition)?);
        Some(slot.high_watermark?.saturating_sub(slot.position))
    }

    /// Asks the brokers for the end (the high watermark) of every assigned partition.
    pub async fn end_offsets(
        &self,
    ) -> Result<Vec<(Arc<str>, PartitionIndex, Offset)>, ConsumeError> {
        let partitions = self.assignment();
        let latest = |(topic, partition): &(Arc<str>, PartitionIndex)| {
            (topic.clone(), *partition, Position::Latest)
        };
        let questions: Vec<_> = partitions.iter().map(latest).collect();
        let ends = self.resolve(&questions).await?;
        let named = partitions.into_iter().zip(ends);
        Ok(named.map(|((topic, partition), end)| (topic, partition, end)).collect())
    }

    /// Takes what there is; waits for one until `deadline`.
    async fn gather<T>(
        &mut self,
        deadline: Instant,
        mut take: impl FnMut(&mut ReadAhead, &mut Slots) -> Option<Result<T, ConsumeError>>,
    ) -> Result<Vec<T>, ConsumeError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.is_busy() && self.wants_readers() {
            // Others always have something: whoever waits for a reader must not wait for them to run dry.
            let patience = Instant::now() + ATTACH_PATIENCE;
            if let Ok(attached) = timeout_at(patience, self.attach()).await {
                attached?;
            }
        }
        let mut taken = Vec::new();
        loop {
            while taken.len() < self.config.poll_records_max.max(1) {
                let failure = match take(&mut self.ahead, &mut self.slots) {
                    Some(Ok(item)) => {
                        taken.push(item);
                        continue;
                    }
                    Some(Err(error)) => Some(error),
                    None => match self.events.try_recv() {
                        Ok((session, event)) => match self.on_event(session, event) {
                            Ok(()) => continue,
                            Err(error) => Some(error),
                        },
                        Err(_) => None,
                    },
                };
                match failure {
                    Some(error) if taken.is_empty() => return Err(error),
                    Some(error) => self.failure = Some(error),
                    None => {}
                }
                break;
            }
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            self.progress(Some(deadline)).await?;
        }
    }

    /// Waits for one event, at most until `deadline`; meanwhile finds readers for what nobody reads. Nothing
    /// is lost when it is dropped.
    async fn progress(&mut self, deadline: Option<Instant>) -> Result<(), ConsumeError> {
        if self.slots.is_empty() {
            return Err(ConsumeError::NothingAssigned);
        }
        let now = Instant::now();
        let far = now + Duration::from_hours(1);
        let deadline = deadline.unwrap_or(far);
        let mut wake_at = deadline;
        if self.wants_readers() {
            match self.not_before.filter(|at| *at > now) {
                Some(at) => wake_at = wake_at.min(at),
                None => match timeout_at(deadline, self.attach()).await {
                    Ok(attached) => attached?,
                    Err(_elapsed) => return Ok(()),
                },
            }
            wake_at = self.not_before.filter(|at| *at > now).map_or(wake_at, |at| at.min(wake_at));
        }
        tokio::select! {
            event = self.events.recv() => {
                let (session, event) = event.expect("the consumer holds a sender itself");
                self.on_event(session, event)
            }
            () = sleep_until(wake_at) => Ok(()),
        }
    }

    /// Whether there may be records to hand out at once, and it is not too early to try what failed.
    fn is_busy(&self) -> bool {
        let may_try = self.not_before.is_none_or(|at| at <= Instant::now());
        may_try && (!self.ahead.is_empty() || !self.events.is_empty())
    }

    fn slot(&self, topic: &str, partition: PartitionIndex) -> Result<usize, ConsumeError> {
        let not_assigned = || ConsumeError::NotAssigned { topic: topic.into(), partition };
        self.slots.find(topic, partition).ok_or_else(not_assigned)
    }

    /// Lets the next poll try at once.
    fn wake(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }

    /// The offsets these positions stand for.
    async fn resolve(
        &self,
        wanted: &[(Arc<str>, PartitionIndex, Position)],
    ) -> Result<Vec<Offset>, ConsumeError> {
        let mut questions = Vec::new();
        for (topic, partition, position) in wanted {
            let spec = match position {
                Position::Offset(_) => continue,
                Position::Earliest => OffsetSpec::Earliest,
                Position::Latest => OffsetSpec::Latest,
                Position::Timestamp(timestamp_ms) => OffsetSpec::Timestamp(*timestamp_ms),
            };
            questions.push((topic.clone(), *partition, spec));
        }
        let deadline = self.cluster.deadline();
        let asked = partitions::list_offsets(&self.cluster, &questions, deadline).await;
        let mut answers = asked.map_err(not_found)?.into_iter();
        let mut offsets = Vec::with_capacity(wanted.len());
        for (_, _, position) in wanted {
            offsets.push(if let Position::Offset(offset) = position {
                *offset
            } else {
                let answer = answers.next().expect("one answer for each question");
                answer.map_err(not_found)?.offset
            });
        }
        Ok(offsets)
    }
}

fn not_found(error: AdminError) -> ConsumeError {
    match error {
        AdminError::UnknownTopic { topic } => ConsumeError::UnknownTopic { topic },
        AdminError::UnknownPartition { topic, partition, partitions } => {
            ConsumeError::UnknownPartition { topic, partition, partitions }
        }
        AdminError::NoLeader { topic, partition } => ConsumeError::NoLeader { topic, partition },
        AdminError::Request(error) => ConsumeError::Request(error),
    }
}

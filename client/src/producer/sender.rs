//! The sending task of a producer: takes what is ready, forms requests per broker, settles the answers.
//!
//! One task owns all decisions about retries and order. Requests run as tasks of its own set, so ending the
//! sender ends them. Order within a partition is kept because a partition has one request in flight, and
//! what that brings back goes in front of what came later.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tidemark_protocol::{
    ErrorCode, TopicPartition, limits::REQUEST_PARTITIONS_MAX, messages::ProduceReceipt,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    delivery::BatchReceipt,
    identity::Number,
    queue::{Again, Guarantee, PartitionQueue, QueuedBatch, Readiness},
    request::{Draft, Fate, Finished, Part},
    shared::Shared,
};
use crate::{
    error::{ProduceError, RequestError},
    metadata::{Leader, Metadata},
    tasks::{self, Backoff},
};

/// The sender's own state; everything here is touched by its task only.
pub(super) struct Sender {
    shared: Arc<Shared>,
    /// Queues with something to send or in flight.
    active: Vec<Arc<PartitionQueue>>,
    requests: JoinSet<Finished>,
    in_flight: HashMap<Arc<str>, usize>,
    refreshing: JoinSet<Result<Arc<Metadata>, RequestError>>,
    /// Topics whose leaders must be asked for again.
    stale: BTreeSet<Arc<str>>,
    refresh_backoff: Backoff,
    refresh_not_before: Option<Instant>,
    /// When all topics are asked for again without a reason.
    refresh_due: Instant,
}

/// What a round found.
#[derive(Default)]
struct Round {
    drafts: BTreeMap<(Arc<str>, Guarantee), Draft>,
    /// When to look again although nothing happens.
    wake_at: Option<Instant>,
}

impl Round {
    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Runs until `stop`; then everything not settled fails.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let refresh_due = Instant::now() + shared.cluster.config().metadata_max_age;
    let mut sender = Sender {
        active: Vec::new(),
        requests: JoinSet::new(),
        in_flight: HashMap::new(),
        refreshing: JoinSet::new(),
        stale: BTreeSet::new(),
        refresh_backoff: shared.cluster.backoff(),
        refresh_not_before: None,
        refresh_due,
        shared,
    };
    loop {
        let wake_at = sender.round(Instant::now());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(finished) = sender.requests.join_next() => {
                sender.finish(finished.expect("a request task neither panics nor is aborted alone"));
                while let Some(finished) = sender.requests.try_join_next() {
                    sender.finish(finished.expect("as above"));
                }
            }
            Some(refreshed) = sender.refreshing.join_next() => {
                sender.refreshed(refreshed.expect("a refresh task neither panics nor is aborted alone"));
            }
            () = sender.shared.wake.notified() => {}
            () = sleep_until(wake_at) => {}
        }
    }
}

impl Sender {
    /// Sends all that is ready; answers when to look again.
    fn round(&mut self, now: Instant) -> Instant {
        self.active.append(&mut self.shared.take_arrivals());
        let metadata = self.shared.cluster.metadata();
        let mut round = Round::default();
        let active = std::mem::take(&mut self.active);
        self.active = active
            .into_iter()
            .filter(|queue| self.look_at(queue, &metadata, &mut round, now))
            .collect();
        // Whoever was first does not stay first, so that a full request starves nobody.
        if !self.active.is_empty() {
            self.active.rotate_left(1);
        }
        for draft in std::mem::take(&mut round.drafts).into_values() {
            self.start(draft, now);
        }
        self.refresh_if_due(&mut round, now);
        round.wake_at.unwrap_or(self.refresh_due)
    }

    /// Takes from one queue what can go now. `false`: the queue is idle and leaves the list.
    fn look_at(
        &mut self,
        queue: &Arc<PartitionQueue>,
        metadata: &Metadata,
        round: &mut Round,
        now: Instant,
    ) -> bool {
        let config = self.shared.config.clone();
        let shared = &self.shared;
        let note = |error: &ProduceError| shared.note_failure(error);
        shared.give_room(&queue.expire(now, config.delivery_timeout, note));
        let hurry = self.shared.is_hurried();
        match queue.readiness(now, hurry, config.linger) {
            Readiness::Idle => return false,
            Readiness::InFlight => {}
            Readiness::At(at) => round.wake_by(at),
            Readiness::Now(guarantee) => match metadata.leader(&queue.topic, queue.partition) {
                Some(leader) => self.add_to_draft(queue, leader, guarantee, metadata, round),
                None => {
                    self.stale.insert(queue.topic.clone());
                }
            },
        }
        if let Some(expiry) = queue.next_expiry(config.delivery_timeout) {
            round.wake_by(expiry);
        }
        true
    }

    fn add_to_draft(
        &self,
        queue: &Arc<PartitionQueue>,
        leader: Leader,
        guarantee: Guarantee,
        metadata: &Metadata,
        round: &mut Round,
    ) {
        let config = &self.shared.config;
        let address = leader.address;
        let drafted = round.drafts.range((address.clone(), Guarantee::MIN)..);
        let drafted = drafted.take_while(|((other, _), _)| *other == address).count();
        let in_flight = self.in_flight.get(&address).copied().unwrap_or(0);
        let key = (address, guarantee);
        let is_new = !round.drafts.contains_key(&key);
        // No slot free: an answer will bring the next round.
        if is_new && in_flight + drafted >= config.max_in_flight {
            return;
        }
        let Some(topic_id) = metadata.topic(&queue.topic).map(|topic| topic.id) else { return };
        let draft = round
            .drafts
            .entry(key)
            .or_insert_with_key(|(address, guarantee)| Draft::new(address.clone(), *guarantee));
        if draft.partitions.len() == REQUEST_PARTITIONS_MAX {
            return; // its answer will bring the next round
        }
        let left = config.request_bytes.saturating_sub(draft.charged_bytes);
        let always_one = draft.partitions.is_empty();
        let batches = queue.take(left, always_one, config.delivery_timeout, &draft.sent);
        if batches.is_empty() {
            return; // the request is full; its answer will bring the next round
        }
        draft.charged_bytes += batches.iter().map(|batch| batch.charged_bytes).sum::<usize>();
        let partition = TopicPartition { topic_id, partition: queue.partition };
        let part = Part { queue: queue.clone(), partition, epoch: leader.epoch, batches };
        draft.partitions.push(part);
    }

    fn start(&mut self, draft: Draft, now: Instant) {
        *self.in_flight.entry(draft.address.clone()).or_default() += 1;
        let config = self.shared.config.clone();
        let deadline = now + config.request_timeout.min(config.delivery_timeout);
        self.requests.spawn(draft.run(self.shared.clone(), deadline));
    }

    fn finish(&mut self, finished: Finished) {
        if let Some(count) = self.in_flight.get_mut(&finished.address) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&finished.address);
            }
        }
        for (batch, error) in finished.unbuildable {
            self.shared.fail(&[batch], &error);
        }
        for (part, fate) in finished.partitions {
            match fate {
                Fate::Written(None) => {
                    let receipt = BatchReceipt { base_offset: None, receipt: None };
                    for batch in &part.batches {
                        self.shared.written(batch, receipt.clone());
                    }
                    part.queue.settled();
                }
                Fate::Written(Some(receipt)) => self.written(part, receipt),
                Fate::Failed(error) => self.failed(part, error),
            }
        }
    }

    fn written(&mut self, part: Part, receipt: ProduceReceipt) {
        let records: u32 = part.batches.iter().map(|batch| batch.record_count).sum();
        if receipt.record_count != records {
            let detail = format!("{} of {records} records written", receipt.record_count);
            let address = part.queue.topic.clone();
            return self.failed(part, RequestError::Protocol { address, detail: detail.into() });
        }
        let mut base_offset = receipt.base_offset;
        let receipt = Some(Arc::new(receipt));
        for batch in &part.batches {
            let of_batch =
                BatchReceipt { base_offset: Some(base_offset), receipt: receipt.clone() };
            self.shared.written(batch, of_batch);
            base_offset += u64::from(batch.record_count);
        }
        part.queue.settled();
    }

    /// Repeats what may be repeated and fails the rest.
    fn failed(&mut self, part: Part, error: RequestError) {
        let Part { queue, mut batches, epoch, .. } = part;
        let metadata = self.shared.cluster.metadata();
        let moved = metadata.has_later_leader(&queue.topic, queue.partition, epoch);
        if may_be_stale(&error) && !moved {
            self.stale.insert(queue.topic.clone());
        }
        let indeterminate = error.is_indeterminate();
        for batch in &mut batches {
            batch.maybe_written |= indeterminate;
        }
        let miscounted = batches.first().and_then(|batch| batch.number);
        let miscounted = miscounted.filter(|_| is_about_numbers(&error));
        let config = &self.shared.config;
        // What has a number is written once, however often it is sent.
        let is_safe = batches.iter().all(|batch| batch.number.is_some());
        let repeat = miscounted.is_some()
            || error.is_retriable() && (!indeterminate || is_safe || config.retry_indeterminate);
        if let Some(number) = miscounted {
            self.begin_epoch(&queue, number, &mut batches, &error);
        }
        queue.take_numbers_back(&mut batches);
        // The broker refuses all of a partition's batches for the fault of one.
        let alone = !repeat && !indeterminate && is_fault_of_one(&error) && batches.len() > 1;
        if !repeat && !alone {
            for batch in batches {
                let (topic, partition) = (queue.topic.clone(), queue.partition);
                let (source, maybe_written) = (error.clone(), batch.maybe_written);
                let error = ProduceError::Request { topic, partition, source, maybe_written };
                self.shared.fail(&[batch], &error);
            }
            queue.settled();
            return;
        }
        tracing::debug!(topic = %queue.topic, partition = queue.partition, %error, "sending again");
        let last_error = Arc::new(error);
        for batch in &mut batches {
            batch.last_error = Some(last_error.clone());
        }
        let client = self.shared.cluster.config();
        let pause = |failures: u32| -> Duration {
            tasks::pause(client.retry_backoff, client.retry_backoff_max, failures)
        };
        let again = if alone {
            Again::Alone
        } else if moved {
            Again::AtOnce
        } else {
            Again::After { now: Instant::now(), pause: &pause, epoch }
        };
        let over = queue.give_back(batches, again);
        self.shared.give_room(&over);
    }

    /// Counts anew. What may have been written under an old number would be written again under a new one: it fails, and
    /// nobody can say more.
    fn begin_epoch(
        &self,
        queue: &PartitionQueue,
        number: Number,
        batches: &mut Vec<QueuedBatch>,
        error: &RequestError,
    ) {
        if !queue.begin_epoch(number) {
            self.shared.identity.renew();
        }
        let (lost, again): (Vec<_>, Vec<_>) =
            std::mem::take(batches).into_iter().partition(|batch| batch.maybe_written);
        *batches = again;
        let (topic, partition) = (queue.topic.clone(), queue.partition);
        let source = error.clone();
        self.shared
            .fail(&lost, &ProduceError::Request { topic, partition, source, maybe_written: true });
    }

    fn refresh_if_due(&mut self, round: &mut Round, now: Instant) {
        if self.refresh_due <= now {
            self.stale.extend(self.shared.topic_names());
            self.refresh_due = now + self.shared.cluster.config().metadata_max_age;
        }
        round.wake_by(self.refresh_due);
        if self.stale.is_empty() || !self.refreshing.is_empty() {
            return;
        }
        if let Some(at) = self.refresh_not_before.filter(|at| *at > now) {
            return round.wake_by(at);
        }
        let topics: Vec<_> = self.stale.iter().cloned().collect();
        let cluster = self.shared.cluster.clone();
        self.refreshing.spawn(async move { cluster.refresh(&topics, cluster.deadline()).await });
        self.refresh_not_before = Some(now + self.refresh_backoff.after_failure());
    }

    fn refreshed(&mut self, refreshed: Result<Arc<Metadata>, RequestError>) {
        let metadata = match refreshed {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::debug!(%error, "cannot learn the leaders of topics");
                return;
            }
        };
        for name in std::mem::take(&mut self.stale) {
            match metadata.topic(&name) {
                Some(topic) => {
                    self.shared.set_partitions(&name, topic.partition_count());
                }
                None => self.shared.forget_topic(&name),
            }
        }
        for queue in &self.active {
            let known = metadata.topic(&queue.topic).map(|topic| topic.partition_count());
            if let Some(error) = missing(queue, known) {
                self.shared.fail(&queue.drain(), &error);
            } else if let Some(leader) = metadata.leader(&queue.topic, queue.partition) {
                queue.hear_of_leader(leader.epoch);
            } else {
                self.stale.insert(queue.topic.clone());
            }
        }
        if self.stale.is_empty() {
            self.refresh_backoff.reset();
        } else {
            self.shared.cluster.move_on();
        }
    }
}

impl Drop for Sender {
    /// Nobody waits for ever for a sender that is gone.
    fn drop(&mut self) {
        self.shared.room.close();
        let mut left: Vec<_> = std::mem::take(&mut self.active);
        left.append(&mut self.shared.take_arrivals());
        for queue in left {
            let (topic, partition) = (queue.topic.clone(), queue.partition);
            queue.abandon_in_flight(|sent| ProduceError::Request {
                topic: topic.clone(),
                partition,
                source: RequestError::ConnectionLost {
                    address: "the broker".into(),
                    reason: "the producer was dropped before the answer".into(),
                    sent,
                },
                maybe_written: sent,
            });
            self.shared.fail(&queue.drain(), &ProduceError::Closed);
        }
    }
}

/// Why nothing can ever be sent from this queue, if so. `known`: the topic's partition count, if it exists.
fn missing(queue: &PartitionQueue, known: Option<u32>) -> Option<ProduceError> {
    let topic = queue.topic.clone();
    match known {
        None => Some(ProduceError::UnknownTopic { topic }),
        Some(partitions) if queue.partition >= partitions => {
            Some(ProduceError::UnknownPartition { topic, partition: queue.partition, partitions })
        }
        Some(_) => None,
    }
}

/// Whether the broker asked may not be the leader any more.
fn may_be_stale(error: &RequestError) -> bool {
    match error {
        RequestError::Connect(_)
        | RequestError::ConnectionLost { .. }
        | RequestError::TimedOut { .. } => true,
        RequestError::Refused(failure) => matches!(
            failure.code,
            ErrorCode::NotLeader
                | ErrorCode::NotLeaderAfterAppend
                | ErrorCode::FencedLeaderEpoch
                | ErrorCode::UnknownLeaderEpoch
                | ErrorCode::UnknownTopicOrPartition
        ),
        _ => false,
    }
}

/// Whether the broker does not know what comes before these batches, or knows of a later epoch. They are not written.
fn is_about_numbers(error: &RequestError) -> bool {
    matches!(error.code(), Some(ErrorCode::OutOfOrderSequence | ErrorCode::InvalidProducerEpoch))
}

fn is_fault_of_one(error: &RequestError) -> bool {
    matches!(error.code(), Some(ErrorCode::BatchTooLarge | ErrorCode::InvalidBatch))
}

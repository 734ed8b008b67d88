//! What one partition has yet to send: the batch that is filling, the closed ones behind it, and what is in
//! flight.
//!
//! One lock per partition, held for the copy of one record. It decides order and readiness; it refuses to
//! know leaders, connections and tasks.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidemark_protocol::{
    LeaderEpoch, PartitionIndex, TimestampMs,
    batch::{BatchBuilder, BatchError, with_producer},
    limits::BATCH_RECORDS_MAX,
    messages::{Acks, Durability, ProducerIdentity},
};
use tokio::time::Instant;

use super::{
    config::ProducerConfig,
    delivery::{Delivery, Outcome},
    identity::{Count, Number},
};
use crate::{
    error::{ProduceError, RequestError},
    record::ProducerRecord,
};

/// Most batches of a partition in one request: so many of a producer's last ones a broker remembers.
const NUMBERED_BATCHES_MAX: usize = 5;

/// What the records of a batch, and the batches of a request, have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Guarantee {
    acks: u8,
    durability: u8,
}

impl Guarantee {
    /// The least in order.
    pub(super) const MIN: Self = Self { acks: 0, durability: 0 };

    pub(super) fn of(record: &ProducerRecord, config: &ProducerConfig) -> Self {
        Self {
            acks: record.acks.unwrap_or(config.acks).into(),
            durability: record.durability.unwrap_or(config.durability).into(),
        }
    }

    pub(super) fn acks(self) -> Acks {
        self.acks.try_into().expect("it was made from one")
    }

    pub(super) fn durability(self) -> Durability {
        self.durability.try_into().expect("it was made from one")
    }
}

/// A batch and what is known of it. Owned by the queue or by one request, never by both.
#[derive(Debug)]
pub(super) struct QueuedBatch {
    content: Content,
    pub(super) outcome: Arc<Outcome>,
    pub(super) guarantee: Guarantee,
    opened: Instant,
    /// What it holds of the producer's buffer, in bytes.
    pub(super) charged_bytes: usize,
    pub(super) record_count: u32,
    /// What it was sent under. It keeps it as long as it may have been written.
    pub(super) number: Option<Number>,
    /// An earlier attempt may have written it.
    pub(super) maybe_written: bool,
    pub(super) last_error: Option<Arc<RequestError>>,
}

#[derive(Debug)]
enum Content {
    Filling(BatchBuilder),
    Built(Bytes, Option<Number>),
    /// Building failed, or is going on.
    Spent,
}

impl QueuedBatch {
    fn open(partition: PartitionIndex, guarantee: Guarantee, builder: BatchBuilder) -> Self {
        Self {
            content: Content::Filling(builder),
            outcome: Arc::new(Outcome::new(partition)),
            guarantee,
            opened: Instant::now(),
            charged_bytes: 0,
            record_count: 0,
            number: None,
            maybe_written: false,
            last_error: None,
        }
    }

    /// The finished batch under this number: compressed the first time, kept for the next attempts.
    pub(super) fn bytes(&mut self, number: Option<Number>) -> Result<Bytes, BatchError> {
        let bytes = match std::mem::replace(&mut self.content, Content::Spent) {
            Content::Filling(mut builder) => {
                if let Some(Number { producer, sequence }) = number {
                    builder.set_producer(producer.producer_id, producer.epoch, sequence);
                }
                builder.build()?
            }
            Content::Built(bytes, before) if before == number => bytes,
            Content::Built(bytes, _) => {
                let Number { producer, sequence } = number.expect("it has had one before");
                with_producer(&bytes, producer.producer_id, producer.epoch, sequence)
            }
            Content::Spent => unreachable!("a batch that failed to build is never sent again"),
        };
        self.content = Content::Built(bytes.clone(), number);
        Ok(bytes)
    }

    fn builder(&mut self) -> &mut BatchBuilder {
        match &mut self.content {
            Content::Filling(builder) => builder,
            Content::Built(..) | Content::Spent => unreachable!("an open batch is filling"),
        }
    }
}

/// One partition of one topic, as the producer sees it.
#[derive(Debug)]
pub(super) struct PartitionQueue {
    pub(super) topic: Arc<str>,
    pub(super) partition: PartitionIndex,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Filling. Younger than everything closed.
    open: Option<QueuedBatch>,
    /// Oldest first; what an attempt gave back is in front again.
    closed: VecDeque<QueuedBatch>,
    /// While this is not empty nothing else is sent, so that a repeated attempt cannot overtake.
    in_flight: Vec<InFlight>,
    not_before: Option<Instant>,
    failures: u32,
    /// The leader epoch in which the last attempt failed; a leader of a later one is worth an attempt at once.
    failed_in: Option<LeaderEpoch>,
    /// The sender has this queue in its list.
    listed: bool,
    /// So many batches are to be sent alone: one of them was refused, and the others are innocent.
    alone: usize,
    /// Size of the batch before, which is a good guess for the next.
    previous_bytes: usize,
    /// What the brokers know its batches by.
    count: Count,
}

#[derive(Debug)]
struct InFlight {
    outcome: Arc<Outcome>,
    opened: Instant,
    deadline: Instant,
    maybe_written: bool,
    /// Of the attempt before.
    last_error: Option<Arc<RequestError>>,
    /// Set when the request is handed to a connection.
    sent: Arc<AtomicBool>,
}

/// The oldest batch of a partition that has no outcome yet.
pub(super) struct Oldest {
    pub(super) opened: Instant,
    /// Of the attempt before.
    pub(super) last_error: Option<Arc<RequestError>>,
    pub(super) maybe_written: bool,
    /// A broker has it, and has not answered.
    pub(super) is_sent: bool,
}

/// When and how what an attempt brought back is sent again.
#[derive(Clone, Copy)]
pub(super) enum Again<'a> {
    /// Now, each of the batches in a request of its own.
    Alone,
    /// Now: the attempt went to a leader that is none any more.
    AtOnce,
    /// After `pause(failures in a row)`, unless a leader of a later epoch than the one that failed is heard of.
    After { now: Instant, pause: &'a dyn Fn(u32) -> Duration, epoch: LeaderEpoch },
}

/// What the sender must be told after a record was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    /// A batch is closed and nothing keeps it from being sent.
    Closed,
    /// The sender must take the queue into its list.
    List,
}

/// Whether and when something can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Nothing to send; the queue is no longer listed.
    Idle,
    /// The answer must come first.
    InFlight,
    /// Not before this.
    At(Instant),
    Now(Guarantee),
}

impl PartitionQueue {
    pub(super) fn new(topic: Arc<str>, partition: PartitionIndex) -> Self {
        Self { topic, partition, state: Mutex::default() }
    }

    /// Adds a record that holds `charged_bytes` of the buffer.
    pub(super) fn add(
        &self,
        record: &ProducerRecord,
        timestamp_ms: TimestampMs,
        charged_bytes: usize,
        config: &ProducerConfig,
    ) -> (Delivery, Tell) {
        let guarantee = Guarantee::of(record, config);
        let mut state = self.state();
        let state = &mut *state;
        let full = |open: &mut QueuedBatch| {
            open.guarantee != guarantee
                || open.builder().estimated_bytes() + charged_bytes > config.batch_bytes
                || open.record_count == BATCH_RECORDS_MAX
        };
        let mut closed = false;
        if state.open.as_mut().is_some_and(full) {
            state.close_open();
            closed = true;
        }
        let guess = state.previous_bytes.max(charged_bytes);
        let open = state.open.get_or_insert_with(|| {
            let builder = BatchBuilder::with_capacity(config.compression, guess);
            QueuedBatch::open(self.partition, guarantee, builder)
        });
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let delta = open.builder().push(timestamp_ms, key, value, &record.headers);
        open.record_count += 1;
        open.charged_bytes += charged_bytes;
        let delivery = Delivery::new(open.outcome.clone(), delta, timestamp_ms);
        let tell = if !std::mem::replace(&mut state.listed, true) {
            Tell::List
        } else if closed && state.in_flight.is_empty() {
            Tell::Closed
        } else {
            Tell::Nothing
        };
        (delivery, tell)
    }

    /// Whether something can be sent now. With `hurry` an open batch does not wait for company.
    pub(super) fn readiness(&self, now: Instant, hurry: bool, linger: Duration) -> Readiness {
        let mut state = self.state();
        if !state.in_flight.is_empty() {
            return Readiness::InFlight;
        }
        let lingers_until = match (state.closed.front(), &state.open) {
            (Some(_), _) => now,
            (None, Some(_)) if hurry => now,
            (None, Some(open)) => open.opened + linger,
            (None, None) => {
                state.listed = false;
                return Readiness::Idle;
            }
        };
        let ready = state.not_before.map_or(lingers_until, |at| at.max(lingers_until));
        if ready > now {
            return Readiness::At(ready);
        }
        let next = state.closed.front().or(state.open.as_ref());
        Readiness::Now(next.expect("one of the two was there").guarantee)
    }

    /// Takes batches of one guarantee, oldest first, as long as they fit into `bytes`; at least one if
    /// `always_one`. They are in flight from now on. `sent` is set by who hands them to a connection.
    ///
    /// Never more than a broker remembers, and what may be written already by itself: the answer to a request is about all
    /// of its batches.
    pub(super) fn take(
        &self,
        bytes: usize,
        always_one: bool,
        delivery_timeout: Duration,
        sent: &Arc<AtomicBool>,
    ) -> Vec<QueuedBatch> {
        let mut state = self.state();
        assert!(state.in_flight.is_empty(), "one request in flight per partition");
        let mut taken: Vec<QueuedBatch> = Vec::new();
        let mut left = bytes;
        loop {
            if state.closed.is_empty() {
                state.close_open();
            }
            let Some(next) = state.closed.front() else { break };
            let fits = next.charged_bytes <= left || (always_one && taken.is_empty());
            let alike = taken.first().is_none_or(|first| {
                first.guarantee == next.guarantee && first.number.or(next.number).is_none()
            });
            if !fits || !alike || taken.len() == NUMBERED_BATCHES_MAX {
                break;
            }
            left = left.saturating_sub(next.charged_bytes);
            taken.extend(state.closed.pop_front());
            if state.alone > 0 {
                state.alone -= 1;
                break;
            }
        }
        state.in_flight = taken
            .iter()
            .map(|batch| InFlight {
                outcome: batch.outcome.clone(),
                opened: batch.opened,
                deadline: batch.opened + delivery_timeout,
                maybe_written: batch.maybe_written,
                last_error: batch.last_error.clone(),
                sent: sent.clone(),
            })
            .collect();
        taken
    }

    /// Whether it has to be told who it is before it can number batches.
    pub(super) fn needs_identity(&self) -> bool {
        !self.state().count.has_identity()
    }

    /// The number of a batch that is in flight: the one it has, or the next. It is used up by [`Self::use_number`].
    pub(super) fn number(
        &self,
        batch: &QueuedBatch,
        fresh: Option<ProducerIdentity>,
    ) -> Option<Number> {
        batch.number.or_else(|| self.state().count.next(fresh))
    }

    /// The batch goes out under this number.
    pub(super) fn use_number(&self, batch: &mut QueuedBatch, number: Number) {
        if batch.number.replace(number).is_none() {
            self.state().count.advance(batch.record_count);
        }
    }

    /// Takes the numbers of batches back that were certainly not written.
    pub(super) fn take_numbers_back(&self, batches: &mut [QueuedBatch]) {
        for batch in batches.iter_mut().rev().filter(|batch| !batch.maybe_written) {
            if let Some(number) = batch.number.take() {
                self.state().count.take_back(number);
            }
        }
    }

    /// A broker does not know what comes before this number, or knows of a later epoch. Counting begins anew; `false`: that
    /// takes another identity.
    pub(super) fn begin_epoch(&self, number: Number) -> bool {
        self.state().count.begin_epoch(number)
    }

    /// The attempt ended well, or finally: nothing is in flight.
    pub(super) fn settled(&self) {
        let mut state = self.state();
        state.in_flight.clear();
        state.forget_failures();
    }

    /// The attempt is to be repeated as `again` says. Batches that have an outcome already are not repeated but returned.
    pub(super) fn give_back(
        &self,
        batches: Vec<QueuedBatch>,
        again: Again<'_>,
    ) -> Vec<QueuedBatch> {
        let mut state = self.state();
        state.in_flight.clear();
        match again {
            Again::Alone => state.alone = batches.len(),
            Again::AtOnce => state.forget_failures(),
            Again::After { now, pause, epoch } => {
                state.failures = state.failures.saturating_add(1);
                state.not_before = Some(now + pause(state.failures));
                state.failed_in = Some(epoch);
            }
        }
        let (over, again): (Vec<_>, Vec<_>) =
            batches.into_iter().partition(|batch| batch.outcome.is_set());
        for batch in again.into_iter().rev() {
            state.closed.push_front(batch);
        }
        over
    }

    /// A leader of this epoch is known: what failed under an earlier one need not wait any longer.
    pub(super) fn hear_of_leader(&self, epoch: LeaderEpoch) {
        let mut state = self.state();
        if state.failed_in.is_some_and(|failed_in| failed_in < epoch) {
            state.forget_failures();
        }
    }

    /// What is known of the delivery of the oldest batch; `None` when there is nothing to deliver.
    pub(super) fn oldest(&self) -> Option<Oldest> {
        let state = self.state();
        let queued = state.closed.front().map(|it| Oldest {
            opened: it.opened,
            last_error: it.last_error.clone(),
            maybe_written: it.maybe_written,
            is_sent: false,
        });
        let in_flight = state.in_flight.iter().find(|it| !it.outcome.is_set());
        let in_flight = in_flight.map(|it| Oldest {
            opened: it.opened,
            last_error: it.last_error.clone(),
            maybe_written: it.maybe_written,
            is_sent: it.sent.load(Ordering::Acquire),
        });
        in_flight.or(queued)
    }

    /// Ends what is older than `delivery_timeout`, each after telling `failed`; answers the batches that
    /// were waiting here, whose room is free again.
    pub(super) fn expire(
        &self,
        now: Instant,
        delivery_timeout: Duration,
        failed: impl Fn(&ProduceError),
    ) -> Vec<QueuedBatch> {
        let end = |outcome: &Outcome, error: ProduceError| {
            if !outcome.is_set() {
                failed(&error);
                outcome.set(Err(error));
            }
        };
        let error = |last, indeterminate| ProduceError::DeliveryTimedOut {
            topic: self.topic.clone(),
            partition: self.partition,
            after: delivery_timeout,
            last,
            indeterminate,
        };
        let mut state = self.state();
        for batch in state.in_flight.iter().filter(|batch| batch.deadline <= now) {
            let indeterminate = batch.maybe_written || batch.sent.load(Ordering::Acquire);
            end(&batch.outcome, error(batch.last_error.clone(), indeterminate));
        }
        if state.open.as_ref().is_some_and(|open| open.opened + delivery_timeout <= now) {
            state.close_open();
        }
        let mut expired = Vec::new();
        while state.closed.front().is_some_and(|next| next.opened + delivery_timeout <= now) {
            expired.extend(state.closed.pop_front());
        }
        drop(state);
        for batch in &expired {
            end(&batch.outcome, error(batch.last_error.clone(), batch.maybe_written));
        }
        expired
    }

    /// When the oldest batch without an outcome will have waited for `delivery_timeout`.
    pub(super) fn next_expiry(&self, delivery_timeout: Duration) -> Option<Instant> {
        let state = self.state();
        let mut in_flight = state.in_flight.iter().filter(|batch| !batch.outcome.is_set());
        let oldest_queued = state.closed.front().or(state.open.as_ref());
        let queued = oldest_queued.map(|batch| batch.opened + delivery_timeout);
        in_flight.next().map(|batch| batch.deadline).or(queued)
    }

    /// Everything that waits here; nothing is left but what is in flight.
    pub(super) fn drain(&self) -> Vec<QueuedBatch> {
        let mut state = self.state();
        state.close_open();
        state.alone = 0;
        std::mem::take(&mut state.closed).into()
    }

    /// Fails what is in flight without waiting for its answer.
    pub(super) fn abandon_in_flight(&self, error: impl Fn(bool) -> ProduceError) {
        for batch in std::mem::take(&mut self.state().in_flight) {
            let sent = batch.maybe_written || batch.sent.load(Ordering::Acquire);
            batch.outcome.set(Err(error(sent)));
        }
    }

    /// The outcomes of everything accepted and not yet settled.
    pub(super) fn outcomes(&self) -> Vec<Arc<Outcome>> {
        let state = self.state();
        let in_flight = state.in_flight.iter().map(|batch| &batch.outcome);
        let queued = state.closed.iter().chain(&state.open).map(|batch| &batch.outcome);
        in_flight.chain(queued).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_failures(&mut self) {
        self.failures = 0;
        self.not_before = None;
        self.failed_in = None;
    }

    fn close_open(&mut self) {
        if let Some(mut open) = self.open.take() {
            self.previous_bytes = open.builder().estimated_bytes();
            self.closed.push_back(open);
        }
    }
}

//! The task that holds all coordinators of one kind on this broker.
//!
//! It follows which partitions are led here, has their logs read beside it, and passes requests, time, metadata and commits
//! on to the machines. It never waits for a commit or for a disk: only for room in a shard's mailbox.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, PartitionIndex, TopicPartition};
use tokio::{
    sync::mpsc,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    Ask, Coordinator, Mailbox,
    led::{Append, Led},
    load::{self, Read, Unloadable, load},
    not_here,
};
use crate::{
    broker::Broker,
    partitions::{PartitionView, Waiter, Watching},
    shard::{Command, ProduceOutcome},
    tasks::Shutdown,
};

/// Requests taken before the next look at everything else. What they lead to is appended together.
const ASKS_PER_WAKE_MAX: usize = 256;
/// Logs that were read and wait to be taken over.
const LOADED_QUEUED_MAX: usize = 16;
/// How long after a coordinator failed, or could not be loaded, the next one is; twice as long every time, up to the second.
const RELOAD_PAUSE: Duration = Duration::from_millis(100);
const RELOAD_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Changes of the metadata are passed on at most so often.
const EXCERPT_PAUSE: Duration = Duration::from_millis(50);
/// How often partitions are looked for whose logs have been opened without a change of the metadata.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// All coordinators of a kind.
pub(crate) struct Host<C: Coordinator> {
    broker: Arc<Broker>,
    mailbox: Mailbox<C>,
    slots: Vec<Slot<C>>,
    /// Told of changes in the partitions, by their index.
    waiter: Arc<Waiter>,
    appends: FuturesUnordered<BoxFuture<'static, Appended>>,
    loads: mpsc::Sender<Loaded<C>>,
    loaded: mpsc::Receiver<Loaded<C>>,
    excerpt: Option<C::Excerpt>,
    /// When newer metadata is looked at.
    excerpt_due: Option<Instant>,
    next_look: Instant,
}

/// One partition of the internal topic.
struct Slot<C: Coordinator> {
    partition: Option<(Arc<PartitionView>, Watching)>,
    state: State<C>,
    /// Tells a coordinator from the one before, which may have been of the same leader epoch.
    life: u64,
    /// Coordinators that failed in a row. Of all that follow from that, only the first is said.
    failures: u32,
}

enum State<C: Coordinator> {
    /// Not led here, as far as is known.
    Away,
    Loading {
        leader_epoch: LeaderEpoch,
    },
    Serving(Box<Led<C>>),
    /// To be loaded again then.
    Pausing {
        until: Instant,
        why: String,
    },
    /// Not to be loaded before more replicas are in sync: not even its opening could be committed.
    TooFewInSync {
        why: String,
    },
    /// The log cannot be read.
    Broken {
        leader_epoch: LeaderEpoch,
        why: String,
    },
}

/// What became of reading a log.
struct Loaded<C: Coordinator> {
    slot: usize,
    leader_epoch: LeaderEpoch,
    view: Arc<PartitionView>,
    outcome: Result<Read<C>, Unloadable>,
}

/// What became of an append.
struct Appended {
    slot: usize,
    life: u64,
    outcome: Option<ProduceOutcome>,
}

impl<C: Coordinator> Host<C> {
    pub(crate) fn new(broker: Arc<Broker>, mailbox: Mailbox<C>) -> Self {
        let (loads, loaded) = mpsc::channel(LOADED_QUEUED_MAX);
        let next_look = broker.clock.now();
        Self {
            broker,
            mailbox,
            slots: Vec::new(),
            waiter: Arc::default(),
            appends: FuturesUnordered::new(),
            loads,
            loaded,
            excerpt: None,
            excerpt_due: None,
            next_look,
        }
    }

    /// Serves until shutdown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut images = self.broker.images.clone();
        let mut assigned = self.broker.assigned.clone();
        let mut asks = Vec::with_capacity(ASKS_PER_WAKE_MAX);
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                () = shutdown.started() => break,
                changed = self.waiter.changed() => {
                    for slot in changed {
                        self.look_at(slot as usize);
                    }
                }
                Some(loaded) = self.loaded.recv() => self.take_over(loaded),
                Some(appended) = self.appends.next() => self.appended(appended),
                Ok(()) = images.changed() => {
                    let due = self.broker.clock.now() + EXCERPT_PAUSE;
                    self.excerpt_due.get_or_insert(due);
                }
                Ok(()) = assigned.changed() => {
                    self.next_look = self.broker.clock.now();
                }
                count = self.mailbox.asks.recv_many(&mut asks, ASKS_PER_WAKE_MAX) => {
                    if count == 0 {
                        break;
                    }
                    for ask in asks.drain(..) {
                        self.asked(ask);
                    }
                }
                () = sleep_until(TokioInstant::from_std(wake_at)) => {}
            }
            self.keep_time();
            self.append().await;
            self.count();
        }
        for slot in 0..self.slots.len() {
            self.end(slot, State::Away, &super::stopping());
        }
    }

    fn asked(&mut self, ask: Ask<C>) {
        let now = load::now(&self.broker);
        match ask {
            Ask::Request { partition, request, reply } => match self.serving(partition) {
                Ok(led) => led.request(now, request, reply),
                // Whoever asked may have stopped.
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Ask::Visit { partition, visit } => {
                visit(self.serving(partition).map(|led| &mut led.machine));
            }
        }
    }

    /// The coordinator of a partition, or why there is none.
    fn serving(&mut self, partition: PartitionIndex) -> Result<&mut Led<C>, Failure> {
        let slot = self.slots.get_mut(partition as usize);
        let is_led = |slot: &Slot<C>| {
            slot.partition.as_ref().is_some_and(|(view, _)| view.leader_epoch(None).is_ok())
        };
        let loading = |how: &str| {
            let message = format!("{}/{partition} {how}", C::TOPIC);
            Failure::new(ErrorCode::CoordinatorLoading, message)
        };
        match slot {
            Some(slot) => match slot.state {
                State::Serving(ref mut led) => Ok(led),
                State::Loading { .. } => Err(loading("is being read")),
                State::Pausing { ref why, .. } => {
                    Err(loading(&format!("is not served for the moment: {why}")))
                }
                State::TooFewInSync { ref why } => {
                    Err(loading(&format!("is not served for the moment: it has {why}")))
                }
                State::Broken { ref why, .. } => {
                    let message = format!("{}/{partition} cannot be read: {why}", C::TOPIC);
                    Err(Failure::new(ErrorCode::CorruptData, message))
                }
                State::Away if is_led(slot) => Err(loading("is about to be read")),
                State::Away => Err(not_here::<C>(partition)),
            },
            None => Err(not_here::<C>(partition)),
        }
    }

    /// Finds the partitions, as many as there are here.
    fn look(&mut self) {
        let image = self.broker.image();
        let Some(topic) = image.topic(C::TOPIC) else { return };
        let count = topic.partition_count() as usize;
        while self.slots.len() < count {
            self.slots.push(Slot { partition: None, state: State::Away, life: 0, failures: 0 });
        }
        for (slot, partition) in (0..count).zip(0..) {
            let view = self.broker.partitions.get(TopicPartition { topic_id: topic.id, partition });
            let known = self.slots[slot].partition.as_ref().map(|(view, _)| view);
            if let Some(view) = view
                && !known.is_some_and(|known| Arc::ptr_eq(known, &view))
            {
                self.end(slot, State::Away, &not_here::<C>(partition));
                let watching = view.watch(&self.waiter, partition);
                self.slots[slot].partition = Some((view, watching));
            }
            self.look_at(slot);
        }
    }

    /// Something has changed in a partition: its leader, who is in sync, or what is committed.
    fn look_at(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        let Some((view, _)) = &slot.partition else { return };
        let Ok(leader_epoch) = view.leader_epoch(None) else {
            slot.failures = 0;
            return self.end(at, State::Away, &not_here::<C>(index(at)));
        };
        match &slot.state {
            State::Serving(led) if led.leader_epoch == leader_epoch => return self.release(at),
            State::Serving(_) => self.end(at, State::Away, &not_here::<C>(index(at))),
            State::Loading { leader_epoch: known } | State::Broken { leader_epoch: known, .. }
                if *known == leader_epoch =>
            {
                return;
            }
            State::Pausing { until, .. } if self.broker.clock.now() < *until => return,
            _ => {}
        }
        self.begin(at, leader_epoch);
    }

    /// Has the log read, if what follows from that could be committed.
    fn begin(&mut self, at: usize, leader_epoch: LeaderEpoch) {
        let slot = &mut self.slots[at];
        let too_few = slot.partition.as_ref().and_then(|(view, _)| view.too_few_in_sync());
        let Some(why) = too_few else { return self.begin_loading(at, leader_epoch) };
        if !matches!(slot.state, State::TooFewInSync { .. }) {
            let partition = index(at);
            tracing::warn!(topic = C::TOPIC, partition, why, "coordinator waits for replicas");
        }
        slot.state = State::TooFewInSync { why };
    }

    fn begin_loading(&mut self, at: usize, leader_epoch: LeaderEpoch) {
        let slot = &mut self.slots[at];
        let Some((view, _)) = &slot.partition else { return };
        slot.state = State::Loading { leader_epoch };
        let (broker, view, loads) =
            (Arc::clone(&self.broker), Arc::clone(view), self.loads.clone());
        let shutdown = self.broker.tasks.shutdown().clone();
        self.broker.tasks.spawn("coordinator-load", async move {
            let loading = load::<C>(&broker, &view, leader_epoch);
            let Some(outcome) = shutdown.or_stop(loading).await else { return };
            // An error: the host has ended.
            drop(
                loads
                    .send(Loaded { slot: at, leader_epoch, view: Arc::clone(&view), outcome })
                    .await,
            );
        });
    }

    /// A log has been read.
    fn take_over(&mut self, loaded: Loaded<C>) {
        let Loaded { slot: at, leader_epoch, view, outcome } = loaded;
        let slot = &mut self.slots[at];
        let State::Loading { leader_epoch: wanted } = slot.state else { return };
        let is_of_this =
            slot.partition.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &view));
        if wanted != leader_epoch || !is_of_this {
            return;
        }
        let partition = view.id.partition;
        match outcome {
            Ok(Read { machine, first, records, took }) => {
                if slot.failures == 0 {
                    let topic = C::TOPIC;
                    tracing::info!(
                        topic,
                        partition,
                        leader_epoch,
                        records,
                        ?took,
                        "coordinator loaded"
                    );
                }
                let led = Led::new(machine, first, view, leader_epoch);
                slot.state = State::Serving(Box::new(led));
                slot.life += 1;
                // What came while the log was read.
                self.excerpt = None;
                self.excerpt_due = Some(self.broker.clock.now());
            }
            Err(Unloadable::ForNow(failure)) => {
                if slot.failures == 0 {
                    tracing::warn!(topic = C::TOPIC, partition, %failure, "coordinator not loaded yet");
                }
                self.slots[at].state = self.pausing(at, failure.message);
            }
            Err(Unloadable::Broken(why)) => {
                tracing::error!(
                    topic = C::TOPIC,
                    partition,
                    why,
                    "the log of a coordinator cannot be used: nothing is served from it"
                );
                slot.state = State::Broken { leader_epoch, why };
            }
        }
        // Leadership may have gone on meanwhile.
        self.look_at(at);
    }

    fn appended(&mut self, appended: Appended) {
        let Appended { slot: at, life, outcome } = appended;
        let now = load::now(&self.broker);
        let slot = &mut self.slots[at];
        let State::Serving(led) = &mut slot.state else { return };
        // What one that has ended appended may be committed while the next one serves, even in the same leader epoch.
        if slot.life != life {
            return;
        }
        match outcome {
            Some(Ok(_)) => {
                led.appended(now);
                if std::mem::take(&mut slot.failures) > 0 {
                    tracing::info!(
                        topic = C::TOPIC,
                        partition = index(at),
                        "coordinator serves again"
                    );
                }
            }
            Some(Err(failure)) => self.failed(at, &failure),
            None => self.failed(at, &super::stopping()),
        }
    }

    /// What was decided is not in the log, or nobody knows: the machine is ahead of it, and ends.
    fn failed(&mut self, at: usize, failure: &Failure) {
        let partition = index(at);
        if self.slots[at].failures == 0 {
            tracing::warn!(topic = C::TOPIC, partition, %failure, "coordinator ends: its records were not committed");
        }
        let message = format!("{}/{partition}: {}", C::TOPIC, failure.message);
        let next = self.pausing(at, failure.message.clone());
        self.end(at, next, &Failure::new(ErrorCode::NotCoordinator, message));
    }

    /// What comes after a failure.
    fn pausing(&mut self, at: usize, why: String) -> State<C> {
        let Slot { partition, failures, .. } = &mut self.slots[at];
        let pause = RELOAD_PAUSE.saturating_mul(1 << (*failures).min(16)).min(RELOAD_PAUSE_MAX);
        *failures += 1;
        match partition.as_ref().and_then(|(view, _)| view.too_few_in_sync()) {
            // It is loaded as soon as that changes.
            Some(why) => State::TooFewInSync { why },
            None => State::Pausing { until: self.broker.clock.now() + pause, why },
        }
    }

    /// Ends what a slot does; whoever waits is told `why`.
    fn end(&mut self, at: usize, next: State<C>, why: &Failure) {
        if let State::Serving(led) = std::mem::replace(&mut self.slots[at].state, next) {
            led.end(why);
            C::ended(&self.broker, index(at));
        }
    }

    fn release(&mut self, at: usize) {
        if let State::Serving(led) = &mut self.slots[at].state {
            for effect in led.release() {
                C::carry_out(&self.broker, index(at), effect);
            }
        }
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        let now = self.broker.clock.now();
        if now >= self.next_look {
            self.next_look = now + LOOK_INTERVAL;
            self.look();
        }
        let is_paused =
            |slot: &Slot<C>| matches!(slot.state, State::Pausing { until, .. } if until <= now);
        for at in 0..self.slots.len() {
            if is_paused(&self.slots[at]) {
                self.look_at(at);
            }
        }
        if self.excerpt_due.is_some_and(|due| now >= due) {
            self.excerpt_due = None;
            self.pass_on_metadata();
        }
        let now = load::now(&self.broker);
        for slot in &mut self.slots {
            if let State::Serving(led) = &mut slot.state
                && led.wake_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms)
            {
                led.on_timer(now);
            }
        }
    }

    fn pass_on_metadata(&mut self) {
        if !self.slots.iter().any(|slot| matches!(slot.state, State::Serving(_))) {
            return;
        }
        let excerpt = C::excerpt(&self.broker.image());
        if self.excerpt.as_ref() == Some(&excerpt) {
            return;
        }
        for slot in &mut self.slots {
            if let State::Serving(led) = &mut slot.state {
                led.on_excerpt(&excerpt);
            }
        }
        self.excerpt = Some(excerpt);
    }

    /// Sends what was decided into the logs, and gives what needs no record at once.
    async fn append(&mut self) {
        for at in 0..self.slots.len() {
            let Slot { state, life, .. } = &mut self.slots[at];
            let State::Serving(led) = state else { continue };
            let life = *life;
            match append(led, &self.broker).await {
                Ok(appends) => {
                    for outcome in appends {
                        let appended =
                            async move { Appended { slot: at, life, outcome: outcome.await.ok() } };
                        self.appends.push(Box::pin(appended));
                    }
                    self.release(at);
                }
                Err(failure) => self.failed(at, &failure),
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let now = self.broker.clock.now();
        let now_ms = self.broker.clock.monotonic_ms();
        let mut wake_at = self.excerpt_due.map_or(self.next_look, |due| due.min(self.next_look));
        for slot in &self.slots {
            match &slot.state {
                State::Pausing { until, .. } => wake_at = wake_at.min(*until),
                State::Serving(led) => {
                    let in_ms = led.wake_at_ms.map(|at_ms| at_ms.saturating_sub(now_ms));
                    let at = in_ms.and_then(|ms| now.checked_add(Duration::from_millis(ms)));
                    wake_at = at.map_or(wake_at, |at| wake_at.min(at));
                }
                State::Away
                | State::Loading { .. }
                | State::TooFewInSync { .. }
                | State::Broken { .. } => {}
            }
        }
        wake_at
    }

    fn count(&self) {
        let (mut serving, mut loading, mut broken) = (0, 0, 0);
        for slot in &self.slots {
            match slot.state {
                State::Away => {}
                State::Serving(_) => serving += 1,
                State::Loading { .. } | State::Pausing { .. } | State::TooFewInSync { .. } => {
                    loading += 1;
                }
                State::Broken { .. } => broken += 1,
            }
        }
        self.mailbox.counts.set((serving, loading, broken));
    }
}

/// Sends what was decided to the partition's owner: one wait for each batch, in order.
async fn append<C: Coordinator>(led: &mut Led<C>, broker: &Broker) -> Result<Vec<Append>, Failure> {
    let drafts = led.drafts(&broker.clock)?;
    let mut appends = Vec::with_capacity(drafts.len());
    for (produce, outcome) in drafts {
        led.view.shard.send(Command::Produce(produce)).await?;
        appends.push(outcome);
    }
    Ok(appends)
}

fn index(slot: usize) -> PartitionIndex {
    PartitionIndex::try_from(slot).expect("slots are as many as the topic has partitions")
}

#[cfg(test)]
mod tests;

//! The coordinators of one kind on a steered broker: what the task of `coordinators/host.rs` does, a turn at a time.
//!
//! What a coordinator has decided, how it is cut into batches and when it is answered is the shipped code ([`Led`]). A log is
//! read at once here. Beside each coordinator runs a shadow, which has seen nothing but the log: whenever all that was
//! decided is in it, the two must be the same (S22).

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tidemark_controller::Image;
use tidemark_coordinator::{GroupConfig, LoadError, Now, TransactionConfig};
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, Offset, PartitionIndex, TopicPartition, batch::batches,
};
use tokio::sync::oneshot;

use crate::{
    clock::Clock,
    coordinators::{
        Coordinator, DecisionOf,
        led::{Append, Led, first_offset},
        load::{Unloadable, replay},
        not_here,
    },
    metrics::Metrics,
    partitions::{PartitionView, Partitions},
    reads::{self, ColdReads},
    shard::Command,
};

/// Bytes of a log that are read at once.
const STEP_BYTES: usize = 1 << 20;
/// How long after a coordinator failed, or could not be loaded, the next one is.
const RELOAD_PAUSE_MS: u64 = 100;

/// What coordinators are made with.
#[derive(Clone, Debug, Default)]
pub struct CoordinatorSettings {
    pub groups: GroupConfig,
    pub transactions: TransactionConfig,
}

/// A coordinator that can be steered.
pub(super) trait Steer: Coordinator<Loader: Clone> {
    /// The machine, and what it wants first.
    fn begin(
        loader: Self::Loader,
        beginning: Beginning<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError>;

    /// Where the machine differs from what its log says.
    fn difference(&self, shadow: Self::Loader) -> Option<String>;
}

/// What a machine begins with.
pub(super) struct Beginning<'a, C: Coordinator> {
    pub(super) settings: &'a CoordinatorSettings,
    pub(super) leader_epoch: LeaderEpoch,
    /// Of what it decides.
    pub(super) first_offset: Offset,
    pub(super) excerpt: &'a C::Excerpt,
    pub(super) now: Now,
}

/// What a turn sees of its broker.
pub(super) struct Around<'a> {
    pub(super) image: &'a Image,
    pub(super) partitions: &'a Partitions,
    pub(super) clock: &'a Clock,
    pub(super) cold_reads: &'a ColdReads,
    pub(super) metrics: &'a Metrics,
    pub(super) settings: &'a CoordinatorSettings,
}

impl Around<'_> {
    fn now(&self) -> Now {
        Now { mono_ms: self.clock.monotonic_ms(), wall_ms: self.clock.wall_ms() }
    }
}

/// All coordinators of a kind.
pub(super) struct Hosted<C: Steer> {
    slots: BTreeMap<PartitionIndex, Slot<C>>,
    /// Partitions whose coordinator failed, and when the next one is made.
    paused: BTreeMap<PartitionIndex, u64>,
    /// Partitions that are led here with too few replicas in sync to commit anything.
    too_few_in_sync: BTreeMap<PartitionIndex, String>,
    excerpt: Option<C::Excerpt>,
    /// The metadata that the excerpt is from.
    excerpt_index: u64,
    pub(super) effects: Vec<(PartitionIndex, C::Effect)>,
    pub(super) differences: Vec<String>,
}

impl<C: Steer> Default for Hosted<C> {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            paused: BTreeMap::new(),
            too_few_in_sync: BTreeMap::new(),
            excerpt: None,
            excerpt_index: 0,
            effects: Vec::new(),
            differences: Vec::new(),
        }
    }
}

impl<C: Steer> fmt::Debug for Hosted<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let partitions: Vec<_> = self.slots.keys().collect();
        out.debug_struct("Hosted")
            .field("topic", &C::TOPIC)
            .field("here", &partitions)
            .finish_non_exhaustive()
    }
}

/// A coordinator that serves.
struct Slot<C: Steer> {
    led: Led<C>,
    appends: VecDeque<Append>,
    shadow: C::Loader,
    shadow_end: Offset,
}

impl<C: Steer> Hosted<C> {
    /// Takes in what has happened since the last turn. What is to go into the logs is given back, with the shards.
    pub(super) fn turn(&mut self, around: &Around<'_>) -> Vec<(usize, Command)> {
        self.look(around);
        self.take_appended(around);
        self.keep_time(around);
        let mut commands = Vec::new();
        let partitions: Vec<_> = self.slots.keys().copied().collect();
        for partition in partitions {
            let Some(slot) = self.slots.get_mut(&partition) else { continue };
            match slot.led.drafts(around.clock) {
                Ok(drafts) => {
                    let shard = slot.led.view.shard.index;
                    for (produce, append) in drafts {
                        commands.push((shard, Command::Produce(produce)));
                        slot.appends.push_back(append);
                    }
                    let effects = slot.led.release();
                    self.effects.extend(effects.into_iter().map(|effect| (partition, effect)));
                }
                Err(failure) => self.fail(partition, &failure, around),
            }
        }
        commands
    }

    pub(super) fn ask(
        &mut self,
        partition: PartitionIndex,
        request: C::Request,
        now: Now,
    ) -> Result<oneshot::Receiver<Result<C::Response, Failure>>, Failure> {
        let Some(slot) = self.slots.get_mut(&partition) else {
            return Err(self.why_not(partition));
        };
        let (reply, outcome) = oneshot::channel();
        slot.led.request(now, request, reply);
        Ok(outcome)
    }

    /// The machine of a partition, for what leaves no record.
    pub(super) fn machine(&mut self, partition: PartitionIndex) -> Result<&mut C, Failure> {
        if !self.slots.contains_key(&partition) {
            return Err(self.why_not(partition));
        }
        Ok(&mut self.slots.get_mut(&partition).expect("it is there").led.machine)
    }

    fn why_not(&self, partition: PartitionIndex) -> Failure {
        let loading = |how: &str| {
            let message = format!("{}/{partition} {how}", C::TOPIC);
            Failure::new(ErrorCode::CoordinatorLoading, message)
        };
        if let Some(why) = self.too_few_in_sync.get(&partition) {
            return loading(&format!("is not served for the moment: it has {why}"));
        }
        if self.paused.contains_key(&partition) {
            return loading("is being read");
        }
        not_here::<C>(partition)
    }

    /// When something is due, in monotonic milliseconds.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        let timers = self.slots.values().filter_map(|slot| slot.led.wake_at_ms);
        timers.chain(self.paused.values().copied()).min()
    }

    /// Begins and ends coordinators, as leadership does.
    fn look(&mut self, around: &Around<'_>) {
        let Some(topic) = around.image.topic(C::TOPIC) else { return };
        let now_ms = around.clock.monotonic_ms();
        for partition in 0..topic.partition_count() {
            let view = around.partitions.get(TopicPartition { topic_id: topic.id, partition });
            let led = view.and_then(|view| Some((view.leader_epoch(None).ok()?, view)));
            if let Some(slot) = self.slots.get(&partition) {
                let is_same = led.as_ref().is_some_and(|(epoch, view)| {
                    *epoch == slot.led.leader_epoch && Arc::ptr_eq(view, &slot.led.view)
                });
                if is_same {
                    continue;
                }
                self.end(partition, &not_here::<C>(partition));
            }
            self.too_few_in_sync.remove(&partition);
            let Some((leader_epoch, view)) = led else {
                self.paused.remove(&partition);
                continue;
            };
            if let Some(why) = view.too_few_in_sync() {
                self.paused.remove(&partition);
                self.too_few_in_sync.insert(partition, why);
                continue;
            }
            if self.paused.get(&partition).is_none_or(|until_ms| *until_ms <= now_ms) {
                self.load(&view, leader_epoch, around);
            }
        }
    }

    fn load(&mut self, view: &Arc<PartitionView>, leader_epoch: LeaderEpoch, around: &Around<'_>) {
        let partition = view.id.partition;
        let excerpt = C::excerpt(around.image);
        let mut shadow = C::Loader::default();
        let mut shadow_end = view.reader.log_start_offset();
        let read = catch_up::<C>(view, leader_epoch, (&mut shadow, &mut shadow_end), around);
        let begun = read.and_then(|()| {
            let beginning = Beginning {
                settings: around.settings,
                leader_epoch,
                first_offset: first_offset(shadow_end),
                excerpt: &excerpt,
                now: around.now(),
            };
            Ok(C::begin(shadow.clone(), beginning)?)
        });
        match begun {
            Ok((machine, first)) => {
                self.paused.remove(&partition);
                self.excerpt = None;
                let led = Led::new(machine, first, Arc::clone(view), leader_epoch);
                let slot = Slot { led, appends: VecDeque::new(), shadow, shadow_end };
                self.slots.insert(partition, slot);
            }
            Err(why) => {
                if let Unloadable::Broken(why) = why {
                    self.differences.push(format!("{}/{partition}: {why}", C::TOPIC));
                }
                self.pause(partition, around);
            }
        }
    }

    fn take_appended(&mut self, around: &Around<'_>) {
        let mut failed = Vec::new();
        for (partition, slot) in &mut self.slots {
            while let Some(append) = slot.appends.front_mut() {
                match append.try_recv() {
                    Ok(Ok(_)) => {
                        slot.appends.pop_front();
                        slot.led.appended(around.now());
                    }
                    Ok(Err(failure)) => {
                        failed.push((*partition, failure));
                        break;
                    }
                    Err(oneshot::error::TryRecvError::Empty) => break,
                    Err(oneshot::error::TryRecvError::Closed) => {
                        failed.push((*partition, not_here::<C>(*partition)));
                        break;
                    }
                }
            }
        }
        for (partition, failure) in failed {
            self.fail(partition, &failure, around);
        }
    }

    fn keep_time(&mut self, around: &Around<'_>) {
        let now = around.now();
        for slot in self.slots.values_mut() {
            if slot.led.wake_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms) {
                slot.led.on_timer(now);
            }
        }
        let index = around.image.metadata_index();
        if self.slots.is_empty() || (self.excerpt.is_some() && self.excerpt_index == index) {
            return;
        }
        self.excerpt_index = index;
        let excerpt = C::excerpt(around.image);
        if self.excerpt.as_ref() != Some(&excerpt) {
            for slot in self.slots.values_mut() {
                slot.led.on_excerpt(&excerpt);
            }
            self.excerpt = Some(excerpt);
        }
    }

    /// Compares every coordinator whose log has grown with what the log says.
    pub(super) fn compare(&mut self, around: &Around<'_>) {
        for (partition, slot) in &mut self.slots {
            let (view, epoch) = (Arc::clone(&slot.led.view), slot.led.leader_epoch);
            let end = view.reader.log_end_offset();
            if end == slot.shadow_end || end != slot.led.next_offset {
                continue;
            }
            let shadow = (&mut slot.shadow, &mut slot.shadow_end);
            let difference = match catch_up::<C>(&view, epoch, shadow, around) {
                Ok(()) if slot.shadow_end < slot.led.next_offset => None,
                Ok(()) => slot.led.machine.difference(slot.shadow.clone()),
                Err(Unloadable::ForNow(_)) => None,
                Err(Unloadable::Broken(why)) => Some(why),
            };
            let name = || format!("{}/{partition} at {end}", C::TOPIC);
            self.differences.extend(difference.map(|why| format!("{}: {why}", name())));
        }
    }

    fn fail(&mut self, partition: PartitionIndex, failure: &Failure, around: &Around<'_>) {
        let message = format!("{}/{partition}: {}", C::TOPIC, failure.message);
        self.end(partition, &Failure::new(ErrorCode::NotCoordinator, message));
        self.pause(partition, around);
    }

    fn pause(&mut self, partition: PartitionIndex, around: &Around<'_>) {
        self.paused.insert(partition, around.clock.monotonic_ms() + RELOAD_PAUSE_MS);
    }

    fn end(&mut self, partition: PartitionIndex, why: &Failure) {
        if let Some(slot) = self.slots.remove(&partition) {
            slot.led.end(why);
        }
    }
}

/// Replays what the log has from `end` on, committed or not.
fn catch_up<C: Steer>(
    view: &Arc<PartitionView>,
    leader_epoch: LeaderEpoch,
    (loader, end): (&mut C::Loader, &mut Offset),
    around: &Around<'_>,
) -> Result<(), Unloadable> {
    loop {
        let (pool, metrics) = (around.cold_reads, around.metrics);
        let read = reads::read_for_replica(pool, view, leader_epoch, *end, STEP_BYTES, metrics);
        // Damage is not the machine's doing: whoever has a whole log is to lead.
        let read = read.now_or_never().expect("an inline read waits for nobody");
        let read = read.map_err(Unloadable::ForNow)?;
        if read.bytes.is_empty() {
            return Ok(());
        }
        for batch in batches(read.bytes) {
            let is_whole = batch.as_ref().is_ok_and(|batch| batch.verify_crc().is_ok());
            if !is_whole {
                let failure = Failure::new(ErrorCode::CorruptData, "the log is damaged");
                return Err(Unloadable::ForNow(failure));
            }
            replay::<C>(loader, batch, *end)?;
        }
        *end = read.next_offset;
    }
}

/// How long until a moment on the monotonic clock.
pub(super) fn until(at_ms: Option<u64>, clock: &Clock) -> Duration {
    at_ms.map_or(Duration::MAX, |at_ms| {
        Duration::from_millis(at_ms.saturating_sub(clock.monotonic_ms()))
    })
}

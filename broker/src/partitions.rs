//! What everybody but its owner sees of a partition: a view to read from and to wait on, and the register
//! of all views.
//!
//! A view is published by the partition's shard and read by any task without visiting the shard. Nothing
//! here appends, flushes or decides.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tidemark_coordinator::producer_state::AbortedTransaction;
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition};
use tidemark_replication::FollowerStatus;
use tidemark_storage::Checkpoint;
use tokio::sync::Notify;

use crate::{disk::Reader, metrics::TopicMetrics, shard::ShardHandle};

/// `PartitionView::leadership` of a partition that is not led here.
const NOT_LEADING: u64 = 0;

/// One partition of this broker, as readers see it.
#[derive(Debug)]
pub(crate) struct PartitionView {
    pub(crate) id: TopicPartition,
    pub(crate) topic: Arc<str>,
    pub(crate) metrics: Arc<TopicMetrics>,
    pub(crate) reader: Reader,
    /// The owner, for everything that changes the log.
    pub(crate) shard: ShardHandle,
    high_watermark: AtomicU64,
    /// At most the watermark.
    last_stable: AtomicU64,
    /// Transactions that were aborted, by their ends. Empty in most partitions for ever.
    aborted: RwLock<VecDeque<AbortedTransaction>>,
    has_aborted: AtomicBool,
    /// The epoch led in, plus one.
    leadership: AtomicU64,
    /// Whether the watermark is as high as readers may have seen it under an earlier leader.
    watermark_known: AtomicBool,
    /// What the leader knows of its followers, as of the last it heard from any.
    followers: Mutex<Vec<FollowerStatus>>,
    /// How many replicas are in sync, as committed, and with how few anything is committed. `None` where it is not led.
    in_sync: Mutex<Option<(usize, usize)>>,
    deleted: AtomicBool,
    waiters: Waiters,
}

impl PartitionView {
    pub(crate) fn new(
        id: TopicPartition,
        topic: Arc<str>,
        metrics: Arc<TopicMetrics>,
        reader: Reader,
        shard: ShardHandle,
    ) -> Self {
        Self {
            id,
            topic,
            metrics,
            reader,
            shard,
            high_watermark: AtomicU64::new(0),
            last_stable: AtomicU64::new(0),
            aborted: RwLock::default(),
            has_aborted: AtomicBool::new(false),
            leadership: AtomicU64::new(NOT_LEADING),
            watermark_known: AtomicBool::new(false),
            followers: Mutex::default(),
            in_sync: Mutex::default(),
            deleted: AtomicBool::new(false),
            waiters: Waiters::default(),
        }
    }

    /// `topic/partition`, as people know it.
    pub(crate) fn name(&self) -> impl fmt::Display {
        fmt::from_fn(|out| write!(out, "{}/{}", self.topic, self.id.partition))
    }

    /// Exclusive end of what may be read.
    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// Exclusive end of what readers may be given that want nothing of transactions that may yet be aborted.
    pub(crate) fn last_stable_offset(&self) -> Offset {
        self.last_stable.load(Ordering::Acquire)
    }

    /// Transactions that were aborted and have records in the range.
    pub(crate) fn aborted(&self, offsets: Range<Offset>) -> Vec<AbortedTransaction> {
        if !self.has_aborted.load(Ordering::Acquire) {
            return Vec::new();
        }
        let aborted = self.aborted.read().unwrap_or_else(PoisonError::into_inner);
        let first = aborted.partition_point(|one| one.last_offset < offsets.start);
        let rest = aborted.iter().skip(first);
        rest.filter(|one| one.first_offset < offsets.end).copied().collect()
    }

    /// Checks that this broker leads the partition, in the epoch the caller believes in if it names one, and
    /// gives that epoch.
    pub(crate) fn leader_epoch(
        &self,
        believed: Option<LeaderEpoch>,
    ) -> Result<LeaderEpoch, Failure> {
        if self.is_deleted() {
            return Err(unknown_partition(self.id));
        }
        let led = self.leadership.load(Ordering::Acquire).checked_sub(1);
        let led = led.map(|epoch| LeaderEpoch::try_from(epoch).expect("stored from an epoch"));
        check_epoch(&self.name(), led, believed)
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Exclusive end of what may be read, if that is the latest offset for anybody: a leader that is new may have yet to
    /// learn what was committed before.
    pub(crate) fn latest_offset(&self) -> Result<Offset, Failure> {
        if !self.watermark_known.load(Ordering::Acquire) {
            let message =
                format!("the leader of {} does not know yet what is committed", self.name());
            return Err(Failure::new(ErrorCode::OffsetNotAvailable, message));
        }
        Ok(self.high_watermark())
    }

    /// What the leader knows of its followers; empty where the partition is not led.
    pub(crate) fn followers(&self) -> Vec<FollowerStatus> {
        lock(&self.followers).clone()
    }

    /// Says so if fewer replicas are in sync than anything is committed with: a leader's records are refused then.
    pub(crate) fn too_few_in_sync(&self) -> Option<String> {
        let (in_sync, min) = (*lock(&self.in_sync))?;
        (in_sync < min).then(|| in_sync_of(in_sync, min))
    }

    /// Moves the watermark and wakes whoever waits. Only for the owner.
    ///
    /// Both are of the same moment, and whoever looks at what is stable first finds it at most at the watermark.
    pub(crate) fn set_high_watermark(&self, offset: Offset, last_stable: Offset) {
        self.high_watermark.store(offset, Ordering::Release);
        self.last_stable.store(last_stable, Ordering::Release);
        self.waiters.wake();
    }

    /// Takes over which transactions were aborted. Only for the owner, and before what is stable moves past them.
    pub(crate) fn set_aborted(&self, all: &VecDeque<AbortedTransaction>) {
        let mut aborted = self.aborted.write().unwrap_or_else(PoisonError::into_inner);
        aborted.clone_from(all);
        self.has_aborted.store(!aborted.is_empty(), Ordering::Release);
    }

    /// Adds one. Only for the owner.
    pub(crate) fn add_aborted(&self, one: AbortedTransaction) {
        let mut aborted = self.aborted.write().unwrap_or_else(PoisonError::into_inner);
        aborted.push_back(one);
        self.has_aborted.store(true, Ordering::Release);
    }

    /// Only for the owner, and after the watermark.
    pub(crate) fn set_watermark_known(&self, known: bool) {
        self.watermark_known.store(known, Ordering::Release);
    }

    /// Only for the owner.
    pub(crate) fn set_followers(&self, followers: impl Iterator<Item = FollowerStatus>) {
        let mut known = lock(&self.followers);
        known.clear();
        known.extend(followers);
    }

    /// Only for the owner, and before the leader epoch: whoever is woken by that finds both.
    pub(crate) fn set_in_sync(&self, in_sync: Option<(usize, usize)>) {
        *lock(&self.in_sync) = in_sync;
    }

    /// Only for the owner.
    pub(crate) fn set_leader_epoch(&self, epoch: Option<LeaderEpoch>) {
        let leadership = epoch.map_or(NOT_LEADING, |epoch| u64::from(epoch) + 1);
        self.leadership.store(leadership, Ordering::Release);
        self.waiters.wake();
    }

    /// The partition is gone: whoever waits learns it now. Only for the owner.
    pub(crate) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
        self.waiters.wake();
    }

    /// From now on `waiter` is told under `slot` whenever something changes, until the result is dropped.
    /// Look at the partition after this call, not before: a change in between would be missed.
    pub(crate) fn watch(self: &Arc<Self>, waiter: &Arc<Waiter>, slot: u32) -> Watching {
        self.waiters.add(Arc::clone(waiter), slot);
        Watching { view: Arc::clone(self), waiter: Arc::clone(waiter), slot }
    }
}

/// Whether a request that believes in the epoch `believed` may be served by a leader in epoch `led`.
pub(crate) fn check_epoch(
    name: &impl fmt::Display,
    led: Option<LeaderEpoch>,
    believed: Option<LeaderEpoch>,
) -> Result<LeaderEpoch, Failure> {
    let fail = |code, message| Err(Failure::new(code, message));
    match (led, believed) {
        (None, _) => fail(ErrorCode::NotLeader, format!("this broker does not lead {name}")),
        (Some(led), Some(believed)) if believed < led => {
            let message =
                format!("{name} is in leader epoch {led}, the request is from epoch {believed}");
            fail(ErrorCode::FencedLeaderEpoch, message)
        }
        (Some(led), Some(believed)) if believed > led => {
            let message =
                format!("{name} is in leader epoch {led} here, epoch {believed} is not known yet");
            fail(ErrorCode::UnknownLeaderEpoch, message)
        }
        (Some(led), _) => Ok(led),
    }
}

/// How many replicas are in sync, for people.
pub(crate) fn in_sync_of(in_sync: usize, min: usize) -> String {
    format!("{in_sync} in sync, min_insync_replicas is {min}")
}

pub(crate) fn unknown_partition(id: TopicPartition) -> Failure {
    Failure::new(ErrorCode::UnknownTopicOrPartition, format!("there is no partition {id}"))
}

/// A task that waits for changes in any of several partitions.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    changed: Mutex<Changed>,
    notify: Notify,
}

/// Slots that have changed, each listed once.
#[derive(Debug, Default)]
struct Changed {
    slots: Vec<u32>,
    is_listed: Vec<bool>,
}

impl Changed {
    fn add(&mut self, slot: u32) {
        let index = slot as usize;
        if self.is_listed.len() <= index {
            self.is_listed.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.is_listed[index], true) {
            self.slots.push(slot);
        }
    }

    fn take(&mut self) -> Vec<u32> {
        for slot in &self.slots {
            self.is_listed[*slot as usize] = false;
        }
        std::mem::take(&mut self.slots)
    }
}

impl Waiter {
    /// Waits until a watched partition has changed, and gives the slots of all that have since the last
    /// call, each once.
    pub(crate) async fn changed(&self) -> Vec<u32> {
        loop {
            let changed = lock(&self.changed).take();
            if !changed.is_empty() {
                return changed;
            }
            self.notify.notified().await;
        }
    }

    fn wake(&self, slot: u32) {
        lock(&self.changed).add(slot);
        self.notify.notify_one();
    }
}

/// Removes a waiter from a partition when dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    view: Arc<PartitionView>,
    waiter: Arc<Waiter>,
    slot: u32,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.view.waiters.remove(&self.waiter, self.slot);
    }
}

/// The waiters of one partition. Costs its owner one load per change while there are none.
#[derive(Debug, Default)]
struct Waiters {
    any: AtomicBool,
    list: Mutex<Vec<(Arc<Waiter>, u32)>>,
}

impl Waiters {
    fn add(&self, waiter: Arc<Waiter>, slot: u32) {
        let mut list = lock(&self.list);
        list.push((waiter, slot));
        // Sequentially consistent with the load in `wake`: either the owner sees the waiter, or the waiter,
        // looking after this, sees the change.
        self.any.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn remove(&self, waiter: &Arc<Waiter>, slot: u32) {
        let mut list = lock(&self.list);
        // One waiter may watch a partition under several slots.
        let is_it = |(other, its_slot): &(Arc<Waiter>, u32)| {
            *its_slot == slot && Arc::ptr_eq(other, waiter)
        };
        if let Some(at) = list.iter().position(is_it) {
            list.swap_remove(at);
        }
        self.any.store(!list.is_empty(), Ordering::SeqCst);
    }

    fn wake(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.any.load(Ordering::SeqCst) {
            for (waiter, slot) in lock(&self.list).iter() {
                waiter.wake(*slot);
            }
        }
    }
}

/// Every partition of this broker. Lookups take a lock for reading, for a few nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    views: RwLock<HashMap<TopicPartition, Arc<PartitionView>>>,
    /// Logs that are not open, with what is known to be durable of them: that must not be forgotten only because nobody
    /// could look.
    not_open: Mutex<BTreeMap<TopicPartition, NotOpen>>,
}

/// A log that the last process had and the metadata does not speak of yet, or one that could not be opened.
#[derive(Debug, Default)]
struct NotOpen {
    known: Option<Checkpoint>,
    has_failed: bool,
}

impl Partitions {
    /// None yet, with what the last process knew of its logs: metadata that is older than they are does not speak of them.
    pub(crate) fn expecting(known: BTreeMap<TopicPartition, Checkpoint>) -> Self {
        let log = |known| NotOpen { known: Some(known), has_failed: false };
        let not_open = known.into_iter().map(|(id, known)| (id, log(known))).collect();
        Self { views: RwLock::default(), not_open: Mutex::new(not_open) }
    }

    pub(crate) fn get(&self, id: TopicPartition) -> Option<Arc<PartitionView>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn insert(&self, view: Arc<PartitionView>) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).insert(view.id, view);
    }

    pub(crate) fn remove(&self, id: TopicPartition) -> Option<Arc<PartitionView>> {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    pub(crate) fn count(&self) -> usize {
        self.views.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The metadata is newer than everything that the last process followed, and every log of which it speaks has been
    /// looked for: what else that process had is not here any more.
    pub(crate) fn end_expecting(&self) {
        lock(&self.not_open).retain(|_, log| log.has_failed);
    }

    /// What is known to be durable of a log that is to be opened.
    pub(crate) fn checkpoint_of(&self, id: TopicPartition) -> Option<Checkpoint> {
        lock(&self.not_open).get(&id).and_then(|log| log.known.clone())
    }

    /// Notes that a log could not be opened. Says whether that is new.
    pub(crate) fn add_unopened(&self, id: TopicPartition) -> bool {
        !std::mem::replace(&mut lock(&self.not_open).entry(id).or_default().has_failed, true)
    }

    /// It is open now, and its view is here, or it is deleted. Says whether it was among those that could not be opened.
    pub(crate) fn remove_unopened(&self, id: TopicPartition) -> bool {
        lock(&self.not_open).remove(&id).is_some_and(|log| log.has_failed)
    }

    pub(crate) fn is_unopened(&self, id: TopicPartition) -> bool {
        lock(&self.not_open).get(&id).is_some_and(|log| log.has_failed)
    }

    /// Partitions whose logs could not be opened.
    pub(crate) fn unopened(&self) -> Vec<TopicPartition> {
        let not_open = lock(&self.not_open);
        not_open.iter().filter(|(_, log)| log.has_failed).map(|(id, _)| *id).collect()
    }

    /// How many logs there are, or may be, that are not open.
    pub(crate) fn not_open(&self) -> usize {
        lock(&self.not_open).len()
    }

    /// What is known to be durable of logs that are not open. To be taken before that of open ones: a log may be opened
    /// meanwhile, and what is known of it then counts.
    pub(crate) fn not_open_checkpoints(&self) -> BTreeMap<TopicPartition, Checkpoint> {
        let not_open = lock(&self.not_open);
        not_open.iter().filter_map(|(id, log)| Some((*id, log.known.clone()?))).collect()
    }

    /// Whether a log that is open here is known to be damaged.
    pub(crate) fn are_damaged(&self) -> bool {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.values().any(|view| view.reader.damaged_from().is_some())
    }

    /// All of them, in no order, as they are now.
    pub(crate) fn all(&self) -> Vec<Arc<PartitionView>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

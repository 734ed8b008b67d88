//! Group commit: runs the flush jobs of all partitions of the data directory, away from their owners.
//!
//! While a partition's flush is under way its next appends gather behind it, and one more flush covers them
//! all: that is the group. A few threads, so that partitions flush side by side and the file system's journal
//! merges their commits. Nothing here retries: what a failed flush means is the owner's to decide.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tidemark_protocol::TopicPartition;
use tidemark_storage::{FlushDone, FlushError};
use tokio::sync::{Notify, mpsc};

use crate::{clock::Clock, disk::FlushJob, metrics::Metrics, tasks::Tasks};

/// Flushes that run at the same time.
const FLUSH_THREADS: usize = 8;
/// Of these, how many may be taken by flushes that nobody waits for.
const BACKGROUND_THREADS_MAX: usize = 2;
/// A checkpoint is due when this much was flushed since the last: about what a restart reads at most.
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// Tells one log of a partition from the next: a partition may leave and come back while a flush of it is under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogToken(Arc<()>);

impl PartialEq for LogToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What became of a flush, for the owner of the partition.
#[derive(Debug)]
pub(crate) struct Flushed {
    pub(crate) partition: TopicPartition,
    pub(crate) log: LogToken,
    pub(crate) outcome: Result<FlushDone, FlushError>,
}

/// Where outcomes go. Not bounded by the channel but by the partitions: each has at most one flush under way.
pub(crate) type FlushedSender = mpsc::UnboundedSender<Flushed>;

/// A flush to be run.
#[derive(Debug)]
pub(crate) struct Flush {
    pub(crate) partition: TopicPartition,
    pub(crate) log: LogToken,
    pub(crate) job: FlushJob,
    /// Whether somebody waits for it.
    pub(crate) urgent: bool,
    pub(crate) done: FlushedSender,
}

/// The queue in front of the flush threads. It holds at most one flush per partition, since an owner asks for
/// the next only after the last is done.
#[derive(Clone, Debug)]
pub(crate) struct Flusher {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    progress: Progress,
}

/// How much has been made durable: what the next checkpoint will spare a restart from reading.
#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    /// Told when there are [`CHECKPOINT_BYTES`] of it.
    much: Notify,
}

impl Progress {
    fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before < CHECKPOINT_BYTES && before + bytes >= CHECKPOINT_BYTES {
            self.much.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    urgent: VecDeque<Flush>,
    background: VecDeque<Flush>,
    background_running: usize,
    closed: bool,
}

impl Flusher {
    /// Starts the flush threads.
    pub(crate) fn start(tasks: &Tasks, clock: &Clock, metrics: &Metrics) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        for index in 0..FLUSH_THREADS {
            let (queue, clock, metrics) = (Arc::clone(&queue), clock.clone(), metrics.clone());
            tasks.spawn_thread(&format!("flush-{index}"), move || queue.serve(&clock, &metrics))?;
        }
        Ok(Self { queue })
    }

    /// A queue without threads: whoever steers time takes the flushes out and runs them.
    pub(crate) fn by_hand() -> Self {
        Self { queue: Arc::default() }
    }

    /// Everything that waits, in the order in which the threads would begin it.
    pub(crate) fn take_waiting(&self) -> Vec<Flush> {
        let mut state = self.queue.lock();
        let State { urgent, background, .. } = &mut *state;
        urgent.drain(..).chain(background.drain(..)).collect()
    }

    /// Runs a flush that was taken out, and tells its owner.
    pub(crate) fn run(&self, flush: Flush, clock: &Clock, metrics: &Metrics) {
        self.queue.run(flush, clock, metrics);
    }

    /// Queues a flush. Never blocks.
    pub(crate) fn submit(&self, flush: Flush) {
        let mut state = self.queue.lock();
        if flush.urgent {
            state.urgent.push_back(flush);
        } else {
            state.background.push_back(flush);
        }
        drop(state);
        self.queue.arrived.notify_one();
    }

    /// Somebody waits for the flush of this partition now. It goes ahead of those that nobody waits for, unless
    /// it is running already.
    pub(crate) fn hurry(&self, partition: TopicPartition) {
        let mut state = self.queue.lock();
        let queued = state.background.iter().position(|flush| flush.partition == partition);
        if let Some(mut flush) = queued.and_then(|index| state.background.remove(index)) {
            flush.urgent = true;
            state.urgent.push_back(flush);
            drop(state);
            self.queue.arrived.notify_one();
        }
    }

    /// Waits until so much was flushed that a checkpoint is due.
    pub(crate) async fn checkpoint_due(&self) {
        self.queue.progress.much.notified().await;
    }

    /// Bytes flushed since the last call.
    pub(crate) fn take_flushed_bytes(&self) -> u64 {
        self.queue.progress.bytes.swap(0, Ordering::Relaxed)
    }

    /// Lets the threads end once the queue is empty.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.arrived.notify_all();
    }
}

impl Queue {
    fn serve(&self, clock: &Clock, metrics: &Metrics) {
        while let Some(flush) = self.next() {
            let urgent = flush.urgent;
            self.run(flush, clock, metrics);
            if !urgent {
                self.lock().background_running -= 1;
                self.arrived.notify_one();
            }
        }
    }

    fn run(&self, flush: Flush, clock: &Clock, metrics: &Metrics) {
        let Flush { partition, log, job, urgent: _, done } = flush;
        let (began, bytes) = (clock.now(), job.bytes());
        let outcome = job.run();
        if outcome.is_ok() {
            metrics.disk().flushed(clock.since(began), bytes, 1);
            self.progress.add(bytes);
        }
        // The owner may be gone, at the end of the process.
        drop(done.send(Flushed { partition, log, outcome }));
    }

    /// The next flush to run; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Flush> {
        let mut state = self.lock();
        loop {
            if let Some(flush) = state.urgent.pop_front() {
                return Some(flush);
            }
            if state.background_running < BACKGROUND_THREADS_MAX
                && let Some(flush) = state.background.pop_front()
            {
                state.background_running += 1;
                return Some(flush);
            }
            if state.closed && state.background.is_empty() {
                // The next of those that waited for the last background flush to be taken.
                self.arrived.notify_one();
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What a producer's callers and its sender share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, Semaphore};

use super::{
    config::ProducerConfig,
    delivery::BatchReceipt,
    identity::Identity,
    queue::{PartitionQueue, QueuedBatch, Tell},
    topics::TopicQueues,
};
use crate::{cluster::Cluster, error::ProduceError};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cluster: Arc<Cluster>,
    pub(super) config: Arc<ProducerConfig>,
    /// One permit per byte of the buffer. Closed when the sender has ended.
    pub(super) room: Semaphore,
    /// Wakes the sender.
    pub(super) wake: Notify,
    topics: RwLock<HashMap<Arc<str>, Arc<TopicQueues>>>,
    /// Queues that have something to send and are not in the sender's list yet. Bounded by the number of
    /// partitions: a queue is here once.
    arrivals: Mutex<Vec<Arc<PartitionQueue>>>,
    /// Callers that wait for room or for a flush: batches do not linger meanwhile.
    hurried: AtomicUsize,
    /// The first failure since the last flush.
    failure: Mutex<Option<ProduceError>>,
    pub(super) identity: Identity,
}

impl Shared {
    pub(super) fn new(cluster: Arc<Cluster>, config: ProducerConfig) -> Self {
        Self {
            cluster,
            room: Semaphore::new(config.buffer_bytes),
            config: Arc::new(config),
            wake: Notify::new(),
            topics: RwLock::default(),
            arrivals: Mutex::default(),
            hurried: AtomicUsize::new(0),
            failure: Mutex::default(),
            identity: Identity::default(),
        }
    }

    pub(super) fn topic(&self, name: &str) -> Option<Arc<TopicQueues>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn topics(&self) -> Vec<Arc<TopicQueues>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn topic_names(&self) -> Vec<Arc<str>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The topic with this many partitions: known already, grown, or new.
    pub(super) fn set_partitions(&self, name: &Arc<str>, partitions: u32) -> Arc<TopicQueues> {
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        match topics.get(name) {
            Some(known) if known.partition_count() == partitions => known.clone(),
            Some(known) => {
                if partitions < known.partition_count() {
                    self.identity.renew();
                }
                let grown = Arc::new(known.with_partitions(partitions));
                topics.insert(name.clone(), grown.clone());
                grown
            }
            None => {
                let new = Arc::new(TopicQueues::new(name.clone(), partitions));
                topics.insert(name.clone(), new.clone());
                new
            }
        }
    }

    pub(super) fn forget_topic(&self, name: &str) {
        self.identity.renew();
        self.topics.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn tell_sender(&self, queue: &Arc<PartitionQueue>, tell: Tell) {
        match tell {
            Tell::Nothing => return,
            Tell::Closed => {}
            Tell::List => {
                let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                arrivals.push(queue.clone());
            }
        }
        self.wake.notify_one();
    }

    pub(super) fn take_arrivals(&self) -> Vec<Arc<PartitionQueue>> {
        std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Acquire) > 0
    }

    /// Makes the sender send everything at once until the guard is dropped.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
        Hurry(self)
    }

    /// Ends batches that were not written, and gives their room back.
    pub(super) fn fail(&self, batches: &[QueuedBatch], error: &ProduceError) {
        if batches.is_empty() {
            return;
        }
        let records: u32 = batches.iter().map(|batch| batch.record_count).sum();
        tracing::debug!(%error, records, "records not delivered");
        self.note_failure(error);
        for batch in batches {
            batch.outcome.set(Err(error.clone()));
        }
        self.give_room(batches);
    }

    /// Ends one batch that was written, and gives its room back.
    pub(super) fn written(&self, batch: &QueuedBatch, receipt: BatchReceipt) {
        batch.outcome.set(Ok(receipt));
        self.room.add_permits(batch.charged_bytes);
    }

    /// Keeps a failure for the next flush, unless there was one before. To be called before the outcome is
    /// set, so that a flush that sees the outcome sees the failure.
    pub(super) fn note_failure(&self, error: &ProduceError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| error.clone());
    }

    pub(super) fn take_failure(&self) -> Option<ProduceError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Bytes accepted and not yet settled.
    pub(super) fn unsettled_bytes(&self) -> usize {
        self.config.buffer_bytes - self.room.available_permits()
    }

    /// Gives back the room of batches that have their outcome.
    pub(super) fn give_room(&self, batches: &[QueuedBatch]) {
        self.room.add_permits(batches.iter().map(|batch| batch.charged_bytes).sum());
    }
}

/// Somebody waits; see [`Shared::hurry`].
#[derive(Debug)]
pub(super) struct Hurry<'a>(&'a Shared);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::AcqRel);
    }
}

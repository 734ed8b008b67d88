//! What waits to be sent, newest state per partition: while a frame is on its way, newer states replace older ones, so
//! that the queue is bounded by the partitions, and a slow peer costs freshness and not memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidemark_protocol::TopicPartition;
use tokio::sync::Notify;

/// Newest value per partition, until it is taken.
#[derive(Debug)]
pub(super) struct Outbox<V> {
    values: Mutex<BTreeMap<TopicPartition, V>>,
    arrived: Notify,
}

impl<V> Default for Outbox<V> {
    fn default() -> Self {
        Self { values: Mutex::default(), arrived: Notify::new() }
    }
}

impl<V> Outbox<V> {
    /// Puts a value in place of an older one, unless `keeps` says that the older one stays.
    pub(super) fn put(
        &self,
        partition: TopicPartition,
        value: V,
        keeps: impl FnOnce(&V, &V) -> bool,
    ) {
        let mut values = self.lock();
        if values.get(&partition).is_some_and(|older| keeps(older, &value)) {
            return;
        }
        values.insert(partition, value);
        drop(values);
        self.arrived.notify_one();
    }

    /// Takes up to `max` values, waiting for the first. Not to be awaited by two at a time.
    pub(super) async fn take(&self, max: usize) -> Vec<(TopicPartition, V)> {
        loop {
            let taken = self.take_now(max);
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// Waits until there is something to take. Not to be awaited beside [`Outbox::take`].
    pub(super) async fn filled(&self) {
        while self.lock().is_empty() {
            self.arrived.notified().await;
        }
    }

    fn take_now(&self, max: usize) -> Vec<(TopicPartition, V)> {
        let mut values = self.lock();
        let mut taken = Vec::with_capacity(values.len().min(max));
        while taken.len() < max {
            let Some(first) = values.pop_first() else { break };
            taken.push(first);
        }
        taken
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, V>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

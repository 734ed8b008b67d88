//! The outcome of a batch, shared by the futures of its records.
//!
//! One allocation per batch, none per record. A record's future is an index into its batch; polling it after
//! the outcome is known takes no lock.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
};

use tidemark_protocol::{Offset, PartitionIndex, TimestampMs, messages::ProduceReceipt};

use crate::{error::ProduceError, record::Delivered};

/// What became of a batch.
#[derive(Clone, Debug)]
pub(super) struct BatchReceipt {
    /// `None` when no acknowledgement was asked for.
    pub(super) base_offset: Option<Offset>,
    pub(super) receipt: Option<Arc<ProduceReceipt>>,
}

/// The outcome all records of one batch share.
#[derive(Debug)]
pub(super) struct Outcome {
    partition: PartitionIndex,
    result: OnceLock<Result<BatchReceipt, ProduceError>>,
    /// Who waits; bounded by the records of the batch. Empty for ever once `result` is set.
    wakers: Mutex<Vec<Waker>>,
}

impl Outcome {
    pub(super) fn new(partition: PartitionIndex) -> Self {
        Self { partition, result: OnceLock::new(), wakers: Mutex::default() }
    }

    /// Tells everybody, unless there is an outcome already: a deadline may come before a late answer.
    pub(super) fn set(&self, result: Result<BatchReceipt, ProduceError>) {
        if self.result.set(result).is_err() {
            return;
        }
        // Taken after the result is visible: who registers later sees the result instead.
        for waker in std::mem::take(&mut *self.wakers()) {
            waker.wake();
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.result.get().is_some()
    }

    pub(super) fn result(&self) -> Option<&Result<BatchReceipt, ProduceError>> {
        self.result.get()
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the batch has its outcome.
    pub(super) async fn done(self: Arc<Self>) -> Result<BatchReceipt, ProduceError> {
        let mut slot = None;
        std::future::poll_fn(|context| self.poll(context, &mut slot)).await
    }

    /// `slot` is the caller's place among the wakers and must be kept between polls.
    fn poll(
        &self,
        context: &Context<'_>,
        slot: &mut Option<usize>,
    ) -> Poll<Result<BatchReceipt, ProduceError>> {
        if let Some(result) = self.result() {
            return Poll::Ready(result.clone());
        }
        let mut wakers = self.wakers();
        if let Some(result) = self.result() {
            return Poll::Ready(result.clone());
        }
        if let Some(at) = slot {
            wakers[*at].clone_from(context.waker());
        } else {
            *slot = Some(wakers.len());
            wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// The future of one record that the producer has accepted. Dropping it changes nothing: the record is sent
/// all the same, and a failure then shows at the next flush.
#[derive(Debug)]
#[must_use = "a failed delivery is told here and, once, by flush"]
pub struct Delivery {
    outcome: Arc<Outcome>,
    offset_delta: u32,
    timestamp_ms: TimestampMs,
    slot: Option<usize>,
}

impl Delivery {
    pub(super) fn new(outcome: Arc<Outcome>, offset_delta: u32, timestamp_ms: TimestampMs) -> Self {
        Self { outcome, offset_delta, timestamp_ms, slot: None }
    }

    /// The partition the record goes to, known before it is delivered.
    pub fn partition(&self) -> PartitionIndex {
        self.outcome.partition
    }

    /// The timestamp the record was given, in milliseconds since the Unix epoch.
    pub fn timestamp_ms(&self) -> TimestampMs {
        self.timestamp_ms
    }
}

impl Future for Delivery {
    type Output = Result<Delivered, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let polled = this.outcome.poll(context, &mut this.slot);
        polled.map_ok(|batch| Delivered {
            partition: this.outcome.partition,
            offset: batch.base_offset.map(|base| base + u64::from(this.offset_delta)),
            timestamp_ms: this.timestamp_ms,
            receipt: batch.receipt,
        })
    }
}

//! Subscribe: batches are pushed as they become readable, while the subscriber has credit.
//!
//! One task per subscription. It takes its partitions in turn, one push each, so that a busy one does not
//! starve the others; it waits for credit, for room on its connection and for data, and holds no more than the
//! one read it is about to push.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{
        FetchedPartition, Isolation, PushHeader, SubscribePartition, SubscribeRequest,
        SubscribedPartition,
    },
};
use tokio::sync::Notify;

use super::find_partition;
use crate::{
    broker::Broker,
    partitions::{PartitionView, Waiter, Watching},
    reads::{self, Wanted},
    tasks::Shutdown,
};

/// Most payload bytes in one push, whatever was asked for; a larger batch still goes whole.
const PUSH_BYTES_MAX: u32 = 4 << 20;

/// Bytes that the broker may still push.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    bytes: AtomicI64,
    added: Notify,
}

impl Credit {
    pub(crate) fn add(&self, bytes: u32) {
        self.bytes.fetch_add(i64::from(bytes), Ordering::AcqRel);
        self.added.notify_one();
    }

    fn spend(&self, bytes: usize) {
        // A push is shorter than a frame.
        self.bytes.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    /// Waits until there is some, and says how much, at most `max`.
    async fn available(&self, max: u32) -> u32 {
        loop {
            let bytes = self.bytes.load(Ordering::Acquire);
            if bytes > 0 {
                return u32::try_from(bytes).unwrap_or(u32::MAX).min(max);
            }
            self.added.notified().await;
        }
    }
}

/// Where pushes go.
pub(crate) trait Pushes: Send + Sync + 'static {
    /// Waits for room on the connection; an error: the connection is gone.
    fn push(
        &self,
        header: PushHeader,
        payload: Bytes,
    ) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Nobody is there to be pushed to.
#[derive(Debug)]
pub(crate) struct Gone;

/// A subscription that has been granted, and not begun.
pub(crate) struct Subscription {
    broker: Arc<Broker>,
    credit: Arc<Credit>,
    max_push_bytes: u32,
    isolation: Isolation,
    waiter: Arc<Waiter>,
    /// By slot; `None` after an error.
    members: Vec<Option<Member>>,
}

struct Member {
    view: Arc<PartitionView>,
    leader_epoch: LeaderEpoch,
    offset: Offset,
    _watching: Watching,
}

/// Checks each partition; those in order become members of the subscription.
pub(crate) fn subscribe(
    broker: &Arc<Broker>,
    request: &SubscribeRequest,
    credit: Arc<Credit>,
) -> (Vec<Result<SubscribedPartition, Failure>>, Subscription) {
    credit.add(request.credit_bytes);
    let waiter = Arc::new(Waiter::default());
    let mut outcomes = Vec::with_capacity(request.partitions.len());
    let mut members = Vec::with_capacity(request.partitions.len());
    for (wanted, slot) in request.partitions.iter().zip(0..) {
        let admitted = admit(broker, wanted, &waiter, slot);
        let (outcome, member) = match admitted {
            Ok((subscribed, member)) => (Ok(subscribed), Some(member)),
            Err(failure) => (Err(failure), None),
        };
        outcomes.push(outcome);
        members.push(member);
    }
    let max_push_bytes = request.max_push_bytes.clamp(1, PUSH_BYTES_MAX);
    let (broker, isolation) = (Arc::clone(broker), request.isolation);
    (outcomes, Subscription { broker, credit, max_push_bytes, isolation, waiter, members })
}

fn admit(
    broker: &Broker,
    wanted: &SubscribePartition,
    waiter: &Arc<Waiter>,
    slot: u32,
) -> Result<(SubscribedPartition, Member), Failure> {
    let view = find_partition(broker, wanted.partition)?;
    let watching = view.watch(waiter, slot);
    let leader_epoch = view.leader_epoch(wanted.leader_epoch)?;
    let (high_watermark, offset) = (view.high_watermark(), wanted.offset);
    let log_start_offset = view.reader.log_start_offset();
    // As for a fetch: what is appended and not committed yet is waited for.
    if offset < log_start_offset || offset > view.reader.log_end_offset() {
        let name = view.name();
        let message =
            format!("{name} has offsets {log_start_offset} to {high_watermark}, not {offset}");
        return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
    }
    let subscribed = SubscribedPartition { high_watermark, log_start_offset, leader_epoch };
    Ok((subscribed, Member { view, leader_epoch, offset, _watching: watching }))
}

impl Subscription {
    /// Pushes until `cancelled`, until every partition has failed, or until the connection is gone. `Ok`: a
    /// last word is owed to the subscriber.
    pub(crate) async fn run(mut self, pushes: &impl Pushes, cancelled: &Shutdown) {
        let pushing = cancelled.or_stop(self.push_all(pushes)).await;
        if let Some(Err(Gone)) = pushing {
            return;
        }
        let ended = if cancelled.has_started() {
            Failure::new(ErrorCode::Cancelled, "the subscription was cancelled")
        } else {
            Failure::new(ErrorCode::Cancelled, "no partition is left in the subscription")
        };
        // If the connection is gone, so is whoever wanted to know.
        drop(pushes.push(PushHeader { partition: None, outcome: Err(ended) }, Bytes::new()).await);
    }

    async fn push_all(&mut self, pushes: &impl Pushes) -> Result<(), Gone> {
        let mut turns: VecDeque<u32> = (0..).take(self.members.len()).collect();
        let mut queued = vec![true; self.members.len()];
        while self.members.iter().any(Option::is_some) {
            let max_bytes = self.credit.available(self.max_push_bytes).await;
            let Some(slot) = turns.pop_front() else {
                for slot in self.waiter.changed().await {
                    if !std::mem::replace(&mut queued[slot as usize], true) {
                        turns.push_back(slot);
                    }
                }
                continue;
            };
            queued[slot as usize] = false;
            if self.push_one(slot, max_bytes, pushes).await? {
                queued[slot as usize] = true;
                turns.push_back(slot);
            }
        }
        Ok(())
    }

    /// Pushes what can be read in one partition. Says whether there may be more.
    async fn push_one(
        &mut self,
        slot: u32,
        max_bytes: u32,
        pushes: &impl Pushes,
    ) -> Result<bool, Gone> {
        let Some(member) = &mut self.members[slot as usize] else { return Ok(false) };
        let id = member.view.id;
        let read = reads::read(
            &self.broker.cold_reads,
            &member.view,
            Wanted {
                leader_epoch: Some(member.leader_epoch),
                offset: member.offset,
                max_bytes: max_bytes as usize,
                isolation: self.isolation,
            },
            &self.broker.metrics,
        );
        let read = match read.await {
            Ok(read) => read,
            Err(failure) => {
                self.members[slot as usize] = None;
                pushes.push(header(id, Err(failure)), Bytes::new()).await?;
                return Ok(false);
            }
        };
        if read.bytes.is_empty() {
            return Ok(false);
        }
        member.offset = read.next_offset;
        self.credit.spend(read.bytes.len());
        reads::count(&member.view, &read.bytes);
        let end = read.stable.as_ref().map_or(read.high_watermark, |it| it.last_stable_offset);
        let more = member.offset < end;
        let pushed = FetchedPartition {
            high_watermark: read.high_watermark,
            log_start_offset: read.log_start_offset,
            leader_epoch: read.leader_epoch,
            batch_bytes: u32::try_from(read.bytes.len()).expect("a segment is shorter than 4 GiB"),
            stable: read.stable,
        };
        pushes.push(header(id, Ok(pushed)), read.bytes).await?;
        let isolation = self.isolation;
        let member = self.members[slot as usize].as_ref();
        Ok(more || member.is_some_and(|member| member.has_more(isolation)))
    }
}

impl Member {
    fn has_more(&self, isolation: Isolation) -> bool {
        let end = match isolation {
            Isolation::ReadUncommitted => self.view.high_watermark(),
            Isolation::ReadCommitted => self.view.last_stable_offset(),
        };
        end > self.offset
    }
}

fn header(id: TopicPartition, outcome: Result<FetchedPartition, Failure>) -> PushHeader {
    PushHeader { partition: Some(id), outcome }
}

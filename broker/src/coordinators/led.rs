//! One coordinator that serves: its machine, what it has decided and not yet committed, and who waits for that.
//!
//! What one wake of the host decides goes into the log as few batches; a decision is never split. Answers leave in the order
//! of the decisions, when the high watermark has passed them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tidemark_coordinator::{Now, Record, Token, decision};
use tidemark_protocol::{
    Compression, ErrorCode, Failure, LeaderEpoch, Offset,
    batch::{Batch, BatchBuilder},
    bug,
    messages::{Acks, Durability},
};
use tokio::sync::oneshot;

use super::{Coordinator, DecisionOf, Reply};
use crate::{
    clock::Clock,
    metrics::Protocol,
    partitions::PartitionView,
    shard::{Produce, ProduceOutcome},
};

/// Batches that may be on their way into the log. While there are so many, requests wait, and go together into the next.
const APPENDS_MAX: usize = 32;
/// Requests that may wait for their turn. Beyond it they are refused as `Overloaded`.
const BACKLOG_MAX: usize = 4096;
/// Requests that may wait for their answer: for a commit, or because the machine parks them.
const WAITING_MAX: usize = 32 * 1024;
/// A batch is full for now when it has so many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// The wait for an append.
pub(crate) type Append = oneshot::Receiver<ProduceOutcome>;

pub(crate) struct Led<C: Coordinator> {
    pub(crate) machine: C,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) view: Arc<PartitionView>,
    /// End of the log, and of what is about to be appended.
    pub(crate) next_offset: Offset,
    /// What goes into the next batch.
    records: Vec<Record>,
    records_bytes: usize,
    /// Batches that are complete and not sent yet: base offset and bytes.
    complete: Vec<(Offset, Vec<Record>)>,
    appends: usize,
    held: VecDeque<Held<C>>,
    waiting: HashMap<Token, Reply<C>>,
    next_token: Token,
    backlog: VecDeque<(C::Request, Reply<C>)>,
    pub(crate) wake_at_ms: Option<u64>,
}

/// Answers and effects that wait for a commit.
struct Held<C: Coordinator> {
    end_offset: Offset,
    replies: Vec<decision::Reply<C::Response>>,
    effects: Vec<C::Effect>,
}

/// Where a machine's own records begin in a log that ends there.
pub(crate) fn first_offset(log_end_offset: Offset) -> Offset {
    log_end_offset + 1
}

impl<C: Coordinator> Led<C> {
    /// A machine that has read the whole log, and decided `first` at [`first_offset`]. An opening comes before it.
    pub(crate) fn new(
        machine: C,
        first: DecisionOf<C>,
        view: Arc<PartitionView>,
        leader_epoch: LeaderEpoch,
    ) -> Self {
        let opening = Record::opening(leader_epoch);
        let mut led = Self {
            machine,
            leader_epoch,
            view,
            next_offset: first.base_offset,
            records_bytes: opening.bytes(),
            records: vec![opening],
            complete: Vec::new(),
            appends: 0,
            held: VecDeque::new(),
            waiting: HashMap::new(),
            next_token: 0,
            backlog: VecDeque::new(),
            wake_at_ms: None,
        };
        led.take(first);
        led
    }

    /// Has the machine decide the request, now or when there is room.
    pub(crate) fn request(&mut self, now: Now, request: C::Request, reply: Reply<C>) {
        if self.appends >= APPENDS_MAX || !self.backlog.is_empty() {
            if self.backlog.len() < BACKLOG_MAX {
                self.backlog.push_back((request, reply));
            } else {
                refuse_overloaded::<C>(reply);
            }
            return;
        }
        self.decide(now, request, reply);
    }

    fn decide(&mut self, now: Now, request: C::Request, reply: Reply<C>) {
        if self.waiting.len() >= WAITING_MAX {
            refuse_overloaded::<C>(reply);
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.waiting.insert(token, reply);
        let decision = self.machine.handle(now, token, request);
        self.take(decision);
    }

    pub(crate) fn on_timer(&mut self, now: Now) {
        let decision = self.machine.on_timer(now);
        self.take(decision);
    }

    pub(crate) fn on_excerpt(&mut self, excerpt: &C::Excerpt) {
        let decision = self.machine.on_excerpt(excerpt);
        self.take(decision);
    }

    /// An append has succeeded: there is room for what waits.
    pub(crate) fn appended(&mut self, now: Now) {
        self.appends -= 1;
        while self.appends < APPENDS_MAX
            && let Some((request, reply)) = self.backlog.pop_front()
        {
            self.decide(now, request, reply);
        }
    }

    fn take(&mut self, decision: DecisionOf<C>) {
        assert!(
            decision.base_offset == self.next_offset,
            "{} decided for offset {}, the log ends at {}",
            C::TOPIC,
            decision.base_offset,
            self.next_offset
        );
        self.next_offset = decision.end_offset();
        self.wake_at_ms = decision.wake_at_ms;
        let bytes: usize = decision.records.iter().map(Record::bytes).sum();
        if self.records_bytes + bytes > BATCH_BYTES {
            self.complete_batch(decision.base_offset);
        }
        self.records_bytes += bytes;
        self.records.extend(decision.records);
        if !decision.replies.is_empty() || !decision.effects.is_empty() {
            self.held.push_back(Held {
                end_offset: self.next_offset,
                replies: decision.replies,
                effects: decision.effects,
            });
        }
    }

    /// What has been gathered is a batch, which ends at `end`.
    fn complete_batch(&mut self, end: Offset) {
        if self.records.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.records);
        self.records_bytes = 0;
        self.complete.push((end - records.len() as u64, records));
    }

    /// What was decided, for the partition's owner, in order: each batch with the wait for it. All of them are sent, or the
    /// coordinator ends.
    pub(crate) fn drafts(&mut self, clock: &Clock) -> Result<Vec<(Produce, Append)>, Failure> {
        self.complete_batch(self.next_offset);
        let mut drafts = Vec::with_capacity(self.complete.len());
        for (base_offset, records) in std::mem::take(&mut self.complete) {
            let batch = batch(&records, clock.wall_ms())?;
            let (reply, outcome) = oneshot::channel();
            let produce = Produce {
                partition: self.view.id,
                batches: vec![batch],
                leader_epoch: Some(self.leader_epoch),
                base_offset: Some(base_offset),
                guard: None,
                unverified: None,
                acks: Acks::All,
                durability: Durability::Topic,
                // Whoever asks has a deadline of their own; the coordinator waits as long as it leads.
                deadline_ms: u64::MAX,
                protocol: Protocol::Native,
                queued_at: clock.now(),
                reply,
            };
            self.appends += 1;
            drafts.push((produce, outcome));
        }
        Ok(drafts)
    }

    /// Gives what is committed: answers at once, effects to the caller.
    pub(crate) fn release(&mut self) -> Vec<C::Effect> {
        let committed = self.view.high_watermark();
        // Only now: a leadership that has ended shows before anything else of the log does, and what is committed then may be
        // what somebody else wrote at the same offsets.
        if self.view.leader_epoch(Some(self.leader_epoch)).is_err() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        let is_early = bug::is_put_back("coordinator-answers-before-commit");
        while self.held.front().is_some_and(|held| is_early || held.end_offset <= committed)
            && let Some(held) = self.held.pop_front()
        {
            for decision::Reply { token, outcome } in held.replies {
                if let Some(reply) = self.waiting.remove(&token) {
                    // Whoever asked may have stopped.
                    drop(reply.send(outcome));
                }
            }
            effects.extend(held.effects);
        }
        effects
    }

    /// Ends it: everybody who waits is told `why`.
    pub(crate) fn end(self, why: &Failure) {
        let waiting = self.waiting.into_values();
        for reply in waiting.chain(self.backlog.into_iter().map(|(_, reply)| reply)) {
            drop(reply.send(Err(why.clone())));
        }
    }
}

fn batch(records: &[Record], wall_ms: i64) -> Result<Batch, Failure> {
    let bytes = records.iter().map(Record::bytes).sum::<usize>();
    let mut builder = BatchBuilder::with_capacity(Compression::None, bytes + 32 * records.len());
    for record in records {
        builder.push(wall_ms, Some(&record.key), record.value.as_deref(), &[]);
    }
    let built = builder.build().and_then(|mut bytes| Batch::parse(&mut bytes));
    built.map_err(|error| {
        let message = format!("a decision of {} records is no batch: {error}", records.len());
        Failure::new(ErrorCode::TooLarge, message)
    })
}

fn refuse_overloaded<C: Coordinator>(reply: Reply<C>) {
    let message = format!("too many requests wait for a coordinator of {}", C::TOPIC);
    drop(reply.send(Err(Failure::new(ErrorCode::Overloaded, message))));
}

#[cfg(test)]
mod tests;

//! Appending on behalf of a produce request, and answering it.

use std::{ops::Range, time::Instant};

use tidemark_coordinator::producer_state::Guard;
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition,
    batch::Batch,
    bug,
    message::Api,
    messages::{Acks, Durability, ProduceReceipt},
};
use tidemark_replication::{Event, Produced, Receipt};
use tidemark_storage::{AppendError, Appended};
use tokio::sync::oneshot;

use super::{Hands, Shard, partition::Partition};
use crate::{
    disk_watch::DiskState,
    metrics::{Flow, Protocol, Stage},
    partitions::{check_epoch, in_sync_of, unknown_partition},
    producers::Admitted,
};

/// How a produce ended for one partition.
pub(crate) type ProduceOutcome = Result<ProduceReceipt, Failure>;

/// Batches for one partition, validated, and who waits for the outcome.
#[derive(Debug)]
pub(crate) struct Produce {
    pub(crate) partition: TopicPartition,
    /// Never empty.
    pub(crate) batches: Vec<Batch>,
    pub(crate) leader_epoch: Option<LeaderEpoch>,
    /// Where the first record must land. For whoever is the only writer and counts offsets itself.
    pub(crate) base_offset: Option<Offset>,
    /// The coordinator of the batches' transaction has agreed since this was given.
    pub(crate) guard: Option<Guard>,
    /// Where the request goes when that coordinator has to be asked first. `None`: nobody would ask.
    pub(crate) unverified: Option<oneshot::Sender<Unverified>>,
    pub(crate) acks: Acks,
    pub(crate) durability: Durability,
    /// When to stop waiting, in monotonic milliseconds.
    pub(crate) deadline_ms: u64,
    pub(crate) protocol: Protocol,
    pub(crate) queued_at: Instant,
    /// With [`Acks::None`] it is answered after the append.
    pub(crate) reply: oneshot::Sender<ProduceOutcome>,
}

/// A request that goes on once the coordinator of its transaction agrees: it is to be sent again, with the guard.
#[derive(Debug)]
pub(crate) struct Unverified {
    pub(crate) guard: Guard,
    pub(crate) produce: Produce,
}

/// A request that the replica will answer.
#[derive(Debug)]
pub(super) struct Awaiting {
    reply: oneshot::Sender<ProduceOutcome>,
    appended_at: Instant,
}

impl Awaiting {
    pub(super) fn new(reply: oneshot::Sender<ProduceOutcome>, appended_at: Instant) -> Self {
        Self { reply, appended_at }
    }

    pub(super) fn answer(
        self,
        partition: &Partition,
        outcome: Result<Receipt, ErrorCode>,
        hands: &Hands,
    ) {
        let outcome = match outcome {
            Ok(receipt) => {
                let waited = hands.clock.since(self.appended_at);
                hands.metrics.requests().api(Api::Produce).took(Stage::Flush, waited);
                Ok(ProduceReceipt {
                    base_offset: receipt.base_offset,
                    record_count: count(receipt.base_offset, receipt.end_offset),
                    leader_epoch: receipt.leader_epoch,
                    durability: receipt.durability,
                    replicas_memory: receipt.replicas_memory,
                    replicas_durable: receipt.replicas_durable,
                    log_start_offset: partition.log.log_start_offset(),
                })
            }
            Err(code) => Err(partition.in_doubt(code)),
        };
        // The connection may be gone.
        drop(self.reply.send(outcome));
    }
}

impl Shard {
    pub(super) fn produce(&mut self, produce: Produce) {
        let began = self.hands.clock.now();
        let id = produce.partition;
        let Some(partition) = self.partitions.get_mut(&id) else {
            drop(produce.reply.send(Err(unknown_partition(id))));
            return;
        };
        let hands = &mut self.hands;
        match partition.append(&produce, hands) {
            Ok(Taken::Appended(appended)) => partition.appended(produce, &appended, began, hands),
            Ok(Taken::Repeated(offsets)) => {
                hands.metrics.transactions().repeated(produce.batches.len() as u64);
                partition.repeated(produce, offsets, hands);
            }
            Ok(Taken::Unverified(guard)) => unverified(guard, produce, id),
            Err(failure) => {
                let records =
                    produce.batches.iter().map(|batch| u64::from(batch.header.record_count));
                hands.metrics.requests().records_rejected(failure.code, records.sum());
                drop(produce.reply.send(Err(failure)));
            }
        }
    }
}

/// What became of a request's batches.
enum Taken {
    Appended(Appended),
    /// They are in the log, at these offsets.
    Repeated(Range<Offset>),
    Unverified(Guard),
}

fn unverified(guard: Guard, mut produce: Produce, id: TopicPartition) {
    let Some(asks) = produce.unverified.take() else {
        let message =
            format!("{id}: nobody has said whose transaction it is; nothing was appended");
        let failure = Failure::new(ErrorCode::TransactionUnverified, message);
        drop(produce.reply.send(Err(failure)));
        return;
    };
    // Whoever asks may have stopped.
    drop(asks.send(Unverified { guard, produce }));
}

impl Partition {
    fn appended(
        &mut self,
        produce: Produce,
        appended: &Appended,
        began: Instant,
        hands: &mut Hands,
    ) {
        let appended_at = hands.clock.now();
        let api = hands.metrics.requests().api(Api::Produce);
        api.took(Stage::Queue, began.duration_since(produce.queued_at));
        api.took(Stage::Append, appended_at.duration_since(began));
        let flow = Flow {
            batches: produce.batches.len() as u64,
            records: appended.next_offset - appended.base_offset,
            bytes: appended.bytes,
        };
        self.view.metrics.produced(produce.protocol, flow);
        self.dirtied(hands);
        let offsets = appended.base_offset..appended.next_offset;
        let produced = self.await_acks(produce, offsets, appended_at, hands);
        self.step(Event::Produced(produced), hands);
    }

    /// What is there already is answered like what was just appended: when it is as safe as asked, and not before.
    fn repeated(&mut self, produce: Produce, offsets: Range<Offset>, hands: &mut Hands) {
        if bug::is_put_back("repeated-answered-before-commit") {
            drop(produce.reply.send(Ok(unacknowledged(self, &offsets))));
            return;
        }
        let now = hands.clock.now();
        let produced = self.await_acks(produce, offsets, now, hands);
        self.step(Event::Repeated(produced), hands);
    }

    /// Notes who is to be answered, or answers who waits for nothing.
    fn await_acks(
        &self,
        produce: Produce,
        offsets: Range<Offset>,
        appended_at: Instant,
        hands: &mut Hands,
    ) -> Produced {
        let token = hands.next_token;
        hands.next_token += 1;
        if produce.acks == Acks::None {
            drop(produce.reply.send(Ok(unacknowledged(self, &offsets))));
        } else {
            hands.awaiting.insert(token, Awaiting { reply: produce.reply, appended_at });
        }
        Produced {
            token,
            acks: produce.acks,
            durability: produce.durability,
            deadline_ms: produce.deadline_ms,
            base_offset: offsets.start,
            end_offset: offsets.end,
        }
    }

    /// Appends what is not there already, or says why nothing was.
    fn append(&mut self, produce: &Produce, hands: &mut Hands) -> Result<Taken, Failure> {
        let epoch = self.may_append(produce.acks, produce.leader_epoch, hands)?;
        let log_end = self.log.log_end_offset();
        if let Some(expected) = produce.base_offset.filter(|expected| *expected != log_end) {
            let name = self.view.name();
            let message =
                format!("{name} ends at {log_end}, not at {expected}: somebody else writes");
            return Err(Failure::new(ErrorCode::InvalidUpdateVersion, message));
        }
        match self.producers.admit(self.view.id, &produce.batches, produce.guard)? {
            Admitted::New => {}
            Admitted::Repeated(offsets) => return Ok(Taken::Repeated(offsets)),
            Admitted::Unverified(guard) => return Ok(Taken::Unverified(guard)),
        }
        let appended = self
            .log
            .append(&produce.batches, epoch, hands.wall_ms)
            .map_err(|error| self.not_appended(&error, hands))?;
        self.producers_wrote(|producers| {
            producers.appended(&produce.batches, appended.base_offset);
        });
        Ok(Taken::Appended(appended))
    }

    /// Whether anything may be appended now, and in which leader epoch.
    pub(super) fn may_append(
        &self,
        acks: Acks,
        believed: Option<LeaderEpoch>,
        hands: &Hands,
    ) -> Result<LeaderEpoch, Failure> {
        // First of all: a replica whose log failed leads no more, and the caller is to learn why.
        match hands.disk_watch.state() {
            DiskState::Ok => {}
            DiskState::Full => return Err(disk_full()),
            DiskState::Failed => return Err(storage_failed(hands)),
        }
        let epoch = check_epoch(&self.view.name(), self.replica.leader_epoch(), believed)?;
        self.replica.admit(acks).map_err(|code| self.not_admitted(code))?;
        Ok(epoch)
    }

    /// Puts a failed append into words, and draws the consequences.
    pub(super) fn not_appended(&mut self, error: &AppendError, hands: &mut Hands) -> Failure {
        match error {
            AppendError::Full(_) => {
                hands.disk_watch.fill();
                disk_full()
            }
            AppendError::TooLarge { .. } => {
                Failure::new(ErrorCode::BatchTooLarge, error.to_string())
            }
            AppendError::Empty => Failure::new(ErrorCode::InvalidRequest, error.to_string()),
            AppendError::Fenced | AppendError::Disk(_) => {
                self.failed(&format!("append to {}: {error}", self.view.name()), hands);
                storage_failed(hands)
            }
            AppendError::StaleEpoch { .. } | AppendError::NotContiguous { .. } => {
                tracing::error!(partition = %self.view.name(), %error, "append refused");
                Failure::new(ErrorCode::Internal, error.to_string())
            }
        }
    }

    /// What is told of records that were not appended.
    fn not_admitted(&self, code: ErrorCode) -> Failure {
        let name = self.view.name();
        let why = match code {
            ErrorCode::NotEnoughReplicas => self.too_few_in_sync(),
            ErrorCode::Overloaded => format!("too many produce requests wait in {name}"),
            ErrorCode::StorageFailed => format!("the log of {name} failed"),
            _ => format!("{name} takes no records now"),
        };
        Failure::new(code, format!("{why}; nothing was appended"))
    }

    /// What is told of records that were appended and not acknowledged. Codes that also refuse an append would say that
    /// there is nothing, and a client that repeats what was refused would write it twice.
    fn in_doubt(&self, code: ErrorCode) -> Failure {
        let name = self.view.name();
        let (code, why) = match code {
            ErrorCode::Timeout => {
                (code, format!("{name} is not as durable as asked before the deadline"))
            }
            ErrorCode::StorageFailed => (code, format!("the flush of {name} failed")),
            ErrorCode::NotEnoughReplicasAfterAppend => (code, self.too_few_in_sync()),
            ErrorCode::UnknownTopicOrPartition => {
                (ErrorCode::NotLeaderAfterAppend, format!("{name} was deleted meanwhile"))
            }
            _ => (
                ErrorCode::NotLeaderAfterAppend,
                format!("{name} was given up before the outcome was known"),
            ),
        };
        Failure::new(code, format!("{why}; the records may yet become readable"))
    }

    fn too_few_in_sync(&self) -> String {
        let name = self.view.name();
        match self.replica.in_sync() {
            Some((in_sync, min)) => format!("{name} has {}", in_sync_of(in_sync, min)),
            None => format!("{name} has fewer replicas in sync than min_insync_replicas"),
        }
    }
}

fn unacknowledged(partition: &Partition, offsets: &Range<Offset>) -> ProduceReceipt {
    ProduceReceipt {
        base_offset: offsets.start,
        record_count: count(offsets.start, offsets.end),
        leader_epoch: partition.replica.leader_epoch().expect("it was checked before the append"),
        durability: Durability::Memory,
        replicas_memory: 1,
        replicas_durable: 0,
        log_start_offset: partition.log.log_start_offset(),
    }
}

fn count(base: Offset, end: Offset) -> u32 {
    u32::try_from(end - base).unwrap_or(u32::MAX)
}

fn disk_full() -> Failure {
    let message = "the disk is full; produce is refused until space returns";
    Failure::new(ErrorCode::DiskFull, message)
}

/// What everything that writes is told once the directory has failed.
pub(super) fn storage_failed(hands: &Hands) -> Failure {
    let cause = hands.disk_watch.failure().unwrap_or("the log failed");
    let message =
        format!("the data directory takes no writes until tidemarkd is restarted: {cause}");
    Failure::new(ErrorCode::StorageFailed, message)
}

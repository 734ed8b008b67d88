//! The transaction coordinator: one per partition of the internal topic of transactions. KIP-890 from the start: every
//! transaction has an epoch of its own, and partitions join it when they are first written to.
//!
//! ```text
//!   Empty ──────────┐                    ┌─ commit ─► PrepareCommit ── all markers ─► CompleteCommit ─┐
//!   CompleteCommit ─┼─ AddPartitions ─► Ongoing                                                       │
//!   CompleteAbort ──┘                    └─ abort, timeout, fence ─► PrepareAbort ─► CompleteAbort ───┴─► …
//! ```
//!
//! The decision is one record. It is committed before anybody is told or any marker is sent, because effects wait for
//! it like answers do. Whoever loads the log sends the markers of all decided transactions again, in its own
//! coordinator epoch.
//!
//! A producer uses the epochs 0 to `epoch_max - 1` of its id. The last one, `epoch_max`, is only for markers, so there
//! is always one left to end a transaction with; then the producer goes on under a new id.

mod admin;
mod end;
mod init;
mod markers;
pub mod record;
pub mod request;

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{ErrorCode, Failure, Offset, TimestampMs, TopicPartition};

use self::record::Change;
pub use self::{
    record::{Transaction, TransactionState},
    request::*,
};
use crate::{
    ProducerEpoch, ProducerId,
    deadlines::Deadlines,
    decision::{Decision, Now, Reply, Token},
    limits::{DECISION_BYTES_MAX, NAME_BYTES_MAX, TRANSACTION_PARTITIONS_MAX},
    producer_ids::ProducerIds,
    record::{LoadError, Record},
};

/// What the coordinator comes to with a call.
pub type TransactionDecision = Decision<TransactionResponse, TransactionEffect>;

/// What an operator may set. The defaults are those of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionConfig {
    pub timeout_ms_max: u32,
    /// How long an id without open transaction is remembered.
    pub retention_ms: u64,
    /// When markers that nobody has answered for are sent again.
    pub marker_retry_ms: u64,
    /// The epoch after which a producer needs another id. Lowered by tests.
    pub epoch_max: ProducerEpoch,
    /// With fewer producer ids than this, more are asked for.
    pub producer_ids_min: u64,
}

impl Default for TransactionConfig {
    fn default() -> Self {
        Self {
            timeout_ms_max: 15 * 60 * 1000,
            retention_ms: 7 * 24 * 60 * 60 * 1000,
            marker_retry_ms: 500,
            epoch_max: ProducerEpoch::MAX,
            producer_ids_min: 100,
        }
    }
}

/// What can run out, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A transaction is open for too long.
    Timeout { id: String },
    /// Markers have not been answered for.
    Markers { id: String },
    /// Look for ids that have been idle for too long.
    Expire,
}

/// How often it is looked for idle ids.
const EXPIRE_INTERVAL_MS: u64 = 10 * 60 * 1000;

/// Markers that are not known to be written. The identity keeps answers for an earlier transaction apart.
#[derive(Clone, Debug)]
struct Unwritten {
    producer: ProducerIdentity,
    partitions: BTreeSet<TopicPartition>,
}

/// Everything the log says: the last state of every id.
pub type Transactions = BTreeMap<String, Transaction>;

/// Reads a coordinator's log. Serves nothing.
#[derive(Clone, Debug, Default)]
pub struct TransactionLoader {
    transactions: Transactions,
    next_offset: Offset,
}

impl TransactionLoader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record. Offsets may have gaps, where compaction removed records.
    pub fn replay(&mut self, offset: Offset, record: &Record) -> Result<(), LoadError> {
        if offset < self.next_offset {
            return Err(LoadError::Order { offset, expected: self.next_offset });
        }
        let change = Change::decode(record).map_err(|error| LoadError::Record { offset, error })?;
        apply(&mut self.transactions, change);
        self.next_offset = offset + 1;
        Ok(())
    }

    /// The state, once everything has been replayed.
    pub fn state(self) -> Result<Transactions, LoadError> {
        check(&self.transactions)?;
        Ok(self.transactions)
    }

    /// The coordinator, and what has to happen first: the markers of decided transactions. `coordinator_epoch` is the
    /// leader epoch of its partition.
    pub fn finish(
        self,
        log_end_offset: Offset,
        coordinator_epoch: i32,
        config: TransactionConfig,
        now: Now,
    ) -> Result<(TransactionCoordinator, TransactionDecision), LoadError> {
        assert!(config.epoch_max >= 1, "an id without epochs");
        if log_end_offset < self.next_offset {
            let (offset, expected) = (log_end_offset, self.next_offset);
            return Err(LoadError::Order { offset, expected });
        }
        check(&self.transactions)?;
        let mut coordinator = TransactionCoordinator {
            config,
            coordinator_epoch,
            transactions: self.transactions,
            unwritten: BTreeMap::new(),
            deadlines: Deadlines::default(),
            producer_ids: ProducerIds::default(),
            has_asked_for_ids: false,
            is_fenced: false,
            out: Output::new(log_end_offset),
        };
        coordinator.revive(now);
        let decision = coordinator.decide();
        Ok((coordinator, decision))
    }
}

fn apply(transactions: &mut Transactions, change: Change) {
    match change.transaction {
        Some(transaction) => transactions.insert(change.id, transaction),
        None => transactions.remove(&change.id),
    };
}

/// What no log of ours would say.
fn check(transactions: &Transactions) -> Result<(), LoadError> {
    let mut producers = BTreeSet::new();
    for (id, transaction) in transactions {
        let has_partitions = !transaction.partitions.is_empty();
        let needs_partitions = transaction.state == TransactionState::Ongoing
            || transaction.state.decision().is_some();
        let problem = if transaction.producer_id < 0 || transaction.producer_epoch < 0 {
            "has no producer"
        } else if !producers.insert(transaction.producer_id) {
            "shares its producer with another"
        } else if has_partitions != needs_partitions {
            "has partitions that do not go with its state"
        } else {
            continue;
        };
        return Err(LoadError::Contradiction(format!("transactional id {id:?} {problem}")));
    }
    Ok(())
}

/// Transactional ids and their transactions, as far as they belong to one partition of the internal topic.
#[derive(Debug)]
pub struct TransactionCoordinator {
    config: TransactionConfig,
    coordinator_epoch: i32,
    transactions: Transactions,
    unwritten: BTreeMap<String, Unwritten>,
    deadlines: Deadlines<Timer>,
    producer_ids: ProducerIds,
    has_asked_for_ids: bool,
    /// A partition has had a marker of a later coordinator: this one is over and does not know yet.
    is_fenced: bool,
    out: Output,
}

/// A decision in the making.
#[derive(Debug)]
struct Output {
    base_offset: Offset,
    records: Vec<Record>,
    records_bytes: usize,
    replies: Vec<Reply<TransactionResponse>>,
    effects: Vec<TransactionEffect>,
}

impl Output {
    fn new(base_offset: Offset) -> Self {
        let (records, replies, effects) = (Vec::new(), Vec::new(), Vec::new());
        Self { base_offset, records, records_bytes: 0, replies, effects }
    }
}

impl TransactionCoordinator {
    /// What the log says, uncommitted records included.
    pub fn state(&self) -> &Transactions {
        &self.transactions
    }

    pub fn config(&self) -> &TransactionConfig {
        &self.config
    }

    /// Takes a block of ids that the controller has handed to this broker.
    pub fn add_producer_ids(&mut self, block: std::ops::Range<ProducerId>) {
        self.producer_ids.add(block);
        self.has_asked_for_ids = false;
    }

    /// Decides a request. It is answered in this decision.
    pub fn handle(
        &mut self,
        now: Now,
        token: Token,
        request: TransactionRequest,
    ) -> TransactionDecision {
        let outcome = if self.is_fenced {
            let message = "a later coordinator has begun its work".to_owned();
            Err(Failure::new(ErrorCode::NotCoordinator, message))
        } else {
            self.dispatch(now, request)
        };
        let (written, refused) = (self.out.records.len(), is_refusal(&outcome));
        assert!(!refused || written == 0, "refused after {written} records: {outcome:?}");
        self.out.replies.push(Reply { token, outcome });
        self.ask_for_ids();
        self.decide()
    }

    /// Lets time pass.
    pub fn on_timer(&mut self, now: Now) -> TransactionDecision {
        while self.out.records_bytes < DECISION_BYTES_MAX
            && let Some(timer) = self.deadlines.pop_expired(now.mono_ms)
        {
            match timer {
                _ if self.is_fenced => {}
                Timer::Timeout { id } => self.timed_out(now, &id),
                Timer::Markers { id } => self.send_markers(now, &id),
                Timer::Expire => self.expire(now),
            }
        }
        self.ask_for_ids();
        self.decide()
    }

    /// What there is to do although nothing happened.
    pub fn settle(&mut self) -> TransactionDecision {
        self.ask_for_ids();
        self.decide()
    }

    fn dispatch(
        &mut self,
        now: Now,
        request: TransactionRequest,
    ) -> Result<TransactionResponse, Failure> {
        use TransactionResponse as R;
        Ok(match request {
            TransactionRequest::InitProducerId(init) => {
                R::InitProducerId(self.init_producer_id(now, &init)?)
            }
            TransactionRequest::AddPartitions(add) => {
                self.add_partitions(now, &add)?;
                R::AddPartitions
            }
            TransactionRequest::EndTxn(end) => R::EndTxn(self.end_txn(now, &end)?),
            TransactionRequest::MarkersWritten(written) => {
                self.markers_written(now, &written);
                R::MarkersWritten
            }
            TransactionRequest::List => R::List(self.list()),
            TransactionRequest::Describe { id } => R::Describe(self.require(&id)?.clone()),
            TransactionRequest::Abort { id } => {
                self.abort(now, &id)?;
                R::Abort
            }
        })
    }

    fn add_partitions(&mut self, now: Now, add: &AddPartitions) -> Result<(), Failure> {
        let transaction = self.require_producer(&add.id)?;
        self.check_owner(&add.id, transaction, add.producer)?;
        if transaction.state.decision().is_some() {
            return Err(concurrent(&add.id));
        }
        let is_open = transaction.state == TransactionState::Ongoing;
        if is_open && add.partitions.is_subset(&transaction.partitions) {
            return Ok(());
        }
        if add.verify_only {
            let message = format!("the partition is not in the transaction of {:?}", add.id);
            return Err(Failure::new(ErrorCode::TransactionUnverified, message));
        }
        let mut changed = transaction.clone();
        changed.partitions.extend(&add.partitions);
        if changed.partitions.is_empty() || changed.partitions.len() > TRANSACTION_PARTITIONS_MAX {
            let message = format!("a transaction has 1 to {TRANSACTION_PARTITIONS_MAX} partitions");
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        if !is_open {
            changed.state = TransactionState::Ongoing;
            changed.started_ms = now.wall_ms;
            // Its producer has seen the answer to what came before: nobody has to ask again.
            changed.last = None;
            let timer = Timer::Timeout { id: add.id.clone() };
            self.deadlines.set(timer, now.mono_ms + u64::from(changed.timeout_ms));
        }
        self.write(now, &add.id, changed);
        Ok(())
    }

    /// Writes a record and lives by it.
    fn write(&mut self, now: Now, id: &str, transaction: Transaction) {
        let epochs = 0..=self.config.epoch_max;
        assert!(epochs.contains(&transaction.producer_epoch), "{id:?}: {transaction:?}");
        let transaction = Some(Transaction { updated_ms: now.wall_ms, ..transaction });
        self.write_change(Change { id: id.to_owned(), transaction });
    }

    fn write_change(&mut self, change: Change) {
        let record = change.encode();
        self.out.records_bytes += record.bytes();
        self.out.records.push(record);
        apply(&mut self.transactions, change);
    }

    fn effect(&mut self, effect: TransactionEffect) {
        self.out.effects.push(effect);
    }

    fn require(&self, id: &str) -> Result<&Transaction, Failure> {
        self.transactions.get(id).ok_or_else(|| {
            let message = format!("there is no transactional id {id:?}");
            Failure::new(ErrorCode::UnknownTransaction, message)
        })
    }

    /// For producers, who must have initialized.
    fn require_producer(&self, id: &str) -> Result<&Transaction, Failure> {
        self.transactions.get(id).ok_or_else(|| {
            let message = format!("nobody has initialized the transactional id {id:?}");
            Failure::new(ErrorCode::InvalidProducerId, message)
        })
    }

    /// Whether the producer is the present owner of the id. A lower epoch is a zombie's; a higher one nobody was given.
    fn check_owner(
        &self,
        id: &str,
        transaction: &Transaction,
        producer: ProducerIdentity,
    ) -> Result<(), Failure> {
        if end::is_successor(transaction, producer) {
            return Ok(());
        }
        if producer.producer_id != transaction.producer_id {
            let message = format!("the transactional id {id:?} belongs to another producer id");
            return Err(Failure::new(ErrorCode::InvalidProducerId, message));
        }
        let present = transaction.producer_epoch;
        if producer.epoch == present && present < self.config.epoch_max {
            return Ok(());
        }
        let is_aborting = matches!(
            transaction.state,
            TransactionState::PrepareAbort | TransactionState::CompleteAbort
        );
        if is_aborting && transaction.last == Some((producer.producer_id, producer.epoch)) {
            let message = format!("the transaction of {id:?} was aborted");
            return Err(Failure::new(ErrorCode::TransactionAborted, message));
        }
        let message = format!("{id:?} is at epoch {present}, not {}", producer.epoch);
        let code = if producer.epoch <= present {
            ErrorCode::ProducerFenced
        } else {
            ErrorCode::InvalidProducerEpoch
        };
        Err(Failure::new(code, message))
    }

    fn ask_for_ids(&mut self) {
        let is_short = self.producer_ids.left() < self.config.producer_ids_min;
        if is_short && !self.has_asked_for_ids {
            self.has_asked_for_ids = true;
            self.effect(TransactionEffect::NeedProducerIds);
        }
    }

    fn take_producer_id(&mut self) -> Result<ProducerId, Failure> {
        self.producer_ids.take().ok_or_else(|| {
            let message = "no producer ids at hand; more have been asked for".to_owned();
            Failure::new(ErrorCode::NotReady, message)
        })
    }

    fn decide(&mut self) -> TransactionDecision {
        let next_offset = self.out.base_offset + self.out.records.len() as u64;
        let out = std::mem::replace(&mut self.out, Output::new(next_offset));
        Decision {
            base_offset: out.base_offset,
            records: out.records,
            replies: out.replies,
            effects: out.effects,
            wake_at_ms: self.deadlines.next_ms(),
        }
    }
}

/// An answer that leaves everything as it was. That a producer has to wait because it has been fenced is none.
fn is_refusal(outcome: &Result<TransactionResponse, Failure>) -> bool {
    matches!(outcome, Err(failure) if failure.code != ErrorCode::ConcurrentTransactions)
}

fn check_id(id: &str) -> Result<(), Failure> {
    if (1..=NAME_BYTES_MAX).contains(&id.len()) {
        return Ok(());
    }
    let message = format!("a transactional id has 1 to {NAME_BYTES_MAX} bytes");
    Err(Failure::new(ErrorCode::InvalidRequest, message))
}

fn concurrent(id: &str) -> Failure {
    let message = format!("the last transaction of {id:?} is still ending");
    Failure::new(ErrorCode::ConcurrentTransactions, message)
}

/// How long ago, on clocks that may differ from node to node.
fn since_ms(now: Now, then: TimestampMs) -> u64 {
    u64::try_from(now.wall_ms.saturating_sub(then)).unwrap_or(0)
}

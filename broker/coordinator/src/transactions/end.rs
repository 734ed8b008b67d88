//! How transactions end: by their producer, by their timeout, by an operator, or because another process begins.

use tidemark_protocol::{ErrorCode, Failure, bug};

use super::{
    AbortCause, EndTxn, ProducerIdentity, Timer, Transaction, TransactionCoordinator,
    TransactionEffect, TransactionState, concurrent,
};
use crate::{ProducerEpoch, ProducerId, decision::Now};

/// How an open transaction ends.
struct End {
    state: TransactionState,
    /// Of the markers.
    epoch: ProducerEpoch,
    /// Who may ask again.
    last: Option<ProducerIdentity>,
    next_producer_id: Option<ProducerId>,
}

impl TransactionCoordinator {
    pub(super) fn end_txn(&mut self, now: Now, end: &EndTxn) -> Result<ProducerIdentity, Failure> {
        let transaction = self.require_producer(&end.id)?.clone();
        if transaction.last == Some((end.producer.producer_id, end.producer.epoch)) {
            let next = asked_again(&transaction, end)?;
            if next.epoch >= self.config.epoch_max {
                // The coordinator has aborted in the last epoch, and no id was set apart: initializing brings one.
                return Err(aborted());
            }
            return Ok(next);
        }
        self.check_owner(&end.id, &transaction, end.producer)?;
        match transaction.state {
            TransactionState::Ongoing => {
                let decision = if end.commit {
                    TransactionState::PrepareCommit
                } else {
                    TransactionState::PrepareAbort
                };
                let end_of = End {
                    state: decision,
                    epoch: next_epoch(end.producer.epoch),
                    last: Some(end.producer),
                    next_producer_id: self.next_producer_id(end.producer.epoch)?,
                };
                self.decide_end(now, &end.id, &end_of);
                Ok(after(&self.transactions[&end.id]))
            }
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                Err(concurrent(&end.id))
            }
            _ if end.commit => {
                let message = format!("{:?} has no transaction to commit", end.id);
                Err(Failure::new(ErrorCode::InvalidTransactionState, message))
            }
            _ => self.end_nothing(now, end, &transaction),
        }
    }

    /// An abort although nothing was written: a batch of this epoch may be under way, and must find its epoch over.
    fn end_nothing(
        &mut self,
        now: Now,
        end: &EndTxn,
        before: &Transaction,
    ) -> Result<ProducerIdentity, Failure> {
        let next_producer_id = self.next_producer_id(end.producer.epoch)?;
        let ended = Transaction {
            producer_epoch: next_epoch(end.producer.epoch),
            next_producer_id,
            last: Some((end.producer.producer_id, end.producer.epoch)),
            ..before.clone()
        };
        self.write(now, &end.id, completed(&ended, TransactionState::CompleteAbort));
        Ok(self.transactions[&end.id].identity())
    }

    pub(super) fn timed_out(&mut self, now: Now, id: &str) {
        let Some(transaction) = self.transactions.get(id) else { return };
        if transaction.state == TransactionState::Ongoing {
            let owner = transaction.identity();
            self.abort_open(now, id, AbortCause::TimedOut, Some(owner));
        }
    }

    /// Ends an open transaction in the coordinator's own right. The markers' epoch keeps its producer out. `last` may
    /// come back with what it has.
    pub(super) fn abort_open(
        &mut self,
        now: Now,
        id: &str,
        cause: AbortCause,
        last: Option<ProducerIdentity>,
    ) {
        let producer = self.transactions[id].identity();
        self.effect(TransactionEffect::Aborted { id: id.to_owned(), producer, cause });
        let bumps = cause != AbortCause::TimedOut || !bug::is_put_back("timeout-does-not-bump");
        let end = End {
            state: TransactionState::PrepareAbort,
            epoch: if bumps { next_epoch(producer.epoch) } else { producer.epoch },
            last,
            // No id is needed to go on with: whoever comes next is given one (KAFKA-20090).
            next_producer_id: None,
        };
        self.decide_end(now, id, &end);
    }

    /// The decision. From here on the transaction has one outcome, in the epoch after its own.
    fn decide_end(&mut self, now: Now, id: &str, end: &End) {
        let before = self.transactions[id].clone();
        assert!(before.state == TransactionState::Ongoing, "{id:?} decided twice: {before:?}");
        let transaction = Transaction {
            producer_epoch: end.epoch,
            last: end.last.map(|last| (last.producer_id, last.epoch)),
            next_producer_id: end.next_producer_id,
            state: end.state,
            ..before
        };
        self.write(now, id, transaction);
        self.deadlines.cancel(&Timer::Timeout { id: id.to_owned() });
        self.await_markers(id);
        self.send_markers(now, id);
    }

    /// The id that a producer goes on with after its transaction in `epoch`, if it needs another one.
    fn next_producer_id(&mut self, epoch: ProducerEpoch) -> Result<Option<ProducerId>, Failure> {
        if next_epoch(epoch) < self.config.epoch_max {
            return Ok(None);
        }
        self.take_producer_id().map(Some)
    }
}

/// The epoch of the markers. The last epoch of an id is never a transaction's, so there is one.
fn next_epoch(epoch: ProducerEpoch) -> ProducerEpoch {
    if bug::is_put_back("kip-890-no-epoch-bump") {
        return epoch;
    }
    epoch.checked_add(1).expect("producers get epochs below the last one")
}

/// What the producer goes on with once the transaction has ended.
fn after(transaction: &Transaction) -> ProducerIdentity {
    match transaction.next_producer_id {
        Some(producer_id) => ProducerIdentity { producer_id, epoch: 0 },
        None => transaction.identity(),
    }
}

/// Whether this is what the producer goes on with under another id, which it is told before the markers are written: until
/// then it has to wait, like whoever keeps its id.
pub(super) fn is_successor(transaction: &Transaction, producer: ProducerIdentity) -> bool {
    transaction.next_producer_id.is_some() && producer == after(transaction)
}

/// The transaction when all its markers are written.
pub(super) fn completed(transaction: &Transaction, state: TransactionState) -> Transaction {
    let ProducerIdentity { producer_id, epoch } = after(transaction);
    Transaction {
        producer_id,
        producer_epoch: epoch,
        next_producer_id: None,
        state,
        partitions: [].into(),
        ..transaction.clone()
    }
}

fn aborted() -> Failure {
    Failure::new(ErrorCode::TransactionAborted, "the transaction was aborted")
}

/// The producer has ended this transaction before, or the coordinator has in its place.
fn asked_again(transaction: &Transaction, end: &EndTxn) -> Result<ProducerIdentity, Failure> {
    let committed = match transaction.state {
        TransactionState::PrepareCommit | TransactionState::CompleteCommit => true,
        TransactionState::PrepareAbort | TransactionState::CompleteAbort => false,
        TransactionState::Empty | TransactionState::Ongoing => {
            let message = format!("{:?} was initialized since", end.id);
            return Err(Failure::new(ErrorCode::ProducerFenced, message));
        }
    };
    if committed != end.commit {
        if !committed {
            return Err(aborted());
        }
        let message = "the transaction is committed";
        return Err(Failure::new(ErrorCode::InvalidTransactionState, message));
    }
    match transaction.state.decision() {
        Some(_) => Err(concurrent(&end.id)),
        None => Ok(after(transaction)),
    }
}

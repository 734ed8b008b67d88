//! `InitProducerId`: a process takes over a transactional id, or the present owner goes on after an error.

use tidemark_protocol::{ErrorCode, Failure};

use super::{
    AbortCause, InitProducerId, ProducerIdentity, Transaction, TransactionCoordinator,
    TransactionState, check_id, concurrent, end::is_successor,
};
use crate::{decision::Now, limits::TRANSACTIONS_MAX};

impl TransactionCoordinator {
    pub(super) fn init_producer_id(
        &mut self,
        now: Now,
        init: &InitProducerId,
    ) -> Result<ProducerIdentity, Failure> {
        check_id(&init.id)?;
        let limit_ms = self.config.timeout_ms_max;
        if !(1..=limit_ms).contains(&init.timeout_ms) {
            let message = format!("a transaction's timeout is 1 to {limit_ms} ms");
            return Err(Failure::new(ErrorCode::InvalidTransactionTimeout, message));
        }
        let Some(transaction) = self.transactions.get(&init.id).cloned() else {
            return self.begin(now, init);
        };
        let standing = standing(&transaction, init.expected)?;
        if transaction.state.decision().is_some() {
            return Err(concurrent(&init.id));
        }
        let present = transaction.identity();
        let is_usable = present.epoch < self.config.epoch_max;
        if standing == Standing::AsksAgain && is_usable {
            return Ok(present);
        }
        if transaction.state == TransactionState::Ongoing {
            // The present owner may come back with what it has; whoever it was, nobody else may.
            let last = init.expected;
            self.abort_open(now, &init.id, AbortCause::Fenced, last);
            return Err(concurrent(&init.id));
        }
        self.succeed(now, init, &transaction)
    }

    fn begin(&mut self, now: Now, init: &InitProducerId) -> Result<ProducerIdentity, Failure> {
        if init.expected.is_some() {
            // The id has been forgotten; whoever remembers it starts over.
            let message = format!("nobody has initialized the transactional id {:?}", init.id);
            return Err(Failure::new(ErrorCode::InvalidProducerId, message));
        }
        if self.transactions.len() >= TRANSACTIONS_MAX {
            let message = format!("this coordinator has {TRANSACTIONS_MAX} transactional ids");
            return Err(Failure::new(ErrorCode::Overloaded, message));
        }
        let transaction = Transaction {
            producer_id: self.take_producer_id()?,
            producer_epoch: 0,
            last: None,
            next_producer_id: None,
            timeout_ms: init.timeout_ms,
            state: TransactionState::Empty,
            partitions: [].into(),
            started_ms: 0,
            updated_ms: now.wall_ms,
        };
        let identity = transaction.identity();
        self.write(now, &init.id, transaction);
        Ok(identity)
    }

    /// The next epoch, or a new id after the last one.
    fn succeed(
        &mut self,
        now: Now,
        init: &InitProducerId,
        before: &Transaction,
    ) -> Result<ProducerIdentity, Failure> {
        let next_epoch = before.producer_epoch.saturating_add(1);
        let identity = if next_epoch < self.config.epoch_max {
            ProducerIdentity { producer_id: before.producer_id, epoch: next_epoch }
        } else {
            ProducerIdentity { producer_id: self.take_producer_id()?, epoch: 0 }
        };
        let transaction = Transaction {
            producer_id: identity.producer_id,
            producer_epoch: identity.epoch,
            last: init.expected.map(|expected| (expected.producer_id, expected.epoch)),
            timeout_ms: init.timeout_ms,
            state: TransactionState::Empty,
            ..before.clone()
        };
        self.write(now, &init.id, transaction);
        Ok(identity)
    }
}

impl Transaction {
    pub fn identity(&self) -> ProducerIdentity {
        ProducerIdentity { producer_id: self.producer_id, epoch: self.producer_epoch }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A process that has nothing yet.
    Newcomer,
    Owner,
    /// The owner, which has not had the last answer.
    AsksAgain,
}

fn standing(
    transaction: &Transaction,
    expected: Option<ProducerIdentity>,
) -> Result<Standing, Failure> {
    let Some(expected) = expected else { return Ok(Standing::Newcomer) };
    if expected == transaction.identity() || is_successor(transaction, expected) {
        return Ok(Standing::Owner);
    }
    if transaction.last == Some((expected.producer_id, expected.epoch)) {
        return Ok(Standing::AsksAgain);
    }
    let message = format!("another process has taken over from epoch {}", expected.epoch);
    Err(Failure::new(ErrorCode::ProducerFenced, message))
}

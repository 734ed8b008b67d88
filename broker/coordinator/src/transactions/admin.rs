//! What operators see and do, and ids that nobody uses any more.

use tidemark_protocol::{ErrorCode, Failure};

use super::{
    AbortCause, EXPIRE_INTERVAL_MS, Timer, TransactionCoordinator, TransactionListing,
    TransactionState, concurrent, record::Change, since_ms,
};
use crate::decision::Now;

impl TransactionCoordinator {
    pub(super) fn list(&self) -> Vec<TransactionListing> {
        let listing = |(id, transaction): (&String, &super::Transaction)| TransactionListing {
            id: id.clone(),
            producer: transaction.identity(),
            state: transaction.state,
        };
        self.transactions.iter().map(listing).collect()
    }

    pub(super) fn abort(&mut self, now: Now, id: &str) -> Result<(), Failure> {
        let transaction = self.require(id)?;
        match transaction.state {
            TransactionState::Ongoing => {
                let owner = transaction.identity();
                self.abort_open(now, id, AbortCause::Operator, Some(owner));
                Ok(())
            }
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => Err(concurrent(id)),
            state => {
                let message = format!("{id:?} has no open transaction: it is {}", state.name());
                Err(Failure::new(ErrorCode::InvalidTransactionState, message))
            }
        }
    }

    pub(super) fn expire(&mut self, now: Now) {
        let retention_ms = self.config.retention_ms;
        let idle = self.transactions.iter().filter(|(_, transaction)| {
            transaction.state != TransactionState::Ongoing
                && transaction.state.decision().is_none()
                && since_ms(now, transaction.updated_ms) > retention_ms
        });
        let idle: Vec<String> = idle.map(|(id, _)| id.clone()).collect();
        for id in idle {
            self.write_change(Change { id, transaction: None });
        }
        self.deadlines.set(Timer::Expire, now.mono_ms + EXPIRE_INTERVAL_MS);
    }
}

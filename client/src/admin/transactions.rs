//! Transactions from an operator's side: which there are, one in full, and that one is aborted.

use futures_util::future::join_all;
use tidemark_protocol::{
    BrokerId,
    messages::{
        AbortTransactionRequest, AbortTransactionResponse, CoordinatorKind,
        DescribeTransactionRequest, DescribeTransactionResponse, ListTransactionsRequest,
        ListedTransaction, UnavailableTransactions,
    },
};

use super::Admin;
use crate::{
    cluster::{Repeat, Target},
    coordinator::Coordinator,
    error::AdminError,
};

/// The transactional ids of a cluster.
#[derive(Clone, Debug, Default)]
pub struct TransactionList {
    /// Sorted by id.
    pub transactions: Vec<ListedTransaction>,
    /// Coordinators that could not say which they have: the list is not complete.
    pub unavailable: Vec<UnavailableTransactions>,
    /// Brokers that could not be asked, and why.
    pub unreachable: Vec<(BrokerId, AdminError)>,
}

impl Admin {
    /// The transactional ids of the whole cluster, as far as their coordinators can be asked: every broker that is not fenced is.
    pub async fn list_transactions(&self) -> Result<TransactionList, AdminError> {
        let brokers = self.metadata(Some(Vec::new())).await?.brokers;
        let serving = brokers.iter().filter(|broker| !broker.fenced).map(|broker| broker.id);
        let asked = serving.map(async |id| {
            (id, self.question(&Target::Broker(id), &ListTransactionsRequest {}).await)
        });
        let mut list = TransactionList::default();
        for (broker, answer) in join_all(asked).await {
            match answer {
                Ok(mut answer) => {
                    list.transactions.append(&mut answer.transactions);
                    list.unavailable.append(&mut answer.unavailable);
                }
                Err(error) => list.unreachable.push((broker, error)),
            }
        }
        list.transactions.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
        // One may have moved while they were asked.
        list.transactions.dedup_by(|a, b| a.transactional_id == b.transactional_id);
        Ok(list)
    }

    /// One transactional id in full.
    pub async fn describe_transaction(
        &self,
        transactional_id: &str,
    ) -> Result<DescribeTransactionResponse, AdminError> {
        let request = DescribeTransactionRequest { transactional_id: transactional_id.to_owned() };
        let coordinator = self.transaction_coordinator(transactional_id);
        Ok(coordinator.ask(&request, Repeat::Question, self.deadline()).await?)
    }

    /// Aborts the open transaction of a transactional id. Its producer hears of it with what it asks next.
    pub async fn abort_transaction(&self, transactional_id: &str) -> Result<(), AdminError> {
        let request = AbortTransactionRequest {
            transactional_id: transactional_id.to_owned(),
            timeout_ms: self.timeout_ms(),
        };
        let coordinator = self.transaction_coordinator(transactional_id);
        let deadline = self.deadline();
        let AbortTransactionResponse {} =
            coordinator.ask(&request, Repeat::IfNotDone, deadline).await?;
        Ok(())
    }

    fn transaction_coordinator(&self, transactional_id: &str) -> Coordinator {
        let kind = CoordinatorKind::Transaction;
        Coordinator::new(self.cluster.clone(), kind, transactional_id.into())
    }
}

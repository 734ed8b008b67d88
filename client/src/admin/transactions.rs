//! Transactions from an operator's side: which there are, one in full, and that one is aborted.

use tidemark_protocol::messages::{
    AbortTransactionRequest, AbortTransactionResponse, CoordinatorKind, DescribeTransactionRequest,
    DescribeTransactionResponse, ListTransactionsRequest, ListedTransaction,
};

use super::Admin;
use crate::{
    cluster::{Repeat, Target},
    coordinator::Coordinator,
    error::AdminError,
};

impl Admin {
    /// The transactional ids of the whole cluster, sorted: every broker that is not fenced is asked.
    pub async fn list_transactions(&self) -> Result<Vec<ListedTransaction>, AdminError> {
        let brokers = self.metadata(Some(Vec::new())).await?.brokers;
        let mut all = Vec::new();
        for broker in brokers.into_iter().filter(|broker| !broker.fenced) {
            let target = Target::Broker(broker.id);
            let listed = self.question(&target, &ListTransactionsRequest {}).await?;
            all.extend(listed.transactions);
        }
        all.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
        // One may have moved while they were asked.
        all.dedup_by(|a, b| a.transactional_id == b.transactional_id);
        Ok(all)
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

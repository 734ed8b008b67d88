//! What an operator asks of transactions: which there are, one in full, and that one is aborted.

use std::sync::Arc;

use futures_util::future::join_all;
use tidemark_coordinator::transactions::{
    TransactionRequest, TransactionResponse, TransactionState,
};
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    messages::{
        AbortTransactionRequest, AbortTransactionResponse, DescribeTransactionRequest,
        DescribeTransactionResponse, ListTransactionsRequest, ListTransactionsResponse,
        ListedTransaction, TransactionStatus, UnavailableTransactions,
    },
};

use super::{ask, from_machine, wrong_answer};
use crate::{broker::Broker, coordinators::topics::TRANSACTIONS, service::timeout};

/// How long questions wait for the commit of what they would tell.
const QUESTION_TIMEOUT_MS: u32 = 10_000;

/// Those that belong here, as far as their coordinators can tell; empty on a broker that coordinates nothing.
pub(crate) async fn list_transactions(
    broker: Arc<Broker>,
    _request: ListTransactionsRequest,
) -> Result<ListTransactionsResponse, Failure> {
    let image = broker.image();
    let topic_id = image.topic(TRANSACTIONS).map(|topic| topic.id);
    let partitions = image.topic(TRANSACTIONS).map_or(0, |topic| topic.partition_count());
    let ids = (0..partitions)
        .filter_map(|partition| Some(TopicPartition { topic_id: topic_id?, partition }));
    let asked = ids.map(async |id| {
        let asked = broker.transactions.ask(id.partition, TransactionRequest::List);
        let answer = tokio::time::timeout(timeout(QUESTION_TIMEOUT_MS), asked).await;
        (id, answer.unwrap_or_else(|_elapsed| Err(not_committed())))
    });
    let mut response = ListTransactionsResponse::default();
    for (partition, answer) in join_all(asked).await {
        match answer {
            Ok(TransactionResponse::List(some)) => {
                response.transactions.extend(some.into_iter().map(|one| ListedTransaction {
                    transactional_id: one.id,
                    producer: from_machine(one.producer),
                    status: status(one.state),
                }));
            }
            Ok(other) => return Err(wrong_answer(&other)),
            // Another broker's to tell.
            Err(failure) if failure.code == ErrorCode::NotCoordinator => {}
            Err(failure) => {
                response.unavailable.push(UnavailableTransactions { partition, failure });
            }
        }
    }
    response.transactions.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
    Ok(response)
}

fn not_committed() -> Failure {
    Failure::new(ErrorCode::Timeout, "what would be told is not committed")
}

pub(crate) async fn describe_transaction(
    broker: Arc<Broker>,
    request: DescribeTransactionRequest,
) -> Result<DescribeTransactionResponse, Failure> {
    let id = request.transactional_id;
    let describe = TransactionRequest::Describe { id: id.clone() };
    match ask(&broker, &id, QUESTION_TIMEOUT_MS, describe).await? {
        TransactionResponse::Describe(one) => Ok(DescribeTransactionResponse {
            producer: tidemark_protocol::messages::ProducerIdentity {
                producer_id: one.producer_id,
                epoch: one.producer_epoch,
            },
            status: status(one.state),
            transaction_timeout_ms: one.timeout_ms,
            started_ms: if one.started_ms == 0 { -1 } else { one.started_ms },
            updated_ms: one.updated_ms,
            partitions: one.partitions.into_iter().collect(),
        }),
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn abort_transaction(
    broker: Arc<Broker>,
    request: AbortTransactionRequest,
) -> Result<AbortTransactionResponse, Failure> {
    let id = request.transactional_id;
    let abort = TransactionRequest::Abort { id: id.clone() };
    match ask(&broker, &id, request.timeout_ms, abort).await? {
        TransactionResponse::Abort => Ok(AbortTransactionResponse {}),
        other => Err(wrong_answer(&other)),
    }
}

fn status(state: TransactionState) -> TransactionStatus {
    match state {
        TransactionState::Empty => TransactionStatus::Empty,
        TransactionState::Ongoing => TransactionStatus::Ongoing,
        TransactionState::PrepareCommit => TransactionStatus::Committing,
        TransactionState::PrepareAbort => TransactionStatus::Aborting,
        TransactionState::CompleteCommit => TransactionStatus::Committed,
        TransactionState::CompleteAbort => TransactionStatus::Aborted,
    }
}

//! What producers, partition leaders and operators ask of transactions: each verb finds the coordinator, asks it, and puts
//! its answer into words.

pub(crate) mod inspect;
pub(crate) mod join;
pub(crate) mod markers;
pub(crate) mod offsets;

use std::sync::Arc;

use tidemark_coordinator::transactions::{
    self as machine, EndTxn, InitProducerId, TransactionRequest, TransactionResponse,
};
use tidemark_protocol::{
    ErrorCode, Failure, PartitionIndex,
    messages::{
        EndTransactionRequest, EndTransactionResponse, ProducerIdentity, TransactionalProducer,
    },
};

use super::timeout;
use crate::{
    broker::Broker,
    coordinators::topics::{TRANSACTIONS, partition_of},
    metrics::TransactionEnd,
};

/// The identity of a producer under a transactional id.
pub(crate) async fn init_producer_id(
    broker: &Broker,
    producer: TransactionalProducer,
    timeout_ms: u32,
) -> Result<ProducerIdentity, Failure> {
    let TransactionalProducer { transactional_id: id, transaction_timeout_ms, expected } = producer;
    let init = InitProducerId {
        id: id.clone(),
        timeout_ms: transaction_timeout_ms,
        expected: expected.map(to_machine),
    };
    let request = TransactionRequest::InitProducerId(init);
    match ask(broker, &id, timeout_ms, request).await? {
        TransactionResponse::InitProducerId(producer) => Ok(from_machine(producer)),
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn end_transaction(
    broker: Arc<Broker>,
    request: EndTransactionRequest,
) -> Result<EndTransactionResponse, Failure> {
    let EndTransactionRequest { transactional_id: id, producer, commit, timeout_ms } = request;
    let end = EndTxn { id: id.clone(), producer: to_machine(producer), commit };
    match ask(&broker, &id, timeout_ms, TransactionRequest::EndTxn(end)).await? {
        TransactionResponse::EndTxn(producer) => {
            let end = if commit { TransactionEnd::Committed } else { TransactionEnd::Aborted };
            broker.metrics.transactions().ended(end);
            Ok(EndTransactionResponse { producer: from_machine(producer) })
        }
        other => Err(wrong_answer(&other)),
    }
}

/// The partition of the internal topic that the transactional id belongs to.
fn partition_of_id(broker: &Broker, id: &str) -> Result<PartitionIndex, Failure> {
    let image = broker.image();
    let topic = image.topic(TRANSACTIONS).ok_or_else(|| {
        let message =
            "there are no transactions in this cluster yet: look the coordinator up first";
        Failure::new(ErrorCode::NotCoordinator, message)
    })?;
    Ok(partition_of(topic, id))
}

/// Asks the coordinator of the transactional id, if it is here, and waits until what it answers is committed.
async fn ask(
    broker: &Broker,
    id: &str,
    timeout_ms: u32,
    request: TransactionRequest,
) -> Result<TransactionResponse, Failure> {
    let partition = partition_of_id(broker, id)?;
    let asked = broker.transactions.ask(partition, request);
    tokio::time::timeout(timeout(timeout_ms), asked).await.unwrap_or_else(|_elapsed| {
        let message = format!("not committed within {timeout_ms} ms; it may still happen");
        Err(Failure::new(ErrorCode::Timeout, message))
    })
}

fn to_machine(producer: ProducerIdentity) -> machine::ProducerIdentity {
    let ProducerIdentity { producer_id, epoch } = producer;
    machine::ProducerIdentity { producer_id, epoch }
}

fn from_machine(producer: machine::ProducerIdentity) -> ProducerIdentity {
    let machine::ProducerIdentity { producer_id, epoch } = producer;
    ProducerIdentity { producer_id, epoch }
}

/// A request was answered with another request's answer.
fn wrong_answer(answer: &TransactionResponse) -> Failure {
    tracing::error!(?answer, "a transaction coordinator answered something else");
    Failure::new(ErrorCode::Internal, "the coordinator answered something else")
}

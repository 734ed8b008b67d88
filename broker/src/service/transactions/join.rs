//! Partitions become part of a transaction: asked by their leaders, before they append its first batch, and answered by its
//! coordinator (KIP-890).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidemark_coordinator::transactions::{AddPartitions, TransactionRequest, TransactionResponse};
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    limits::REQUEST_PARTITIONS_MAX,
    messages::{JoinTransactionRequest, JoinTransactionResponse, ProducerIdentity},
};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{ask, partition_of_id, to_machine, wrong_answer};
use crate::{broker::Broker, coordinators::topics::TRANSACTIONS, peers::pause, service::timeout};

/// How long one node is waited for before the next attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes a partition that is led here part of a transaction, wherever its coordinator is. No failure says that anything was
/// appended.
pub(crate) async fn join(
    broker: &Arc<Broker>,
    transactional_id: &str,
    producer: ProducerIdentity,
    partition: TopicPartition,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut failures = 0;
    loop {
        let request = JoinTransactionRequest {
            transactional_id: transactional_id.to_owned(),
            producer,
            partitions: vec![partition],
            metadata_index: broker.image().metadata_index(),
            timeout_ms: u32::try_from(ATTEMPT_TIMEOUT.as_millis()).expect("seconds"),
        };
        let failure = match attempt(broker, request).await {
            Ok(JoinTransactionResponse {}) => return Ok(()),
            Err(failure) => failure,
        };
        if !is_worth_another_try(failure.code) {
            return Err(failure);
        }
        failures += 1;
        let again = Instant::now() + pause(failures);
        if again >= deadline {
            let message = format!(
                "{partition}: the coordinator of {transactional_id:?} has not answered: {}",
                failure.message
            );
            return Err(Failure::new(ErrorCode::TransactionUnverified, message));
        }
        sleep_until(again).await;
    }
}

async fn attempt(
    broker: &Arc<Broker>,
    request: JoinTransactionRequest,
) -> Result<JoinTransactionResponse, Failure> {
    let image = broker.image();
    let index = partition_of_id(broker, &request.transactional_id)?;
    let leader = image.topic(TRANSACTIONS).and_then(|topic| topic.partition(index)?.leader);
    match leader {
        Some(leader) if leader == broker.id => join_transaction(Arc::clone(broker), request).await,
        Some(leader) => {
            let asked = broker.control.peers().ask(leader, &request, ATTEMPT_TIMEOUT).await;
            asked.map(|(answer, _payload)| answer)
        }
        None => {
            let message = format!("{TRANSACTIONS}/{index} has no leader");
            Err(Failure::new(ErrorCode::NotReady, message))
        }
    }
}

/// Whether another node may coordinate by then, or the same one be further.
pub fn is_worth_another_try(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NotCoordinator
            | ErrorCode::CoordinatorLoading
            | ErrorCode::NotReady
            | ErrorCode::Timeout
            | ErrorCode::Overloaded
            // The markers of the last one are on their way.
            | ErrorCode::ConcurrentTransactions
    )
}

/// Answers as the coordinator.
pub(crate) async fn join_transaction(
    broker: Arc<Broker>,
    request: JoinTransactionRequest,
) -> Result<JoinTransactionResponse, Failure> {
    let deadline = Instant::now() + timeout(request.timeout_ms);
    if request.partitions.len() > REQUEST_PARTITIONS_MAX {
        let message = format!("one request may name {REQUEST_PARTITIONS_MAX} partitions");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    // What is in the transaction must be in the metadata here: what is missing from it counts as deleted.
    let mut images = broker.images.clone();
    let is_known =
        |image: &Arc<tidemark_controller::Image>| image.metadata_index() >= request.metadata_index;
    let known = timeout_at(deadline, images.wait_for(is_known)).await;
    if !known.is_ok_and(|seen| seen.is_ok()) {
        let message = "the coordinator's metadata is older than that of the partition's leader";
        return Err(Failure::new(ErrorCode::NotReady, message));
    }
    let id = request.transactional_id;
    let add = AddPartitions {
        id: id.clone(),
        producer: to_machine(request.producer),
        partitions: request.partitions.into_iter().collect::<BTreeSet<_>>(),
        verify_only: false,
    };
    let add = TransactionRequest::AddPartitions(add);
    match ask(&broker, &id, request.timeout_ms, add).await? {
        TransactionResponse::AddPartitions => Ok(JoinTransactionResponse {}),
        other => Err(wrong_answer(&other)),
    }
}

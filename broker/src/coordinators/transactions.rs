//! Transaction coordinators, as the host sees them: what becomes of their effects.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tidemark_controller::Image;
use tidemark_coordinator::{
    LoadError, Now, Record, Token, TransactionConfig, TransactionCoordinator, TransactionLoader,
    transactions::{
        AbortCause, MarkerResult, Markers, MarkersWritten, TransactionEffect, TransactionRequest,
        TransactionResponse,
    },
};
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, Offset, PartitionIndex, TopicPartition,
    messages::{ProducerIdentity, WriteMarkersRequest, WriteMarkersResponse},
};
use tokio::time::sleep;

use super::{Coordinator, DecisionOf, Start, ms, topics};
use crate::{
    broker::Broker, metrics::TransactionEnd, producer_ids,
    service::transactions::markers::write_markers,
};

/// How long the leaders of partitions have for markers. After a while the coordinator asks for them again.
const MARKERS_TIMEOUT_MS: u32 = 10_000;
/// How long one attempt to get producer ids may take, and the pause before the next.
const IDS_TIMEOUT: Duration = Duration::from_secs(5);
const IDS_PAUSE: Duration = Duration::from_millis(500);

impl Coordinator for TransactionCoordinator {
    const TOPIC: &'static str = topics::TRANSACTIONS;
    type Loader = TransactionLoader;
    type Request = TransactionRequest;
    type Response = TransactionResponse;
    type Effect = TransactionEffect;
    /// It knows nothing of the metadata.
    type Excerpt = ();

    fn excerpt(_image: &Image) {}

    fn replay(
        loader: &mut TransactionLoader,
        offset: Offset,
        record: &Record,
    ) -> Result<(), LoadError> {
        loader.replay(offset, record)
    }

    fn finish(
        loader: TransactionLoader,
        start: Start<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError> {
        // Epochs count elections: there are not so many.
        let coordinator_epoch = i32::try_from(start.leader_epoch).unwrap_or(i32::MAX);
        let timeout_ms_max = ms(start.broker.config.transaction_timeout_max);
        let config = TransactionConfig {
            timeout_ms_max: u32::try_from(timeout_ms_max).unwrap_or(u32::MAX),
            ..TransactionConfig::default()
        };
        loader.finish(start.first_offset, coordinator_epoch, config, start.now)
    }

    fn handle(&mut self, now: Now, token: Token, request: TransactionRequest) -> DecisionOf<Self> {
        self.handle(now, token, request)
    }

    fn on_timer(&mut self, now: Now) -> DecisionOf<Self> {
        self.on_timer(now)
    }

    /// Comes once, when it begins to serve: producer ids are asked for before anybody needs them.
    fn on_excerpt(&mut self, _excerpt: &()) -> DecisionOf<Self> {
        self.settle()
    }

    fn carry_out(broker: &Arc<Broker>, partition: PartitionIndex, effect: TransactionEffect) {
        let task_of = Arc::clone(broker);
        let shutdown = broker.tasks.shutdown().clone();
        match effect {
            TransactionEffect::SendMarkers(markers) => {
                broker.tasks.spawn("markers", async move {
                    shutdown.or_stop(send_markers(&task_of, partition, markers)).await;
                });
            }
            TransactionEffect::NeedProducerIds => {
                broker.tasks.spawn("producer-ids", async move {
                    shutdown.or_stop(get_producer_ids(&task_of, partition)).await;
                });
            }
            TransactionEffect::Aborted { id, producer, cause } => {
                let (end, why) = match cause {
                    AbortCause::TimedOut => (TransactionEnd::TimedOut, "it was open for too long"),
                    AbortCause::Operator => {
                        (TransactionEnd::Operator, "an operator has asked for it")
                    }
                    AbortCause::Fenced => {
                        (TransactionEnd::Fenced, "another process began under its id")
                    }
                };
                broker.metrics.transactions().ended(end);
                tracing::warn!(
                    transactional_id = id,
                    producer_id = producer.producer_id,
                    why,
                    "a transaction was aborted"
                );
            }
        }
    }

    fn ended(_broker: &Broker, _partition: PartitionIndex) {}
}

/// Gets a block from the controller, however long that takes, unless the coordinator ends first.
async fn get_producer_ids(broker: &Arc<Broker>, partition: PartitionIndex) {
    loop {
        match producer_ids::block(broker, IDS_TIMEOUT).await {
            Ok(block) => {
                // An error: it has ended, and the block is lost with it.
                let add = |machine: &mut TransactionCoordinator| machine.add_producer_ids(block);
                drop(broker.transactions.visit(partition, add).await);
                return;
            }
            Err(failure) => tracing::debug!(%failure, "no producer ids yet"),
        }
        sleep(IDS_PAUSE).await;
        if broker.transactions.visit(partition, |_machine| ()).await.is_err() {
            return;
        }
    }
}

/// Tells the leaders of all partitions, and the coordinator what they say. Once: it asks again for what is left.
async fn send_markers(broker: &Arc<Broker>, partition: PartitionIndex, markers: Markers) {
    let image = broker.image();
    let mut by_leader: BTreeMap<BrokerId, Vec<TopicPartition>> = BTreeMap::new();
    let mut deleted = Vec::new();
    for id in &markers.partitions {
        match image.partition(*id) {
            Some(state) => {
                if let Some(leader) = state.leader {
                    by_leader.entry(leader).or_default().push(*id);
                }
            }
            // The metadata here is as new as the coordinator, which knows no partition that was not in it before.
            None => deleted.push((*id, MarkerResult::TopicDeleted)),
        }
    }
    let telling =
        by_leader.into_iter().map(|(leader, ids)| tell(broker, partition, &markers, leader, ids));
    join_all(telling).await;
    report(broker, partition, &markers, deleted).await;
}

/// Tells one leader, and the coordinator what it says.
async fn tell(
    broker: &Arc<Broker>,
    partition: PartitionIndex,
    markers: &Markers,
    leader: BrokerId,
    ids: Vec<TopicPartition>,
) {
    match ask_leader(broker, leader, markers, ids.clone()).await {
        Ok(answer) => {
            let results = ids.into_iter().zip(answer.partitions);
            let results = results.filter_map(|(id, outcome)| Some((id, result(outcome)?)));
            report(broker, partition, markers, results.collect()).await;
        }
        Err(failure) => tracing::debug!(leader, %failure, "markers are not written yet"),
    }
}

async fn ask_leader(
    broker: &Arc<Broker>,
    leader: BrokerId,
    markers: &Markers,
    partitions: Vec<TopicPartition>,
) -> Result<WriteMarkersResponse, Failure> {
    let producer = ProducerIdentity {
        producer_id: markers.producer.producer_id,
        epoch: markers.producer.epoch,
    };
    let request = WriteMarkersRequest {
        producer,
        coordinator_epoch: markers.coordinator_epoch,
        commit: markers.commit,
        partitions,
        timeout_ms: MARKERS_TIMEOUT_MS,
    };
    if leader == broker.id {
        return write_markers(Arc::clone(broker), request).await;
    }
    let wait = Duration::from_millis(MARKERS_TIMEOUT_MS.into());
    broker.control.peers().ask(leader, &request, wait).await.map(|(answer, _payload)| answer)
}

/// What an answer means to the coordinator; `None`: that it has to ask again.
fn result(outcome: Result<(), Failure>) -> Option<MarkerResult> {
    match outcome {
        Ok(()) => Some(MarkerResult::Written),
        Err(failure) if failure.code == ErrorCode::TransactionCoordinatorFenced => {
            Some(MarkerResult::Fenced)
        }
        Err(failure) => {
            tracing::debug!(%failure, "a marker is not written yet");
            None
        }
    }
}

async fn report(
    broker: &Broker,
    partition: PartitionIndex,
    markers: &Markers,
    results: Vec<(TopicPartition, MarkerResult)>,
) {
    if results.is_empty() {
        return;
    }
    let written = MarkersWritten { id: markers.id.clone(), producer: markers.producer, results };
    let request = TransactionRequest::MarkersWritten(written);
    // An error: the next coordinator sends them again.
    drop(broker.transactions.ask(partition, request).await);
}

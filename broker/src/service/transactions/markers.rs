//! Write markers: the end of a transaction reaches the partitions that are led here.

use std::sync::Arc;

use futures_util::future::join_all;
use tidemark_coordinator::{
    groups::{EndTransaction, GroupRequest},
    producer_state::Marker,
};
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    limits::REQUEST_PARTITIONS_MAX,
    messages::{WriteMarkersRequest, WriteMarkersResponse},
};
use tokio::{sync::oneshot, time::timeout_at};

use super::super::{find_partition, timeout};
use crate::{
    broker::Broker,
    coordinators::topics::GROUPS,
    shard::{Command, WriteMarker},
};

/// Writes them, and answers when each is committed or could not be.
pub(crate) async fn write_markers(
    broker: Arc<Broker>,
    request: WriteMarkersRequest,
) -> Result<WriteMarkersResponse, Failure> {
    if request.partitions.len() > REQUEST_PARTITIONS_MAX {
        let message = format!("one request may name {REQUEST_PARTITIONS_MAX} partitions");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let deadline = tokio::time::Instant::now() + timeout(request.timeout_ms);
    let groups = broker.image().topic(GROUPS).map(|topic| topic.id);
    let ids = request.partitions.clone();
    let writing = ids.into_iter().map(|id| {
        timeout_at(deadline, write_one(&broker, id, &request, groups == Some(id.topic_id)))
    });
    let written = join_all(writing).await.into_iter().map(|written| {
        written.unwrap_or_else(|_elapsed| {
            Err(Failure::new(ErrorCode::Timeout, "the marker is not committed yet"))
        })
    });
    Ok(WriteMarkersResponse { partitions: written.collect() })
}

async fn write_one(
    broker: &Broker,
    id: TopicPartition,
    request: &WriteMarkersRequest,
    is_of_groups: bool,
) -> Result<(), Failure> {
    if is_of_groups {
        end_in_groups(broker, id, request).await
    } else {
        write_marker(broker, id, request).await
    }
}

async fn write_marker(
    broker: &Broker,
    id: TopicPartition,
    request: &WriteMarkersRequest,
) -> Result<(), Failure> {
    let view = find_partition(broker, id)?;
    let (reply, outcome) = oneshot::channel();
    let marker = Marker { commit: request.commit, coordinator_epoch: request.coordinator_epoch };
    let deadline = timeout(request.timeout_ms).as_millis();
    let deadline_ms = broker.clock.monotonic_ms() + u64::try_from(deadline).expect("it is bounded");
    let (partition, producer) = (id, request.producer);
    let write = WriteMarker { partition, producer, marker, deadline_ms, reply };
    view.shard.send(Command::WriteMarker(write)).await?;
    let outcome = outcome.await.map_err(|_dropped| {
        Failure::new(ErrorCode::NotReady, "the broker stopped before the marker was committed")
    })?;
    outcome.map(drop)
}

/// In the groups' topic the coordinator of the partition keeps transactions by itself.
async fn end_in_groups(
    broker: &Broker,
    id: TopicPartition,
    request: &WriteMarkersRequest,
) -> Result<(), Failure> {
    let end = EndTransaction {
        producer_id: request.producer.producer_id,
        producer_epoch: request.producer.epoch,
        coordinator_epoch: request.coordinator_epoch,
        commit: request.commit,
    };
    broker.groups.ask(id.partition, GroupRequest::EndTransaction(end)).await.map(drop)
}

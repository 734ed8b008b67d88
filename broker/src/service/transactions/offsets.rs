//! Commit transactional offsets: a group's offsets that count if the producer's transaction commits.

use std::sync::Arc;

use tidemark_coordinator::groups::{
    CommitTransactionalOffsets, GroupRequest, GroupResponse, Verification,
};
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    messages::{CommitTransactionalOffsetsRequest, CommitTransactionalOffsetsResponse},
};
use tokio::time::{Instant, timeout_at};

use super::join::join;
use crate::{
    broker::Broker,
    coordinators::topics::GROUPS,
    service::{
        groups::{committer, in_words, partition_of_group},
        timeout,
    },
};

pub(crate) async fn commit_transactional_offsets(
    broker: Arc<Broker>,
    request: CommitTransactionalOffsetsRequest,
) -> Result<CommitTransactionalOffsetsResponse, Failure> {
    let deadline = Instant::now() + timeout(request.timeout_ms);
    timeout_at(deadline, commit(broker, request, deadline)).await.unwrap_or_else(|_elapsed| {
        Err(Failure::new(ErrorCode::Timeout, "not committed in time; it may still happen"))
    })
}

async fn commit(
    broker: Arc<Broker>,
    request: CommitTransactionalOffsetsRequest,
    deadline: Instant,
) -> Result<CommitTransactionalOffsetsResponse, Failure> {
    let producer = request.producer;
    let partition = partition_of_group(&broker, &request.group)?;
    let begin = move |groups: &mut tidemark_coordinator::GroupCoordinator| {
        groups.begin_verification(producer.producer_id, producer.epoch)
    };
    let guard = match broker.groups.visit(partition, begin).await? {
        Verification::NotNeeded => None,
        Verification::Needed { guard } => {
            let topic_id = broker.image().topic(GROUPS).map(|topic| topic.id);
            let topic_id = topic_id.ok_or_else(|| {
                Failure::new(ErrorCode::NotCoordinator, "there are no groups in this cluster yet")
            })?;
            let id = TopicPartition { topic_id, partition };
            join(&broker, &request.transactional_id, producer, id, deadline).await?;
            Some(guard)
        }
    };
    let partitions: Vec<_> = request.offsets.iter().map(|one| one.partition).collect();
    let commit = CommitTransactionalOffsets {
        group: request.group,
        producer_id: producer.producer_id,
        producer_epoch: producer.epoch,
        guard,
        committer: committer(request.member),
        offsets: request.offsets.into_iter().map(crate::service::groups::offset).collect(),
    };
    let commit = GroupRequest::CommitTransactionalOffsets(commit);
    match broker.groups.ask(partition, commit).await? {
        GroupResponse::CommitTransactionalOffsets(outcomes) => {
            let partitions = in_words(partitions.into_iter(), outcomes);
            Ok(CommitTransactionalOffsetsResponse { partitions })
        }
        other => Err(crate::service::groups::wrong_answer(&other)),
    }
}

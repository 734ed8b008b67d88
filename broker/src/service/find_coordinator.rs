//! Find coordinator: the leader of the partition of an internal topic that a group belongs to.

use std::sync::Arc;

use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    messages::{CoordinatorKind, FindCoordinatorRequest, FindCoordinatorResponse},
};

use crate::{
    broker::Broker,
    coordinators::topics::{GROUPS, ensure, partition_of},
};

pub(crate) async fn find_coordinator(
    broker: Arc<Broker>,
    request: FindCoordinatorRequest,
) -> Result<FindCoordinatorResponse, Failure> {
    let name = match request.kind {
        CoordinatorKind::Group => GROUPS,
        CoordinatorKind::Transaction => {
            let message = "this broker does not coordinate transactions yet";
            return Err(Failure::new(ErrorCode::UnsupportedApi, message));
        }
    };
    let topic_id = ensure(&broker, name, request.timeout_ms).await?;
    let image = broker.image();
    let not_ready = |message: String| Failure::new(ErrorCode::NotReady, message);
    let topic = image.topic_by_id(topic_id);
    let topic = topic.ok_or_else(|| not_ready(format!("{name} is not known here yet")))?;
    let partition = partition_of(topic, &request.key);
    let state = topic.partition(partition).expect("it was taken modulo their number");
    let leader = state.leader;
    let leader = leader.ok_or_else(|| not_ready(format!("{name}/{partition} has no leader")))?;
    Ok(FindCoordinatorResponse {
        broker: leader,
        partition: TopicPartition { topic_id, partition },
        leader_epoch: state.leader_epoch,
    })
}

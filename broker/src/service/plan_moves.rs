//! Plan moves: what would have to move for a goal. Changes nothing.

use tidemark_controller::{
    Image, Topic,
    plan::{self, Moves},
};
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    limits::REQUEST_PARTITIONS_MAX,
    messages::{PlanGoal, PlanMovesRequest, PlanMovesResponse, PlannedMove},
};

use crate::broker::Broker;

pub(crate) fn plan_moves(
    broker: &Broker,
    request: &PlanMovesRequest,
) -> Result<PlanMovesResponse, Failure> {
    let image = broker.image();
    let asked = asked_for(&image, request)?;
    let moves = match request.goal {
        PlanGoal::Balance => plan::balance(&image, REQUEST_PARTITIONS_MAX),
        PlanGoal::Evacuate if request.brokers.is_empty() => {
            let message = "an evacuation names the brokers to leave";
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        PlanGoal::Evacuate => plan::evacuate(&image, &request.brokers, REQUEST_PARTITIONS_MAX)?,
        PlanGoal::Place => {
            let factor = request.replication_factor;
            plan::place(&image, &asked, &request.brokers, factor)?
        }
    };
    let is_restricted = !request.topics.is_empty() || !request.partitions.is_empty();
    let is_asked = |id: &TopicPartition| !is_restricted || asked.contains(id);
    Ok(PlanMovesResponse { moves: planned(&image, moves, is_asked) })
}

fn asked_for(image: &Image, request: &PlanMovesRequest) -> Result<Vec<TopicPartition>, Failure> {
    if !request.partitions.is_empty() {
        return Ok(request.partitions.clone());
    }
    let all = |topic: &Topic| {
        let topic_id = topic.id;
        (0..topic.partition_count()).map(move |partition| TopicPartition { topic_id, partition })
    };
    if request.topics.is_empty() {
        return Ok(image.topics().flat_map(|topic| all(topic)).collect());
    }
    let mut asked = Vec::new();
    for name in &request.topics {
        asked.extend(all(image.require_topic(name)?));
    }
    Ok(asked)
}

fn planned(
    image: &Image,
    moves: Moves,
    is_asked: impl Fn(&TopicPartition) -> bool,
) -> Vec<PlannedMove> {
    let one = |id: TopicPartition, to| {
        let topic = image.topic_by_id(id.topic_id)?;
        let partition = topic.partition(id.partition)?;
        let from = partition.target_replicas().collect();
        Some(PlannedMove { topic: topic.name.to_string(), partition: id, from, to })
    };
    let changes = moves.changes.into_iter().filter(|change| is_asked(&change.partition));
    changes.filter_map(|change| one(change.partition, change.replicas?)).collect()
}

//! Reassign partitions: replicas move, or a move is taken back. Answers when the moves have begun.

use std::sync::Arc;

use tidemark_controller::{
    Answer, Command,
    command::{Reassign, ReassignPartition},
};
use tidemark_protocol::{
    Failure,
    messages::{ReassignPartitionsRequest, ReassignPartitionsResponse},
};

use super::{change_metadata, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn reassign_partitions(
    broker: Arc<Broker>,
    request: ReassignPartitionsRequest,
) -> Result<ReassignPartitionsResponse, Failure> {
    let changes = request
        .moves
        .into_iter()
        .map(|one| ReassignPartition { partition: one.partition, replicas: one.replicas });
    let command = Command::Reassign(Reassign {
        changes: changes.collect(),
        throttle_bytes_per_second: request.throttle_bytes_per_second,
    });
    let answer = if request.validate_only {
        broker.image().decide(&command)?.1
    } else {
        change_metadata(&broker, command, request.timeout_ms).await?
    };
    let Answer::Reassigned(moves) = answer else { return Err(wrong_answer(&answer)) };
    Ok(ReassignPartitionsResponse { moves })
}

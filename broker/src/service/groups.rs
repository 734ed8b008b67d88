//! What members, administrators and consumers without a group's membership ask of a group: each verb finds the coordinator
//! here, asks it, and puts its answer into words.

pub(crate) mod administer;
pub(crate) mod heartbeat;
pub(crate) mod inspect;
pub(crate) mod lag;
pub(crate) mod offsets;
pub(crate) mod seek;

use tidemark_coordinator::groups::{Committer, GroupRequest, GroupResponse};
use tidemark_protocol::{
    ErrorCode, Failure, PartitionIndex, TopicPartition, messages::GroupMember,
};

use super::timeout;
use crate::{
    broker::Broker,
    coordinators::topics::{GROUPS, partition_of},
};

/// How long questions wait for the commit of what they would tell.
const QUESTION_TIMEOUT_MS: u32 = 10_000;

/// The partition of the internal topic that the group belongs to.
fn partition_of_group(broker: &Broker, group: &str) -> Result<PartitionIndex, Failure> {
    let image = broker.image();
    let topic = image.topic(GROUPS).ok_or_else(|| {
        let message = "there are no groups in this cluster yet: look the coordinator up first";
        Failure::new(ErrorCode::NotCoordinator, message)
    })?;
    Ok(partition_of(topic, group))
}

/// Asks the group's coordinator, if it is here, and waits until what it answers is committed.
async fn ask(
    broker: &Broker,
    group: &str,
    timeout_ms: u32,
    request: GroupRequest,
) -> Result<GroupResponse, Failure> {
    let partition = partition_of_group(broker, group)?;
    let asked = broker.groups.ask(partition, request);
    tokio::time::timeout(timeout(timeout_ms), asked).await.unwrap_or_else(|_elapsed| {
        let message = format!("not committed within {timeout_ms} ms; it may still happen");
        Err(Failure::new(ErrorCode::Timeout, message))
    })
}

/// A request was answered with another request's answer.
fn wrong_answer(answer: &GroupResponse) -> Failure {
    tracing::error!(?answer, "a group coordinator answered something else");
    Failure::new(ErrorCode::Internal, "the coordinator answered something else")
}

fn committer(member: Option<GroupMember>) -> Committer {
    match member {
        None => Committer::Outside,
        Some(GroupMember { member, epoch, instance }) => {
            Committer::Member { member, epoch, instance }
        }
    }
}

/// One outcome for each partition, with a sentence for every code.
fn in_words(
    partitions: impl Iterator<Item = TopicPartition>,
    outcomes: Vec<Result<(), ErrorCode>>,
) -> Vec<Result<(), Failure>> {
    let outcomes = partitions.zip(outcomes);
    outcomes.map(|(id, outcome)| outcome.map_err(|code| explain(code, id))).collect()
}

fn explain(code: ErrorCode, id: TopicPartition) -> Failure {
    let why = match code {
        ErrorCode::UnknownTopicOrPartition => "there is no such partition",
        ErrorCode::NotAssigned => "the member does not hold it: another may be reading it now",
        ErrorCode::StaleMemberEpoch => {
            "the member's epoch is an older one; a heartbeat tells the present one"
        }
        ErrorCode::OffsetMetadataTooLarge => {
            "the metadata beside the offset is longer than 4096 bytes"
        }
        ErrorCode::GroupFull => "the group has as many committed offsets as it takes",
        ErrorCode::GroupNotEmpty => "members of the group read it: stop them first",
        ErrorCode::UnstableOffset => "a transaction with an offset for it has not ended yet",
        _ => "refused",
    };
    Failure::new(code, format!("{id}: {why}"))
}

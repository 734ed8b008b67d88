//! Heartbeats of members. An answer that tells nothing new is held back, as the member allows, until there is something.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidemark_coordinator::groups::{
    GroupRequest, GroupResponse, Heartbeat, HeartbeatResponse, JOIN_EPOCH, Subscription,
};
use tidemark_protocol::{
    Failure,
    messages::{GroupHeartbeatRequest, GroupHeartbeatResponse, GroupSubscription},
};

use super::{ask, partition_of_group, wrong_answer};
use crate::broker::{Broker, Caller};

/// How long a heartbeat waits for the commit of what it is told. The member has its own count.
const TIMEOUT_MS: u32 = 10_000;

pub(crate) async fn heartbeat(
    broker: Arc<Broker>,
    caller: Caller,
    request: GroupHeartbeatRequest,
) -> Result<GroupHeartbeatResponse, Failure> {
    let partition = partition_of_group(&broker, &request.group)?;
    // From before the question: what is decided after its answer is heard of.
    let waiting = broker.nudges.wait(partition, &request.group, &request.member);
    let (group, wait_ms, is_leaving) =
        (request.group.clone(), request.wait_ms, request.epoch < JOIN_EPOCH);
    let asked = GroupRequest::Heartbeat(wanted(caller, request));
    let answer = match ask(&broker, &group, TIMEOUT_MS, asked).await? {
        GroupResponse::Heartbeat(answer) => answer,
        other => return Err(wrong_answer(&other)),
    };
    let is_news = answer.assignment.is_some();
    let mut response = told(answer);
    if is_news || is_leaving || wait_ms == 0 {
        return Ok(response);
    }
    let hold = Duration::from_millis(wait_ms.min(response.heartbeat_interval_ms).into());
    // An error: nothing has happened meanwhile, which is the rule.
    drop(tokio::time::timeout(hold, waiting.nudged()).await);
    response.heartbeat_interval_ms = 0;
    Ok(response)
}

fn wanted(caller: Caller, request: GroupHeartbeatRequest) -> Heartbeat {
    let subscribed = |GroupSubscription { topics, regex }| Subscription {
        topics: topics.into_iter().collect(),
        regex,
    };
    Heartbeat {
        group: request.group,
        member: request.member,
        epoch: request.epoch,
        sequence: Some(request.sequence),
        instance: request.instance,
        rack: request.rack,
        client_id: request.client_id,
        host: caller.peer_ip.to_string(),
        subscription: request.subscription.map(subscribed),
        rebalance_timeout_ms: request.rebalance_timeout_ms,
        assignor: request.assignor,
        owned: request.owned.map(|owned| owned.into_iter().collect::<BTreeSet<_>>()),
        missed_processing_deadline: request.missed_processing_deadline,
    }
}

fn told(answer: HeartbeatResponse) -> GroupHeartbeatResponse {
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    GroupHeartbeatResponse {
        epoch: answer.epoch,
        heartbeat_interval_ms: ms(answer.heartbeat_interval_ms),
        session_timeout_ms: ms(answer.session_timeout_ms),
        assignment: answer.assignment.map(|assigned| assigned.into_iter().collect()),
    }
}

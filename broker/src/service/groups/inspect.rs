//! What there is of groups, for whoever looks at them.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use tidemark_coordinator::groups::{self, GroupRequest, GroupResponse, record};
use tidemark_protocol::{
    Failure, TopicPartition,
    messages::{
        DescribeGroupRequest, DescribeGroupResponse, GroupListing, GroupState, ListGroupsRequest,
        ListGroupsResponse, MemberDescription, MemberRemoval, MemberState, RemovalReason,
        UnavailableGroups,
    },
};

use super::{QUESTION_TIMEOUT_MS, ask, wrong_answer};
use crate::{broker::Broker, coordinators::topics::GROUPS};

/// The groups of every coordinator on this broker.
pub(crate) async fn list_groups(
    broker: Arc<Broker>,
    _: ListGroupsRequest,
) -> Result<ListGroupsResponse, Failure> {
    let image = broker.image();
    let topic = image.topic(GROUPS);
    let led = topic.into_iter().flat_map(|topic| {
        let all = topic.partitions.iter().zip(0..);
        let led = all.filter(|(partition, _)| partition.leader == Some(broker.id));
        led.map(|(_, partition)| TopicPartition { topic_id: topic.id, partition })
    });
    let asked =
        led.map(async |id| (id, broker.groups.ask(id.partition, GroupRequest::ListGroups).await));
    let mut response = ListGroupsResponse { groups: Vec::new(), unavailable: Vec::new() };
    for (partition, answer) in join_all(asked).await {
        match answer {
            Ok(GroupResponse::ListGroups(listed)) => {
                response.groups.extend(listed.into_iter().map(list));
            }
            Ok(other) => return Err(wrong_answer(&other)),
            Err(failure) => response.unavailable.push(UnavailableGroups { partition, failure }),
        }
    }
    response.groups.sort_by(|left, right| left.group.cmp(&right.group));
    Ok(response)
}

fn list(listing: groups::GroupListing) -> GroupListing {
    GroupListing {
        group: listing.group,
        state: state(listing.state),
        is_classic: listing.is_classic,
        members: count(listing.members),
    }
}

pub(crate) async fn describe_group(
    broker: Arc<Broker>,
    request: DescribeGroupRequest,
) -> Result<DescribeGroupResponse, Failure> {
    let asked = GroupRequest::DescribeGroup { group: request.group.clone() };
    let described = match ask(&broker, &request.group, QUESTION_TIMEOUT_MS, asked).await? {
        GroupResponse::DescribeGroup(described) => described,
        other => return Err(wrong_answer(&other)),
    };
    let now_ms = broker.clock.monotonic_ms();
    let members = described.members.into_iter().map(|member| describe(member, now_ms));
    Ok(DescribeGroupResponse {
        group: described.group,
        state: state(described.state),
        is_classic: described.is_classic,
        epoch: described.epoch,
        protocol: described.protocol,
        coordinator: broker.id,
        members: members.collect(),
        removals: described.removals.into_iter().map(removal).collect(),
    })
}

fn describe(member: groups::MemberDescription, now_ms: u64) -> MemberDescription {
    let list = |partitions: BTreeSet<TopicPartition>| partitions.into_iter().collect();
    let left = |deadline_ms: Option<u64>| deadline_ms.map(|at_ms| at_ms.saturating_sub(now_ms));
    MemberDescription {
        state: match member.state {
            _ if member.is_away => MemberState::Away,
            record::MemberState::Stable => MemberState::Stable,
            record::MemberState::Unrevoked => MemberState::Revoking,
            record::MemberState::Unreleased => MemberState::Waiting,
        },
        member: member.member,
        instance: member.instance,
        client_id: member.client_id,
        host: member.host,
        epoch: member.epoch,
        assigned: list(member.assigned),
        revoking: list(member.revoking),
        target: list(member.target),
        session_left_ms: left(member.session_deadline_ms),
        revocation_left_ms: left(member.revocation_deadline_ms),
    }
}

fn removal(removal: groups::Removal) -> MemberRemoval {
    MemberRemoval {
        member: removal.member,
        instance: removal.instance,
        client_id: removal.client_id,
        host: removal.host,
        reason: reason(removal.reason),
        at_ms: removal.at_ms,
    }
}

fn reason(reason: groups::RemovalReason) -> RemovalReason {
    use groups::RemovalReason as Known;
    match reason {
        Known::Left => RemovalReason::Left,
        Known::MissedProcessingDeadline => RemovalReason::MissedProcessingDeadline,
        Known::SessionTimedOut => RemovalReason::SessionTimedOut,
        Known::MissedRebalanceDeadline => RemovalReason::MissedRebalanceDeadline,
        Known::Kicked => RemovalReason::Kicked,
        Known::Replaced => RemovalReason::Replaced,
    }
}

fn state(state: groups::GroupState) -> GroupState {
    use groups::GroupState as Known;
    match state {
        Known::Empty => GroupState::Empty,
        Known::Reconciling => GroupState::Reconciling,
        Known::Stable => GroupState::Stable,
        Known::PreparingRebalance => GroupState::PreparingRebalance,
        Known::CompletingRebalance => GroupState::CompletingRebalance,
    }
}

fn count(members: usize) -> u32 {
    u32::try_from(members).unwrap_or(u32::MAX)
}

//! Removing groups and members.

use std::sync::Arc;

use tidemark_coordinator::groups::{GroupRequest, GroupResponse, MemberName, RemoveMember};
use tidemark_protocol::{
    Failure,
    messages::{
        DeleteGroupRequest, DeleteGroupResponse, RemoveMemberRequest, RemoveMemberResponse,
    },
};

use super::{ask, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn delete_group(
    broker: Arc<Broker>,
    request: DeleteGroupRequest,
) -> Result<DeleteGroupResponse, Failure> {
    let asked = GroupRequest::DeleteGroup { group: request.group.clone() };
    match ask(&broker, &request.group, request.timeout_ms, asked).await? {
        GroupResponse::DeleteGroup => Ok(DeleteGroupResponse {}),
        other => Err(wrong_answer(&other)),
    }
}

pub(crate) async fn remove_member(
    broker: Arc<Broker>,
    request: RemoveMemberRequest,
) -> Result<RemoveMemberResponse, Failure> {
    let RemoveMemberRequest { group, name, is_instance, timeout_ms } = request;
    let member = if is_instance { MemberName::Instance(name) } else { MemberName::Id(name) };
    let remove = RemoveMember { group: group.clone(), member };
    match ask(&broker, &group, timeout_ms, GroupRequest::RemoveMember(remove)).await? {
        GroupResponse::RemoveMember => Ok(RemoveMemberResponse {}),
        other => Err(wrong_answer(&other)),
    }
}

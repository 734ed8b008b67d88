//! Elect leaders now: the preferred ones, one named, or any that lives.

use std::sync::Arc;

use tidemark_controller::{
    Answer, Command,
    command::{self, ElectLeaders},
};
use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{ElectLeadersRequest, ElectLeadersResponse, Election},
};

use super::{change_metadata, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn elect_leaders(
    broker: Arc<Broker>,
    request: ElectLeadersRequest,
) -> Result<ElectLeadersResponse, Failure> {
    let election = match (request.election, request.to) {
        (Election::Preferred, None) => command::Election::Preferred,
        (Election::Unclean, None) => command::Election::Unclean,
        (Election::Transfer, Some(to)) => command::Election::Transfer { to },
        (Election::Transfer, None) => return Err(invalid("a transfer names the broker to lead")),
        (_, Some(_)) => return Err(invalid("only a transfer names the broker to lead")),
    };
    let partitions = (!request.partitions.is_empty()).then_some(request.partitions);
    let command = Command::ElectLeaders(ElectLeaders { election, partitions });
    let answer = change_metadata(&broker, command, request.timeout_ms).await?;
    let Answer::LeadersElected(elected) = answer else { return Err(wrong_answer(&answer)) };
    Ok(ElectLeadersResponse { partitions: elected.partitions })
}

fn invalid(message: &str) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, message)
}

//! The quorum of controllers: who they are and how far they are; one more of them, or one less. Only the active
//! controller answers.

use std::{sync::Arc, time::Duration};

use tidemark_controller::{QuorumStatus, VoterChange, VoterStatus};
use tidemark_protocol::{
    ErrorCode, Failure, NodeId,
    messages::{
        ChangeQuorumRequest, ChangeQuorumResponse, DescribeQuorumRequest, DescribeQuorumResponse,
        QuorumHelloRequest, QuorumMember, VoterId,
    },
};
use tokio::time::{Instant, sleep_until};

use super::timeout;
use crate::{broker::Broker, controller::ControllerHandle, peer::Peer};

/// How long a node that is to become a controller may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether a change of the quorum is through.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) async fn describe_quorum(
    broker: Arc<Broker>,
    _request: DescribeQuorumRequest,
) -> Result<DescribeQuorumResponse, Failure> {
    let status = active(&broker)?.status().await?;
    let (end, addresses) = (status.log_end_index, broker.control.peers().addresses().clone());
    let member = |one: &VoterStatus, is_voter| QuorumMember {
        id: one.id,
        is_voter,
        address: addresses.of(one.id.node).unwrap_or_default(),
        log_end_index: if one.id == status.me { end } else { one.log_end_index.unwrap_or(0) },
        is_alive: one.id == status.me || one.is_alive,
    };
    let voters = status.voters.iter().map(|one| member(one, true));
    let learners = status.learners.iter().map(|one| member(one, false));
    Ok(DescribeQuorumResponse {
        leader: broker.id,
        term: status.term,
        committed_index: status.committed_index,
        log_end_index: end,
        members: voters.chain(learners).collect(),
    })
}

/// Answers when the change is through. What this controller cannot carry out now, because it has just begun to lead or
/// because another change is under way, it tries again until then. It hands over before it removes itself: the next one
/// carries that out, and is asked again by whoever asked here.
pub(crate) async fn change_quorum(
    broker: Arc<Broker>,
    request: ChangeQuorumRequest,
) -> Result<ChangeQuorumResponse, Failure> {
    let deadline = Instant::now() + timeout(request.timeout_ms);
    let controller = active(&broker)?;
    let before = controller.status().await?;
    let Some(change) = wanted(&broker, &request, &before).await? else {
        return Ok(voters(&before.voters));
    };
    loop {
        controller.change_voters(change).await?;
        let status = controller.status().await?;
        if is_through(change, &status) {
            return Ok(voters(&status.voters));
        }
        if !status.is_leader {
            let message =
                "the controllers are led by another node now, which carries the change out";
            return Err(Failure::new(ErrorCode::NotController, message));
        }
        let next = Instant::now() + LOOK_INTERVAL;
        if next >= deadline {
            let message = "the change has begun and is not through yet; `tidemark cluster quorum` shows how far it is";
            return Err(Failure::new(ErrorCode::Timeout, message));
        }
        sleep_until(next).await;
    }
}

/// The change that is asked for; `None`: it is as it should be. Taking out who is not there is no error: the question may
/// be the second one, after a leader that was removed itself.
async fn wanted(
    broker: &Broker,
    request: &ChangeQuorumRequest,
    status: &QuorumStatus,
) -> Result<Option<VoterChange>, Failure> {
    let voter = status.voters.iter().find(|one| one.id.node == request.node);
    let learner = status.learners.iter().find(|one| one.id.node == request.node);
    let Some(address) = &request.add_at else {
        if voter.is_some() && status.voters.len() == 1 {
            let message = "the last controller cannot be removed";
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        return Ok(voter.or(learner).map(|one| VoterChange::Remove(one.id)));
    };
    let id = who_is_at(broker, request.node, address).await?;
    match voter.or(learner) {
        Some(known) if known.id != id => Err(replaced(known.id)),
        Some(_) if voter.is_some() => Ok(None),
        _ if broker.control.peers().addresses().of(id.node).is_none() => Err(unfindable(id.node)),
        _ => Ok(Some(VoterChange::Add(id))),
    }
}

fn is_through(change: VoterChange, status: &QuorumStatus) -> bool {
    match change {
        VoterChange::Add(id) => status.voters.iter().any(|one| one.id == id),
        VoterChange::Remove(id) => {
            status.voters.iter().chain(&status.learners).all(|one| one.id != id)
        }
    }
}

fn voters(voters: &[VoterStatus]) -> ChangeQuorumResponse {
    ChangeQuorumResponse { voters: voters.iter().map(|voter| voter.id).collect() }
}

fn replaced(id: VoterId) -> Failure {
    let message = format!(
        "node {} is a controller with another disk (directory {}); remove it first, then add it",
        id.node, id.directory
    );
    Failure::new(ErrorCode::InvalidRequest, message)
}

/// A vote that nobody can be sent to ask for would count all the same.
fn unfindable(node: NodeId) -> Failure {
    let message = format!(
        "node {node} is no broker, and the setting `controllers` here does not name it: the others would not find it; \
         give it the role of a broker, too, or name it in `controllers` of every node and restart them"
    );
    Failure::new(ErrorCode::InvalidRequest, message)
}

async fn who_is_at(broker: &Broker, node: NodeId, address: &str) -> Result<VoterId, Failure> {
    let unreachable = |why: String| {
        let message = format!("node {node} cannot be asked who it is at {address}: {why}");
        Failure::new(ErrorCode::NotReady, message)
    };
    let connected = Peer::connect(&broker.tasks, address).await;
    let (peer, _pushes) = connected.map_err(|error| unreachable(error.to_string()))?;
    let request = QuorumHelloRequest {
        node: broker.id,
        directory: broker.directory,
        cluster_id: broker.cluster_id.clone(),
        controllers: broker.config.controllers.keys().copied().collect(),
    };
    let (hello, _payload) = peer.ask(&request, HELLO_TIMEOUT).await?;
    if hello.node != node {
        return Err(unreachable(format!("node {} answers there", hello.node)));
    }
    if hello.cluster_id != broker.cluster_id {
        let message = format!("node {node} at {address} belongs to cluster {}", hello.cluster_id);
        return Err(Failure::new(ErrorCode::WrongCluster, message));
    }
    Ok(VoterId { node, directory: hello.directory })
}

fn active(broker: &Broker) -> Result<&ControllerHandle, Failure> {
    match broker.control.local() {
        Some(local) if broker.control.leader() == Some(broker.id) => Ok(local),
        _ => Err(Failure::new(ErrorCode::NotController, "the active controller is another node")),
    }
}

//! Node to node: messages of the quorum, heartbeats, commands for the active controller, committed metadata.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tidemark_controller::{Command, encode_entry};
use tidemark_protocol::{
    ErrorCode, Failure,
    messages::{
        ControllerCommandRequest, ControllerCommandResponse, FetchMetadataRequest,
        FetchMetadataResponse, HeartbeatRequest, HeartbeatResponse, MetadataEntry,
        MetadataSnapshot, QuorumHelloRequest, QuorumHelloResponse, QuorumMessageRequest, VoterId,
    },
};
use tokio::time::{Instant, timeout_at};

use super::timeout;
use crate::{
    broker::Broker,
    controller::{ControllerHandle, Followed},
};

/// Takes in a message of the quorum, or drops it.
pub(crate) fn quorum_message(broker: &Broker, request: &QuorumMessageRequest, message: Bytes) {
    let me = voter(broker);
    if request.cluster_id != broker.cluster_id || request.to != me {
        tracing::debug!(from = ?request.from, to = ?request.to, "a message of the quorum for somebody else");
        return;
    }
    if let Some(local) = broker.control.local() {
        local.quorum_message(request.from, message);
    }
}

fn voter(broker: &Broker) -> VoterId {
    VoterId { node: broker.id, directory: broker.directory }
}

/// Who this node is, for one that starts for the first time.
pub(crate) async fn quorum_hello(
    broker: Arc<Broker>,
    request: QuorumHelloRequest,
) -> Result<QuorumHelloResponse, Failure> {
    tracing::debug!(node = request.node, "a node asks for its cluster");
    let voters = match broker.control.local() {
        Some(local) => {
            let status = local.status().await?;
            Some(status.voters.iter().map(|voter| voter.id).collect())
        }
        None => None,
    };
    Ok(QuorumHelloResponse {
        node: broker.id,
        directory: broker.directory,
        cluster_id: broker.cluster_id.clone(),
        controllers: broker.config.controllers.keys().copied().collect(),
        voters,
    })
}

pub(crate) async fn heartbeat(
    broker: &Broker,
    connection: u64,
    request: HeartbeatRequest,
) -> Result<HeartbeatResponse, Failure> {
    local(broker)?.heartbeat(connection, request).await
}

/// Carries out a command if the active controller is here.
pub(crate) async fn controller_command(
    broker: Arc<Broker>,
    request: ControllerCommandRequest,
) -> Result<ControllerCommandResponse, Failure> {
    let command = Command::decode(&request.command).map_err(|error| {
        Failure::new(ErrorCode::InvalidRequest, format!("the command cannot be decoded: {error}"))
    })?;
    if command.is_internal() {
        let message = "only the controller itself decides that";
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let deciding = local(&broker)?.command(command);
    let deadline = Instant::now() + timeout(request.timeout_ms);
    let committed = timeout_at(deadline, deciding).await.map_err(|_elapsed| {
        Failure::new(ErrorCode::Timeout, "the controller has not decided in time")
    })??;
    Ok(ControllerCommandResponse {
        answer: committed.answer.encode(),
        metadata_index: committed.metadata_index,
    })
}

/// Committed metadata from an index on, waiting for some. What there is by then is the answer when the broker stops.
pub(crate) async fn fetch_metadata(
    broker: &Broker,
    request: &FetchMetadataRequest,
) -> Result<(FetchMetadataResponse, Bytes), Failure> {
    let local = local(broker)?;
    let deadline = Instant::now() + timeout(request.max_wait_ms);
    let (mut images, mut leader) = (local.images(), local.leader());
    loop {
        images.mark_unchanged();
        leader.mark_unchanged();
        let followed = local.followed(request.from_index, request.previous_term).await?;
        let is_late = Instant::now() >= deadline || broker.tasks.shutdown().has_started();
        if !followed.is_empty() || is_late {
            return Ok(answer(broker, request, followed));
        }
        // Whichever comes first; late or not, what there is then is the answer.
        let changed = async {
            tokio::select! {
                changed = images.changed() => changed,
                changed = leader.changed() => changed,
                () = broker.tasks.shutdown().started() => Ok(()),
            }
        };
        if let Ok(Ok(())) = timeout_at(deadline, changed).await {
            // A new leader is news, too.
            if leader.has_changed().unwrap_or(false) {
                let followed = local.followed(request.from_index, request.previous_term).await?;
                return Ok(answer(broker, request, followed));
            }
        }
    }
}

fn answer(
    broker: &Broker,
    request: &FetchMetadataRequest,
    followed: Followed,
) -> (FetchMetadataResponse, Bytes) {
    tracing::trace!(node = request.node, from_index = request.from_index, "metadata fetched");
    let mut response = FetchMetadataResponse {
        cluster_id: broker.cluster_id.clone(),
        leader: followed.leader,
        term: followed.term,
        committed_index: followed.committed_index,
        entries: Vec::new(),
        snapshot: None,
        payload_crc: 0,
    };
    let payload = fill(&mut response, followed);
    response.seal(&payload);
    (response, payload)
}

/// Adds what was asked for, which goes into the payload.
fn fill(response: &mut FetchMetadataResponse, followed: Followed) -> Bytes {
    if let Some(snapshot) = followed.snapshot {
        response.snapshot = Some(MetadataSnapshot { index: snapshot.index, term: snapshot.term });
        return snapshot.bytes;
    }
    let mut payload = BytesMut::new();
    for entry in followed.entries {
        let records = encode_entry(&entry.records);
        let record_bytes = u32::try_from(records.len()).expect("bounded by a commit");
        payload.extend_from_slice(&records);
        response.entries.push(MetadataEntry { index: entry.index, term: entry.term, record_bytes });
    }
    payload.freeze()
}

fn local(broker: &Broker) -> Result<&ControllerHandle, Failure> {
    broker
        .control
        .local()
        .ok_or_else(|| Failure::new(ErrorCode::NotController, "this node is not a controller"))
}

/// How long a broker that follows the metadata lets a controller wait for news.
pub(crate) const METADATA_WAIT: Duration = Duration::from_millis(500);

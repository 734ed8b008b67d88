//! What nodes of a cluster ask each other, natively: messages of the quorum, commands, heartbeats, metadata.

use std::{sync::Arc, time::Instant};

use tidemark_protocol::{
    ErrorCode, Failure,
    frame::Frame,
    message::Api,
    messages::{FetchMetadataRequest, HeartbeatRequest, QuorumMessageRequest},
};

use super::{NativeDoor, invalid_header, reply::Replier};
use crate::{
    connection::{Begun, Pending},
    service::cluster,
};

/// A message of the quorum has no answer, and one that cannot be used is dropped: it will be sent again.
pub(super) fn quorum_message(door: &NativeDoor, frame: &Frame) -> Begun {
    match frame.message::<QuorumMessageRequest>() {
        Ok(request) => cluster::quorum_message(&door.broker, &request, frame.payload.clone()),
        Err(error) => tracing::warn!(%error, "a message of the quorum cannot be decoded"),
    }
    Begun::Silent
}

/// The connection counts from now on: when it closes, the broker that sent this is fenced.
pub(super) fn heartbeat(door: &mut NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    door.has_heartbeats = true;
    let replier = Replier::new(&door.broker, Api::Heartbeat, frame.correlation, received_at);
    let request: HeartbeatRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let (broker, connection) = (Arc::clone(&door.broker), door.connection);
    let pending = async move {
        let answer = cluster::heartbeat(&broker, connection, request).await;
        replier.reply::<HeartbeatRequest>(&answer, Vec::new())
    };
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Waiting(Box::pin(pending)) }
}

pub(super) fn fetch_metadata(door: &mut NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::FetchMetadata, frame.correlation, received_at);
    let request: FetchMetadataRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let broker = Arc::clone(&door.broker);
    let cancelled = door.make_cancellable(frame.correlation);
    let pending = async move {
        let fetched = tokio::select! {
            biased;
            fetched = cluster::fetch_metadata(&broker, &request) => fetched,
            Ok(()) = cancelled => {
                Err(Failure::new(ErrorCode::Cancelled, "the fetch was cancelled"))
            }
        };
        match fetched {
            Ok((response, payload)) => {
                replier.reply::<FetchMetadataRequest>(&Ok(response), vec![payload])
            }
            Err(failure) => replier.reply::<FetchMetadataRequest>(&Err(failure), Vec::new()),
        }
    };
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Waiting(Box::pin(pending)) }
}

//! Replication, natively: a follower's stream on this connection, its positions and the pushes to it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::Frame,
    message::Api,
    messages::{ReplicaPositionsRequest, ReplicaPushHeader, ReplicateRequest, ReplicateResponse},
};
use tidemark_replication::ReplicaId;
use tokio::sync::{mpsc, oneshot};

use super::{
    NativeDoor, invalid_header,
    reply::{Replier, encode_push},
};
use crate::{
    connection::{Begun, Pending, Reply},
    replicas::{ReplicaPushes, Session},
};

/// The stream of a connection; it ends with it.
pub(super) struct Stream {
    correlation: u32,
    session: Arc<Session>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.session.close();
    }
}

pub(super) fn begin(door: &mut NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::Replicate, frame.correlation, received_at);
    let request: ReplicateRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    if let Err(failure) = check(door, &request) {
        return replier.refuse(&failure);
    }
    let correlation = frame.correlation;
    let response = replier.reply::<ReplicateRequest>(&Ok(ReplicateResponse {}), Vec::new());
    let broker = &door.broker;
    let ended = broker.tasks.shutdown().child();
    let follower = ReplicaId { broker_id: request.broker_id, broker_epoch: request.broker_epoch };
    let session = broker.sessions.begin(follower, ended);
    door.stream = Some(Stream { correlation, session: Arc::clone(&session) });
    let pushes = NativePushes { correlation, pushes: door.pushes.clone() };
    let (answered, has_answered) = oneshot::channel();
    let broker = Arc::clone(&door.broker);
    door.broker.tasks.spawn("follower", async move {
        // The first push comes after the answer.
        if has_answered.await.is_ok() {
            session.run(broker, pushes).await;
        }
    });
    let response = response.when_placed(move || {
        answered.send(()).ok();
    });
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Ready(response) }
}

fn check(door: &NativeDoor, request: &ReplicateRequest) -> Result<(), Failure> {
    let broker = &door.broker;
    if request.cluster_id != broker.cluster_id {
        let message = format!("this broker belongs to cluster {}", broker.cluster_id);
        return Err(Failure::new(ErrorCode::WrongCluster, message));
    }
    if request.leader_id != broker.id {
        let message = format!("this is broker {}, not {}", broker.id, request.leader_id);
        return Err(Failure::new(ErrorCode::UnknownBroker, message));
    }
    Ok(())
}

/// Positions have no answer, and take effect in order.
pub(super) async fn positions(door: &mut NativeDoor, frame: Frame) -> Begun {
    let request: ReplicaPositionsRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(%error, "positions of a follower cannot be decoded");
            door.stream = None;
            return Begun::Silent;
        }
    };
    if let Some(stream) = &door.stream
        && stream.correlation == request.stream
    {
        stream.session.positions(&door.broker, request.positions).await;
    }
    Begun::Silent
}

struct NativePushes {
    correlation: u32,
    pushes: mpsc::Sender<Reply>,
}

impl ReplicaPushes for NativePushes {
    async fn push(&self, header: ReplicaPushHeader, payload: Vec<Bytes>) -> bool {
        let push = encode_push(Api::Replicate, self.correlation, &header, payload);
        self.pushes.send(push).await.is_ok()
    }
}

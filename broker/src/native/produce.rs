//! Produce, natively: the payload is cut into the partitions' shares.

use std::time::Instant;

use tidemark_protocol::{
    ErrorCode, Failure,
    frame::Frame,
    message::Api,
    messages::{Acks, ProduceRequest, ProduceResponse},
};

use super::{NativeDoor, invalid_header, reply::Replier};
use crate::{
    connection::{Begun, Pending, Reply},
    metrics::Protocol,
    service::produce::{self, Produce, Share},
};

pub(super) async fn begin(door: &mut NativeDoor, frame: Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::Produce, frame.correlation, received_at);
    let held_bytes = frame.wire_bytes();
    let request: ProduceRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let acks = request.acks;
    let produce = match split(frame, request) {
        Ok(produce) => produce,
        Err(failure) if acks == Acks::None => {
            replier.count_failure(&failure);
            return Begun::Silent;
        }
        Err(failure) => return replier.refuse(&failure),
    };
    let outcomes = produce::begin(&door.broker, produce).await;
    let pending = async move {
        let partitions = outcomes.await;
        for failure in partitions.iter().filter_map(|outcome| outcome.as_ref().err()) {
            replier.count_failure(failure);
        }
        if acks == Acks::None {
            // Counted as in flight until it was appended, so that a flood of them is held back.
            return Reply::nothing();
        }
        replier.reply::<ProduceRequest>(&Ok(ProduceResponse { partitions }), Vec::new())
    };
    Begun::Reply { held_bytes, pending: Pending::Waiting(Box::pin(pending)) }
}

fn split(frame: Frame, request: ProduceRequest) -> Result<Produce, Failure> {
    let mut payload = frame.payload;
    let claimed: usize = request.partitions.iter().map(|part| part.batch_bytes as usize).sum();
    if claimed != payload.len() {
        let message = format!(
            "the partitions' batch_bytes add up to {claimed}, the payload has {} bytes",
            payload.len()
        );
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    let shares = request.partitions.into_iter().map(|part| Share {
        partition: part.partition,
        leader_epoch: part.leader_epoch,
        batches: payload.split_to(part.batch_bytes as usize),
    });
    Ok(Produce {
        acks: request.acks,
        durability: request.durability,
        timeout_ms: request.timeout_ms,
        protocol: Protocol::Native,
        transactional_id: request.transactional_id.map(Into::into),
        shares: shares.collect(),
    })
}

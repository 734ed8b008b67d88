//! Fetch, natively: slices of the logs become the payload, and a cancel frame ends the wait.

use std::{sync::Arc, time::Instant};

use tidemark_protocol::{ErrorCode, Failure, frame::Frame, message::Api, messages::FetchRequest};

use super::{NativeDoor, invalid_header, reply::Replier};
use crate::{
    connection::{Begun, Pending},
    service::fetch,
};

pub(super) fn begin(door: &mut NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::Fetch, frame.correlation, received_at);
    let request: FetchRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let broker = Arc::clone(&door.broker);
    let cancelled = (request.max_wait_ms > 0).then(|| door.make_cancellable(frame.correlation));
    let pending = async move {
        let fetched = match cancelled {
            None => fetch::fetch(&broker, &request).await,
            Some(cancelled) => tokio::select! {
                biased;
                fetched = fetch::fetch(&broker, &request) => fetched,
                Ok(()) = cancelled => {
                    let failure = Failure::new(ErrorCode::Cancelled, "the fetch was cancelled");
                    return replier.reply::<FetchRequest>(&Err(failure), Vec::new());
                }
            },
        };
        for failure in
            fetched.response.partitions.iter().filter_map(|outcome| outcome.as_ref().err())
        {
            replier.count_failure(failure);
        }
        replier.reply::<FetchRequest>(&Ok(fetched.response), fetched.payload)
    };
    // The payload is mapped, not held in memory.
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Waiting(Box::pin(pending)) }
}

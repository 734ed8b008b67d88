//! Heartbeats of members, natively: what depends on who is connected.

use std::{sync::Arc, time::Instant};

use tidemark_protocol::{frame::Frame, message::Api, messages::GroupHeartbeatRequest};

use super::{NativeDoor, invalid_header, reply::Replier};
use crate::{
    connection::{Begun, Pending},
    service::groups::heartbeat,
};

pub(super) fn begin_heartbeat(door: &NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::GroupHeartbeat, frame.correlation, received_at);
    let request: GroupHeartbeatRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let (broker, caller) = (Arc::clone(&door.broker), door.caller);
    let pending = async move {
        let answer = heartbeat::heartbeat(broker, caller, request).await;
        replier.reply::<GroupHeartbeatRequest>(&answer, Vec::new())
    };
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Waiting(Box::pin(pending)) }
}

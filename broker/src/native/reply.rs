//! Encoding answers, and counting and timing them on the way.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use serde::Serialize;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::{FrameKind, encode_head},
    message::{Api, Request},
};

use crate::{
    broker::Broker,
    connection::{Begun, Pending, Reply},
    metrics::Stage,
};

/// Answers one request.
pub(super) struct Replier {
    broker: Arc<Broker>,
    api: Api,
    correlation: u32,
    received_at: Instant,
}

impl Replier {
    pub(super) fn new(
        broker: &Arc<Broker>,
        api: Api,
        correlation: u32,
        received_at: Instant,
    ) -> Self {
        Self { broker: Arc::clone(broker), api, correlation, received_at }
    }

    /// The frame of an answer.
    pub(super) fn reply<R: Request>(
        self,
        outcome: &Result<R::Response, Failure>,
        payload: Vec<Bytes>,
    ) -> Reply {
        if let Err(failure) = outcome {
            self.count_failure(failure);
        }
        let payload_bytes = payload.iter().map(Bytes::len).sum();
        let (api, correlation) = (self.api.number(), self.correlation);
        let head = encode_head(FrameKind::Response, api, correlation, outcome, payload_bytes);
        let reply = match head {
            Ok(head) => Reply::new(head, payload),
            Err(error) => {
                let message =
                    format!("the answer does not fit into a frame: {error}; ask for less");
                let failure = Failure::new(ErrorCode::TooLarge, message);
                self.count_failure(&failure);
                encode_failure(api, correlation, &failure)
            }
        };
        self.time(reply)
    }

    /// An answer that needs no waiting: the request was refused as it came in.
    pub(super) fn refuse(self, failure: &Failure) -> Begun {
        self.count_failure(failure);
        let reply = encode_failure(self.api.number(), self.correlation, failure);
        Begun::Reply { held_bytes: 0, pending: Pending::Ready(self.time(reply)) }
    }

    /// Counts an error, of the request or of one partition in it.
    pub(super) fn count_failure(&self, failure: &Failure) {
        self.broker.metrics.requests().api(self.api).failed(failure.code);
    }

    fn time(self, reply: Reply) -> Reply {
        let Self { broker, api, received_at, .. } = self;
        let answered_at = broker.clock.now();
        reply.when_placed(move || {
            let now = broker.clock.now();
            let metrics = broker.metrics.requests().api(api);
            metrics.took(Stage::Send, now.duration_since(answered_at));
            metrics.took(Stage::Total, now.duration_since(received_at));
        })
    }
}

/// The frame of a failure, whatever the API.
pub(super) fn encode_failure(api: u16, correlation: u32, failure: &Failure) -> Reply {
    let outcome: Result<(), _> = Err(failure);
    let head = encode_head(FrameKind::Response, api, correlation, &outcome, 0);
    Reply::new(head.expect("a failure is far below every limit"), Vec::new())
}

/// The frame of a push.
pub(super) fn encode_push<T: Serialize>(
    api: Api,
    correlation: u32,
    header: &T,
    payload: Vec<Bytes>,
) -> Reply {
    let payload_bytes = payload.iter().map(Bytes::len).sum();
    let head = encode_head(FrameKind::Push, api.number(), correlation, header, payload_bytes);
    Reply::new(head.expect("a push is some reads, which are far below every limit"), payload)
}

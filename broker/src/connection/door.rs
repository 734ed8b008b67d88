//! What a connection asks of the protocol behind it, and what it gets back: bytes, never an API.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;

/// One protocol of a connection.
pub(crate) trait Door: Send {
    type Request: Send;

    /// Cuts one request off the front of `buffer`. `None` when more bytes are needed, for which `buffer` has
    /// been reserved. After a refusal the connection is closed: the stream has lost its framing.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Request>, Refusal>;

    /// Stage one of a request, in order of arrival: what has to happen before the next request may begin.
    /// Waits for nothing but room in a bounded queue. Stage two is the future it answers with.
    fn begin(&mut self, request: Self::Request) -> impl Future<Output = Begun> + Send;

    /// Whether the broker owes the peer pushes, so that silence of the peer is no sign of its death.
    fn has_subscriptions(&self) -> bool;

    /// Whether the peer is still to be told by a push that the broker stops.
    fn owes_last_pushes(&self) -> bool;
}

/// Why a stream of bytes cannot be understood any further.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

/// A request that has begun.
pub(crate) enum Begun {
    /// There will be no reply.
    Silent,
    /// There will be one. `held_bytes`: what the request and its reply take until then, at most.
    Reply { held_bytes: usize, pending: Pending },
}

/// A reply that is there, or will be.
pub(crate) enum Pending {
    Ready(Reply),
    Waiting(BoxFuture<'static, Reply>),
}

/// The bytes of one frame: a head, then payload slices that are sent as they are. No bytes at all: nothing is
/// sent, and only the place in the order is taken.
pub(crate) struct Reply {
    pub(super) head: Bytes,
    pub(super) payload: Vec<Bytes>,
    pub(super) placed: Option<Box<dyn FnOnce() + Send>>,
}

impl Reply {
    pub(crate) fn new(head: Bytes, payload: Vec<Bytes>) -> Self {
        Self { head, payload, placed: None }
    }

    pub(crate) fn nothing() -> Self {
        Self::new(Bytes::new(), Vec::new())
    }

    /// Calls `placed`, too, when the frame has taken its place in the order of what is sent.
    pub(crate) fn when_placed(mut self, placed: impl FnOnce() + Send + 'static) -> Self {
        self.placed = Some(match self.placed.take() {
            None => Box::new(placed),
            Some(earlier) => Box::new(move || {
                earlier();
                placed();
            }),
        });
        self
    }
}

/// A request in flight, as the connection queues it.
pub(super) struct InFlight {
    pub(super) held_bytes: usize,
    pub(super) pending: Pending,
}

impl Future for InFlight {
    type Output = (usize, Reply);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let held_bytes = self.held_bytes;
        let reply = match &mut self.pending {
            Pending::Waiting(future) => std::task::ready!(future.as_mut().poll(context)),
            Pending::Ready(reply) => std::mem::replace(reply, Reply::nothing()),
        };
        Poll::Ready((held_bytes, reply))
    }
}

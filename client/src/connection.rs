//! One connection to one broker: pipelined requests, answers in order, pushes beside them.
//!
//! It knows frames and correlations, and no API. It refuses to reconnect or to repeat anything: when it is
//! lost, everything in flight fails at once and says whether it had been sent, and the owner decides.
//!
//! Two tasks serve it. The writer takes requests from a bounded queue and writes as many as there are in one
//! vectored write; the reader cuts frames and hands them to whoever waits. Both end when the last
//! [`Connection`] is dropped.

mod dial;
mod reader;
mod waiting;
mod writer;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidemark_protocol::{
    Failure,
    frame::{Frame, FrameKind, encode_head},
    message::{Api, Request},
    messages::CreditHeader,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::ClientConfig,
    error::{ConnectError, RequestError},
    tasks,
};
use waiting::{Answer, Waiter, Waiting};
use writer::Outgoing;

/// Frames that may wait for the writer beside the requests in flight: credits and cancels.
const CONTROL_FRAMES_QUEUED_MAX: usize = 64;
/// Pushes that may wait for their subscriber before the reader stops reading.
const PUSHES_QUEUED_MAX: usize = 64;

/// A connection that is established until proven lost.
pub(crate) struct Connection {
    address: Arc<str>,
    outgoing: mpsc::Sender<Outgoing>,
    in_flight: Arc<Semaphore>,
    waiting: Arc<Waiting>,
    next_correlation: AtomicU32,
    request_timeout: Duration,
    _tasks_end: DropGuard,
}

impl Connection {
    /// Resolves `address` anew, connects and agrees on a version, all within the configured time.
    pub(crate) async fn open(address: &str, config: &ClientConfig) -> Result<Self, ConnectError> {
        let address: Arc<str> = address.into();
        let stream = dial::dial(&address, config.connect_timeout).await?;
        let (read_half, write_half) = stream.into_split();
        let queue = config.max_in_flight + CONTROL_FRAMES_QUEUED_MAX;
        let (outgoing, to_write) = mpsc::channel(queue);
        let waiting = Arc::new(Waiting::new(address.clone()));
        let stop = CancellationToken::new();
        let writing = writer::run(write_half, to_write, waiting.clone(), stop.clone());
        tasks::spawn("connection-writer", &address, writing);
        let reading = reader::run(read_half, waiting.clone(), stop.clone());
        tasks::spawn("connection-reader", &address, reading);
        Ok(Self {
            address,
            outgoing,
            in_flight: Arc::new(Semaphore::new(config.max_in_flight)),
            waiting,
            next_correlation: AtomicU32::new(1),
            request_timeout: config.request_timeout,
            _tasks_end: stop.drop_guard(),
        })
    }

    /// Whether it has been proven lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.waiting.is_lost()
    }

    /// Sends a request and waits for its answer until `deadline`.
    ///
    /// `broker_wait` is how long the request itself asks the broker to wait; a broker silent for longer than
    /// that and the request timeout loses the connection. Dropping the future abandons the answer, not the
    /// request.
    pub(crate) async fn request<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
        broker_wait: Duration,
        deadline: Instant,
    ) -> Result<(R::Response, Bytes), RequestError> {
        let begun = Instant::now();
        let timed_out = |sent| RequestError::TimedOut {
            address: self.address.clone(),
            api: R::API.name(),
            after: begun.elapsed(),
            sent,
        };
        let submitted = timeout_at(deadline, self.submit(request, payload, broker_wait)).await;
        let answer = submitted.map_err(|_| timed_out(false))??;
        let frame = timeout_at(deadline, self.receive(answer)).await;
        self.decode::<R>(frame.map_err(|_| timed_out(true))??)
    }

    /// Sends a request that is not answered, and returns when it is queued for writing.
    pub(crate) async fn send_unanswered<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        let correlation = self.correlation();
        let frame = Self::request_frame(correlation, request, payload)?;
        let queued = timeout_at(deadline, self.outgoing.send(frame)).await;
        match queued {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(self.waiting.loss(false)),
            Err(_elapsed) => Err(RequestError::TimedOut {
                address: self.address.clone(),
                api: R::API.name(),
                after: self.request_timeout,
                sent: false,
            }),
        }
    }

    /// Opens a subscription: like [`Connection::request`], and registers for its pushes first.
    pub(crate) async fn subscribe<R: Request>(
        self: &Arc<Self>,
        request: &R,
        deadline: Instant,
    ) -> Result<(R::Response, Subscription), RequestError> {
        let correlation = self.correlation();
        let (to_subscriber, pushes) = mpsc::channel(PUSHES_QUEUED_MAX);
        self.waiting.add_subscriber(correlation, to_subscriber);
        let subscription =
            Subscription { connection: self.clone(), correlation, api: R::API, pushes };
        let asking = async {
            let frame = Self::request_frame(correlation, request, Vec::new())?;
            let answer = self.enqueue(frame, correlation, Duration::ZERO).await?;
            self.decode::<R>(self.receive(answer).await?)
        };
        match timeout_at(deadline, asking).await {
            Ok(answered) => answered.map(|(response, _)| (response, subscription)),
            Err(_) => Err(RequestError::TimedOut {
                address: self.address.clone(),
                api: R::API.name(),
                after: self.request_timeout,
                sent: true,
            }),
        }
    }

    async fn submit<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
        broker_wait: Duration,
    ) -> Result<oneshot::Receiver<Answer>, RequestError> {
        let correlation = self.correlation();
        let frame = Self::request_frame(correlation, request, payload)?;
        self.enqueue(frame, correlation, broker_wait).await
    }

    async fn enqueue(
        &self,
        mut frame: Outgoing,
        correlation: u32,
        broker_wait: Duration,
    ) -> Result<oneshot::Receiver<Answer>, RequestError> {
        let slot = self.in_flight.clone().acquire_owned().await;
        let slot = slot.expect("the semaphore of a connection is never closed");
        let (answer, receiver) = oneshot::channel();
        let patience = broker_wait + self.request_timeout;
        frame.waiter = Some(Waiter::new(correlation, patience, answer, slot));
        self.outgoing.send(frame).await.map_err(|_closed| self.waiting.loss(false))?;
        Ok(receiver)
    }

    async fn receive(&self, answer: oneshot::Receiver<Answer>) -> Result<Frame, RequestError> {
        match answer.await {
            Ok(answer) => answer,
            // The writer dropped it unwritten.
            Err(_) => Err(self.waiting.loss(false)),
        }
    }

    fn decode<R: Request>(&self, frame: Frame) -> Result<(R::Response, Bytes), RequestError> {
        if frame.api != R::API.number() {
            let detail = format!("answered {} with api {}", R::API.name(), frame.api);
            return Err(self.protocol_error(&detail));
        }
        let outcome: Result<R::Response, Failure> =
            frame.message().map_err(|error| self.protocol_error(&error.to_string()))?;
        Ok((outcome.map_err(RequestError::Refused)?, frame.payload))
    }

    fn request_frame<R: Request>(
        correlation: u32,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<Outgoing, RequestError> {
        let payload_bytes = payload.iter().map(Bytes::len).sum();
        let kind = FrameKind::Request;
        let head = encode_head(kind, R::API.number(), correlation, request, payload_bytes)
            .map_err(|error| RequestError::Unsendable { detail: error.to_string().into() })?;
        Ok(Outgoing { head, payload, waiter: None })
    }

    fn correlation(&self) -> u32 {
        self.next_correlation.fetch_add(1, Ordering::Relaxed)
    }

    fn protocol_error(&self, detail: &str) -> RequestError {
        RequestError::Protocol { address: self.address.clone(), detail: detail.into() }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A standing subscription. Dropping it cancels it; what the broker still pushes is then discarded.
#[derive(Debug)]
pub(crate) struct Subscription {
    connection: Arc<Connection>,
    correlation: u32,
    api: Api,
    pushes: mpsc::Receiver<Frame>,
}

impl Subscription {
    /// The next push. `Err` when the connection is lost. Safe to drop and call again.
    pub(crate) async fn push(&mut self) -> Result<Frame, RequestError> {
        self.pushes.recv().await.ok_or_else(|| self.connection.waiting.loss(true))
    }

    /// Lets the broker push `bytes` more.
    pub(crate) async fn grant(&self, bytes: u32) -> Result<(), RequestError> {
        let header = CreditHeader { bytes };
        let head = encode_head(FrameKind::Credit, self.api.number(), self.correlation, &header, 0)
            .map_err(|error| RequestError::Unsendable { detail: error.to_string().into() })?;
        let frame = Outgoing { head, payload: Vec::new(), waiter: None };
        let queued = self.connection.outgoing.send(frame).await;
        queued.map_err(|_closed| self.connection.waiting.loss(true))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.connection.waiting.remove_subscriber(self.correlation);
        let cancel = encode_head(FrameKind::Cancel, self.api.number(), self.correlation, &(), 0);
        let queued = cancel.is_ok_and(|head| {
            let frame = Outgoing { head, payload: Vec::new(), waiter: None };
            self.connection.outgoing.try_send(frame).is_ok()
        });
        if !queued && !self.connection.is_lost() {
            // Pushes nobody reads would be read and discarded for ever.
            self.connection
                .waiting
                .lose("a subscription could not be cancelled: the send queue is full");
        }
    }
}

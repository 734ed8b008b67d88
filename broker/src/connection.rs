//! One client connection: bytes in, requests to a door, replies out in the order of the requests.
//!
//! A single task reads, writes and holds the requests in flight, so a produce that waits for its flush keeps
//! nobody from being read or answered ahead of the socket's own order. It refuses to know an API: a [`Door`]
//! decodes and begins requests, and what comes back is bytes. It also refuses to buffer without end: every
//! bound is a constant here, and a peer that does not read its replies is closed, not stored.

mod door;
mod send_queue;

use std::{future::Future, io, pin::Pin, time::Duration};

use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt, stream::FuturesOrdered};
use socket2::SockRef;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::mpsc,
    time::{Interval, MissedTickBehavior},
};

pub(crate) use self::door::{Begun, Door, Pending, Refusal, Reply};
use self::{door::InFlight, send_queue::SendQueue};
use crate::config::Config;

/// Bytes waiting for the socket, beyond which no further reply is taken; a single reply may exceed it.
const SEND_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Pushes of a connection's subscriptions that may wait for room in the send queue.
pub(crate) const PUSHES_QUEUED_MAX: usize = 4;
/// Ticks in the longest time a peer may stall: how exactly it is kept.
const TICKS_PER_SEND_TIMEOUT: u32 = 4;
/// Longest time between two looks of a connection at itself.
const TICK_MAX: Duration = Duration::from_secs(5);
/// Ticks that a connection which takes no more requests may need for its last replies.
const DRAIN_TICKS_MAX: u32 = 2;

/// How much one connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests that wait for their outcome; beyond it the socket is not read.
    pub(crate) requests_max: usize,
    /// Bytes that requests in flight and replies not yet sent hold; a single request may exceed it. Beyond it
    /// the socket is not read.
    pub(crate) memory_bytes_max: usize,
    /// A peer that takes no byte for this long, while there is something to send, is closed.
    pub(crate) send_timeout: Duration,
    /// A connection with nothing in flight and nothing received for this long is closed.
    pub(crate) idle_timeout: Duration,
}

impl Limits {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            requests_max: config.max_connection_requests as usize,
            memory_bytes_max: usize::try_from(config.connection_memory_bytes).unwrap_or(usize::MAX),
            send_timeout: config.send_timeout,
            idle_timeout: config.idle_timeout,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("the peer closed it")]
    ByPeer,
    #[error("the broker is stopping")]
    Stopping,
    #[error("{0}")]
    BadFrame(String),
    #[error("the peer does not read its replies")]
    NeverReads,
    #[error("idle")]
    Idle,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection past its handshake.
pub(crate) struct Connection<D: Door> {
    stream: TcpStream,
    door: D,
    received: BytesMut,
    /// Whether `received` may hold a whole request that was not begun for want of room.
    undecoded: bool,
    in_flight: FuturesOrdered<InFlight>,
    in_flight_bytes: usize,
    pushes: mpsc::Receiver<Reply>,
    send_queue: SendQueue,
    /// Set when no more requests are taken, with the reason to close once the last reply is out.
    draining: Option<Closed>,
    limits: Limits,
    ticks: Ticks,
}

impl<D: Door> Connection<D> {
    /// `received`: what was read after the handshake. `pushes`: what subscriptions behind `door` send.
    pub(crate) fn new(
        stream: TcpStream,
        received: BytesMut,
        door: D,
        pushes: mpsc::Receiver<Reply>,
        limits: Limits,
    ) -> Self {
        Self {
            stream,
            door,
            received,
            undecoded: true,
            in_flight: FuturesOrdered::new(),
            in_flight_bytes: 0,
            pushes,
            send_queue: SendQueue::default(),
            draining: None,
            limits,
            ticks: Ticks::start(limits),
        }
    }

    /// Serves until the peer or a bound ends it, or `stop` completes and the last reply is out.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Closed {
        tokio::pin!(stop);
        loop {
            if let Err(closed) = self.turn(stop.as_mut()).await {
                if let Closed::NeverReads = closed {
                    self.discard_unsent();
                }
                return closed;
            }
        }
    }

    /// Makes the kernel drop what it holds for this peer, too, instead of trying on.
    fn discard_unsent(&self) {
        if let Err(error) = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection is closed without a reset");
        }
    }

    async fn turn(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), Closed> {
        self.begin_requests().await?;
        self.collect_replies();
        self.send_queue.send(&self.stream)?;
        if self.in_flight.is_empty()
            && self.send_queue.is_empty()
            && !self.owes_last_pushes()
            && let Some(reason) = self.draining.take()
        {
            return Err(reason);
        }
        if self.undecoded && self.takes_requests() {
            // Collecting replies made room for a request that has been read already.
            return Ok(());
        }
        self.wait(stop).await
    }

    /// Whether subscriptions are about to tell the peer that the broker stops.
    fn owes_last_pushes(&self) -> bool {
        matches!(self.draining, Some(Closed::Stopping)) && self.door.owes_last_pushes()
    }

    /// Whether one more request may begin.
    fn takes_requests(&self) -> bool {
        self.draining.is_none()
            && self.in_flight.len() < self.limits.requests_max
            && self.in_flight_bytes + self.send_queue.len_bytes() < self.limits.memory_bytes_max
            && self.send_queue.len_bytes() < SEND_QUEUE_BYTES_MAX
    }

    /// Begins every whole request that has been read, in order, as far as the bounds allow.
    async fn begin_requests(&mut self) -> Result<(), Closed> {
        while self.undecoded && self.takes_requests() {
            match self.door.decode(&mut self.received) {
                Ok(Some(request)) => match self.door.begin(request).await {
                    Begun::Silent => {}
                    Begun::Reply { held_bytes, pending } => {
                        self.in_flight_bytes += held_bytes;
                        self.in_flight.push_back(InFlight { held_bytes, pending });
                    }
                },
                Ok(None) => self.undecoded = false,
                Err(Refusal(reason)) => return Err(Closed::BadFrame(reason)),
            }
        }
        Ok(())
    }

    /// Moves what is ready, replies in order and pushes, to the send queue, as far as it has room.
    fn collect_replies(&mut self) {
        while self.send_queue.len_bytes() < SEND_QUEUE_BYTES_MAX {
            match self.in_flight.next().now_or_never() {
                Some(Some(outcome)) => self.accept(outcome),
                Some(None) | None => break,
            }
        }
        while self.send_queue.len_bytes() < SEND_QUEUE_BYTES_MAX {
            match self.pushes.try_recv() {
                Ok(push) => self.send_queue.push(push),
                Err(_empty) => break,
            }
        }
    }

    fn accept(&mut self, (held_bytes, reply): (usize, Reply)) {
        self.in_flight_bytes -= held_bytes;
        self.send_queue.push(reply);
    }

    /// Waits for the next thing that can be done, and does as much of it as must be done here.
    async fn wait(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), Closed> {
        let reads = self.takes_requests();
        let has_room = self.send_queue.len_bytes() < SEND_QUEUE_BYTES_MAX;
        // In this order: the rare first, then the peer's bytes, since every turn collects and sends whatever
        // is ready anyway, while a subscription that always has something to push could keep its cancel from
        // being read.
        let (mut reader, writer) = self.stream.split();
        tokio::select! {
            biased;
            () = stop, if self.draining.is_none() => self.draining = Some(Closed::Stopping),
            _ = self.ticks.interval.tick() => self.tick()?,
            read = reader.read_buf(&mut self.received), if reads => self.has_read(read?),
            Some(outcome) = self.in_flight.next(), if has_room => self.accept(outcome),
            Some(push) = self.pushes.recv(), if has_room => self.send_queue.push(push),
            writable = writer.writable(), if !self.send_queue.is_empty() => writable?,
        }
        Ok(())
    }

    fn has_read(&mut self, bytes: usize) {
        if bytes == 0 {
            // The peer may have closed its sending half only: what is in flight is still answered.
            self.draining = Some(Closed::ByPeer);
            return;
        }
        self.undecoded = true;
        self.ticks.received = true;
    }

    /// Closes what makes no progress, and gives back the memory of what rests.
    fn tick(&mut self) -> Result<(), Closed> {
        let ticks = &mut self.ticks;
        let stalled = !self.send_queue.is_empty() && !self.send_queue.take_progress();
        ticks.stalled = if stalled { ticks.stalled + 1 } else { 0 };
        if ticks.stalled >= ticks.stalled_max {
            return Err(Closed::NeverReads);
        }
        if let Some(reason) = &self.draining {
            ticks.draining += 1;
            if ticks.draining > DRAIN_TICKS_MAX {
                tracing::debug!(%reason, in_flight = self.in_flight.len(), "closed with requests in flight");
                return Err(self.draining.take().unwrap_or(Closed::ByPeer));
            }
        }
        let received = std::mem::take(&mut ticks.received);
        let idle = !received && self.in_flight.is_empty() && !self.door.has_subscriptions();
        ticks.idle = if idle { ticks.idle + 1 } else { 0 };
        if idle && self.received.is_empty() {
            self.received = BytesMut::new();
        }
        if ticks.idle > ticks.idle_max { Err(Closed::Idle) } else { Ok(()) }
    }
}

/// What a connection remembers from tick to tick.
struct Ticks {
    interval: Interval,
    received: bool,
    stalled: u32,
    idle: u32,
    idle_max: u32,
    stalled_max: u32,
    draining: u32,
}

impl Ticks {
    fn start(limits: Limits) -> Self {
        let shortest = limits.send_timeout.min(limits.idle_timeout) / TICKS_PER_SEND_TIMEOUT;
        let period = shortest.clamp(Duration::from_millis(1), TICK_MAX);
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let in_ticks = |timeout: Duration| {
            u32::try_from(timeout.as_millis() / period.as_millis()).unwrap_or(u32::MAX)
        };
        let (idle_max, stalled_max) =
            (in_ticks(limits.idle_timeout), in_ticks(limits.send_timeout));
        Self { interval, received: true, stalled: 0, idle: 0, idle_max, stalled_max, draining: 0 }
    }
}

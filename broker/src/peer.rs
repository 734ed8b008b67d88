//! A connection to another node of the cluster: requests and their answers, messages without an answer, pushes.
//!
//! One task reads and one writes; whoever holds the [`Peer`] may ask from any task. It refuses to reconnect and to
//! repeat: a lost connection fails everything that waits for it, and its holder decides. Names are resolved anew by
//! every [`Peer::connect`].

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::{Frame, FrameDecoder, FrameError, FrameKind, PREFACE_BYTES, Preface, encode_head},
    limits::FRAME_BYTES_MAX,
    message::Request,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::tasks::{Shutdown, Tasks};

/// How long connecting and the exchange of prefaces may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Frames waiting for the socket; beyond it requests wait, and messages without an answer are dropped.
const SEND_QUEUE_FRAMES: usize = 1024;
/// Pushes waiting to be taken; beyond it the socket is not read.
const PUSHES_QUEUED_MAX: usize = 8;
/// Data that is not acknowledged by the peer's kernel for this long ends the connection: after a cut the kernel's own
/// pauses would grow past the cut.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of one frame on their way out.
struct Outgoing {
    head: Bytes,
    payload: Bytes,
}

/// A connection to another node. Clones share it; it closes when the last of them is dropped.
#[derive(Clone)]
pub(crate) struct Peer {
    outgoing: mpsc::Sender<Outgoing>,
    waiting: Arc<Waiting>,
    next_correlation: Arc<AtomicU32>,
    closed: Shutdown,
    /// Ends both tasks with the last clone.
    _open: Arc<Open>,
}

/// Requests whose answers have not come.
#[derive(Default)]
struct Waiting {
    /// `None`: the connection is lost.
    answers: Mutex<Option<HashMap<u32, oneshot::Sender<Frame>>>>,
}

struct Open(Shutdown);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.start();
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u32, oneshot::Sender<Frame>>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Connects to `address` (`host:port`). Pushes that arrive go to the second value.
    pub(crate) async fn connect(
        tasks: &Tasks,
        address: &str,
    ) -> io::Result<(Self, mpsc::Receiver<Frame>)> {
        let connecting = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
            greet(&mut stream).await?;
            Ok::<_, io::Error>(stream)
        };
        let stream = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        let (reader, writer) = stream.into_split();
        let (outgoing, queue) = mpsc::channel(SEND_QUEUE_FRAMES);
        let (pushes, pushed) = mpsc::channel(PUSHES_QUEUED_MAX);
        let waiting = Arc::new(Waiting { answers: Mutex::new(Some(HashMap::new())) });
        let closed = tasks.shutdown().child();
        let peer = Self {
            outgoing,
            waiting: Arc::clone(&waiting),
            next_correlation: Arc::new(AtomicU32::new(1)),
            closed: closed.clone(),
            _open: Arc::new(Open(closed.clone())),
        };
        let address: Arc<str> = address.into();
        tasks.spawn("peer-writer", write(writer, queue, closed.clone()));
        tasks.spawn("peer-reader", async move {
            let ended = closed.or_stop(read(reader, &waiting, pushes)).await;
            if let Some(Err(error)) = ended {
                tracing::debug!(%address, %error, "lost the connection to a node");
            }
            closed.start();
            // Whoever waits learns it by the drop.
            waiting.lock().take();
        });
        Ok((peer, pushed))
    }

    /// Completes when the connection is lost.
    pub(crate) async fn closed(&self) {
        self.closed.started().await;
    }

    /// Gives the connection up, for everybody who holds it.
    pub(crate) fn close(&self) {
        self.closed.start();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.has_started()
    }

    /// Asks, and waits for the answer and its payload for at most `wait`.
    pub(crate) async fn ask<R: Request>(
        &self,
        request: &R,
        wait: Duration,
    ) -> Result<(R::Response, Bytes), Failure> {
        let (correlation, answer) = self.begin(request).await?;
        let answered = self.finish::<R>(answer, wait).await;
        if answered.is_err() {
            self.waiting.lock().as_mut().map(|answers| answers.remove(&correlation));
        }
        answered
    }

    /// Waits for the answer to what [`Peer::begin`] began.
    pub(crate) async fn finish<R: Request>(
        &self,
        answer: oneshot::Receiver<Frame>,
        wait: Duration,
    ) -> Result<(R::Response, Bytes), Failure> {
        let frame = timeout(wait, answer)
            .await
            .map_err(|_elapsed| lost(ErrorCode::Timeout, "a node did not answer in time"))?
            .map_err(|_dropped| lost(ErrorCode::NotReady, "the connection to a node was lost"))?;
        let outcome: Result<R::Response, Failure> =
            frame.message().map_err(|error| undecodable(&error))?;
        outcome.map(|response| (response, frame.payload))
    }

    /// Asks, and gives the correlation and where the answer will be.
    pub(crate) async fn begin<R: Request>(
        &self,
        request: &R,
    ) -> Result<(u32, oneshot::Receiver<Frame>), Failure> {
        let correlation = self.next_correlation.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let gone = || lost(ErrorCode::NotReady, "the connection to a node was lost");
        self.waiting.lock().as_mut().ok_or_else(gone)?.insert(correlation, reply);
        let head = head(request, correlation, 0)?;
        let sent = self.outgoing.send(Outgoing { head, payload: Bytes::new() }).await;
        sent.map_err(|_closed| gone())?;
        Ok((correlation, answer))
    }

    /// Sends a message that has no answer, waiting for room in the queue.
    pub(crate) async fn tell<R: Request>(&self, request: &R) -> Result<(), Failure> {
        let head = head(request, 0, 0)?;
        let sent = self.outgoing.send(Outgoing { head, payload: Bytes::new() }).await;
        sent.map_err(|_closed| lost(ErrorCode::NotReady, "the connection to a node was lost"))
    }

    /// Sends a message that has no answer if there is room in the queue. Says whether it was taken.
    pub(crate) fn post<R: Request>(&self, request: &R, payload: Bytes) -> bool {
        let Ok(head) = head(request, 0, payload.len()) else { return false };
        self.outgoing.try_send(Outgoing { head, payload }).is_ok()
    }
}

fn head<R: Request>(request: &R, correlation: u32, payload_bytes: usize) -> Result<Bytes, Failure> {
    encode_head(FrameKind::Request, R::API.number(), correlation, request, payload_bytes)
        .map_err(|error| Failure::new(error.code(), error.to_string()))
}

fn lost(code: ErrorCode, message: &str) -> Failure {
    Failure::new(code, message)
}

fn undecodable(error: &FrameError) -> Failure {
    Failure::new(ErrorCode::Internal, format!("a node's answer cannot be decoded: {error}"))
}

async fn greet(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&Preface::OURS.encode()).await?;
    let mut theirs = [0; PREFACE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let theirs = Preface::decode(&theirs).map_err(io::Error::other)?;
    match Preface::OURS.negotiate(theirs) {
        Some(_version) => Ok(()),
        None => Err(io::Error::other("the node speaks no protocol version of ours")),
    }
}

async fn write(writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Outgoing>, closed: Shutdown) {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    let writing = async {
        while let Some(Outgoing { head, payload }) = queue.recv().await {
            writer.write_all(&head).await?;
            writer.write_all(&payload).await?;
            if queue.is_empty() {
                writer.flush().await?;
            }
        }
        Ok::<_, io::Error>(())
    };
    if let Some(Err(error)) = closed.or_stop(writing).await {
        tracing::debug!(%error, "cannot send to a node");
    }
    closed.start();
}

async fn read(
    mut reader: OwnedReadHalf,
    waiting: &Waiting,
    pushes: mpsc::Sender<Frame>,
) -> io::Result<()> {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    let mut received = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut received).map_err(io::Error::other)? {
            match frame.kind {
                FrameKind::Response => {
                    let mut answers = waiting.lock();
                    if let Some(reply) =
                        answers.as_mut().and_then(|answers| answers.remove(&frame.correlation))
                    {
                        // Whoever asked may have given up.
                        drop(reply.send(frame));
                    }
                }
                FrameKind::Push => {
                    if pushes.send(frame).await.is_err() {
                        return Ok(());
                    }
                }
                FrameKind::Request | FrameKind::Credit | FrameKind::Cancel => {
                    return Err(io::Error::other(format!(
                        "a node answered with a {:?}",
                        frame.kind
                    )));
                }
            }
        }
        if reader.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

//! The broker as a target of the load: starts `tidemarkd`, speaks raw native frames to it.
//!
//! Raw frames and not the client library, so that the broker is measured and not its client.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{
    Failure, TopicPartition,
    frame::{Frame, FrameDecoder, FrameKind, PREFACE_BYTES, Preface, encode_head},
    limits::FRAME_BYTES_MAX,
    message::Request,
    messages::{
        Acks, CreateTopicRequest, DeleteTopicRequest, Durability, ProducePartition, ProduceRequest,
        ProduceResponse, SubscribePartition, SubscribeRequest,
    },
};

use crate::load::{Acknowledged, Head, ReadLane, Received, StoreLane, read_some};

/// Bytes in front of a frame's header: length, kind, flags, api, correlation, header length, CRC.
const PREFIX_BYTES: usize = 20;
/// Longest wait for anything one request asks of the broker.
const TIMEOUT_MS: u32 = 60_000;

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts a program and waits for the first line of its standard output in which `parse` finds an address.
    ///
    /// # Errors
    /// When it cannot be started or ends before saying where it listens.
    pub fn start(
        command: &mut Command,
        parse: impl Fn(&str) -> Option<SocketAddr>,
    ) -> io::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let stdout = child.stdout.take().expect("piped above");
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next().transpose()? {
            if let Some(address) = parse(&line) {
                // Whatever else it prints must not block it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, address });
            }
        }
        let status = child.wait()?;
        Err(io::Error::other(format!("{command:?} ended without an address: {status}")))
    }

    /// Starts `tidemarkd` on free ports with its data in `dir`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn tidemarkd(program: &Path, dir: &Path) -> io::Result<Self> {
        let flags = ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"].map(str::to_owned);
        Self::node(program, dir, &flags)
    }

    /// Starts `tidemarkd` with its data in `dir` and further flags.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn node(program: &Path, dir: &Path, flags: &[String]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(flags).arg("--data-dir").arg(dir);
        Self::start(&mut command, |line| line.split_whitespace().find_map(|word| word.parse().ok()))
    }

    /// The process, for `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in order (SIGTERM) and waits for its end. To kill it, drop it.
    ///
    /// # Errors
    /// When it ends as a failure.
    pub fn terminate(mut self) -> io::Result<()> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("ended: {status}"))) }
    }

    /// Peak resident memory so far, in bytes, from the kernel's accounting.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn peak_memory_bytes(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
        kib.map(|kib: u64| kib << 10).ok_or_else(|| io::Error::other("no VmHWM in /proc"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What a topic is created with.
#[derive(Clone, Copy, Debug)]
pub struct NewTopic<'a> {
    pub name: &'a str,
    pub partitions: u32,
    /// Whether acknowledgements wait for the disk.
    pub durable: bool,
    /// `None`: the broker's default.
    pub replication_factor: Option<u16>,
    pub min_insync_replicas: u16,
}

/// A blocking connection that has exchanged prefaces.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: FrameDecoder,
    correlation: u32,
}

impl Connection {
    /// # Errors
    /// Those of the socket, or a server that is not Tidemark.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&Preface::OURS.encode())?;
        let mut theirs = [0; PREFACE_BYTES];
        stream.read_exact(&mut theirs)?;
        Preface::decode(&theirs).map_err(io::Error::other)?;
        let decoder = FrameDecoder::new(FRAME_BYTES_MAX);
        Ok(Self { stream, buffer: BytesMut::new(), decoder, correlation: 0 })
    }

    /// Sends one request without payload and waits for its answer.
    ///
    /// # Errors
    /// Those of the socket, a malformed answer, or the failure the broker reports.
    pub fn call<R: Request>(&mut self, request: &R) -> io::Result<R::Response> {
        self.correlation += 1;
        let api = R::API.number();
        let head = encode_head(FrameKind::Request, api, self.correlation, request, 0)
            .map_err(io::Error::other)?;
        self.stream.write_all(&head)?;
        let frame = self.read_frame()?;
        let outcome: Result<R::Response, Failure> = frame.message().map_err(io::Error::other)?;
        outcome.map_err(io::Error::other)
    }

    fn read_frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(frame);
            }
            let mut scratch = [0; 16 << 10];
            let count = read_some(&mut self.stream, &mut scratch)?;
            self.buffer.extend_from_slice(&scratch[..usize::try_from(count).expect("small")]);
        }
    }

    /// Creates a topic and returns its partitions.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        durable: bool,
    ) -> io::Result<Vec<TopicPartition>> {
        let (replication_factor, min_insync_replicas) = (None, 1);
        self.create(&NewTopic {
            name,
            partitions,
            durable,
            replication_factor,
            min_insync_replicas,
        })
    }

    /// Creates a topic and returns its partitions.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn create(&mut self, topic: &NewTopic<'_>) -> io::Result<Vec<TopicPartition>> {
        let durability = if topic.durable { "disk" } else { "memory" };
        let min_insync_replicas = topic.min_insync_replicas.to_string();
        let settings = [
            ("durability".to_owned(), durability.to_owned()),
            ("min_insync_replicas".to_owned(), min_insync_replicas),
        ];
        let created = self.call(&CreateTopicRequest {
            name: topic.name.to_owned(),
            partitions: Some(topic.partitions),
            replication_factor: topic.replication_factor,
            settings: settings.into(),
            validate_only: false,
            timeout_ms: TIMEOUT_MS,
        })?;
        Ok((0..topic.partitions).map(|index| (created.id, index).into()).collect())
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn delete_topic(&mut self, name: &str) -> io::Result<()> {
        let request =
            DeleteTopicRequest { name: name.to_owned(), id: None, timeout_ms: TIMEOUT_MS };
        self.call(&request).map(drop)
    }

    /// Turns the connection into one that stores batches of `batch_bytes` in `partition`, waiting for `Acks::All`.
    pub fn store_lane(self, partition: TopicPartition, batch_bytes: usize) -> StoreLane {
        let head: Head = Box::new(move |number| produce_head(partition, number, batch_bytes));
        let Self { stream, mut buffer, mut decoder, .. } = self;
        let mut answered = 0;
        let mut scratch = vec![0; 64 << 10];
        let acknowledged: Acknowledged = Box::new(move |stream| {
            let before = answered;
            while answered == before {
                let count = usize::try_from(read_some(stream, &mut scratch)?).expect("small");
                buffer.extend_from_slice(&scratch[..count]);
                while let Some(frame) = decoder.decode(&mut buffer).map_err(io::Error::other)? {
                    check_produced(&frame)?;
                    answered += 1;
                }
            }
            Ok(answered)
        });
        StoreLane { stream, head, acknowledged }
    }

    /// Turns the connection into one that is pushed `partition` from its start.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn read_lane(self, partition: TopicPartition) -> io::Result<ReadLane> {
        self.shared_read_lane(&[partition])
    }

    /// Turns the connection into one that is pushed all of `partitions` from their starts, in one subscription.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn shared_read_lane(mut self, partitions: &[TopicPartition]) -> io::Result<ReadLane> {
        let from_start =
            |&partition| SubscribePartition { partition, leader_epoch: None, offset: 0 };
        let subscribed = self.call(&SubscribeRequest {
            credit_bytes: u32::MAX,
            max_push_bytes: 1 << 20,
            partitions: partitions.iter().map(from_start).collect(),
            isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
        })?;
        for partition in subscribed.partitions {
            partition.map_err(io::Error::other)?;
        }
        let mut source = BufferedThenStream { buffered: self.buffer.freeze() };
        let mut scratch = vec![0; 1 << 20];
        let received: Received = Box::new(move |stream| {
            let mut prefix = [0; PREFIX_BYTES];
            source.read_exact(stream, &mut prefix)?;
            let word = |at: usize| {
                u32::from_be_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
                    as usize
            };
            let (length, header) = (word(0), word(12));
            let payload = length + 4 - PREFIX_BYTES - header;
            let mut left = header + payload;
            while left > 0 {
                let take = left.min(scratch.len());
                source.read_exact(stream, &mut scratch[..take])?;
                left -= take;
            }
            Ok(payload as u64)
        });
        Ok(ReadLane { stream: self.stream, received })
    }
}

/// Bytes already read with the last answer come first.
struct BufferedThenStream {
    buffered: Bytes,
}

impl BufferedThenStream {
    fn read_exact(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<()> {
        let first = self.buffered.len().min(into.len());
        into[..first].copy_from_slice(&self.buffered.split_to(first));
        stream.read_exact(&mut into[first..])
    }
}

/// The head of produce request `number`: one batch of `batch_bytes` for `partition`, with `Acks::All`.
///
/// # Panics
/// Beyond 2^32 requests, or with a batch over the limit.
pub fn produce_head(partition: TopicPartition, number: u64, batch_bytes: usize) -> Bytes {
    let request = ProduceRequest {
        acks: Acks::All,
        durability: Durability::Topic,
        timeout_ms: TIMEOUT_MS,
        partitions: vec![ProducePartition {
            partition,
            leader_epoch: None,
            batch_bytes: u32::try_from(batch_bytes).expect("below the batch limit"),
        }],
        transactional_id: None,
    };
    let correlation = u32::try_from(number).expect("short runs");
    encode_head(
        FrameKind::Request,
        ProduceRequest::API.number(),
        correlation,
        &request,
        batch_bytes,
    )
    .expect("the request encodes")
}

fn check_produced(frame: &Frame) -> io::Result<()> {
    let outcome: Result<ProduceResponse, Failure> = frame.message().map_err(io::Error::other)?;
    let response = outcome.map_err(io::Error::other)?;
    response
        .partitions
        .into_iter()
        .try_for_each(|partition| partition.map(drop).map_err(io::Error::other))
}

//! A connection that sends what it is told to, right or wrong, and reads frames back.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tidemark_protocol::{
    Failure, TopicPartition,
    batch::{BatchBuilder, Compression},
    frame::{Frame, FrameDecoder, FrameKind, PREFACE_BYTES, Preface, encode_head},
    limits::FRAME_BYTES_MAX,
    message::Request,
    messages::{
        Acks, CreateTopicRequest, Durability, FetchPartition, FetchRequest, FetchedPartition,
        ProducePartition, ProduceReceipt, ProduceRequest,
    },
};

use crate::process::Broker;

/// Of every record: in the future, so that no retention of a default topic deletes it under a test.
pub const TIMESTAMP_MS: i64 = 4_000_000_000_000;
/// Longest wait for bytes before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// What requests here allow the broker.
pub const TIMEOUT_MS: u32 = 15_000;

/// A connection to a broker's data port.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: FrameDecoder,
    correlation: u32,
}

impl Raw {
    /// Connects and exchanges prefaces.
    pub fn open(broker: &Broker) -> Result<Self> {
        Self::open_silent(broker)?.greeted()
    }

    /// Connects to an address and exchanges prefaces; no later wait is longer than `patience`.
    pub fn open_at(address: SocketAddr, patience: Duration) -> Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, patience)?, patience)?.greeted()
    }

    fn greeted(mut self) -> Result<Self> {
        let raw = &mut self;
        raw.send(&Preface::OURS.encode())?;
        let mut theirs = [0; PREFACE_BYTES];
        raw.stream.read_exact(&mut theirs).context("the broker's preface")?;
        Preface::decode(&theirs)?;
        Ok(self)
    }

    /// Connects and says nothing.
    pub fn open_silent(broker: &Broker) -> Result<Self> {
        Self::over(TcpStream::connect(broker.address())?, PATIENCE)
    }

    fn over(stream: TcpStream, patience: Duration) -> Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let decoder = FrameDecoder::new(FRAME_BYTES_MAX);
        Ok(Self { stream, buffer: BytesMut::new(), decoder, correlation: 0 })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Sends a request frame and returns its correlation.
    pub fn request<T: Serialize>(&mut self, api: u16, header: &T, payload: &[u8]) -> Result<u32> {
        self.correlation += 1;
        let head = encode_head(FrameKind::Request, api, self.correlation, header, payload.len())?;
        self.send(&head)?;
        self.send(payload)?;
        Ok(self.correlation)
    }

    /// The next frame; `None` when the broker closes the connection instead.
    pub fn read_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let mut scratch = [0; 16 << 10];
            match self.stream.read(&mut scratch) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("no answer"),
            }
        }
    }

    /// Fails unless the broker closes the connection without another word.
    pub fn expect_close(&mut self) -> Result<()> {
        match self.read_frame()? {
            None => Ok(()),
            Some(frame) => bail!("an answer instead of a close: {frame:?}"),
        }
    }

    /// Says that nothing more will be sent, so that a broker waiting for the rest of a frame need not.
    pub fn finish_sending(&mut self) -> Result<()> {
        match self.stream.shutdown(Shutdown::Write) {
            // Closed by the other side already.
            Err(error) if error.kind() != ErrorKind::NotConnected => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// All bytes until the broker closes.
    pub fn read_to_close(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(bytes),
        }
    }

    /// Sends a request and returns the outcome and the payload of its answer.
    pub fn call<R: Request>(
        &mut self,
        request: &R,
        payload: &[u8],
    ) -> Result<(Result<R::Response, Failure>, Bytes)> {
        let correlation = self.request(R::API.number(), request, payload)?;
        self.answer::<R>(correlation)
    }

    /// Reads the answer to an earlier request.
    pub fn answer<R: Request>(
        &mut self,
        correlation: u32,
    ) -> Result<(Result<R::Response, Failure>, Bytes)> {
        let frame = self.read_frame()?.context("closed instead of an answer")?;
        anyhow::ensure!(frame.correlation == correlation, "an answer to another request");
        Ok((frame.message()?, frame.payload))
    }

    /// Creates a topic and returns its partitions.
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<Vec<TopicPartition>> {
        let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions: Some(partitions),
            replication_factor: None,
            settings,
            validate_only: false,
            timeout_ms: TIMEOUT_MS,
        };
        let created = self.call(&request, &[])?.0?;
        Ok((0..partitions).map(|index| (created.id, index).into()).collect())
    }

    /// Produces batches to one partition with `Acks::All`.
    pub fn produce(
        &mut self,
        partition: TopicPartition,
        batches: &[u8],
    ) -> Result<Result<ProduceReceipt, Failure>> {
        let request = produce_request(partition, batches.len())?;
        let response = self.call(&request, batches)?.0?;
        response.partitions.into_iter().next().ok_or_else(|| anyhow!("no outcome"))
    }

    /// Fetches from one partition without waiting.
    pub fn fetch(
        &mut self,
        partition: TopicPartition,
        offset: u64,
    ) -> Result<Result<(FetchedPartition, Bytes), Failure>> {
        let (max_wait_ms, min_bytes, max_bytes) = (0, 0, 8 << 20);
        let partitions = vec![FetchPartition { partition, leader_epoch: None, offset, max_bytes }];
        let request = FetchRequest {
            max_wait_ms,
            min_bytes,
            max_bytes,
            partitions,
            isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
        };
        let (response, payload) = self.call(&request, &[])?;
        let outcome = response?.partitions.into_iter().next().context("no outcome")?;
        Ok(outcome.map(|fetched| (fetched, payload)))
    }
}

/// A request that appends `batch_bytes` to one partition and waits for all.
pub fn produce_request(partition: TopicPartition, batch_bytes: usize) -> Result<ProduceRequest> {
    let batch_bytes = u32::try_from(batch_bytes)?;
    Ok(ProduceRequest {
        acks: Acks::All,
        durability: Durability::Topic,
        timeout_ms: TIMEOUT_MS,
        partitions: vec![ProducePartition { partition, leader_epoch: None, batch_bytes }],
        transactional_id: None,
    })
}

/// A batch of records with these values and no keys.
pub fn batch(values: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        builder.push(TIMESTAMP_MS, None, Some(value), &[]);
    }
    builder.build().expect("tests build small batches")
}

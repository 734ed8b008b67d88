//! A broker in this process, and a client that speaks frames.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{
    Failure, TopicPartition,
    batch::{BatchBuilder, batches},
    compression::Compression,
    frame::{Frame, FrameDecoder, FrameError, FrameKind, PREFACE_BYTES, Preface, encode_head},
    message::Request,
    messages::{
        Acks, CreateTopicRequest, Durability, FetchRequest, ProducePartition, ProduceReceipt,
        ProduceRequest, PushHeader, TopicSettings,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    clock::Clock,
    config::Config,
    disk::Disk,
    health::Health,
    metrics::Metrics,
    server::{self, ServerError},
    tasks::{Shutdown, Tasks},
};

/// In 2096: nothing here is to expire.
pub(super) const TIMESTAMP_MS: i64 = 4_000_000_000_000;

pub(super) struct TestBroker {
    pub(super) address: SocketAddr,
    pub(super) health: Health,
    starting: Starting,
}

/// A broker that may not be ready yet.
pub(super) struct Starting {
    pub(super) health: Health,
    shutdown: Shutdown,
    run: JoinHandle<Result<(), ServerError>>,
}

impl Starting {
    pub(super) fn begin(disk: impl Into<Disk>, dir: &Path, settings: &[(&str, &str)]) -> Self {
        let dir = dir.to_str().unwrap();
        let mut all = vec![
            ("listen", "127.0.0.1:0"),
            ("data_dir", dir),
            ("disk_reserve_bytes", "0"),
            ("shard_threads", "2"),
        ];
        all.extend_from_slice(settings);
        let config = Config::with(&all).unwrap();
        let health = Health::starting();
        let metrics = Metrics::new(Clock::start(), health.clone());
        let shutdown = Shutdown::new();
        let run = server::run_on(disk.into(), config, metrics, health.clone(), shutdown.clone());
        let run = Tasks::new(Shutdown::new()).spawn("broker", run);
        Self { health, shutdown, run }
    }

    pub(super) async fn ready(mut self) -> TestBroker {
        let state = tokio::select! {
            state = self.health.ready() => state,
            outcome = &mut self.run => panic!("the broker did not start: {outcome:?}"),
        };
        let address = state.data_address.unwrap();
        TestBroker { address, health: self.health.clone(), starting: self }
    }

    /// How it ended, by itself or because it was told to.
    pub(super) async fn stop(self) -> Result<(), ServerError> {
        self.shutdown.start();
        self.ended().await
    }

    pub(super) async fn ended(self) -> Result<(), ServerError> {
        let stopped = tokio::time::timeout(Duration::from_secs(10), self.run).await;
        stopped.expect("the broker does not stop").unwrap()
    }
}

impl TestBroker {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    pub(super) async fn start_with(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_on(Disk::default(), dir, settings).await
    }

    pub(super) async fn start_on(
        disk: impl Into<Disk>,
        dir: &Path,
        settings: &[(&str, &str)],
    ) -> Self {
        Starting::begin(disk, dir, settings).ready().await
    }

    /// A broker starts in `dir`, is given the record `kept` in a new topic `orders`, whose partition this is, and stops.
    pub(super) async fn leaves_a_record(dir: &Path) -> TopicPartition {
        let broker = Self::start(dir).await;
        let mut client = broker.connect().await;
        let partition = client.create_topic("orders", 1).await;
        client.produce(partition, batch(&["kept"])).await.unwrap();
        broker.stop().await;
        partition
    }

    pub(super) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    pub(super) async fn stop(self) {
        self.outcome().await.unwrap();
    }

    pub(super) async fn outcome(self) -> Result<(), ServerError> {
        self.starting.stop().await
    }
}

pub(super) struct Client {
    stream: TcpStream,
    received: BytesMut,
    decoder: FrameDecoder,
    correlation: u32,
}

impl Client {
    pub(super) async fn connect_raw(address: SocketAddr, first: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(first).await.unwrap();
        let decoder = FrameDecoder::new(64 << 20);
        Self { stream, received: BytesMut::new(), decoder, correlation: 0 }
    }

    async fn connect(address: SocketAddr) -> Self {
        let mut client = Self::connect_raw(address, &Preface::OURS.encode()).await;
        let mut preface = [0; PREFACE_BYTES];
        client.stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(Preface::decode(&preface).unwrap(), Preface::OURS);
        client
    }

    /// Sends a frame whose head has been encoded.
    pub(super) async fn send_frame(&mut self, head: Result<Bytes, FrameError>, payload: Bytes) {
        self.stream.write_all(&head.unwrap()).await.unwrap();
        self.stream.write_all(&payload).await.unwrap();
    }

    pub(super) async fn send<R: Request>(&mut self, request: &R, payload: Bytes) -> u32 {
        self.correlation += 1;
        let (api, correlation) = (R::API.number(), self.correlation);
        let head = encode_head(FrameKind::Request, api, correlation, request, payload.len());
        self.send_frame(head, payload).await;
        correlation
    }

    pub(super) async fn receive_frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.received).unwrap() {
                return frame;
            }
            let read = self.stream.read_buf(&mut self.received).await.unwrap();
            assert!(read > 0, "the broker closed the connection");
        }
    }

    pub(super) async fn receive<R: Request>(&mut self) -> (Result<R::Response, Failure>, Bytes) {
        let frame = self.receive_frame().await;
        assert_eq!((frame.kind, frame.api), (FrameKind::Response, R::API.number()));
        (frame.message().unwrap(), frame.payload)
    }

    pub(super) async fn receive_push(&mut self, correlation: u32) -> (PushHeader, Bytes) {
        let frame = self.receive_frame().await;
        assert_eq!((frame.kind, frame.correlation), (FrameKind::Push, correlation));
        (frame.message().unwrap(), frame.payload)
    }

    pub(super) async fn call<R: Request>(
        &mut self,
        request: &R,
        payload: Bytes,
    ) -> (Result<R::Response, Failure>, Bytes) {
        self.send(request, payload).await;
        self.receive::<R>().await
    }

    pub(super) async fn create_topic(&mut self, name: &str, partitions: u32) -> TopicPartition {
        self.create_topic_with(name, partitions, &[]).await
    }

    /// The first partition of a new topic.
    pub(super) async fn create_topic_with(
        &mut self,
        name: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> TopicPartition {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions: Some(partitions),
            replication_factor: None,
            settings: settings.iter().map(owned).collect(),
            validate_only: false,
            timeout_ms: 10_000,
        };
        let (response, _) = self.call(&request, Bytes::new()).await;
        (response.unwrap().id, 0).into()
    }

    pub(super) async fn try_create_topic(&mut self, name: &str) -> Result<(), Failure> {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions: None,
            replication_factor: None,
            settings: TopicSettings::new(),
            validate_only: false,
            timeout_ms: 10_000,
        };
        self.call(&request, Bytes::new()).await.0.map(drop)
    }

    pub(super) async fn produce(
        &mut self,
        partition: TopicPartition,
        payload: Bytes,
    ) -> Result<ProduceReceipt, Failure> {
        let request = produce_request(partition, Acks::All, &payload);
        let (response, _) = self.call(&request, payload).await;
        response.unwrap().partitions.remove(0)
    }

    /// The values from `offset` to the high watermark.
    pub(super) async fn read_all(
        &mut self,
        partition: TopicPartition,
        mut offset: u64,
    ) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let request = super::fetch_request(partition, offset, 0);
            let (response, payload) = self.call::<FetchRequest>(&request, Bytes::new()).await;
            let fetched = response.unwrap().partitions.remove(0).unwrap();
            if fetched.batch_bytes == 0 {
                assert_eq!(offset, fetched.high_watermark);
                return all;
            }
            for batch in batches(payload) {
                let batch = batch.unwrap();
                let records = batch.records().unwrap();
                let wanted = records.iter().filter(|record| record.offset >= offset);
                all.extend(wanted.map(|record| text(record.value.as_ref().unwrap())));
                offset = batch.header.next_offset();
            }
        }
    }

    /// Completes when the broker has closed the connection, without reading before that.
    pub(super) async fn closed_by_broker(&mut self) {
        loop {
            if self.stream.write_all(&[]).await.is_err() {
                return;
            }
            let ready =
                self.stream.ready(tokio::io::Interest::ERROR | tokio::io::Interest::READABLE);
            let ready = ready.await.unwrap();
            if ready.is_error() || ready.is_read_closed() || ready.is_write_closed() {
                return;
            }
            // Readable, and so ready at once, for as long as what was sent is not read: that is the point.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) fn produce_request(
    partition: TopicPartition,
    acks: Acks,
    payload: &Bytes,
) -> ProduceRequest {
    let batch_bytes = u32::try_from(payload.len()).unwrap();
    let partitions = vec![ProducePartition { partition, leader_epoch: None, batch_bytes }];
    ProduceRequest {
        acks,
        durability: Durability::Topic,
        timeout_ms: 10_000,
        partitions,
        transactional_id: None,
    }
}

/// One batch of records with these values, each with a key.
pub(super) fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        builder.push(TIMESTAMP_MS, Some(b"key"), Some(value.as_bytes()), &[]);
    }
    builder.build().unwrap()
}

pub(super) fn keyless(value: &str) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(TIMESTAMP_MS, None, Some(value.as_bytes()), &[]);
    builder.build().unwrap()
}

/// The values in a payload.
pub(super) fn values(payload: Bytes) -> Vec<String> {
    let records = batches(payload).flat_map(|batch| batch.unwrap().records().unwrap());
    records.map(|record| text(&record.value.unwrap())).collect()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

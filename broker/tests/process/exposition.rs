//! What `/metrics` shows of a running broker is what the documents list: no family more, none less.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tidemark_broker::metrics::table::METRICS;
use tidemark_protocol::{
    Failure, TopicId, TopicPartition,
    batch::BatchBuilder,
    compression::Compression,
    frame::{Frame, FrameDecoder, FrameKind, PREFACE_BYTES, Preface, encode_head},
    message::Request,
    messages::{
        Acks, CommitOffsetsRequest, CoordinatorKind, CreateTopicRequest, Durability,
        FetchPartition, FetchRequest, FindCoordinatorRequest, OffsetToCommit, ProducePartition,
        ProduceRequest,
    },
};

use crate::broker::{Broker, tidemarkd};

/// An API number that nothing has.
const UNKNOWN_API: u16 = 0xfffe;
/// How long anything may take before the test fails. Groups are measured every few seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// In 2096: nothing here is to expire.
const TIMESTAMP_MS: i64 = 4_000_000_000_000;

struct Client {
    stream: TcpStream,
    received: BytesMut,
}

impl Client {
    fn connect(broker: &Broker) -> Self {
        let mut stream = TcpStream::connect(broker.address("data and administration")).unwrap();
        stream.write_all(&Preface::OURS.encode()).unwrap();
        stream.read_exact(&mut [0; PREFACE_BYTES]).unwrap();
        Self { stream, received: BytesMut::new() }
    }

    fn exchange(&mut self, head: &[u8], payload: &[u8]) -> Frame {
        self.stream.write_all(head).unwrap();
        self.stream.write_all(payload).unwrap();
        let mut decoder = FrameDecoder::new(1 << 20);
        loop {
            if let Some(frame) = decoder.decode(&mut self.received).unwrap() {
                return frame;
            }
            let mut chunk = [0; 4096];
            let read = self.stream.read(&mut chunk).unwrap();
            assert!(read > 0, "the broker closed the connection");
            self.received.extend_from_slice(&chunk[..read]);
        }
    }

    fn call<R: Request>(&mut self, request: &R, payload: &[u8]) -> Result<R::Response, Failure> {
        let head = encode_head(FrameKind::Request, R::API.number(), 1, request, payload.len());
        self.exchange(&head.unwrap(), payload).message().unwrap()
    }

    fn produce(&mut self, partition: TopicPartition, batch: &[u8]) {
        let request = ProduceRequest {
            acks: Acks::All,
            durability: Durability::Topic,
            timeout_ms: 10_000,
            partitions: vec![ProducePartition {
                partition,
                leader_epoch: None,
                batch_bytes: u32::try_from(batch.len()).unwrap(),
            }],
            transactional_id: None,
        };
        self.call(&request, batch).unwrap();
    }

    /// Has a group be there that has read the partition up to an offset.
    fn commit(&mut self, group: &str, partition: TopicPartition, offset: u64) {
        let (kind, key) = (CoordinatorKind::Group, group.to_owned());
        let find = FindCoordinatorRequest { kind, key, timeout_ms: 10_000 };
        let deadline = Instant::now() + PATIENCE;
        let (leader_epoch, metadata) = (None, String::new());
        let offsets = vec![OffsetToCommit { partition, offset, leader_epoch, metadata }];
        let group = group.to_owned();
        let commit = CommitOffsetsRequest { group, member: None, offsets, timeout_ms: 10_000 };
        // Its log may have to be made and read first.
        loop {
            let asked = self.call(&find, &[]).and_then(|_found| self.call(&commit, &[]));
            match asked {
                Ok(answer) => return assert!(answer.partitions.iter().all(Result::is_ok)),
                Err(failure) if failure.code.is_retriable() && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(failure) => panic!("{failure}"),
            }
        }
    }
}

/// Makes every kind of series appear: traffic, and each kind of error. The connection stays open.
fn exercise(broker: &Broker) -> Client {
    let mut client = Client::connect(broker);
    let topic = client.call(
        &CreateTopicRequest {
            name: "orders".to_owned(),
            partitions: Some(1),
            replication_factor: None,
            settings: [].into(),
            validate_only: false,
            timeout_ms: 10_000,
        },
        &[],
    );
    let partition = TopicPartition { topic_id: topic.unwrap().id, partition: 0 };
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(TIMESTAMP_MS, None, Some(b"a record"), &[]);
    let batch: Bytes = builder.build().unwrap();
    client.produce(partition, &batch);
    let mut damaged = batch.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    client.produce(partition, &damaged);
    client.produce(TopicPartition { topic_id: TopicId([7; 16]), partition: 0 }, &batch);
    let whole = FetchPartition { partition, leader_epoch: None, offset: 0, max_bytes: 1 << 20 };
    let fetch = FetchRequest {
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: 1 << 20,
        partitions: vec![whole],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    client.call(&fetch, &[]).unwrap();
    client.commit("at-the-start", partition, 0);
    client.commit("at-the-end", partition, 1);
    let head = encode_head(FrameKind::Request, UNKNOWN_API, 1, &(), 0).unwrap();
    let _refusal: Frame = client.exchange(&head, &[]);
    client
}

/// Names of the families, each with its kind.
fn families(exposition: &str) -> BTreeSet<(String, String)> {
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let split =
        |line: &str| line.split_once(' ').map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    types.map(|line| split(line).unwrap()).collect()
}

#[test]
fn every_documented_metric_is_exposed_and_every_exposed_one_documented() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(tidemarkd(&dir.path().join("data")));
    let _connected = exercise(&broker);
    let documented: BTreeSet<_> = METRICS
        .iter()
        .map(|metric| (metric.name.to_owned(), metric.kind.name().to_owned()))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    // The lag of groups is there when it was measured, and nothing else tells when.
    let exposition = loop {
        let exposition = broker.get("/metrics?collect[]=partition");
        if families(&exposition) == documented || Instant::now() > deadline {
            break exposition;
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(families(&exposition), documented);

    for line in [
        "tidemark_records_in_total{topic=\"orders\",protocol=\"native\"} 1",
        "tidemark_records_out_total{topic=\"orders\",protocol=\"native\"} 1",
        "tidemark_records_rejected_total{reason=\"DamagedBatch\"} 1",
        "tidemark_request_errors_total{api=\"produce\",error=\"DamagedBatch\"} 1",
        "tidemark_requests_total{api=\"produce\"} 3",
        "tidemark_api_unsupported_total{api=\"65534\"} 1",
        "tidemark_high_watermark{topic=\"orders\",partition=\"0\"} 1",
        "tidemark_connections 1",
        "tidemark_groups{state=\"empty\"} 2",
        "tidemark_group_members{group=\"at-the-end\"} 0",
        "tidemark_group_lag_records{group=\"at-the-start\",topic=\"orders\"} 1",
        "tidemark_group_lag_records{group=\"at-the-end\",topic=\"orders\"} 0",
        "tidemark_group_partition_lag_records{group=\"at-the-start\",topic=\"orders\",partition=\"0\"} 1",
        "tidemark_group_partition_lag_bytes{group=\"at-the-end\",topic=\"orders\",partition=\"0\"} 0",
        "tidemark_group_partition_lag_seconds{group=\"at-the-end\",topic=\"orders\",partition=\"0\"} 0",
        "tidemark_group_partition_lost_records{group=\"at-the-start\",topic=\"orders\",partition=\"0\"} 0",
        "tidemark_undecided_records{topic=\"orders\"} 0",
        "tidemark_transactions_ended_total{outcome=\"committed\"} 0",
    ] {
        assert!(exposition.lines().any(|known| known == line), "no `{line}` in:\n{exposition}");
    }
    let per_partition = |name: &str| broker.get("/metrics").contains(name);
    assert!(!per_partition("tidemark_high_watermark"), "only when asked for");
}

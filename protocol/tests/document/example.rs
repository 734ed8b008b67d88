//! The conversation of the worked example, made by the encoder.

use bytes::Bytes;
use serde::Serialize;
use tidemark_protocol::{
    Compression, ErrorCode, Failure,
    batch::{BatchBuilder, stamp},
    frame::{FrameKind, Preface, encode_head},
    message::Api,
    messages::*,
};

use crate::samples::{PARTITION, TOPIC, encoded};

/// Milliseconds: 2 October 2096, 07:06:40 UTC. Far enough for retention to leave the record alone.
pub(crate) const SENT_AT_MS: i64 = 4_000_000_000_000;

/// Every hex block of the document by its name.
pub(crate) fn blocks() -> Vec<(&'static str, Vec<u8>)> {
    let mut blocks =
        vec![("preface", Preface::OURS.encode().to_vec()), ("settings", encoded(&settings()))];
    topics(&mut blocks);
    records(&mut blocks);
    subscription(&mut blocks);
    blocks
}

fn settings() -> TopicSettings {
    let settings = [("retention_ms", "86400000"), ("cleanup_policy", "compact")];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

pub(crate) fn produced_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(SENT_AT_MS, Some(b"user-7"), Some(b"hello"), &[]);
    builder.build().unwrap()
}

pub(crate) fn stored_batch() -> Vec<u8> {
    let mut batch = produced_batch().to_vec();
    stamp(&mut batch, 0, 0);
    batch
}

fn frame<T: Serialize>(
    kind: FrameKind,
    api: Api,
    correlation: u32,
    header: &T,
    payload: &[u8],
) -> Vec<u8> {
    let head = encode_head(kind, api.number(), correlation, header, payload.len()).unwrap();
    [&head, payload].concat()
}

fn topics(blocks: &mut Vec<(&'static str, Vec<u8>)>) {
    use FrameKind::{Request, Response};
    let broker = BrokerMetadata {
        id: 1,
        host: "127.0.0.1".to_owned(),
        port: 9092,
        rack: None,
        fenced: false,
        ..BrokerMetadata::default()
    };
    let metadata = MetadataResponse {
        cluster_id: "demo".to_owned(),
        controller_id: Some(1),
        broker_id: 1,
        metadata_index: 3,
        brokers: vec![broker],
        topics: vec![],
    };
    let create = CreateTopicRequest {
        name: "clicks".to_owned(),
        partitions: Some(1),
        replication_factor: None,
        settings: TopicSettings::new(),
        validate_only: false,
        timeout_ms: 30_000,
    };
    let created = CreateTopicResponse {
        id: TOPIC,
        partitions: 1,
        replication_factor: 1,
        settings: TopicSettings::new(),
    };
    let exists: Result<CreateTopicResponse, Failure> =
        Err(Failure::new(ErrorCode::TopicExists, "topic `clicks` exists already"));
    let everything = MetadataRequest::default();
    blocks.extend([
        ("metadata-request", frame(Request, Api::Metadata, 1, &everything, &[])),
        ("metadata-response", frame(Response, Api::Metadata, 1, &Ok::<_, Failure>(metadata), &[])),
        ("create-topic-request", frame(Request, Api::CreateTopic, 2, &create, &[])),
        (
            "create-topic-response",
            frame(Response, Api::CreateTopic, 2, &Ok::<_, Failure>(created), &[]),
        ),
        ("create-topic-failure", frame(Response, Api::CreateTopic, 3, &exists, &[])),
    ]);
}

fn records(blocks: &mut Vec<(&'static str, Vec<u8>)>) {
    use FrameKind::{Request, Response};
    let batch = produced_batch();
    let stored = stored_batch();
    let batch_bytes = u32::try_from(batch.len()).unwrap();
    let share = ProducePartition { partition: PARTITION, leader_epoch: None, batch_bytes };
    let produce = ProduceRequest {
        acks: Acks::All,
        durability: Durability::Topic,
        timeout_ms: 30_000,
        partitions: vec![share],
        transactional_id: None,
    };
    let receipt = ProduceReceipt {
        base_offset: 0,
        record_count: 1,
        leader_epoch: 0,
        durability: Durability::Disk,
        replicas_memory: 1,
        replicas_durable: 1,
        log_start_offset: 0,
    };
    let produced = Ok::<_, Failure>(ProduceResponse { partitions: vec![Ok(receipt)] });
    let share =
        FetchPartition { partition: PARTITION, leader_epoch: None, offset: 0, max_bytes: 1 << 20 };
    let fetch = FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 1 << 20,
        partitions: vec![share],
        isolation: Isolation::ReadUncommitted,
    };
    let fetched = Ok::<_, Failure>(FetchResponse { partitions: vec![Ok(first_record())] });
    blocks.extend([
        ("produce-request", frame(Request, Api::Produce, 4, &produce, &batch)),
        ("produce-response", frame(Response, Api::Produce, 4, &produced, &[])),
        ("fetch-request", frame(Request, Api::Fetch, 5, &fetch, &[])),
        ("fetch-response", frame(Response, Api::Fetch, 5, &fetched, &stored)),
    ]);
}

fn first_record() -> FetchedPartition {
    let batch_bytes = u32::try_from(produced_batch().len()).unwrap();
    FetchedPartition {
        high_watermark: 1,
        log_start_offset: 0,
        leader_epoch: 0,
        batch_bytes,
        stable: None,
    }
}

fn subscription(blocks: &mut Vec<(&'static str, Vec<u8>)>) {
    let share = SubscribePartition { partition: PARTITION, leader_epoch: None, offset: 0 };
    let subscribe = SubscribeRequest {
        credit_bytes: 1 << 20,
        max_push_bytes: 1 << 18,
        partitions: vec![share],
        isolation: Isolation::ReadUncommitted,
    };
    let begun = SubscribedPartition { high_watermark: 1, log_start_offset: 0, leader_epoch: 0 };
    let subscribed = Ok::<_, Failure>(SubscribeResponse { partitions: vec![Ok(begun)] });
    let push = PushHeader { partition: Some(PARTITION), outcome: Ok(first_record()) };
    let last = PushHeader {
        partition: None,
        outcome: Err(Failure::new(ErrorCode::Cancelled, "cancelled by the client")),
    };
    let credit = CreditHeader { bytes: u32::try_from(produced_batch().len()).unwrap() };
    let api = Api::Subscribe;
    blocks.extend([
        ("subscribe-request", frame(FrameKind::Request, api, 6, &subscribe, &[])),
        ("subscribe-response", frame(FrameKind::Response, api, 6, &subscribed, &[])),
        ("push", frame(FrameKind::Push, api, 6, &push, &stored_batch())),
        ("credit", frame(FrameKind::Credit, api, 6, &credit, &[])),
        ("cancel", frame(FrameKind::Cancel, api, 6, &(), &[])),
        ("last-push", frame(FrameKind::Push, api, 6, &last, &[])),
    ]);
}

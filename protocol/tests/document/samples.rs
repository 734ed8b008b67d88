//! One value of every structure on the wire, with the names of its fields.

use std::{collections::BTreeMap, fmt::Debug};

use serde::Serialize;
use tidemark_protocol::{
    ErrorCode, Failure, TopicId, TopicPartition,
    frame::FrameKind,
    message::{Api, Request},
    messagepack,
    messages::*,
};

use crate::{cluster, groups, transactions};

/// A structure, and how it travels if it is a header of its own.
pub(crate) struct Sample {
    pub(crate) structure: String,
    pub(crate) fields: Vec<String>,
    pub(crate) header: Option<(Api, FrameKind, Vec<u8>)>,
}

pub(crate) const TOPIC: TopicId = TopicId([
    0x8c, 0x0f, 0x7a, 0x3e, 0x5d, 0x1b, 0x4c, 0x2a, 0x9e, 0x6f, 1, 0x23, 0x45, 0x67, 0x89, 0xab,
]);
pub(crate) const PARTITION: TopicPartition = TopicPartition { topic_id: TOPIC, partition: 0 };

pub(crate) fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    messagepack::encode(value, &mut out).unwrap();
    out
}

pub(crate) fn all() -> Vec<Sample> {
    let mut all = Vec::new();
    data(&mut all);
    offsets(&mut all);
    topics(&mut all);
    groups::all(&mut all);
    brokers(&mut all);
    cluster::operations(&mut all);
    transactions::clients(&mut all);
    cluster::nodes(&mut all);
    part(&mut all, &failure());
    part(&mut all, &PARTITION);
    all
}

pub(crate) fn part<T: Debug>(all: &mut Vec<Sample>, value: &T) {
    let text = format!("{value:#?}");
    let structure = text.split(' ').next().unwrap_or_default().to_owned();
    // Fields of the structure itself are indented once.
    let fields = text
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':'))
        .map(|(field, _)| field.to_owned())
        .collect();
    all.push(Sample { structure, fields, header: None });
}

pub(crate) fn header<T: Debug + Serialize>(
    all: &mut Vec<Sample>,
    api: Api,
    kind: FrameKind,
    value: &T,
) {
    part(all, value);
    if let Some(sample) = all.last_mut() {
        sample.header = Some((api, kind, encoded(value)));
    }
}

pub(crate) fn api<R: Request + Debug>(all: &mut Vec<Sample>, request: &R, response: R::Response)
where
    R::Response: Debug,
{
    header(all, R::API, FrameKind::Request, request);
    part(all, &response);
    if let Some(sample) = all.last_mut() {
        let answer: Result<R::Response, Failure> = Ok(response);
        sample.header = Some((R::API, FrameKind::Response, encoded(&answer)));
    }
}

pub(crate) fn failure() -> Failure {
    Failure::new(ErrorCode::NotLeader, "broker 2 leads it")
}

fn settings() -> TopicSettings {
    BTreeMap::from([("retention_ms".to_owned(), "60000".to_owned())])
}

fn data(all: &mut Vec<Sample>) {
    let share = ProducePartition { partition: PARTITION, leader_epoch: Some(3), batch_bytes: 77 };
    let receipt = ProduceReceipt {
        base_offset: 1 << 40,
        record_count: 1,
        leader_epoch: 3,
        durability: Durability::Disk,
        replicas_memory: 3,
        replicas_durable: 2,
        log_start_offset: 5,
    };
    part(all, &share);
    part(all, &receipt);
    let produce = ProduceRequest {
        acks: Acks::All,
        durability: Durability::Topic,
        timeout_ms: 30_000,
        partitions: vec![share],
    };
    api(all, &produce, ProduceResponse { partitions: vec![Ok(receipt), Err(failure())] });

    let share =
        FetchPartition { partition: PARTITION, leader_epoch: None, offset: 9, max_bytes: 1 << 20 };
    let fetched = FetchedPartition {
        high_watermark: 10,
        log_start_offset: 0,
        leader_epoch: 3,
        batch_bytes: 77,
    };
    part(all, &share);
    part(all, &fetched);
    let fetch = FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 8 << 20,
        partitions: vec![share],
    };
    let answer = FetchResponse { partitions: vec![Ok(fetched.clone()), Err(failure())] };
    api(all, &fetch, answer);

    let share = SubscribePartition { partition: PARTITION, leader_epoch: Some(3), offset: 9 };
    let begun = SubscribedPartition { high_watermark: 10, log_start_offset: 0, leader_epoch: 3 };
    part(all, &share);
    part(all, &begun);
    let subscribe = SubscribeRequest {
        credit_bytes: 8 << 20,
        max_push_bytes: 1 << 20,
        partitions: vec![share],
    };
    api(all, &subscribe, SubscribeResponse { partitions: vec![Ok(begun), Err(failure())] });
    let push = PushHeader { partition: Some(PARTITION), outcome: Ok(fetched) };
    header(all, Api::Subscribe, FrameKind::Push, &push);
    header(all, Api::Subscribe, FrameKind::Credit, &CreditHeader { bytes: 1 << 20 });
}

fn offsets(all: &mut Vec<Sample>) {
    let question = ListOffsetsPartition {
        partition: PARTITION,
        leader_epoch: None,
        query: OffsetQuery::Timestamp,
        timestamp_ms: 1_700_000_000_000,
    };
    let listed = ListedOffset { offset: 9, timestamp_ms: -1, leader_epoch: 3 };
    part(all, &question);
    part(all, &listed);
    let answer = ListOffsetsResponse { partitions: vec![Ok(listed), Err(failure())] };
    api(all, &ListOffsetsRequest { partitions: vec![question] }, answer);

    let front = DeleteRecordsPartition { partition: PARTITION, before_offset: Some(5) };
    part(all, &front);
    let delete = DeleteRecordsRequest { timeout_ms: 30_000, partitions: vec![front] };
    api(all, &delete, DeleteRecordsResponse { partitions: vec![Ok(5), Err(failure())] });
}

pub(crate) fn topic() -> TopicMetadata {
    let partition = PartitionMetadata {
        leader: Some(1),
        leader_epoch: 3,
        partition_epoch: 4,
        replicas: vec![1, 2, 3],
        isr: vec![1, 3],
        elr: vec![2],
        adding: Vec::new(),
        removing: Vec::new(),
    };
    let partitions = vec![partition];
    TopicMetadata { name: "clicks".to_owned(), id: TOPIC, partitions, settings: settings() }
}

fn topics(all: &mut Vec<Sample>) {
    let name = "clicks".to_owned();
    let broker = BrokerMetadata {
        id: 1,
        host: "127.0.0.1".to_owned(),
        port: 9092,
        rack: Some("a".to_owned()),
        fenced: false,
        epoch: 7,
        shutting_down: false,
        draining: false,
    };
    part(all, &broker);
    part(all, &topic());
    part(all, &topic().partitions[0]);
    let metadata = MetadataRequest { topics: Some(vec![name.clone()]), topic_ids: vec![TOPIC] };
    let answer = MetadataResponse {
        cluster_id: "demo".to_owned(),
        controller_id: Some(1),
        broker_id: 1,
        metadata_index: 12,
        brokers: vec![broker],
        topics: vec![topic()],
    };
    api(all, &metadata, answer);

    let (validate_only, timeout_ms) = (false, 30_000);
    let create = CreateTopicRequest {
        name: name.clone(),
        partitions: Some(8),
        replication_factor: None,
        settings: settings(),
        validate_only,
        timeout_ms,
    };
    let created = CreateTopicResponse {
        id: TOPIC,
        partitions: 8,
        replication_factor: 1,
        settings: settings(),
    };
    api(all, &create, created);
    let delete = DeleteTopicRequest { name: name.clone(), id: Some(TOPIC), timeout_ms };
    api(all, &delete, DeleteTopicResponse { id: TOPIC });
    let alter = AlterTopicRequest {
        name: name.clone(),
        set: settings(),
        unset: vec!["retention_bytes".to_owned()],
        validate_only,
        timeout_ms,
    };
    api(all, &alter, AlterTopicResponse { settings: settings() });
    let add = AddPartitionsRequest { name, partitions: 16, validate_only, timeout_ms };
    api(all, &add, AddPartitionsResponse { partitions: 16 });
}

fn brokers(all: &mut Vec<Sample>) {
    let setting = SettingValue {
        name: "retention_ms".to_owned(),
        value: "60000".to_owned(),
        default: "604800000".to_owned(),
        source: "topic".to_owned(),
        doc: "How long records are kept.".to_owned(),
    };
    let log = LogDescription {
        partition: 0,
        log_start_offset: 0,
        high_watermark: 10,
        log_end_offset: 12,
        flushed_offset: 10,
        size_bytes: 840,
        segments: 1,
        max_timestamp_ms: 1_700_000_000_000,
        trouble: None,
    };
    part(all, &setting);
    part(all, &log);
    let described =
        DescribeTopicResponse { topic: topic(), settings: vec![setting.clone()], logs: vec![log] };
    api(all, &DescribeTopicRequest { name: "clicks".to_owned() }, described);

    let described = DescribeBrokerResponse {
        id: 1,
        cluster_id: "demo".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_ms: 1000,
        not_ready_reasons: vec!["starting".to_owned()],
        topics: 1,
        partitions: 1,
        connections: 1,
        settings: vec![setting],
    };
    api(all, &DescribeBrokerRequest { include_settings: true }, described);

    let size = TopicSize { name: "clicks".to_owned(), partitions: 1, size_bytes: 840 };
    part(all, &size);
    let dir = LogDirDescription {
        path: "/data".to_owned(),
        state: "ok".to_owned(),
        disk_total_bytes: 1 << 40,
        disk_free_bytes: 1 << 39,
        topics: vec![size],
    };
    part(all, &dir);
    api(all, &DescribeLogDirsRequest {}, DescribeLogDirsResponse { dirs: vec![dir] });
}

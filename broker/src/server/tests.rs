//! A whole broker on a real socket, spoken to in frames.

mod disk_faults;
mod harness;
mod leftovers;
mod stopping;

use std::time::Duration;

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, TopicPartition,
    frame::{FrameKind, encode_head},
    message::Api,
    messages::{
        Acks, AddPartitionsRequest, AlterTopicRequest, CreateTopicRequest, CreditHeader,
        DeleteRecordsPartition, DeleteRecordsRequest, DeleteTopicRequest, Durability,
        FetchPartition, FetchRequest, ListOffsetsPartition, ListOffsetsRequest, OffsetQuery,
        ProduceRequest, PushHeader, SubscribePartition, SubscribeRequest, SubscribeResponse,
    },
};

use self::harness::{Client, TestBroker, batch, keyless, produce_request, values};

fn fetch_request(partition: TopicPartition, offset: u64, max_wait_ms: u32) -> FetchRequest {
    let max_bytes = 16 << 20;
    let partitions = vec![FetchPartition { partition, leader_epoch: None, offset, max_bytes }];
    FetchRequest {
        max_wait_ms,
        min_bytes: 1,
        max_bytes,
        partitions,
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_is_fetched_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 2).await;
    let receipt = client.produce(topic, batch(&["a", "b", "c"])).await.unwrap();
    assert_eq!((receipt.base_offset, receipt.record_count), (0, 3));
    assert_eq!((receipt.durability, receipt.replicas_durable), (Durability::Disk, 1));
    assert_eq!(client.read_all(topic, 0).await, ["a", "b", "c"]);
    let epoch = receipt.leader_epoch;
    broker.stop().await;

    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    assert_eq!(client.read_all(topic, 0).await, ["a", "b", "c"]);
    let receipt = client.produce(topic, batch(&["d"])).await.unwrap();
    assert_eq!(receipt.base_offset, 3);
    assert!(receipt.leader_epoch > epoch, "every start leads in a new epoch");
    assert_eq!(client.read_all(topic, 2).await, ["c", "d"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_carried_out_and_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    let count = 500;
    for number in 0..count {
        let payload = batch(&[&number.to_string()]);
        let request = produce_request(topic, Acks::All, &payload);
        client.send(&request, payload).await;
    }
    for number in 0..count {
        let (response, _) = client.receive::<ProduceRequest>().await;
        let receipt = response.unwrap().partitions.remove(0).unwrap();
        assert_eq!(receipt.base_offset, number);
    }
    let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(client.read_all(topic, 0).await, expected);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_data_and_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut producer = broker.connect().await;
    let mut consumer = broker.connect().await;
    let topic = producer.create_topic("orders", 1).await;
    consumer.send(&fetch_request(topic, 0, 60_000), Bytes::new()).await;
    producer.produce(topic, batch(&["late"])).await.unwrap();
    let (response, payload) = consumer.receive::<FetchRequest>().await;
    assert_eq!(response.unwrap().partitions[0].as_ref().unwrap().high_watermark, 1);
    assert_eq!(values(payload), ["late"]);

    let correlation = consumer.send(&fetch_request(topic, 1, 60_000), Bytes::new()).await;
    consumer.send_frame(encode_head(FrameKind::Cancel, 0, correlation, &(), 0), Bytes::new()).await;
    let (response, _) = consumer.receive::<FetchRequest>().await;
    assert_eq!(response.unwrap_err().code, ErrorCode::Cancelled);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_produce_behind_a_waiting_fetch_takes_effect_and_is_answered_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    client.send(&fetch_request(topic, 0, 60_000), Bytes::new()).await;
    let payload = batch(&["x"]);
    client.send(&produce_request(topic, Acks::All, &payload), payload).await;
    let (_, fetched) = client.receive::<FetchRequest>().await;
    assert_eq!(values(fetched), ["x"]);
    let (response, _) = client.receive::<ProduceRequest>().await;
    assert_eq!(response.unwrap().partitions[0].as_ref().unwrap().base_offset, 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_acks_there_is_no_answer_and_the_records_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    for number in 0..3 {
        let payload = batch(&[&number.to_string()]);
        client.send(&produce_request(topic, Acks::None, &payload), payload).await;
    }
    // The next answer on the connection is that of the next request that has one.
    let receipt = client.produce(topic, batch(&["last"])).await.unwrap();
    assert_eq!(receipt.base_offset, 3);
    assert_eq!(client.read_all(topic, 0).await, ["0", "1", "2", "last"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_settings_and_partitions_are_in_force_when_they_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    let request = AlterTopicRequest {
        name: "orders".into(),
        set: [("max_batch_bytes".to_owned(), "2KiB".to_owned())].into(),
        unset: Vec::new(),
        validate_only: false,
        timeout_ms: 10_000,
    };
    let (response, _) = client.call(&request, Bytes::new()).await;
    assert_eq!(response.unwrap().settings["max_batch_bytes"], "2048");
    let refused = client.produce(topic, batch(&[&"x".repeat(3_000)])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::BatchTooLarge);

    let request = AddPartitionsRequest {
        name: "orders".into(),
        partitions: 3,
        validate_only: false,
        timeout_ms: 10_000,
    };
    let (response, _) = client.call(&request, Bytes::new()).await;
    assert_eq!(response.unwrap().partitions, 3);
    let last = TopicPartition { partition: 2, ..topic };
    assert_eq!(client.produce(last, batch(&["x"])).await.unwrap().base_offset, 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_and_the_connection_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;

    let head = encode_head(FrameKind::Request, 999, 7, &(), 0);
    client.send_frame(head, Bytes::new()).await;
    let frame = client.receive_frame().await;
    let response: Result<(), tidemark_protocol::Failure> = frame.message().unwrap();
    assert_eq!(response.unwrap_err().code, ErrorCode::UnsupportedApi);

    let head = encode_head(FrameKind::Request, Api::Fetch.number(), 8, &"?", 0);
    client.send_frame(head, Bytes::new()).await;
    let (response, _) = client.receive::<FetchRequest>().await;
    assert_eq!(response.unwrap_err().code, ErrorCode::InvalidRequest);

    let mut damaged = batch(&["x"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = client.produce(topic, damaged.into()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DamagedBatch);

    let (response, _) = client.call(&fetch_request(topic, 5, 0), Bytes::new()).await;
    let refused = response.unwrap().partitions.remove(0).unwrap_err();
    assert_eq!(refused.code, ErrorCode::OffsetOutOfRange);

    let elsewhere = TopicPartition { partition: 9, ..topic };
    let refused = client.produce(elsewhere, batch(&["x"])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnknownTopicOrPartition);
    assert_eq!(client.produce(topic, batch(&["fine"])).await.unwrap().base_offset, 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_refuses_records_without_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic_with("table", 1, &[("cleanup_policy", "compact")]).await;
    let refused = client.produce(topic, keyless("x")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidBatch);
    assert!(refused.message.contains("without a key"), "{refused}");
    client.produce(topic, batch(&["x"])).await.unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_pushed_to_while_it_has_credit() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut producer = broker.connect().await;
    let mut consumer = broker.connect().await;
    let topic = producer.create_topic("orders", 1).await;
    for number in 0..3 {
        producer.produce(topic, batch(&[&number.to_string()])).await.unwrap();
    }
    let partition = SubscribePartition { partition: topic, leader_epoch: None, offset: 0 };
    let request = SubscribeRequest {
        credit_bytes: 1,
        max_push_bytes: 1,
        partitions: vec![partition],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    let correlation = consumer.send(&request, Bytes::new()).await;
    let (response, _) = consumer.receive::<SubscribeRequest>().await;
    let SubscribeResponse { partitions } = response.unwrap();
    assert_eq!(partitions[0].as_ref().unwrap().high_watermark, 3);

    // One byte of credit is overdrawn by one batch, and then there is none.
    let (header, payload) = consumer.receive_push(correlation).await;
    assert_eq!(values(payload), ["0"]);
    assert_eq!(header.outcome.unwrap().high_watermark, 3);
    let silence = tokio::time::timeout(Duration::from_millis(100), consumer.receive_frame()).await;
    assert!(silence.is_err(), "pushed without credit");

    let credit = CreditHeader { bytes: 1 << 20 };
    consumer
        .send_frame(encode_head(FrameKind::Credit, 0, correlation, &credit, 0), Bytes::new())
        .await;
    for number in 1..3 {
        let (_, payload) = consumer.receive_push(correlation).await;
        assert_eq!(values(payload), [number.to_string()]);
    }
    producer.produce(topic, batch(&["later"])).await.unwrap();
    let (_, payload) = consumer.receive_push(correlation).await;
    assert_eq!(values(payload), ["later"]);

    consumer.send_frame(encode_head(FrameKind::Cancel, 0, correlation, &(), 0), Bytes::new()).await;
    let (PushHeader { partition, outcome }, _) = consumer.receive_push(correlation).await;
    assert_eq!((partition, outcome.unwrap_err().code), (None, ErrorCode::Cancelled));
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_stops_tells_its_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut subscribers = Vec::new();
    let topic = broker.connect().await.create_topic("orders", 1).await;
    for _ in 0..20 {
        let mut client = broker.connect().await;
        let partition = SubscribePartition { partition: topic, leader_epoch: None, offset: 0 };
        let request = SubscribeRequest {
            credit_bytes: 9,
            max_push_bytes: 9,
            partitions: vec![partition],
            isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
        };
        let correlation = client.send(&request, Bytes::new()).await;
        client.receive::<SubscribeRequest>().await.0.unwrap();
        subscribers.push((client, correlation));
    }
    broker.stop().await;
    for (mut client, correlation) in subscribers {
        let (last, _) = client.receive_push(correlation).await;
        assert_eq!((last.partition, last.outcome.unwrap_err().code), (None, ErrorCode::Cancelled));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correlation_is_taken_until_the_last_push_and_free_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    let partition = SubscribePartition { partition: topic, leader_epoch: None, offset: 0 };
    let request = SubscribeRequest {
        credit_bytes: 9,
        max_push_bytes: 9,
        partitions: vec![partition],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    let head = |kind, header: &SubscribeRequest| {
        encode_head(kind, Api::Subscribe.number(), 7_000, header, 0)
    };
    for _ in 0..100 {
        client.send_frame(head(FrameKind::Request, &request), Bytes::new()).await;
        client.receive::<SubscribeRequest>().await.0.unwrap();
        client.send_frame(head(FrameKind::Request, &request), Bytes::new()).await;
        let refused = client.receive::<SubscribeRequest>().await.0.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidRequest);
        client.send_frame(encode_head(FrameKind::Cancel, 0, 7_000, &(), 0), Bytes::new()).await;
        let (last, _) = client.receive_push(7_000).await;
        assert_eq!((last.partition, last.outcome.unwrap_err().code), (None, ErrorCode::Cancelled));
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_refused_does_not_silence_the_same_one_in_its_subscription() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut producer = broker.connect().await;
    let mut consumer = broker.connect().await;
    let topic = producer.create_topic("orders", 1).await;
    let at = |offset| SubscribePartition { partition: topic, leader_epoch: None, offset };
    let request = SubscribeRequest {
        credit_bytes: 1 << 20,
        max_push_bytes: 1 << 20,
        partitions: vec![at(0), at(99)],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    let correlation = consumer.send(&request, Bytes::new()).await;
    let SubscribeResponse { partitions } = consumer.receive::<SubscribeRequest>().await.0.unwrap();
    assert!(partitions[0].is_ok());
    assert_eq!(partitions[1].as_ref().unwrap_err().code, ErrorCode::OffsetOutOfRange);
    producer.produce(topic, batch(&["x"])).await.unwrap();
    let push = consumer.receive_push(correlation);
    let (_, payload) = tokio::time::timeout(Duration::from_secs(10), push).await.expect("a push");
    assert_eq!(values(payload), ["x"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_wants_more_than_fits_an_answer_takes_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    client.produce(topic, batch(&["a"])).await.unwrap();
    client.produce(topic, batch(&["b"])).await.unwrap();
    let mut request = fetch_request(topic, 0, 60_000);
    (request.min_bytes, request.max_bytes) = (u32::MAX, 1);
    let answer = client.call(&request, Bytes::new());
    let (_, payload) = tokio::time::timeout(Duration::from_secs(10), answer).await.expect("now");
    assert_eq!(values(payload), ["a"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_topic_ends_its_fetches_and_subscriptions_and_frees_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut admin = broker.connect().await;
    let mut fetcher = broker.connect().await;
    let mut subscriber = broker.connect().await;
    let topic = admin.create_topic("orders", 1).await;
    admin.produce(topic, batch(&["x"])).await.unwrap();
    fetcher.send(&fetch_request(topic, 1, 60_000), Bytes::new()).await;
    let partition = SubscribePartition { partition: topic, leader_epoch: None, offset: 1 };
    let request = SubscribeRequest {
        credit_bytes: 100,
        max_push_bytes: 100,
        partitions: vec![partition],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    let correlation = subscriber.send(&request, Bytes::new()).await;
    subscriber.receive::<SubscribeRequest>().await.0.unwrap();

    let request = DeleteTopicRequest { name: "orders".into(), id: None, timeout_ms: 10_000 };
    admin.call(&request, Bytes::new()).await.0.unwrap();
    let (response, _) = fetcher.receive::<FetchRequest>().await;
    let ended = response.unwrap().partitions.remove(0).unwrap_err();
    assert_eq!(ended.code, ErrorCode::UnknownTopicOrPartition);
    let (push, _) = subscriber.receive_push(correlation).await;
    assert_eq!(push.outcome.unwrap_err().code, ErrorCode::UnknownTopicOrPartition);
    assert!(!dir.path().join("topics/orders").exists());

    let again = admin.create_topic("orders", 1).await;
    assert_ne!(again, topic);
    assert_eq!(admin.produce(again, batch(&["y"])).await.unwrap().base_offset, 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_deleted_up_to_an_offset_and_offsets_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    for number in 0..4 {
        client.produce(topic, batch(&[&number.to_string()])).await.unwrap();
    }
    let partition = DeleteRecordsPartition { partition: topic, before_offset: Some(2) };
    let request = DeleteRecordsRequest { timeout_ms: 10_000, partitions: vec![partition] };
    let (response, _) = client.call(&request, Bytes::new()).await;
    assert_eq!(response.unwrap().partitions, [Ok(2)]);

    let mut list = async |query, timestamp_ms| {
        let partition =
            ListOffsetsPartition { partition: topic, leader_epoch: None, query, timestamp_ms };
        let request = ListOffsetsRequest { partitions: vec![partition] };
        let (response, _) = client.call(&request, Bytes::new()).await;
        response.unwrap().partitions.remove(0).unwrap()
    };
    assert_eq!(list(OffsetQuery::Earliest, 0).await.offset, 2);
    assert_eq!(list(OffsetQuery::Latest, 0).await.offset, 4);
    let found = list(OffsetQuery::Timestamp, 1).await;
    assert_eq!((found.offset, found.timestamp_ms), (2, harness::TIMESTAMP_MS));
    assert_eq!(list(OffsetQuery::Timestamp, i64::MAX).await.offset, 4);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(dir.path(), &[("send_timeout", "400ms")]).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    let large = "x".repeat(900 << 10);
    for _ in 0..4 {
        client.produce(topic, batch(&[&large])).await.unwrap();
    }
    // Far more than the sockets' buffers hold.
    for _ in 0..16 {
        client.send(&fetch_request(topic, 0, 0), Bytes::new()).await;
    }
    tokio::time::timeout(Duration::from_secs(20), client.closed_by_broker())
        .await
        .expect("a client that reads nothing is still connected");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = Client::connect_raw(broker.address, b"GET / HTTP/1.1\r\n").await;
    client.closed_by_broker().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_many_partitions_is_created_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let request = CreateTopicRequest {
        name: "wide".into(),
        partitions: Some(2_000),
        replication_factor: None,
        settings: [("durability".to_owned(), "memory".to_owned())].into(),
        validate_only: false,
        timeout_ms: 30_000,
    };
    let (response, _) = client.call(&request, Bytes::new()).await;
    let last = (response.unwrap().id, 1_999).into();
    let receipt = client.produce(last, batch(&["x"])).await.unwrap();
    assert_eq!(receipt.durability, Durability::Memory);
    assert_eq!(client.read_all(last, 0).await, ["x"]);
    broker.stop().await;
}

//! What a broker promises while its disk is slow or broken.

use std::time::Duration;

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, TopicPartition,
    messages::{
        Acks, DeleteRecordsPartition, DeleteRecordsRequest, DescribeTopicRequest, Durability,
        ProduceRequest,
    },
};

use super::{
    fetch_request,
    harness::{Client, Starting, TestBroker, batch, produce_request, values},
};
use crate::{
    disk::{Fault, FaultyDisk},
    health::Reason,
    server::ServerError,
};

/// Waits until the log of the topic's first partition ends at `offset`.
async fn appended(client: &mut Client, topic: &str, offset: u64) {
    let request = DescribeTopicRequest { name: topic.to_owned() };
    loop {
        let (response, _) = client.call(&request, Bytes::new()).await;
        if response.unwrap().logs[0].log_end_offset == offset {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn refusal(client: &mut Client, partition: TopicPartition) -> ErrorCode {
    client.produce(partition, batch(&["refused"])).await.unwrap_err().code
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_or_acknowledged_before_it_is_flushed() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let broker = TestBroker::start_on(disk.clone(), dir.path(), &[]).await;
    let (mut producer, mut reader) = (broker.connect().await, broker.connect().await);
    let topic = producer.create_topic("orders", 1).await;
    disk.set(Fault::SyncsWait("orders"));
    let payload = batch(&["x"]);
    producer.send(&produce_request(topic, Acks::All, &payload), payload).await;
    appended(&mut reader, "orders", 1).await;
    let (response, payload) = reader.call(&fetch_request(topic, 0, 0), Bytes::new()).await;
    let fetched = response.unwrap().partitions.remove(0).unwrap();
    assert_eq!((fetched.high_watermark, payload.len()), (0, 0));
    let silence = tokio::time::timeout(Duration::from_millis(50), producer.receive_frame()).await;
    assert!(silence.is_err(), "acknowledged before the flush");

    disk.set(Fault::None);
    let (response, payload) = reader.call(&fetch_request(topic, 0, 60_000), Bytes::new()).await;
    assert_eq!(response.unwrap().partitions[0].as_ref().unwrap().high_watermark, 1);
    assert_eq!(values(payload), ["x"]);
    let (response, _) = producer.receive::<ProduceRequest>().await;
    let receipt = response.unwrap().partitions.remove(0).unwrap();
    assert_eq!((receipt.durability, receipt.replicas_durable), (Durability::Disk, 1));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_is_final_and_reading_goes_on() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let broker = TestBroker::start_on(disk.clone(), dir.path(), &[]).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    let other = client.create_topic("payments", 1).await;
    client.produce(topic, batch(&["kept"])).await.unwrap();

    disk.set(Fault::SyncsFail("orders"));
    // Two wait for the flush that fails.
    for value in ["a", "b"] {
        let payload = batch(&[value]);
        client.send(&produce_request(topic, Acks::All, &payload), payload).await;
    }
    for _ in 0..2 {
        let (response, _) = client.receive::<ProduceRequest>().await;
        let lost = response.unwrap().partitions.remove(0).unwrap_err();
        assert_eq!(lost.code, ErrorCode::StorageFailed, "{lost}");
    }
    assert!(broker.health.state().reasons.contains_key(&Reason::DiskFailed));
    assert!(!broker.health.is_ready());

    // The disk is well again, as far as anybody can see; nobody is fooled by that.
    disk.set(Fault::None);
    assert_eq!(refusal(&mut client, topic).await, ErrorCode::StorageFailed);
    assert_eq!(refusal(&mut client, other).await, ErrorCode::StorageFailed);
    let partition = DeleteRecordsPartition { partition: topic, before_offset: None };
    let request = DeleteRecordsRequest { timeout_ms: 10_000, partitions: vec![partition] };
    let (response, _) = client.call(&request, Bytes::new()).await;
    let refused = response.unwrap().partitions.remove(0).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StorageFailed);
    assert_eq!(client.read_all(topic, 0).await, ["kept"]);
    assert_eq!(disk.failures(), 1, "a flush was tried again");

    let stopped = broker.outcome().await;
    assert!(matches!(stopped, Err(ServerError::Unclean(1))), "{stopped:?}");
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let read = client.read_all(topic, 0).await;
    assert_eq!(read[0], "kept");
    let receipt = client.produce(topic, batch(&["later"])).await.unwrap();
    assert_eq!(receipt.base_offset, read.len() as u64);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_cannot_be_flushed_takes_the_broker_out_of_service() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let broker = TestBroker::start_on(disk.clone(), dir.path(), &[]).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    client.produce(topic, batch(&["kept"])).await.unwrap();
    disk.set(Fault::SyncsFail("metadata"));
    let refused = client.try_create_topic("payments").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StorageFailed, "{refused}");
    let reasons = broker.health.state().reasons;
    assert!(reasons.contains_key(&Reason::Controller), "{reasons:?}");
    assert_eq!(refusal(&mut client, topic).await, ErrorCode::StorageFailed);
    assert_eq!(client.read_all(topic, 0).await, ["kept"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_flush_is_served_before_flushes_that_nobody_waits_for() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let settings = [("flush_interval", "10ms"), ("shard_threads", "1")];
    let broker = TestBroker::start_on(disk.clone(), dir.path(), &settings).await;
    let mut client = broker.connect().await;
    let memory = [("durability", "memory")];
    let (slow, fast) = (
        client.create_topic_with("slow", 2, &memory).await,
        client.create_topic_with("fast", 1, &memory).await,
    );
    disk.set(Fault::SyncsWait("slow"));
    for partition in 0..2 {
        client.produce(TopicPartition { partition, ..slow }, batch(&["x"])).await.unwrap();
    }
    // Both threads for background flushes are held up, and this one waits behind them.
    while disk.waiting() < 2 {
        tokio::task::yield_now().await;
    }
    client.produce(fast, batch(&["x"])).await.unwrap();
    // Time for its background flush to be queued, which nothing outside can see.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let payload = batch(&["now"]);
    let mut request = produce_request(fast, Acks::All, &payload);
    request.durability = Durability::Disk;
    let answer = client.call(&request, payload);
    let (response, _) = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("soon");
    assert_eq!(response.unwrap().partitions[0].as_ref().unwrap().durability, Durability::Disk);
    disk.set(Fault::None);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_recovers_its_logs_stops_when_told() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let broker = TestBroker::start_on(disk.clone(), dir.path(), &[]).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    client.produce(topic, batch(&["kept"])).await.unwrap();
    broker.stop().await;

    disk.set(Fault::ListsWait("orders/0"));
    let starting = Starting::begin(disk.clone(), dir.path(), &[]);
    while disk.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!starting.health.is_ready());
    starting.stop().await.unwrap();
    disk.set(Fault::None);

    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    assert_eq!(client.read_all(topic, 0).await, ["kept"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_could_not_be_opened_is_opened_once_when_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let topic = TestBroker::leaves_a_record(dir.path()).await;

    let meta = dir.path().join("topics/orders/0/partition.meta");
    let whole = std::fs::read(&meta).unwrap();
    std::fs::write(&meta, b"damaged").unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    assert_eq!(refusal(&mut client, topic).await, ErrorCode::NotReady);
    std::fs::write(&meta, whole).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while refused(&mut client, topic).await {
        assert!(tokio::time::Instant::now() < deadline, "it is not tried again");
        // It is tried again every few seconds, and says so to nobody.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.read_all(topic, 0).await, ["kept", "again"]);
    client.produce(topic, batch(&["later"])).await.unwrap();
    broker.stop().await;
}

async fn refused(client: &mut Client, partition: TopicPartition) -> bool {
    client.produce(partition, batch(&["again"])).await.is_err()
}

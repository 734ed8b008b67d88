//! The idempotent producer against a broker in memory that loses answers, leads elsewhere and forgets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidemark_client::{
    Client, ClientConfig, ErrorCode, NewTopic, Producer, ProducerConfig, ProducerRecord,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

async fn cluster() -> (FakeBroker, FakeBroker, Client) {
    let first = FakeBroker::start().await.unwrap();
    let second = first.join().await.unwrap();
    let config = ClientConfig {
        bootstrap: vec![first.address()],
        retry_backoff: Duration::from_millis(2),
        retry_backoff_max: Duration::from_millis(20),
        ..ClientConfig::default()
    };
    let client = Client::connect(config).await.unwrap();
    client.admin().create_topic(NewTopic::new("t")).await.unwrap();
    (first, second, client)
}

async fn send_numbers(producer: &Producer, numbers: std::ops::Range<u32>) {
    let topic: Arc<str> = "t".into();
    for number in numbers {
        let record = ProducerRecord::to(topic.clone()).value(number.to_string());
        drop(producer.send(record).await.unwrap());
    }
}

fn written(broker: &FakeBroker) -> Vec<u32> {
    let batches = broker.stored("t", 0);
    let records = batches.iter().flat_map(|batch| batch.records().unwrap());
    let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
    records.map(|record| number(&record.value.unwrap())).collect()
}

/// Producers, epochs and first sequences of what is stored, in order.
fn numbers(broker: &FakeBroker) -> Vec<(i64, i16, i32)> {
    let batches = broker.stored("t", 0);
    let header = batches.iter().map(|batch| batch.header);
    header.map(|it| (it.producer_id, it.producer_epoch, it.base_sequence)).collect()
}

#[tokio::test]
async fn whatever_gets_lost_every_record_is_written_once_and_in_order() {
    let (first, second, client) = cluster().await;
    let config = ProducerConfig { batch_bytes: 150, ..ProducerConfig::default() };
    let producer = client.producer(config);
    for round in 0..10 {
        first.inject(Api::Produce, Fault::Delay(Duration::from_millis(5)));
        for fault in [Fault::BreakAfter, Fault::BreakBefore, Fault::BreakAfter] {
            first.inject(Api::Produce, fault);
        }
        send_numbers(&producer, round * 20..round * 20 + 20).await;
    }
    timeout(SOON, producer.flush()).await.unwrap().unwrap();
    // The leader goes away with an answer; the next one knows what was written.
    first.inject(Api::Produce, Fault::BreakAfter);
    send_numbers(&producer, 200..210).await;
    second.lead("t", 0);
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&second), (0..210).collect::<Vec<_>>());
    let (ids, epochs): (BTreeSet<_>, BTreeSet<_>) =
        numbers(&second).into_iter().map(|(id, epoch, _)| (id, epoch)).unzip();
    assert_eq!((ids.len(), epochs), (1, BTreeSet::from([0])));
}

#[tokio::test]
async fn what_was_refused_gives_its_number_back() {
    let (broker, _second, client) = cluster().await;
    let producer = client.producer(ProducerConfig::default());
    for code in [
        ErrorCode::NotEnoughReplicas,
        ErrorCode::InvalidBatch,
        ErrorCode::DamagedBatch,
        ErrorCode::DiskFull,
    ] {
        broker.inject(Api::Produce, Fault::RefuseFirstPartition(code));
        send_numbers(&producer, 7..8).await;
        // An error, where the record was refused for good.
        drop(timeout(SOON, producer.flush()).await.unwrap());
    }
    producer.close().await.unwrap();
    assert_eq!(written(&broker), [7, 7, 7]);
    assert_eq!(numbers(&broker), [(0, 0, 0), (0, 0, 1), (0, 0, 2)]);
}

#[tokio::test]
async fn after_a_delivery_that_nobody_knows_of_counting_goes_on_or_begins_anew() {
    let (broker, _second, client) = cluster().await;
    // Of a delayed answer the next record waits for the rest.
    let delivery_timeout = Duration::from_millis(300);
    let producer = client.producer(ProducerConfig { delivery_timeout, ..Default::default() });
    for (fault, number) in [
        (Fault::BreakBefore, 1),
        // It is carried out, and answered when nobody waits any more.
        (Fault::Delay(Duration::from_millis(400)), 2),
        // It is not: what comes next does not follow.
        (Fault::Swallow, 3),
    ] {
        send_numbers(&producer, 0..1).await;
        producer.flush().await.unwrap();
        let is_known = matches!(fault, Fault::BreakBefore);
        broker.inject(Api::Produce, fault);
        let record = ProducerRecord::to("t").value(number.to_string());
        let delivered = timeout(SOON, producer.send(record).await.unwrap()).await.unwrap();
        match delivered {
            Ok(_) => assert!(is_known),
            Err(error) => assert!(!is_known && error.is_indeterminate(), "{error}"),
        }
        drop(producer.flush().await);
        if let 3 = number {
            // The answer is waited for until the broker's time is over, too.
            broker.break_connections();
        }
    }
    send_numbers(&producer, 4..5).await;
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&broker), [0, 1, 0, 2, 0, 4]);
    let last = *numbers(&broker).last().unwrap();
    assert_eq!(last, (0, 1, 0), "in another epoch");
}

#[tokio::test]
async fn a_record_that_may_be_there_is_not_written_again_under_another_number() {
    let (broker, _second, client) = cluster().await;
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..1).await;
    producer.flush().await.unwrap();
    // The first attempt is lost; the second is told that something in between is missing.
    broker.inject(Api::Produce, Fault::BreakBefore);
    broker.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::OutOfOrderSequence));
    let delivery = producer.send(ProducerRecord::to("t").value("1")).await.unwrap();
    let error = timeout(SOON, delivery).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OutOfOrderSequence));
    assert!(error.is_indeterminate(), "{error}");
    drop(producer.flush().await);
    // What was sent once only is sent again under the next epoch.
    broker.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::OutOfOrderSequence));
    send_numbers(&producer, 2..3).await;
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&broker), [0, 2]);
    assert_eq!(numbers(&broker), [(0, 0, 0), (0, 2, 0)]);
}

#[tokio::test]
async fn no_identity_is_an_obstacle_and_not_a_loss() {
    let (broker, second, client) = cluster().await;
    for broker in [&broker, &second] {
        for _ in 0..20 {
            broker.inject(Api::InitProducerId, Fault::Refuse(ErrorCode::Timeout));
        }
    }
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..10).await;
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&broker), (0..10).collect::<Vec<_>>());
    assert_eq!(broker.requests(Api::Produce), 1);
}

#[tokio::test]
async fn a_partition_that_was_forgotten_is_counted_under_another_identity() {
    let (broker, _second, client) = cluster().await;
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..1).await;
    producer.flush().await.unwrap();
    client.admin().delete_topic("t", None).await.unwrap();
    let delivery = producer.send(ProducerRecord::to("t").value("1")).await.unwrap();
    timeout(SOON, delivery).await.unwrap().unwrap_err();
    drop(producer.flush().await);
    client.admin().create_topic(NewTopic::new("t")).await.unwrap();
    send_numbers(&producer, 2..3).await;
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&broker), [2]);
    assert_eq!(numbers(&broker), [(1, 0, 0)]);
}

#[tokio::test]
async fn without_idempotence_batches_have_no_number() {
    let (broker, _second, client) = cluster().await;
    let config = ProducerConfig { idempotent: false, ..ProducerConfig::default() };
    let producer = client.producer(config);
    send_numbers(&producer, 0..1).await;
    producer.close().await.unwrap();
    assert_eq!(numbers(&broker), [(-1, -1, -1)]);
    assert_eq!(broker.requests(Api::InitProducerId), 0);
}

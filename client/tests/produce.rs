//! The producer against a broker in memory that misbehaves on demand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tidemark_client::{
    Acks, Client, ClientConfig, Compression, ConsumerConfig, ErrorCode, NewTopic, Position,
    ProduceError, Producer, ProducerConfig, ProducerRecord, RequestError,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};

fn quick() -> ClientConfig {
    ClientConfig {
        retry_backoff: Duration::from_millis(2),
        retry_backoff_max: Duration::from_millis(20),
        ..ClientConfig::default()
    }
}

async fn connect(broker: &FakeBroker) -> Client {
    let config = ClientConfig { bootstrap: vec![broker.address()], ..quick() };
    Client::connect(config).await.unwrap()
}

async fn with_topic(partitions: u32) -> (FakeBroker, Client) {
    let broker = FakeBroker::start().await.unwrap();
    let client = connect(&broker).await;
    client.admin().create_topic(NewTopic::new("t").partitions(partitions)).await.unwrap();
    (broker, client)
}

/// The values of a partition in order.
fn values(broker: &FakeBroker, partition: u32) -> Vec<String> {
    let batches = broker.stored("t", partition);
    let records = batches.iter().flat_map(|batch| batch.records().unwrap());
    records.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect()
}

async fn send_numbers(producer: &Producer, numbers: std::ops::Range<u32>) {
    let topic: Arc<str> = "t".into();
    for number in numbers {
        let record = ProducerRecord::to(topic.clone()).partition(0).value(number.to_string());
        drop(producer.send(record).await.unwrap());
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn every_record_gets_its_offset_and_the_receipt() {
    let (broker, client) = with_topic(1).await;
    let producer = client.producer(ProducerConfig::default());
    let mut deliveries = Vec::new();
    for number in 0..100_u32 {
        let record = ProducerRecord::to("t").value(number.to_string()).timestamp_ms(number.into());
        deliveries.push(producer.send(record).await.unwrap());
    }
    for (number, delivery) in (0_u32..).zip(deliveries) {
        let delivered = delivery.await.unwrap();
        assert_eq!(delivered.offset, Some(number.into()));
        assert_eq!(delivered.timestamp_ms, i64::from(number));
        assert_eq!(delivered.receipt.unwrap().replicas_memory, 1);
    }
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0), numbers(0..100));
}

#[tokio::test]
async fn every_codec_is_stored_as_asked_and_closing_loses_nothing() {
    for compression in Compression::ALL {
        let (broker, client) = with_topic(1).await;
        let config = ProducerConfig { compression, batch_bytes: 2000, ..ProducerConfig::default() };
        let producer = client.producer(config);
        send_numbers(&producer, 0..1000).await;
        producer.close().await.unwrap();
        assert_eq!(values(&broker, 0), numbers(0..1000));
        let stored = broker.stored("t", 0);
        assert!(stored.len() >= 5, "{} batches", stored.len());
        assert!(stored.iter().all(|batch| batch.header.compression() == compression));
    }
}

#[tokio::test]
async fn a_refusal_that_can_pass_is_retried_and_keeps_the_order() {
    let (broker, client) = with_topic(1).await;
    let codes = [ErrorCode::NotLeader, ErrorCode::Overloaded, ErrorCode::DiskFull];
    for code in codes {
        broker.inject(Api::Produce, Fault::RefuseFirstPartition(code));
    }
    let config = ProducerConfig { batch_bytes: 1000, ..ProducerConfig::default() };
    let producer = client.producer(config);
    send_numbers(&producer, 0..1000).await;
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0), numbers(0..1000));
}

#[tokio::test]
async fn a_connection_lost_before_writing_costs_nothing() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::BreakBefore);
    broker.inject(Api::Produce, Fault::BreakBefore);
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..100).await;
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0), numbers(0..100));
}

#[tokio::test]
async fn a_lost_answer_repeats_the_records_unless_told_not_to() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::BreakAfter);
    let nameless = ProducerConfig { idempotent: false, ..ProducerConfig::default() };
    let producer = client.producer(nameless.clone());
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, Some(1));
    assert_eq!(values(&broker, 0), ["x", "x"]);
    producer.close().await.unwrap();

    broker.inject(Api::Produce, Fault::BreakAfter);
    let config = ProducerConfig { retry_indeterminate: false, ..nameless };
    let producer = client.producer(config);
    let delivery = producer.send(ProducerRecord::to("t").value("y")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(error.is_indeterminate(), "{error}");
    assert_eq!(values(&broker, 0), ["x", "x", "y"]);
    let error = producer.close().await.unwrap_err();
    assert!(error.is_indeterminate(), "the flush tells it too: {error}");
}

#[tokio::test]
async fn a_refusal_of_the_second_attempt_does_not_undo_the_first() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::BreakAfter);
    broker.inject(Api::Produce, Fault::Refuse(ErrorCode::InvalidRequest));
    let producer = client.producer(ProducerConfig::default());
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest));
    assert_eq!(values(&broker, 0), ["x"]);
    assert!(error.is_indeterminate(), "{error}");
}

#[tokio::test]
async fn a_broker_that_comes_back_gets_everything_in_order() {
    let (mut broker, client) = with_topic(1).await;
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..10).await;
    producer.flush().await.unwrap();
    broker.stop().await;
    send_numbers(&producer, 10..200).await;
    let flushing = async {
        // Time to fail against the stopped broker; the producer retries in silence.
        tokio::time::sleep(Duration::from_millis(50)).await;
        broker.resume().unwrap();
    };
    let (flushed, ()) = tokio::join!(producer.flush(), flushing);
    flushed.unwrap();
    assert_eq!(values(&broker, 0), numbers(0..200));
}

#[tokio::test]
async fn delivery_gives_up_at_its_deadline_and_says_whether_it_may_have_happened() {
    let (mut broker, client) = with_topic(1).await;
    let config = ProducerConfig {
        delivery_timeout: Duration::from_millis(100),
        ..ProducerConfig::default()
    };
    broker.inject(Api::Produce, Fault::Swallow);
    let producer = client.producer(config.clone());
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, ProduceError::DeliveryTimedOut { indeterminate: true, .. }), "{error}");

    // Another client, which knows the topic and has no connection to produce over.
    let client = connect(&broker).await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_topic("t", Position::Offset(0)).await.unwrap();
    broker.stop().await;
    let producer = client.producer(config);
    let refused = producer.send(ProducerRecord::to("t").value("x")).await.unwrap().await;
    let error = refused.unwrap_err();
    assert!(
        matches!(error, ProduceError::DeliveryTimedOut { indeterminate: false, .. }),
        "{error}"
    );
    assert!(producer.close().await.is_err(), "the flush tells it too");
}

#[tokio::test]
async fn a_full_buffer_makes_send_wait_and_try_send_give_the_record_back() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::Delay(Duration::from_millis(100)));
    let config = ProducerConfig { buffer_bytes: 1000, ..ProducerConfig::default() };
    let producer = client.producer(config);
    let record = ProducerRecord::to("t").value(vec![b'x'; 400]);
    let first = producer.send(record.clone()).await.unwrap();
    drop(producer.send(record.clone()).await.unwrap());
    let refused = producer.try_send(record.clone()).unwrap_err();
    assert!(matches!(refused.error, ProduceError::WouldBlock), "{refused}");
    assert_eq!(refused.record.value, record.value);
    let mut waiting = Box::pin(producer.send(record.clone()));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    first.await.unwrap();
    drop(waiting.await.unwrap());
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0).len(), 3);
}

#[tokio::test]
async fn a_full_buffer_does_not_wait_for_batches_that_linger() {
    let (_broker, client) = with_topic(1).await;
    let config = ProducerConfig {
        buffer_bytes: 1000,
        linger: Duration::from_hours(1),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config);
    for _ in 0..10 {
        drop(producer.send(ProducerRecord::to("t").value(vec![b'x'; 400])).await.unwrap());
    }
    producer.close().await.unwrap();
}

#[tokio::test]
async fn one_bad_batch_does_not_take_its_neighbours_with_it() {
    let (broker, client) = with_topic(1).await;
    // While the first request is delayed the others gather; then they are refused together once.
    broker.inject(Api::Produce, Fault::Delay(Duration::from_millis(50)));
    broker.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::BatchTooLarge));
    broker.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::BatchTooLarge));
    let config = ProducerConfig { batch_bytes: 150, ..ProducerConfig::default() };
    let producer = client.producer(config);
    let first = producer.send(ProducerRecord::to("t").value("first")).await.unwrap();
    tokio::task::yield_now().await;
    let mut deliveries = Vec::new();
    for value in ["bad", "good", "good as well"] {
        let padded = format!("{value:>100}");
        deliveries.push(producer.send(ProducerRecord::to("t").value(padded)).await.unwrap());
    }
    first.await.unwrap();
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(delivery.await);
    }
    assert_eq!(outcomes[0].as_ref().unwrap_err().code(), Some(ErrorCode::BatchTooLarge));
    assert_eq!(outcomes[1].as_ref().unwrap().offset, Some(1));
    assert_eq!(outcomes[2].as_ref().unwrap().offset, Some(2));
}

#[tokio::test]
async fn mistakes_are_told_at_once() {
    let (_broker, client) = with_topic(2).await;
    let config = ProducerConfig { buffer_bytes: 1000, ..ProducerConfig::default() };
    let producer = client.producer(config);
    let unknown = producer.send(ProducerRecord::to("nope")).await.unwrap_err();
    assert!(matches!(unknown, ProduceError::UnknownTopic { .. }), "{unknown}");
    let partition = producer.send(ProducerRecord::to("t").partition(2)).await.unwrap_err();
    assert!(
        matches!(partition, ProduceError::UnknownPartition { partitions: 2, .. }),
        "{partition}"
    );
    let large = producer.send(ProducerRecord::to("t").value(vec![0; 1000])).await.unwrap_err();
    assert!(matches!(large, ProduceError::RecordTooLarge { max: 1000, .. }), "{large}");
}

#[tokio::test]
async fn records_with_different_guarantees_do_not_share_a_batch() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::Delay(Duration::from_millis(20)));
    let producer = client.producer(ProducerConfig::default());
    let record = || ProducerRecord::to("t").value("x");
    let mut deliveries = Vec::new();
    for acks in [Acks::All, Acks::None, Acks::None, Acks::Leader] {
        deliveries.push(producer.send(record().acks(acks)).await.unwrap());
    }
    let mut offsets = Vec::new();
    for delivery in deliveries {
        offsets.push(delivery.await.unwrap().offset);
    }
    assert_eq!(offsets, [Some(0), None, None, Some(3)]);
    producer.close().await.unwrap();
    assert_eq!(broker.stored("t", 0).len(), 3);
}

#[tokio::test]
async fn a_dropped_producer_leaves_nobody_waiting() {
    let (broker, client) = with_topic(1).await;
    broker.inject(Api::Produce, Fault::Swallow);
    let producer = client.producer(ProducerConfig::default());
    let sent = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    while broker.requests(Api::Produce) == 0 {
        tokio::task::yield_now().await;
    }
    let queued = producer.send(ProducerRecord::to("t").value("y")).await.unwrap();
    drop(producer);
    let error = sent.await.unwrap_err();
    assert!(
        matches!(
            error,
            ProduceError::Request { source: RequestError::ConnectionLost { sent: true, .. }, .. }
        ),
        "{error}"
    );
    assert!(matches!(queued.await.unwrap_err(), ProduceError::Closed));
}

#[tokio::test]
async fn a_deleted_topic_fails_its_records_and_new_partitions_are_used() {
    let (broker, client) = with_topic(1).await;
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..1).await;
    producer.flush().await.unwrap();
    client.admin().delete_topic("t", None).await.unwrap();
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, ProduceError::UnknownTopic { .. }), "{error}");
    assert!(producer.flush().await.is_err());

    client.admin().create_topic(NewTopic::new("t").partitions(3)).await.unwrap();
    let last = producer.send(ProducerRecord::to("t").partition(2).value("y")).await.unwrap();
    assert_eq!(last.await.unwrap().offset, Some(0));
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 2), ["y"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_over_many_partitions_and_faults() {
    let (broker, client) = with_topic(8).await;
    for _ in 0..20 {
        broker.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::NotReady));
        broker.inject(Api::Produce, Fault::BreakBefore);
    }
    let config = ProducerConfig { batch_bytes: 500, ..ProducerConfig::default() };
    let producer = Arc::new(client.producer(config));
    let done = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (producer, done) = (producer.clone(), done.clone());
        writers.spawn(async move {
            for number in 0..500 {
                let key = format!("{writer}-{}", number % 5);
                let record = ProducerRecord::to("t").key(key).value(format!("{number}"));
                drop(producer.send(record).await.unwrap());
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while let Some(joined) = writers.join_next().await {
        joined.unwrap();
    }
    producer.flush().await.unwrap();
    let mut last = std::collections::BTreeMap::new();
    let mut count = 0;
    for partition in 0..8 {
        for batch in broker.stored("t", partition) {
            for record in batch.records().unwrap() {
                let number: u32 =
                    std::str::from_utf8(&record.value.unwrap()).unwrap().parse().unwrap();
                let before = last.insert(record.key.unwrap(), number);
                assert!(before.is_none_or(|before| before < number), "{before:?} then {number}");
                count += 1;
            }
        }
    }
    assert_eq!((count, done.load(Ordering::Relaxed)), (2000, 2000));
}

//! The consumer against a broker in memory that misbehaves on demand, over both transports.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures_util::StreamExt;
use tidemark_client::{
    Client, ClientConfig, Compression, ConsumeError, ConsumedRecord, Consumer, ConsumerConfig,
    ErrorCode, NewTopic, OutOfRange, Position, ProducerConfig, ProducerRecord, Transport,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};

const WAIT: Duration = Duration::from_secs(10);
const TRANSPORTS: [Transport; 2] = [Transport::Push, Transport::Fetch];

async fn with_topic(partitions: u32) -> (FakeBroker, Client) {
    let broker = FakeBroker::start().await.unwrap();
    let config = ClientConfig {
        bootstrap: vec![broker.address()],
        retry_backoff: Duration::from_millis(2),
        retry_backoff_max: Duration::from_millis(20),
        ..ClientConfig::default()
    };
    let client = Client::connect(config).await.unwrap();
    client.admin().create_topic(NewTopic::new("t").partitions(partitions)).await.unwrap();
    (broker, client)
}

/// Writes numbers into a partition, ten to a batch, each stamped with itself.
async fn produce(client: &Client, partition: u32, numbers: std::ops::Range<u32>) {
    let config = ProducerConfig { compression: Compression::Lz4, ..ProducerConfig::default() };
    let producer = client.producer(config);
    let numbers: Vec<u32> = numbers.collect();
    for ten in numbers.chunks(10) {
        for number in ten {
            let record = ProducerRecord::to("t")
                .partition(partition)
                .timestamp_ms(i64::from(*number))
                .value(number.to_string());
            drop(producer.send(record).await.unwrap());
        }
        producer.flush().await.unwrap();
    }
    producer.close().await.unwrap();
}

fn consumer(client: &Client, transport: Transport) -> Consumer {
    let fetch_wait = Duration::from_millis(50);
    client.consumer(ConsumerConfig { transport, fetch_wait, ..ConsumerConfig::default() })
}

fn number(record: &ConsumedRecord) -> u32 {
    std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse().unwrap()
}

/// Polls until `count` records are there.
async fn read(consumer: &mut Consumer, count: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let records = consumer.poll(WAIT).await.unwrap();
        assert!(!records.is_empty(), "{} of {count} after {WAIT:?}", numbers.len());
        numbers.extend(records.iter().map(number));
    }
    numbers
}

fn range(numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.collect()
}

#[tokio::test]
async fn records_come_in_order_and_once_and_new_ones_follow() {
    for transport in TRANSPORTS {
        let (_broker, client) = with_topic(1).await;
        produce(&client, 0, 0..100).await;
        let mut consumer = consumer(&client, transport);
        consumer.assign([("t", 0, Position::Earliest)]).await.unwrap();
        assert_eq!(read(&mut consumer, 100).await, range(0..100));
        produce(&client, 0, 100..110).await;
        assert_eq!(read(&mut consumer, 10).await, range(100..110));
        assert_eq!(consumer.position("t", 0), Some(110));
        assert_eq!(consumer.lag("t", 0), Some(0));
        assert_eq!(consumer.end_offsets().await.unwrap(), [("t".into(), 0, 110)]);
        assert!(consumer.poll(Duration::from_millis(20)).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn positions_are_found_inside_batches_by_time_and_at_the_end() {
    for transport in TRANSPORTS {
        let (_broker, client) = with_topic(1).await;
        produce(&client, 0, 0..50).await;
        let mut consumer = consumer(&client, transport);
        consumer.assign([("t", 0, Position::Offset(23))]).await.unwrap();
        assert_eq!(read(&mut consumer, 27).await, range(23..50));
        consumer.seek("t", 0, Position::Timestamp(37)).await.unwrap();
        assert_eq!(read(&mut consumer, 13).await, range(37..50));
        consumer.seek("t", 0, Position::Latest).await.unwrap();
        produce(&client, 0, 50..60).await;
        assert_eq!(read(&mut consumer, 10).await, range(50..60));
        consumer.seek("t", 0, Position::Earliest).await.unwrap();
        assert_eq!(consumer.next().await.unwrap().offset, 0);
    }
}

#[tokio::test]
async fn a_paused_partition_is_silent_and_resumes_where_it_was() {
    for transport in TRANSPORTS {
        let (_broker, client) = with_topic(2).await;
        produce(&client, 0, 0..20).await;
        produce(&client, 1, 100..120).await;
        let mut consumer = consumer(&client, transport);
        consumer.assign_topic("t", Position::Earliest).await.unwrap();
        consumer.pause("t", 1).unwrap();
        assert_eq!(read(&mut consumer, 20).await, range(0..20));
        assert!(consumer.poll(Duration::from_millis(20)).await.unwrap().is_empty());
        consumer.resume("t", 1).unwrap();
        assert_eq!(read(&mut consumer, 20).await, range(100..120));
    }
}

#[tokio::test]
async fn broken_connections_and_a_restarted_broker_lose_and_repeat_nothing() {
    for transport in TRANSPORTS {
        let (mut broker, client) = with_topic(1).await;
        produce(&client, 0, 0..500).await;
        let config = ConsumerConfig {
            transport,
            poll_records_max: 7,
            prefetch_bytes: 400,
            response_bytes: 200,
            ..ConsumerConfig::default()
        };
        let mut consumer = client.consumer(config);
        consumer.assign([("t", 0, Position::Earliest)]).await.unwrap();
        let mut numbers = Vec::new();
        while numbers.len() < 500 {
            let before = numbers.len();
            numbers.extend(consumer.poll(WAIT).await.unwrap().iter().map(number));
            assert!(numbers.len() > before, "{before} records after {WAIT:?}");
            if before / 100 < numbers.len() / 100 {
                broker.break_connections();
            }
            if before < 250 && numbers.len() >= 250 {
                broker.stop().await;
                let polled = consumer.poll(Duration::from_millis(30)).await.unwrap();
                numbers.extend(polled.iter().map(number));
                broker.resume().unwrap();
            }
        }
        assert_eq!(numbers, range(0..500));
    }
}

#[tokio::test]
async fn a_leader_that_moved_is_found_again() {
    for (transport, api) in [(Transport::Push, Api::Subscribe), (Transport::Fetch, Api::Fetch)] {
        let (broker, client) = with_topic(2).await;
        produce(&client, 0, 0..10).await;
        produce(&client, 1, 10..20).await;
        broker.inject(api, Fault::RefuseFirstPartition(ErrorCode::NotLeader));
        broker.inject(api, Fault::Refuse(ErrorCode::NotReady));
        broker.inject(api, Fault::BreakBefore);
        let mut consumer = consumer(&client, transport);
        consumer.assign_topic("t", Position::Earliest).await.unwrap();
        let mut numbers = read(&mut consumer, 20).await;
        numbers.sort_unstable();
        assert_eq!(numbers, range(0..20));
    }
}

#[tokio::test]
async fn an_offset_that_is_gone_is_told_or_replaced_as_configured() {
    for transport in TRANSPORTS {
        let (broker, client) = with_topic(1).await;
        produce(&client, 0, 0..50).await;
        broker.trim("t", 0, 20);
        for (out_of_range, first) in [
            (OutOfRange::Error, None),
            (OutOfRange::Earliest, Some(20)),
            (OutOfRange::Latest, Some(50)),
        ] {
            let config = ConsumerConfig { transport, out_of_range, ..ConsumerConfig::default() };
            let mut consumer = client.consumer(config);
            consumer.assign([("t", 0, Position::Offset(3))]).await.unwrap();
            let polled = consumer.poll(Duration::from_millis(100)).await;
            match first {
                None => {
                    let error = polled.unwrap_err();
                    assert!(
                        matches!(error, ConsumeError::OffsetOutOfRange { offset: 3, .. }),
                        "{error}"
                    );
                    consumer.seek("t", 0, Position::Earliest).await.unwrap();
                    assert_eq!(read(&mut consumer, 30).await, range(20..50));
                }
                Some(50) => {
                    assert!(polled.unwrap().is_empty());
                    assert_eq!(consumer.position("t", 0), Some(50));
                }
                Some(first) => assert_eq!(polled.unwrap()[0].offset, first),
            }
        }
    }
}

#[tokio::test]
async fn reading_ahead_stops_at_its_bound_until_records_are_taken() {
    let (_broker, client) = with_topic(1).await;
    produce(&client, 0, 0..1000).await;
    for transport in TRANSPORTS {
        let config = ConsumerConfig {
            transport,
            prefetch_bytes: 1000,
            response_bytes: 300,
            ..ConsumerConfig::default()
        };
        let mut consumer = client.consumer(config);
        consumer.assign([("t", 0, Position::Earliest)]).await.unwrap();
        assert_eq!(consumer.next().await.unwrap().offset, 0);
        // Time to read ahead too far: what is tested is that nothing more comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Ten records take about 100 bytes, so that some 150 are within the bound, with what overdraws it.
        let at_once = consumer.poll(Duration::ZERO).await.unwrap().len();
        assert!(at_once < 300, "{at_once} records were read ahead");
        assert_eq!(read(&mut consumer, 999 - at_once).await.last(), Some(&999));
    }
}

#[tokio::test]
async fn batches_come_whole_and_say_from_where_they_count() {
    let (_broker, client) = with_topic(1).await;
    produce(&client, 0, 0..30).await;
    let mut consumer = consumer(&client, Transport::Push);
    consumer.assign([("t", 0, Position::Offset(13))]).await.unwrap();
    let mut batches = Vec::new();
    while batches.len() < 2 {
        batches.extend(consumer.poll_batches(WAIT).await.unwrap());
    }
    let bounds: Vec<_> = batches
        .iter()
        .map(|b| (b.batch.header.base_offset, b.batch.header.next_offset(), b.position))
        .collect();
    assert_eq!(bounds, [(10, 20, 13), (20, 30, 20)]);
    assert_eq!(consumer.position("t", 0), Some(30));
}

#[tokio::test]
async fn the_stream_never_ends_and_can_be_left_at_any_record() {
    let (_broker, client) = with_topic(1).await;
    produce(&client, 0, 0..20).await;
    let mut consumer = consumer(&client, Transport::Push);
    consumer.assign([("t", 0, Position::Earliest)]).await.unwrap();
    let first: Vec<u32> =
        consumer.stream().take(5).map(|record| number(&record.unwrap())).collect().await;
    assert_eq!(first, range(0..5));
    assert_eq!(read(&mut consumer, 15).await, range(5..20));
}

#[tokio::test]
async fn a_poll_that_is_dropped_loses_nothing() {
    for transport in TRANSPORTS {
        let (_broker, client) = with_topic(1).await;
        let mut consumer = consumer(&client, transport);
        consumer.assign([("t", 0, Position::Earliest)]).await.unwrap();
        let mut numbers = Vec::new();
        let polling = async {
            while numbers.len() < 200 {
                let polling = consumer.poll(WAIT);
                if let Ok(records) = tokio::time::timeout(Duration::from_micros(300), polling).await
                {
                    numbers.extend(records.unwrap().iter().map(number));
                }
            }
        };
        tokio::join!(produce(&client, 0, 0..200), polling);
        assert_eq!(numbers, range(0..200));
    }
}

#[tokio::test]
async fn mistakes_are_told_at_once() {
    let (_broker, client) = with_topic(1).await;
    let mut consumer = consumer(&client, Transport::Push);
    assert!(matches!(consumer.next().await, Err(ConsumeError::NothingAssigned)));
    let unknown = consumer.assign([("nope", 0, Position::Latest)]).await.unwrap_err();
    assert!(matches!(unknown, ConsumeError::UnknownTopic { .. }), "{unknown}");
    let unknown = consumer.assign([("t", 1, Position::Latest)]).await.unwrap_err();
    assert!(matches!(unknown, ConsumeError::UnknownPartition { partitions: 1, .. }), "{unknown}");
    consumer.assign([("nope", 0, Position::Offset(0))]).await.unwrap();
    let unknown = consumer.poll(WAIT).await.unwrap_err();
    assert!(matches!(unknown, ConsumeError::UnknownTopic { .. }), "{unknown}");
    let error = consumer.seek("t", 0, Position::Latest).await.unwrap_err();
    assert!(matches!(error, ConsumeError::NotAssigned { .. }), "{error}");
}

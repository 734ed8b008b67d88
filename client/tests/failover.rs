//! Leaders and controllers that change, die and stand still: the client finds the new ones soon, loses nothing, and keeps
//! the order. Against brokers in memory; each test is over in moments when the client does its part.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{sync::Arc, time::Duration};

use tidemark_client::{
    Client, ClientConfig, ConsumerConfig, ErrorCode, NewTopic, OffsetSpec, Position, ProduceError,
    Producer, ProducerConfig, ProducerRecord, Transport,
    protocol::{message::Api, messages::BrokerChange},
    testing::{FakeBroker, Fault},
};
use tokio::time::{Instant, sleep, timeout};

/// Far above what any step takes, far below the timeouts that a client would run into which waits for what is gone.
const SOON: Duration = Duration::from_secs(5);

/// Two brokers and a topic `t` of one partition, led by the first, which is the controller. The client is configured as by
/// default and knows only the first one's address.
async fn cluster() -> (FakeBroker, FakeBroker, Client) {
    let first = FakeBroker::start().await.unwrap();
    let second = first.join().await.unwrap();
    let client = Client::connect(ClientConfig::new(first.address())).await.unwrap();
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

/// Completes when somebody has asked one of these where things are now.
async fn asked_again(brokers: &[&FakeBroker]) {
    let asked = || brokers.iter().map(|broker| broker.requests(Api::Metadata)).sum::<usize>();
    let before = asked();
    while asked() == before {
        tokio::task::yield_now().await;
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[tokio::test]
async fn a_producer_finds_a_new_leader_soon_after_it_exists_however_long_that_took() {
    for outage in [Duration::from_millis(30), Duration::from_millis(400)] {
        let (mut first, second, client) = cluster().await;
        let producer = client.producer(ProducerConfig::default());
        send_numbers(&producer, 0..10).await;
        producer.flush().await.unwrap();
        first.stop().await;
        send_numbers(&producer, 10..20).await;
        let failover = async {
            // How long it lasts is what is tested.
            sleep(outage).await;
            second.lead("t", 0);
            Instant::now()
        };
        let flush = async {
            producer.flush().await.unwrap();
            Instant::now()
        };
        let (elected, delivered) = tokio::join!(failover, flush);
        let after = delivered - elected;
        // A pause is a quarter of the outage at most; the rest is for a busy machine.
        assert!(after < outage / 4 + Duration::from_millis(150), "{after:?} after {outage:?}");
        assert_eq!(written(&second), numbers(0..20));
        producer.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_was_deposed_and_lives_costs_one_more_request() {
    let (first, second, client) = cluster().await;
    let producer = client.producer(ProducerConfig::default());
    send_numbers(&producer, 0..10).await;
    producer.flush().await.unwrap();
    second.lead("t", 0);
    send_numbers(&producer, 10..20).await;
    timeout(SOON, producer.flush()).await.unwrap().unwrap();
    // Back again: the first is led by itself under a later epoch than it was told before.
    first.lead("t", 0);
    send_numbers(&producer, 20..30).await;
    timeout(SOON, producer.close()).await.unwrap().unwrap();
    assert_eq!(written(&first), numbers(0..30));
}

#[tokio::test]
async fn a_partition_without_a_leader_is_waited_for_and_keeps_its_order() {
    let (first, second, client) = cluster().await;
    let config = ProducerConfig { batch_bytes: 200, ..ProducerConfig::default() };
    let producer = client.producer(config);
    send_numbers(&producer, 0..10).await;
    producer.flush().await.unwrap();
    second.depose("t", 0);
    send_numbers(&producer, 10..200).await;
    let elect = async {
        asked_again(&[&first, &second]).await;
        second.lead("t", 0);
    };
    let (flushed, ()) = tokio::join!(timeout(SOON, producer.flush()), elect);
    flushed.unwrap().unwrap();
    assert_eq!(written(&second), numbers(0..200));
}

#[tokio::test]
async fn a_leader_that_stands_still_is_left_when_another_leads() {
    for retry_indeterminate in [true, false] {
        let (first, second, client) = cluster().await;
        let config =
            ProducerConfig { idempotent: false, retry_indeterminate, ..ProducerConfig::default() };
        let producer = client.producer(config);
        send_numbers(&producer, 0..10).await;
        producer.flush().await.unwrap();
        first.pause(true);
        let topic = ProducerRecord::to("t");
        let delivery = producer.send(topic.clone().value("10")).await.unwrap();
        second.lead("t", 0);
        let delivered = timeout(SOON, delivery).await.unwrap();
        if retry_indeterminate {
            assert_eq!(delivered.unwrap().offset, Some(10));
            assert_eq!(written(&second), numbers(0..11));
        } else {
            let error = delivered.unwrap_err();
            assert!(error.is_indeterminate(), "{error}");
            let next = producer.send(topic.value("11")).await.unwrap();
            assert_eq!(timeout(SOON, next).await.unwrap().unwrap().offset, Some(10));
        }
        // It goes on, and finds a request of an epoch that is over.
        first.pause(false);
        // Time for it to do harm: what is tested is that nothing happens.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(written(&second).len(), 11);
    }
}

#[tokio::test]
async fn a_lost_answer_repeats_whole_requests_in_order_and_nothing_else() {
    let (mut first, second, client) = cluster().await;
    first.inject(Api::Produce, Fault::Delay(Duration::from_millis(50)));
    first.inject(Api::Produce, Fault::BreakAfter);
    let config =
        ProducerConfig { batch_bytes: 150, idempotent: false, ..ProducerConfig::default() };
    let producer = client.producer(config);
    // The first goes alone; the others gather meanwhile in several batches, and are carried out without an answer.
    send_numbers(&producer, 0..1).await;
    while first.requests(Api::Produce) == 0 {
        tokio::task::yield_now().await;
    }
    send_numbers(&producer, 1..20).await;
    while first.requests(Api::Produce) < 2 {
        tokio::task::yield_now().await;
    }
    second.lead("t", 0);
    first.stop().await;
    send_numbers(&producer, 20..30).await;
    timeout(SOON, producer.flush()).await.unwrap().unwrap();
    let expected = [numbers(0..20), numbers(1..30)].concat();
    assert_eq!(written(&second), expected);
}

#[tokio::test]
async fn too_few_replicas_in_sync_is_told_while_it_lasts_and_in_the_end() {
    let (first, _second, client) = cluster().await;
    for _ in 0..1000 {
        first.inject(Api::Produce, Fault::RefuseFirstPartition(ErrorCode::NotEnoughReplicas));
    }
    let delivery_timeout = Duration::from_millis(300);
    let config = ProducerConfig { delivery_timeout, ..ProducerConfig::default() };
    let producer = client.producer(config);
    assert!(producer.obstacle().is_none());
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    // It comes up after a failure, and is told to nobody who does not ask.
    while producer.obstacle().is_none() {
        sleep(Duration::from_millis(1)).await;
    }
    let (waited, obstacle) = producer.obstacle().unwrap();
    assert_eq!(obstacle.code(), Some(ErrorCode::NotEnoughReplicas));
    assert!(waited < delivery_timeout);
    let error = delivery.await.unwrap_err();
    assert!(
        matches!(error, ProduceError::DeliveryTimedOut { indeterminate: false, .. }),
        "{error}"
    );
    assert_eq!(error.code(), Some(ErrorCode::NotEnoughReplicas));
    assert!(error.to_string().contains("NotEnoughReplicas"), "{error}");
    assert!(producer.obstacle().is_none());

    // A leader that waits for replicas itself says nothing at all.
    let (first, _second, client) = cluster().await;
    first.inject(Api::Produce, Fault::Swallow);
    let delivery_timeout = Duration::from_millis(1500);
    let producer = client.producer(ProducerConfig { delivery_timeout, ..Default::default() });
    let delivery = producer.send(ProducerRecord::to("t").value("x")).await.unwrap();
    // It comes up when an answer has been waited for in vain for a while.
    while producer.obstacle().is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    let (_, obstacle) = producer.obstacle().unwrap();
    assert!(
        obstacle.is_indeterminate() && obstacle.to_string().contains("not answer"),
        "{obstacle}"
    );
    let error = delivery.await.unwrap_err();
    assert!(error.is_indeterminate() && error.to_string().contains("acknowledge"), "{error}");
}

#[tokio::test]
async fn a_consumer_follows_a_leader_that_dies_and_one_that_stands_still() {
    for (transport, dies) in [
        (Transport::Push, true),
        (Transport::Push, false),
        (Transport::Fetch, true),
        (Transport::Fetch, false),
    ] {
        let (mut first, second, client) = cluster().await;
        let producer = client.producer(ProducerConfig::default());
        let config = ConsumerConfig { transport, ..ConsumerConfig::default() };
        let mut consumer = client.consumer(config);
        consumer.assign_topic("t", Position::Earliest).await.unwrap();
        send_numbers(&producer, 0..10).await;
        producer.flush().await.unwrap();
        for _ in 0..10 {
            consumer.next().await.unwrap();
        }
        if dies {
            first.stop().await;
        } else {
            first.pause(true);
        }
        second.lead("t", 0);
        send_numbers(&producer, 10..20).await;
        producer.flush().await.unwrap();
        for offset in 10..20 {
            let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
            assert_eq!(record.offset, offset, "{transport:?}, dies: {dies}");
        }
    }
}

#[tokio::test]
async fn changes_find_another_controller() {
    let (mut first, mut second, client) = cluster().await;
    let admin = client.admin();
    // One that lives and says so.
    second.control();
    admin.create_topic(NewTopic::new("u")).await.unwrap();
    // One that is gone, before there is another; what may be done twice is asked again even when it may have been done.
    let third = second.join().await.unwrap();
    client.admin().list_topics().await.unwrap();
    first.stop().await;
    second.stop().await;
    let elect = async {
        asked_again(&[&third]).await;
        third.control();
    };
    let drain = admin.change_broker(1, BrokerChange::Drain, false);
    let (drained, ()) = tokio::join!(timeout(SOON, drain), elect);
    // The brokers in memory do not drain; what counts is that the controller was asked.
    assert_eq!(drained.unwrap().unwrap_err().code(), Some(ErrorCode::UnsupportedApi));
}

#[tokio::test]
async fn questions_are_answered_by_whoever_is_left() {
    let (mut first, second, client) = cluster().await;
    let admin = client.admin();
    assert_eq!(admin.metadata(None).await.unwrap().brokers.len(), 2);
    // Gone, standing still, and not ready: in turn, whichever the client likes best.
    first.stop().await;
    assert_eq!(timeout(SOON, admin.metadata(None)).await.unwrap().unwrap().broker_id, 2);
    first.resume().unwrap();
    for (silent, left) in [(&first, 2), (&second, 1)] {
        silent.pause(true);
        for _ in 0..3 {
            let answer = timeout(SOON, admin.metadata(None)).await.unwrap().unwrap();
            assert_eq!(answer.broker_id, left);
        }
        silent.pause(false);
    }
    for _ in 0..10 {
        first.inject(Api::Metadata, Fault::Refuse(ErrorCode::NotReady));
    }
    let answer = timeout(SOON, admin.metadata(None)).await.unwrap().unwrap();
    assert_eq!(answer.broker_id, 2);
}

#[tokio::test]
async fn questions_to_leaders_go_to_the_new_ones() {
    let (mut first, second, client) = cluster().await;
    let admin = client.admin();
    let latest = [("t", 0, OffsetSpec::Latest)];
    assert!(admin.list_offsets(&latest).await.unwrap()[0].is_ok());
    second.lead("t", 0);
    assert!(timeout(SOON, admin.list_offsets(&latest)).await.unwrap().unwrap()[0].is_ok());
    first.lead("t", 0);
    assert!(timeout(SOON, admin.list_offsets(&latest)).await.unwrap().unwrap()[0].is_ok());
    first.stop().await;
    let elect = async {
        asked_again(&[&second]).await;
        second.lead("t", 0);
    };
    let (listed, ()) = tokio::join!(timeout(SOON, admin.list_offsets(&latest)), elect);
    assert!(listed.unwrap().unwrap()[0].is_ok());
}

#[tokio::test]
async fn a_fenced_broker_can_be_asked_about_itself_and_one_that_is_not_there_cannot() {
    let (_first, second, client) = cluster().await;
    second.fence(true);
    let admin = client.admin();
    // The brokers in memory do not describe themselves; what counts is who was asked.
    let refused = admin.describe_broker(Some(2), false).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::UnsupportedApi));
    assert_eq!(second.requests(Api::DescribeBroker), 1);
    let missing = admin.describe_broker(Some(9), false).await.unwrap_err();
    assert!(missing.to_string().contains("broker 9"), "{missing}");
}

#[tokio::test]
async fn a_drain_is_asked_again_after_a_loss_and_forgetting_a_broker_is_not() {
    let (first, _second, client) = cluster().await;
    let admin = client.admin();
    first.inject(Api::ChangeBroker, Fault::BreakAfter);
    let refused = admin.change_broker(2, BrokerChange::Drain, false).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::UnsupportedApi), "asked twice");
    first.inject(Api::ChangeBroker, Fault::BreakAfter);
    let lost = admin.change_broker(2, BrokerChange::Unregister, false).await.unwrap_err();
    assert!(lost.is_indeterminate(), "{lost}");
    assert_eq!(first.requests(Api::ChangeBroker), 3);
}

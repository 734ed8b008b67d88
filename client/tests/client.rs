//! Connections and administration against a broker in memory that misbehaves on demand.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use tidemark_client::{
    Admin, AdminError, Client, ClientConfig, ConnectError, ConsumerConfig, ErrorCode, NewTopic,
    OffsetSpec, Position, ProducerConfig, ProducerRecord,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

fn config(broker: &FakeBroker) -> ClientConfig {
    ClientConfig {
        bootstrap: vec![broker.address()],
        retry_backoff: Duration::from_millis(2),
        retry_backoff_max: Duration::from_millis(20),
        ..ClientConfig::default()
    }
}

async fn with_topic() -> (FakeBroker, Client) {
    let broker = FakeBroker::start().await.unwrap();
    let client = Client::connect(config(&broker)).await.unwrap();
    client.admin().create_topic(NewTopic::new("t").partitions(2)).await.unwrap();
    (broker, client)
}

async fn write(client: &Client, count: u32) {
    let producer = client.producer(ProducerConfig::default());
    for number in 0..count {
        let timestamp_ms = i64::from(number) * 10;
        let record = ProducerRecord::to("t").partition(0).timestamp_ms(timestamp_ms);
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await.unwrap();
}

async fn topics(admin: &Admin) -> Result<usize, AdminError> {
    Ok(admin.list_topics().await?.len())
}

#[tokio::test]
async fn what_is_wrong_with_an_address_is_told_apart() {
    let connect = |bootstrap: Vec<String>| {
        let connect_timeout = Duration::from_millis(200);
        Client::connect(ClientConfig { bootstrap, connect_timeout, ..ClientConfig::default() })
    };
    assert!(matches!(connect(vec![]).await, Err(ConnectError::NoBootstrap)));
    let no_port = connect(vec!["localhost".into()]).await;
    assert!(matches!(no_port, Err(ConnectError::BadAddress { .. })));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = connect(vec![address.clone()]).await;
    assert!(matches!(silent, Err(ConnectError::TimedOut { .. })), "{silent:?}");
    // The silent attempt is first in line.
    drop(listener.accept().await.unwrap());
    let stranger = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request").await.unwrap();
        stream
    };
    let (refused, _stream) = tokio::join!(connect(vec![address.clone()]), stranger);
    assert!(matches!(refused, Err(ConnectError::NotTidemark { .. })), "{refused:?}");
    let dying = async { drop(listener.accept().await.unwrap()) };
    let (refused, ()) = tokio::join!(connect(vec![address.clone()]), dying);
    assert!(refused.as_ref().is_err_and(ConnectError::is_retriable), "{refused:?}");
    let newer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"TIDE\0\x07\0\x09").await.unwrap();
        stream
    };
    let (refused, _stream) = tokio::join!(connect(vec![address.clone()]), newer);
    assert!(matches!(refused, Err(ConnectError::Version { min: 7, max: 9, .. })), "{refused:?}");
    drop(listener);
    let refused = connect(vec![address]).await;
    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn any_bootstrap_broker_will_do() {
    let broker = FakeBroker::start().await.unwrap();
    let bootstrap = vec!["127.0.0.1:1".into(), broker.address()];
    let client = Client::connect(ClientConfig { bootstrap, ..config(&broker) }).await.unwrap();
    assert_eq!(&*client.cluster_id(), "fake");
}

#[tokio::test]
async fn a_question_is_asked_again_after_a_loss_and_a_change_is_not() {
    let (broker, client) = with_topic().await;
    let admin = client.admin();
    for fault in [Fault::BreakBefore, Fault::BreakAfter, Fault::Refuse(ErrorCode::NotReady)] {
        broker.inject(Api::Metadata, fault);
    }
    assert_eq!(topics(&admin).await.unwrap(), 1);

    broker.inject(Api::CreateTopic, Fault::Refuse(ErrorCode::NotReady));
    admin.create_topic(NewTopic::new("u")).await.unwrap();
    broker.inject(Api::CreateTopic, Fault::BreakAfter);
    let lost = admin.create_topic(NewTopic::new("v")).await.unwrap_err();
    assert!(lost.is_indeterminate(), "{lost}");
    assert_eq!(topics(&admin).await.unwrap(), 3, "it had been created");
    let exists = admin.create_topic(NewTopic::new("v")).await.unwrap_err();
    assert_eq!(exists.code(), Some(ErrorCode::TopicExists));
}

#[tokio::test]
async fn a_silent_broker_loses_the_connection_and_everything_in_flight() {
    let broker = FakeBroker::start().await.unwrap();
    let request_timeout = Duration::from_millis(50);
    let config = ClientConfig { request_timeout, ..config(&broker) };
    let client = Client::connect(config).await.unwrap();
    let admin = client.admin().with_timeout(Duration::from_mins(1));
    broker.inject(Api::DescribeBroker, Fault::Swallow);
    broker.inject(Api::Metadata, Fault::Delay(Duration::from_mins(1)));
    // The first is never answered and the second is stuck behind it: both are asked again elsewhere.
    let (described, listed) = tokio::join!(admin.describe_broker(None, false), topics(&admin));
    assert_eq!(described.unwrap_err().code(), Some(ErrorCode::UnsupportedApi));
    assert_eq!(listed.unwrap(), 0);
    assert_eq!((broker.requests(Api::DescribeBroker), broker.requests(Api::Metadata)), (2, 3));
}

#[tokio::test]
async fn offsets_are_answered_in_the_order_asked_each_with_its_own_outcome() {
    let (broker, client) = with_topic().await;
    write(&client, 10).await;
    broker.trim("t", 0, 2);
    broker.inject(Api::ListOffsets, Fault::RefuseFirstPartition(ErrorCode::NotLeader));
    broker.inject(Api::ListOffsets, Fault::Refuse(ErrorCode::NotLeader));
    let questions = [
        ("t", 0, OffsetSpec::Latest),
        ("nope", 0, OffsetSpec::Latest),
        ("t", 1, OffsetSpec::Latest),
        ("t", 0, OffsetSpec::Earliest),
        ("t", 2, OffsetSpec::Earliest),
        ("t", 0, OffsetSpec::Timestamp(45)),
        ("t", 0, OffsetSpec::MaxTimestamp),
    ];
    let answers = client.admin().list_offsets(&questions).await.unwrap();
    let offsets: Vec<_> = answers.iter().map(|a| a.as_ref().ok().map(|a| a.offset)).collect();
    assert_eq!(offsets, [Some(10), None, Some(0), Some(2), None, Some(5), Some(9)]);
    assert!(matches!(answers[1], Err(AdminError::UnknownTopic { .. })));
    assert!(matches!(answers[4], Err(AdminError::UnknownPartition { partitions: 2, .. })));
    assert_eq!(answers[5].as_ref().unwrap().timestamp_ms, 50);
}

#[tokio::test]
async fn deleted_records_are_gone_and_topics_can_grow_and_go() {
    let (_broker, client) = with_topic().await;
    write(&client, 10).await;
    let admin = client.admin();
    let starts = admin.delete_records(&[("t", 0, Some(4)), ("t", 1, None)]).await.unwrap();
    let starts: Vec<_> = starts.into_iter().map(Result::unwrap).collect();
    assert_eq!(starts, [4, 0]);
    assert_eq!(admin.add_partitions("t", 5, false).await.unwrap(), 5);
    admin.delete_topic("t", None).await.unwrap();
    let gone = admin.delete_topic("t", None).await.unwrap_err();
    assert!(matches!(gone, AdminError::UnknownTopic { .. }), "{gone}");
}

#[tokio::test]
async fn what_is_dropped_closes_its_connections() {
    let (broker, client) = with_topic().await;
    write(&client, 10).await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_topic("t", Position::Earliest).await.unwrap();
    consumer.poll(Duration::from_secs(10)).await.unwrap();
    assert_eq!(broker.connections(), 3, "control, produce and this consumer's own");
    drop(consumer);
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), broker.all_closed()).await.unwrap();
}

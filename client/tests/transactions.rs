//! Transactions against brokers in memory: what is committed last is what counts, whichever answers are lost, and operators are
//! told what there is, whichever coordinators are not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use tidemark_client::{
    Client, ClientConfig, ErrorCode, NewTopic, TransactionError, TransactionalConfig,
    TransactionalProducer,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};

async fn cluster() -> (FakeBroker, Client, TransactionalProducer) {
    let broker = FakeBroker::start().await.unwrap();
    let client = Client::connect(ClientConfig::new(broker.address())).await.unwrap();
    client.admin().create_topic(NewTopic::new("t").partitions(2)).await.unwrap();
    let producer = client.transactional_producer(TransactionalConfig::new("one")).await.unwrap();
    (broker, client, producer)
}

fn committed(broker: &FakeBroker) -> Vec<u64> {
    broker.transactional_offsets().into_iter().map(|(_, offset)| offset).collect()
}

#[tokio::test]
async fn offsets_of_a_partition_may_be_committed_again_within_a_transaction() {
    let (broker, _client, mut producer) = cluster().await;
    producer.begin().unwrap();
    producer.send_offsets("g", None, [("t", 0, 1)]).await.unwrap();
    producer.send_offsets("g", None, [("t", 0, 2)]).await.unwrap();
    producer.commit().await.unwrap();
    assert_eq!(committed(&broker), [1, 2]);
}

/// A request whose answer was lost may be carried out at any time until the transaction ends, and would then take the place of
/// what was committed after it.
#[tokio::test]
async fn no_late_request_undoes_offsets_that_were_committed_after_it() {
    let (broker, _client, mut producer) = cluster().await;
    for lost in [Fault::BreakAfter, Fault::BreakBefore] {
        producer.begin().unwrap();
        broker.inject(Api::CommitTransactionalOffsets, lost);
        producer.send_offsets("g", None, [("t", 0, 10)]).await.unwrap();
        producer.send_offsets("g", None, [("t", 1, 20)]).await.unwrap();
        producer.send_offsets("other", None, [("t", 0, 30)]).await.unwrap();
        let again = producer.send_offsets("g", None, [("t", 1, 21), ("t", 0, 11)]).await;
        let error = again.expect_err("the first request may come after this one");
        assert!(matches!(error, TransactionError::State(_)), "{error}");
        assert!(producer.commit().await.is_err(), "its offsets are missing");
        producer.abort().await.unwrap();
    }
    assert!(committed(&broker).iter().all(|offset| ![11, 21].contains(offset)));

    // The next transaction is out of its reach: it has an epoch of its own.
    producer.begin().unwrap();
    producer.send_offsets("g", None, [("t", 0, 11)]).await.unwrap();
    producer.send_offsets("g", None, [("t", 0, 12)]).await.unwrap();
    producer.commit().await.unwrap();
    assert_eq!(committed(&broker)[committed(&broker).len() - 2..], [11, 12]);
}

#[tokio::test]
async fn transactional_ids_are_listed_as_far_as_their_coordinators_can_tell() {
    let (first, client, _producer) = cluster().await;
    let second = first.join().await.unwrap();
    let admin = client.admin();
    first.inject(Api::ListTransactions, Fault::RefuseFirstPartition(ErrorCode::CoordinatorLoading));
    second.inject(Api::ListTransactions, Fault::Refuse(ErrorCode::UnsupportedApi));
    let list = admin.list_transactions().await.unwrap();
    let ids: Vec<_> = list.transactions.iter().map(|one| one.transactional_id.as_str()).collect();
    assert_eq!(ids, ["one"]);
    let codes: Vec<_> = list.unavailable.iter().map(|one| one.failure.code).collect();
    assert_eq!(codes, [ErrorCode::CoordinatorLoading]);
    let brokers: Vec<_> = list.unreachable.iter().map(|(broker, _)| *broker).collect();
    assert_eq!(brokers, [second.id()]);

    let list = admin.list_transactions().await.unwrap();
    assert!(list.unavailable.is_empty() && list.unreachable.is_empty());
}

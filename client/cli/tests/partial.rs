//! The command line against brokers in memory of which some cannot tell what they were asked for: what there is goes to
//! standard output, what is missing to standard error, and the exit code says that it is not all.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Output;

use tidemark_client::{
    Client, ClientConfig, ErrorCode, TransactionalConfig,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};
use tokio::process::Command;

/// What is not told: see `exit.rs`.
const PARTIAL: i32 = 7;

async fn run(broker: &FakeBroker, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(words).args(["--brokers", &broker.address()]).output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn transactional_ids_are_listed_as_far_as_coordinators_answer() {
    let first = FakeBroker::start().await.unwrap();
    let client = Client::connect(ClientConfig::new(first.address())).await.unwrap();
    let producer = client.transactional_producer(TransactionalConfig::new("bank")).await.unwrap();
    producer.close().await;
    let second = first.join().await.unwrap();

    let whole = run(&first, &["txn", "list"]).await;
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    assert!(text(&whole.stdout).contains("bank") && whole.stderr.is_empty());

    first.inject(Api::ListTransactions, Fault::RefuseFirstPartition(ErrorCode::CoordinatorLoading));
    second.inject(Api::ListTransactions, Fault::Refuse(ErrorCode::UnsupportedApi));
    let partial = run(&first, &["txn", "list"]).await;
    assert_eq!(partial.status.code(), Some(PARTIAL), "{}", text(&partial.stderr));
    assert!(text(&partial.stdout).contains("bank"), "{}", text(&partial.stdout));
    let missing: Vec<&str> = text(&partial.stderr).lines().collect();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].contains("/0: ") && missing[1].contains("broker 2: "), "{missing:?}");
}

#[tokio::test]
async fn a_member_whose_name_is_taken_says_who_has_it() {
    let broker = FakeBroker::start().await.unwrap();
    for _ in 0..2 {
        broker.inject(Api::GroupHeartbeat, Fault::Refuse(ErrorCode::UnreleasedInstance));
    }
    let waited = run(&broker, &["consume", "t", "--group", "g", "--instance", "one"]).await;
    let notes = text(&waited.stderr);
    assert_eq!(notes.matches("waiting: injected").count(), 1, "{notes}");
}

//! What a start finds that no metadata speaks of.

use std::{fs, path::Path, time::Duration};

use super::harness::{Starting, TestBroker, batch};
use crate::{disk::Disk, server::ServerError};

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_partitions_that_are_gone_are_moved_aside_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let topic = TestBroker::leaves_a_record(dir.path()).await;

    let topics = dir.path().join("topics");
    let log = topics.join("orders/0");
    copy_dir(&log, &topics.join("deleted/0"));
    copy_dir(&log, &topics.join("orders/7"));
    fs::create_dir(topics.join("orders/0.copy")).unwrap();
    fs::write(topics.join("notes"), "mine").unwrap();
    let old = dir.path().join("left-behind/deleted-0-1000");
    copy_dir(&log, &old);

    let broker = TestBroker::start_with(dir.path(), &[("retention_interval", "100ms")]).await;
    let mut client = broker.connect().await;
    assert_eq!(client.read_all(topic, 0).await, ["kept"]);
    assert!(!topics.join("deleted").exists() && !topics.join("orders/7").exists());
    assert!(topics.join("orders/0.copy").exists() && topics.join("notes").exists());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while old.exists() {
        assert!(tokio::time::Instant::now() < deadline, "what is old is kept");
        // Deletion is told to nobody.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let aside = names(&dir.path().join("left-behind"));
    assert_eq!(aside.len(), 2, "{aside:?}");
    for name in ["deleted-0-", "orders-7-"] {
        assert!(aside.iter().any(|found| found.starts_with(name)), "{aside:?}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_do_not_say_whose_they_are_are_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    TestBroker::leaves_a_record(dir.path()).await;
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let fresh = client.create_topic("fresh", 1).await;
    broker.stop().await;
    // As a topic of that name leaves it that lost power before its first flush, and was deleted meanwhile.
    let log = dir.path().join("topics/fresh/0");
    copy_dir(&dir.path().join("topics/orders/0"), &log);
    for name in ["partition.meta", "epochs"] {
        fs::remove_file(log.join(name)).unwrap();
    }

    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    client.produce(fresh, batch(&["new"])).await.unwrap();
    assert_eq!(client.read_all(fresh, 0).await, ["new"]);
    let aside = names(&dir.path().join("left-behind"));
    assert!(matches!(&aside[..], [name] if name.starts_with("fresh-0-")), "{aside:?}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_without_any_metadata_are_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let topic = TestBroker::leaves_a_record(dir.path()).await;

    let metadata = dir.path().join("metadata");
    let aside = dir.path().join("metadata.aside");
    fs::rename(&metadata, &aside).unwrap();
    for _ in 0..2 {
        // Missing, then there and empty.
        let starting = Starting::begin(Disk::default(), dir.path(), &[]);
        let refused = starting.ended().await.unwrap_err();
        assert!(matches!(refused, ServerError::MetadataGone { .. }), "{refused}");
        fs::create_dir_all(&metadata).unwrap();
    }
    fs::remove_dir(&metadata).unwrap();
    fs::rename(&aside, &metadata).unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    assert_eq!(client.read_all(topic, 0).await, ["kept"]);
    broker.stop().await;
}

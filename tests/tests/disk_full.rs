//! A full disk refuses produce with an error worth retrying, and nothing else; and it recovers by itself.

use std::{
    fs,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tidemark_protocol::{
    ErrorCode,
    messages::{DeleteTopicRequest, MetadataRequest},
};
use tidemark_tests::{
    http,
    process::{Broker, BrokerConfig},
    raw::{Raw, TIMEOUT_MS, batch},
};

/// How long the broker may take to notice that space returned; it looks every second.
const RECOVERY: Duration = Duration::from_secs(20);

fn start() -> Result<(Broker, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let config =
        BrokerConfig::new(dir.path())?.mount("size=48m").flag("disk-reserve-bytes", "8MiB");
    Ok((config.start()?, dir))
}

/// Produces until refused and returns the first offset that was not taken.
fn fill(raw: &mut Raw, partition: tidemark_protocol::TopicPartition) -> Result<u64> {
    let value = vec![b'x'; 500_000];
    for offset in 0..200 {
        match raw.produce(partition, &batch(&[&value]))? {
            Ok(receipt) => assert_eq!(receipt.base_offset, offset),
            Err(failure) => {
                assert_eq!(failure.code, ErrorCode::DiskFull, "{failure}");
                assert!(failure.code.is_retriable());
                return Ok(offset);
            }
        }
    }
    anyhow::bail!("100 MB fit on a 48 MiB disk")
}

/// Produces until it is taken again.
fn produce_again(raw: &mut Raw, partition: tidemark_protocol::TopicPartition) -> Result<u64> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match raw.produce(partition, &batch(&[b"again"]))? {
            Ok(receipt) => return Ok(receipt.base_offset),
            Err(failure) => assert_eq!(failure.code, ErrorCode::DiskFull, "{failure}"),
        }
        anyhow::ensure!(Instant::now() < deadline, "space returned, and produce did not");
    }
}

#[test]
fn reading_and_administration_go_on_and_deleting_brings_the_broker_back() -> Result<()> {
    let (broker, _dir) = start()?;
    let mut raw = Raw::open(&broker)?;
    let filler = raw.create_topic("filler", 1, &[])?[0];
    let kept = raw.create_topic("kept", 1, &[])?[0];
    raw.produce(kept, &batch(&[b"first"]))??;
    let end = fill(&mut raw, filler)?;

    let (fetched, payload) = raw.fetch(filler, 0)??;
    assert_eq!(fetched.high_watermark, end, "all that was acknowledged, and no more");
    let first = tidemark_protocol::batch::batches(payload).next().context("a batch")??;
    first.verify_crc()?;
    assert_eq!(raw.call(&MetadataRequest::default(), &[])?.0?.topics.len(), 2);
    assert_eq!(http::get(broker.http_address(), "/health/live")?.status, 200);

    let delete = DeleteTopicRequest { name: "filler".to_owned(), id: None, timeout_ms: TIMEOUT_MS };
    raw.call(&delete, &[])?.0?;
    assert_eq!(produce_again(&mut raw, kept)?, 1);
    Ok(())
}

#[test]
fn a_disk_filled_by_somebody_else_recovers_when_the_space_returns() -> Result<()> {
    let (broker, _dir) = start()?;
    let mut raw = Raw::open(&broker)?;
    let partition = raw.create_topic("mine", 1, &[])?[0];
    raw.produce(partition, &batch(&[b"first"]))??;

    let hog = broker.data_dir().join("hog");
    let mut file = fs::File::create(&hog)?;
    // To the last byte: the next allocation of ours meets ENOSPC itself, not only the reserve.
    while file.write_all(&[1; 4096]).is_ok() {}
    let end = fill(&mut raw, partition)?;
    assert_eq!(raw.fetch(partition, 0)??.0.high_watermark, end.max(1));
    drop(file);
    fs::remove_file(&hog)?;
    assert_eq!(produce_again(&mut raw, partition)?, end.max(1));
    assert!(broker.terminate()?.success());
    Ok(())
}

#[test]
fn topics_can_be_deleted_when_not_a_byte_is_left() -> Result<()> {
    let (broker, _dir) = start()?;
    let mut raw = Raw::open(&broker)?;
    // More deletions than the metadata log has room for as it is.
    let names: Vec<_> = (0..150).map(|number| format!("topic-{number}")).collect();
    for name in &names {
        raw.create_topic(name, 1, &[])?;
    }
    let hog = broker.data_dir().join("hog");
    let mut file = fs::File::create(&hog)?;
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
    for name in names {
        let delete = DeleteTopicRequest { name, id: None, timeout_ms: TIMEOUT_MS };
        raw.call(&delete, &[])?.0?;
    }
    drop(file);
    fs::remove_file(&hog)?;
    assert!(broker.terminate()?.success());
    Ok(())
}

//! A thousand partitions on one broker: all usable, all cheap, and all there again after `kill -9`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tidemark_protocol::{
    TopicPartition,
    batch::batches,
    messages::{
        FetchPartition, FetchRequest, MetadataRequest, ProducePartition, ProduceReceipt,
        ProduceRequest,
    },
};
use tidemark_tests::{
    process::{Broker, BrokerConfig},
    raw::{Raw, batch, produce_request},
};

const PARTITIONS: u32 = 1000;
/// Partitions one request names; a debug build on a busy machine answers it well within the patience of a test.
const REQUEST_PARTITIONS: usize = 100;
/// Memory of its own that a partition with data may cost the broker. Files it has mapped are the page cache's.
const PARTITION_BYTES_MAX: u64 = 16 << 10;
/// How long a killed broker may take to start; generous, for debug builds and busy machines.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// What a broker may open besides segments while a topic is created.
const OTHER_FILES_MAX: usize = 50;

#[test]
fn a_thousand_partitions_are_cheap_and_survive_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let mut raw = Raw::open(&broker)?;
    let (memory_empty, files_empty) = (own_memory_bytes(&broker)?, open_files(&broker)?);

    let partitions = raw.create_topic("wide", PARTITIONS, &[])?;
    check_listed(&mut raw)?;
    let files = open_files(&broker)?;
    ensure!(
        files < files_empty + OTHER_FILES_MAX,
        "partitions without data need no open files, yet {files_empty} became {files}"
    );
    produce_to_each(&mut raw, &partitions)?;
    check_each(&mut raw, &partitions)?;
    let each = (own_memory_bytes(&broker)?.saturating_sub(memory_empty)) / u64::from(PARTITIONS);
    ensure!(each < PARTITION_BYTES_MAX, "a partition costs {each} bytes of memory");

    let broker = broker.kill()?.start()?;
    let ready_after = broker.ready_after();
    ensure!(ready_after < READY_WITHIN, "ready only after {ready_after:?}");
    let mut raw = Raw::open(&broker)?;
    check_listed(&mut raw)?;
    check_each(&mut raw, &partitions)?;
    let each = (own_memory_bytes(&broker)?.saturating_sub(memory_empty)) / u64::from(PARTITIONS);
    ensure!(each < PARTITION_BYTES_MAX, "after a restart a partition costs {each} bytes of memory");
    ensure!(broker.terminate()?.success(), "a clean stop");
    Ok(())
}

fn check_listed(raw: &mut Raw) -> Result<()> {
    let metadata = raw.call(&MetadataRequest::default(), &[])?.0?;
    let topic = metadata.topics.first().context("a topic")?;
    ensure!(topic.partitions.len() == PARTITIONS as usize, "not all are listed");
    ensure!(topic.partitions.iter().all(|partition| partition.leader.is_some()), "no leader");
    Ok(())
}

/// One record to each partition: the partition's number.
fn produce_to_each(raw: &mut Raw, partitions: &[TopicPartition]) -> Result<()> {
    for some in partitions.chunks(REQUEST_PARTITIONS) {
        let (mut wanted, mut payload) = (Vec::new(), Vec::new());
        for &partition in some {
            let batch = batch(&[partition.partition.to_string().as_bytes()]);
            let batch_bytes = u32::try_from(batch.len())?;
            wanted.push(ProducePartition { partition, leader_epoch: None, batch_bytes });
            payload.extend_from_slice(&batch);
        }
        let request = ProduceRequest { partitions: wanted, ..produce_request(some[0], 0)? };
        let answers = raw.call(&request, &payload)?.0?.partitions;
        ensure!(answers.len() == some.len(), "an answer for each");
        for answer in answers {
            let ProduceReceipt { base_offset, replicas_durable, .. } = answer?;
            ensure!((base_offset, replicas_durable) == (0, 1), "first, and on stable storage");
        }
    }
    Ok(())
}

/// Each partition holds its number and nothing else.
fn check_each(raw: &mut Raw, partitions: &[TopicPartition]) -> Result<()> {
    for some in partitions.chunks(REQUEST_PARTITIONS) {
        let from_start = |&partition| FetchPartition {
            partition,
            leader_epoch: None,
            offset: 0,
            max_bytes: 1 << 20,
        };
        let request = FetchRequest {
            max_wait_ms: 0,
            min_bytes: 0,
            max_bytes: 8 << 20,
            partitions: some.iter().map(from_start).collect(),
            isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
        };
        let (response, mut payload) = raw.call(&request, &[])?;
        for (fetched, partition) in response?.partitions.into_iter().zip(some) {
            let share = payload.split_to(fetched?.batch_bytes as usize);
            let mut values = Vec::new();
            for batch in batches(share) {
                let batch = batch?;
                batch.verify_crc()?;
                values.extend(batch.records()?.into_iter().map(|record| record.value));
            }
            let number = partition.partition.to_string();
            let expected = vec![Some(number.into_bytes().into())];
            ensure!(values == expected, "{partition} holds {values:?}");
        }
    }
    Ok(())
}

/// `RssAnon`, in bytes.
fn own_memory_bytes(broker: &Broker) -> Result<u64> {
    let status = fs::read_to_string(proc_of(broker).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 =
        line.and_then(|rest| rest.split_whitespace().next()).context("RssAnon")?.parse()?;
    Ok(kib << 10)
}

fn open_files(broker: &Broker) -> Result<usize> {
    Ok(fs::read_dir(proc_of(broker).join("fd"))?.count())
}

fn proc_of(broker: &Broker) -> PathBuf {
    Path::new("/proc").join(broker.pid().to_string())
}

//! The logs of nodes that stand still, read from their segment files as any tool could: consecutive batches, nothing else.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use bytes::Bytes;
use tidemark_protocol::{NodeId, Offset, batch::batches};

use crate::{
    cluster::{Cluster, view},
    history::{Partition, Read, ReplicaLog},
};

/// Stops every node where it is, reads the logs of all in-sync replicas of a topic, and kills the nodes. For when nobody
/// writes any more.
pub fn collect(cluster: &mut Cluster, topic: &str) -> Result<Vec<ReplicaLog>> {
    let metadata = cluster.metadata()?;
    let partitions = &view::find(&metadata, topic).context("no such topic")?.partitions;
    for id in cluster.ids() {
        cluster.pause(id)?;
    }
    let mut logs = Vec::new();
    for (index, known) in (0..).zip(partitions) {
        let partition = Partition::new(topic, index);
        for node in &known.isr {
            let log = read(*node, &cluster.files(*node)?, &partition, true);
            let log = log.with_context(|| format!("{partition} on node {node}"))?;
            logs.push(log.with_context(|| format!("no log of {partition} on node {node}"))?);
        }
    }
    for id in cluster.ids() {
        cluster.kill(id)?;
    }
    Ok(logs)
}

/// Reads the log of one partition below a node's data directory; `None` when the node has none.
pub fn read(
    node: NodeId,
    data_dir: &Path,
    partition: &Partition,
    complete: bool,
) -> Result<Option<ReplicaLog>> {
    let dir = data_dir.join("topics").join(&*partition.topic).join(partition.index.to_string());
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(None) };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            segments.push(path);
        }
    }
    // Named by their first offset, all with the same number of digits.
    segments.sort();
    let mut log = ReplicaLog {
        node,
        partition: partition.clone(),
        start: first_offset(segments.first().map(AsRef::as_ref))?,
        end: 0,
        records: Vec::new(),
        complete,
    };
    log.end = log.start;
    for segment in segments {
        let added = add_segment(&mut log, fs::read(&segment)?);
        added.with_context(|| segment.display().to_string())?;
    }
    Ok(Some(log))
}

fn first_offset(segment: Option<&Path>) -> Result<Offset> {
    let Some(name) = segment.and_then(Path::file_stem) else { return Ok(0) };
    name.to_str().and_then(|name| name.parse().ok()).context("a segment is named by an offset")
}

/// The batches of a segment; what is allocated behind them and not used is zeros.
fn add_segment(log: &mut ReplicaLog, bytes: Vec<u8>) -> Result<()> {
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    // A batch may well end in zeros.
    let mut all = batches(Bytes::from(bytes));
    let mut read_bytes = 0;
    while read_bytes < used {
        let batch = all.next().context("bytes that are no batch")??;
        batch.verify_crc()?;
        read_bytes += batch.header.batch_bytes;
        let epoch = batch.header.leader_epoch;
        for record in batch.records()? {
            let text = std::str::from_utf8(record.value.as_deref().unwrap_or_default())?;
            let value = text.trim().parse().with_context(|| format!("not a value: {text:?}"))?;
            log.records.push(Read { offset: record.offset, value, epoch });
            log.end = record.offset + 1;
        }
    }
    Ok(())
}

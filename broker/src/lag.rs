//! How far offsets are behind: in partitions that are led here, and of any partition by asking its leader.
//!
//! Nothing here knows whose offsets these are. [`watch`] remembers what was measured, for rates and for the metrics.

pub(crate) mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, Offset, TimestampMs,
    batch::batches,
    limits::REQUEST_PARTITIONS_MAX,
    messages::{MeasureLagRequest, OffsetToMeasure, PartitionLag},
};

pub(crate) use self::watch::LagWatch;
use crate::{broker::Broker, partitions::PartitionView, reads, service::find_partition};

/// How long another broker may take to measure.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Partitions measured at the same time: a record of each is read.
const MEASURED_AT_ONCE: usize = 64;

/// Measures offsets in partitions that are led here, in their order.
pub(crate) async fn measure_here(
    broker: &Broker,
    offsets: &[OffsetToMeasure],
) -> Vec<Result<PartitionLag, Failure>> {
    let mut measured = Vec::with_capacity(offsets.len());
    for some in offsets.chunks(MEASURED_AT_ONCE) {
        measured.extend(join_all(some.iter().map(|one| measure(broker, *one))).await);
    }
    measured
}

/// Measures offsets in any partitions, in their order.
pub(crate) async fn measure_anywhere(
    broker: &Broker,
    offsets: &[OffsetToMeasure],
) -> Vec<Result<PartitionLag, Failure>> {
    let image = broker.image();
    let mut by_leader: BTreeMap<BrokerId, Vec<usize>> = BTreeMap::new();
    let nobody = |one: &OffsetToMeasure| {
        Err(Failure::new(ErrorCode::NotLeader, format!("{} has no leader", one.partition)))
    };
    let mut measured: Vec<_> = offsets.iter().map(nobody).collect();
    for (at, one) in offsets.iter().enumerate() {
        if let Some(leader) = image.partition(one.partition).and_then(|known| known.leader) {
            by_leader.entry(leader).or_default().push(at);
        }
    }
    let asked = by_leader.into_iter().map(async |(leader, places)| {
        let chosen: Vec<_> = places.iter().map(|at| offsets[*at]).collect();
        let answers = if leader == broker.id {
            measure_here(broker, &chosen).await
        } else {
            measure_at(broker, leader, &chosen).await
        };
        (places, answers)
    });
    for (places, answers) in join_all(asked).await {
        for (at, answer) in places.into_iter().zip(answers) {
            measured[at] = answer;
        }
    }
    measured
}

/// Asks another broker, over a connection of its own: measuring may take time, and answers come in order.
async fn measure_at(
    broker: &Broker,
    leader: BrokerId,
    offsets: &[OffsetToMeasure],
) -> Vec<Result<PartitionLag, Failure>> {
    let asking = async {
        let (peer, _pushes) = broker.connect_to(leader).await?;
        let mut measured = Vec::with_capacity(offsets.len());
        for some in offsets.chunks(REQUEST_PARTITIONS_MAX) {
            let request = MeasureLagRequest { offsets: some.to_vec() };
            let (answer, _) = peer.ask(&request, ASK_TIMEOUT).await?;
            measured.extend(answer.partitions);
        }
        Ok::<_, Failure>(measured)
    };
    match asking.await {
        Ok(mut measured) => {
            let missing = || Err(Failure::new(ErrorCode::Internal, "a leader's answer is short"));
            measured.resize_with(offsets.len(), missing);
            measured
        }
        Err(failure) => offsets.iter().map(|_| Err(failure.clone())).collect(),
    }
}

async fn measure(broker: &Broker, one: OffsetToMeasure) -> Result<PartitionLag, Failure> {
    let view = find_partition(broker, one.partition)?;
    view.leader_epoch(None)?;
    let high_watermark = view.latest_offset()?;
    let log_start_offset = view.reader.log_start_offset();
    let from = one.offset.max(log_start_offset);
    let records = high_watermark.saturating_sub(from);
    let first_unread_ms =
        if records == 0 { None } else { timestamp_at(broker, &view, from).await? };
    let age_ms = first_unread_ms.map_or(0, |ms| non_negative(broker.clock.wall_ms() - ms));
    let image = broker.image();
    let config = image.topic_by_id(one.partition.topic_id).map(|topic| topic.config);
    let config = config.filter(|config| config.cleanup_policy.delete);
    let retention_ms = config.and_then(|config| config.retention_ms);
    Ok(PartitionLag {
        log_start_offset,
        high_watermark,
        records,
        bytes: share_of_bytes(&view, records),
        first_unread_ms,
        age_ms,
        deleted_in_ms: first_unread_ms
            .and(retention_ms)
            .map(|retention_ms| retention_ms.saturating_sub(age_ms)),
        lost_records: log_start_offset.saturating_sub(one.offset),
    })
}

/// The timestamp of the first record at or after `from`, below the high watermark.
async fn timestamp_at(
    broker: &Broker,
    view: &Arc<PartitionView>,
    from: Offset,
) -> Result<Option<TimestampMs>, Failure> {
    // At least one batch, whatever its size.
    let read = reads::read(&broker.cold_reads, view, None, from, 1, &broker.metrics).await?;
    let Some(batch) = batches(read.bytes).next() else { return Ok(None) };
    let damaged = |error: tidemark_protocol::batch::BatchError| {
        Failure::new(error.code(), format!("{} at {from}: {error}", view.id))
    };
    let batch = batch.map_err(damaged)?;
    let header = &batch.header;
    if header.base_offset >= from || header.base_timestamp == header.max_timestamp {
        return Ok(Some(header.base_timestamp));
    }
    for record in batch.iter_records().map_err(damaged)? {
        let record = record.map_err(damaged)?;
        if record.offset >= from {
            return Ok(Some(record.timestamp_ms));
        }
    }
    // The last records of the batch were compacted away.
    Ok(Some(header.max_timestamp))
}

/// As large a part of the log's bytes as these are of its records.
fn share_of_bytes(view: &PartitionView, records: u64) -> u64 {
    let all = view.reader.log_end_offset().saturating_sub(view.reader.log_start_offset()).max(1);
    let bytes = u128::from(view.reader.size_bytes()) * u128::from(records) / u128::from(all);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn non_negative(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

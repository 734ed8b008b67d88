//! Describe replicas: how far the replicas of partitions are, as their leader knows it.

use std::sync::Arc;

use tidemark_protocol::{
    Failure, TopicPartition,
    messages::{
        DescribeReplicasRequest, DescribeReplicasResponse, PartitionReplicas, ReplicaProgress,
    },
};
use tidemark_replication::FollowerStatus;

use super::find_partition;
use crate::{broker::Broker, partitions::PartitionView};

pub(crate) async fn describe_replicas(
    broker: Arc<Broker>,
    request: DescribeReplicasRequest,
) -> Result<DescribeReplicasResponse, Failure> {
    let partitions = request.partitions.iter().map(|id| describe(&broker, *id));
    Ok(DescribeReplicasResponse { partitions: partitions.collect() })
}

fn describe(broker: &Broker, id: TopicPartition) -> Result<PartitionReplicas, Failure> {
    let view = find_partition(broker, id)?;
    let leader_epoch = view.leader_epoch(None)?;
    let reader = &view.reader;
    let (log_end_offset, flushed_offset) = (reader.log_end_offset(), reader.flushed_offset());
    let itself = ReplicaProgress {
        broker: broker.id,
        log_end_offset: Some(log_end_offset),
        flushed_offset: Some(flushed_offset),
        lag_bytes: 0,
        lag_ms: 0,
        in_sync: true,
    };
    let followers = view.followers();
    let now_ms = broker.clock.monotonic_ms();
    let others = followers.iter().map(|follower| progress(&view, follower, now_ms));
    Ok(PartitionReplicas {
        leader_epoch,
        log_start_offset: reader.log_start_offset(),
        high_watermark: view.high_watermark(),
        log_end_offset,
        size_bytes: reader.size_bytes(),
        replicas: std::iter::once(itself).chain(others).collect(),
    })
}

fn progress(view: &PartitionView, follower: &FollowerStatus, now_ms: u64) -> ReplicaProgress {
    let known = |offset| follower.is_known.then_some(offset);
    ReplicaProgress {
        broker: follower.id,
        log_end_offset: known(follower.log_end_offset),
        flushed_offset: known(follower.flushed_offset),
        lag_bytes: lag_bytes(view, follower),
        lag_ms: lag_ms(view, follower, now_ms),
        in_sync: follower.is_in_sync,
    }
}

/// The follower's share of the log that it lacks, by records: about as many bytes.
pub(crate) fn lag_bytes(view: &PartitionView, follower: &FollowerStatus) -> u64 {
    let (start, end) = (view.reader.log_start_offset(), view.reader.log_end_offset());
    let held = follower.log_end_offset.clamp(start, end);
    let (lacking, all) = (end - held, (end - start).max(1));
    let bytes = u128::from(view.reader.size_bytes()) * u128::from(lacking) / u128::from(all);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// How long ago the follower had everything; 0 when it has, and as long as the process lives when it never had.
pub(crate) fn lag_ms(view: &PartitionView, follower: &FollowerStatus, now_ms: u64) -> u64 {
    if follower.is_known && follower.log_end_offset >= view.reader.log_end_offset() {
        return 0;
    }
    now_ms.saturating_sub(follower.caught_up_ms.unwrap_or(0))
}

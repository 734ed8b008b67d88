//! Produce: validate on the caller's task, append on the shard, answer when the acks are in.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;
use tidemark_controller::{Image, TopicConfig};
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, TopicPartition,
    batch::{Batch, batches},
    messages::{Acks, Durability},
};
use tokio::sync::oneshot;

use super::{TIMEOUT_MS_MAX, find_partition};
use crate::{
    broker::Broker,
    coordinators::topics::refuse_internal,
    metrics::Protocol,
    partitions::{PartitionView, unknown_partition},
    shard::{self, ProduceOutcome},
};

/// A produce request, however it was encoded.
#[derive(Debug)]
pub(crate) struct Produce {
    pub(crate) acks: Acks,
    pub(crate) durability: Durability,
    pub(crate) timeout_ms: u32,
    pub(crate) protocol: Protocol,
    pub(crate) shares: Vec<Share>,
}

/// One partition's batches.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) partition: TopicPartition,
    pub(crate) leader_epoch: Option<LeaderEpoch>,
    pub(crate) batches: Bytes,
}

enum Begun {
    Refused(Failure),
    Queued(oneshot::Receiver<ProduceOutcome>),
}

/// Hands the batches to their shards, in the order of the calls, and gives back the wait for the outcomes, in
/// the order of the shares. Waits itself for nothing but room in the shards' mailboxes.
pub(crate) async fn begin(
    broker: &Arc<Broker>,
    produce: Produce,
) -> impl Future<Output = Vec<ProduceOutcome>> + Send + use<> {
    let image = broker.image();
    let queued_at = broker.clock.now();
    let wait_ms = produce.timeout_ms.min(TIMEOUT_MS_MAX);
    let deadline_ms = broker.clock.monotonic_ms() + u64::from(wait_ms);
    let mut begun = Vec::with_capacity(produce.shares.len());
    for share in produce.shares {
        let id = share.partition;
        let (view, batches) = match admit(broker, &image, &share) {
            Ok(admitted) => admitted,
            Err(failure) => {
                let records = claimed_records(&share.batches);
                broker.metrics.requests().records_rejected(failure.code, records);
                begun.push(Begun::Refused(failure));
                continue;
            }
        };
        let (reply, outcome) = oneshot::channel();
        let command = shard::Command::Produce(shard::Produce {
            partition: id,
            batches,
            leader_epoch: share.leader_epoch,
            base_offset: None,
            acks: produce.acks,
            durability: produce.durability,
            deadline_ms,
            protocol: produce.protocol,
            queued_at,
            reply,
        });
        begun.push(match view.shard.send(command).await {
            Ok(()) => Begun::Queued(outcome),
            Err(failure) => Begun::Refused(failure),
        });
    }
    join_all(begun.into_iter().map(outcome))
}

async fn outcome(begun: Begun) -> ProduceOutcome {
    match begun {
        Begun::Refused(failure) => Err(failure),
        Begun::Queued(outcome) => outcome.await.unwrap_or_else(|_dropped| {
            Err(Failure::new(
                ErrorCode::NotLeaderAfterAppend,
                "the broker stopped before the outcome was known; the records may yet become readable",
            ))
        }),
    }
}

/// Everything that can be checked without the owner of the partition.
fn admit(
    broker: &Broker,
    image: &Image,
    share: &Share,
) -> Result<(Arc<PartitionView>, Vec<Batch>), Failure> {
    let id = share.partition;
    let topic = image.topic_by_id(id.topic_id).ok_or_else(|| unknown_partition(id))?;
    refuse_internal(&topic.name, "produced to")?;
    if let Some(leader) = image.partition(id).and_then(|partition| partition.leader)
        && leader != broker.id
    {
        // Before anything that ails this broker: a full disk here is no reason to wait for it when another one leads.
        let message = format!("broker {leader} leads {}/{}", topic.name, id.partition);
        return Err(Failure::new(ErrorCode::NotLeader, message));
    }
    let view = find_partition(broker, id)?;
    Ok((view, validate(&share.batches, &topic.config)?))
}

/// The batches, if all of them may be appended to a topic with these settings.
pub(crate) fn validate(bytes: &Bytes, config: &TopicConfig) -> Result<Vec<Batch>, Failure> {
    let invalid = |message| Failure::new(ErrorCode::InvalidBatch, message);
    if bytes.is_empty() {
        return Err(invalid("there is no batch to append".to_owned()));
    }
    let mut found = Vec::with_capacity(1);
    for (index, batch) in batches(bytes.clone()).enumerate() {
        let batch = batch.and_then(|batch| {
            batch.validate_for_append(config.max_batch_bytes as usize)?;
            Ok(batch)
        });
        let batch = batch.map_err(|error| {
            Failure::new(error.code(), format!("batch {index} of the request: {error}"))
        })?;
        if config.cleanup_policy.compact && !all_have_keys(&batch) {
            let message = format!(
                "batch {index} of the request has a record without a key; the topic is compacted by key"
            );
            return Err(invalid(message));
        }
        found.push(batch);
    }
    Ok(found)
}

fn all_have_keys(batch: &Batch) -> bool {
    // The batch has been validated: its records decode.
    batch.iter_records().is_ok_and(|mut records| {
        records.all(|record| record.is_ok_and(|record| record.key.is_some()))
    })
}

/// How many records a refused share says it has, for the count of what was refused.
fn claimed_records(bytes: &Bytes) -> u64 {
    let headers = batches(bytes.clone()).filter_map(Result::ok);
    headers.map(|batch| u64::from(batch.header.record_count)).sum()
}

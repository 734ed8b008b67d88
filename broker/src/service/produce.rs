//! Produce: validate on the caller's task, append on the shard, answer when the acks are in.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tidemark_controller::{Image, TopicConfig};
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, TopicPartition,
    batch::{Batch, batches},
    messages::{Acks, Durability, ProducerIdentity},
};
use tokio::{sync::oneshot, time::Instant};

use super::{TIMEOUT_MS_MAX, find_partition, transactions::join::join};
use crate::{
    broker::Broker,
    coordinators::topics::refuse_internal,
    metrics::Protocol,
    partitions::{PartitionView, unknown_partition},
    shard::{self, ProduceOutcome, Unverified},
};

/// A produce request, however it was encoded.
#[derive(Debug)]
pub(crate) struct Produce {
    pub(crate) acks: Acks,
    pub(crate) durability: Durability,
    pub(crate) timeout_ms: u32,
    pub(crate) protocol: Protocol,
    /// Whose transaction transactional batches belong to.
    pub(crate) transactional_id: Option<Arc<str>>,
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
    /// The same, and perhaps it comes back to be verified first.
    Transactional(Transactional),
}

struct Transactional {
    broker: Arc<Broker>,
    view: Arc<PartitionView>,
    id: Arc<str>,
    deadline: Instant,
    outcome: oneshot::Receiver<ProduceOutcome>,
    unverified: oneshot::Receiver<Unverified>,
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
    let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
    let transactional_id = produce.transactional_id;
    let mut begun = Vec::with_capacity(produce.shares.len());
    for share in produce.shares {
        let id = share.partition;
        let (view, batches) = match admit(broker, &image, &share, transactional_id.as_ref()) {
            Ok(admitted) => admitted,
            Err(failure) => {
                let records = claimed_records(&share.batches);
                broker.metrics.requests().records_rejected(failure.code, records);
                begun.push(Begun::Refused(failure));
                continue;
            }
        };
        let (reply, outcome) = oneshot::channel();
        let is_transactional = batches.iter().any(|batch| batch.header.is_transactional());
        let (asks, unverified) = oneshot::channel();
        let command = shard::Command::Produce(shard::Produce {
            partition: id,
            batches,
            leader_epoch: share.leader_epoch,
            base_offset: None,
            guard: None,
            unverified: is_transactional.then_some(asks),
            acks: produce.acks,
            durability: produce.durability,
            deadline_ms,
            protocol: produce.protocol,
            queued_at,
            reply,
        });
        begun.push(match view.shard.send(command).await {
            Ok(()) => match transactional_id.clone().filter(|_| is_transactional) {
                None => Begun::Queued(outcome),
                Some(id) => Begun::Transactional(Transactional {
                    broker: Arc::clone(broker),
                    view,
                    id,
                    deadline,
                    outcome,
                    unverified,
                }),
            },
            Err(failure) => Begun::Refused(failure),
        });
    }
    join_all(begun.into_iter().map(outcome))
}

async fn outcome(begun: Begun) -> ProduceOutcome {
    match begun {
        Begun::Refused(failure) => Err(failure),
        Begun::Queued(outcome) => outcome.await.unwrap_or_else(|_dropped| Err(unknown())),
        Begun::Transactional(waiting) => verified(waiting).await,
    }
}

/// Asks the coordinator of the transaction, if the partition's owner wants that, and sends the request again.
async fn verified(waiting: Transactional) -> ProduceOutcome {
    let Transactional { broker, view, id, deadline, outcome, unverified } = waiting;
    // The end of this channel: the request was taken, or refused.
    if let Ok(Unverified { guard, mut produce }) = unverified.await {
        let mut headers = produce.batches.iter().map(|batch| &batch.header);
        let header = headers.find(|header| header.is_transactional());
        let header = header.expect("only transactional batches are verified");
        let (producer_id, epoch) = (header.producer_id, header.producer_epoch);
        let producer = ProducerIdentity { producer_id, epoch };
        join(&broker, &id, producer, view.id, deadline).await?;
        produce.guard = Some(guard);
        view.shard.send(shard::Command::Produce(produce)).await?;
    }
    outcome.await.unwrap_or_else(|_dropped| Err(unknown()))
}

fn unknown() -> Failure {
    Failure::new(
        ErrorCode::NotLeaderAfterAppend,
        "the broker stopped before the outcome was known; the records may yet become readable",
    )
}

/// Everything that can be checked without the owner of the partition.
fn admit(
    broker: &Broker,
    image: &Image,
    share: &Share,
    transactional_id: Option<&Arc<str>>,
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
    let batches = validate(&share.batches, &topic.config)?;
    let is_transactional = batches.iter().any(|batch| batch.header.is_transactional());
    if is_transactional && transactional_id.is_none() {
        let message = "a transactional batch needs the transactional id in its request";
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    Ok((view, batches))
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

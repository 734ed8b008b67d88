//! One produce request: the batches of many partitions for one broker, from building to answer.
//!
//! Runs as a task of its own, so that compression uses more than one core. It refuses to repeat anything:
//! it brings back its batches with what became of them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, TopicPartition,
    messages::{
        Acks, ProducePartition, ProduceReceipt, ProduceRequest, ProduceResponse, ProducerIdentity,
    },
};
use tokio::time::{Instant, sleep};

use super::{
    config::ProducerConfig,
    queue::{Guarantee, PartitionQueue, QueuedBatch},
    shared::Shared,
};
use crate::{
    cluster::Cluster,
    error::{ProduceError, RequestError},
    metadata::Metadata,
};

/// A broker that is silent about a request for so long may not be the leader any more: the metadata is asked for.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// It is asked for again after growing pauses, up to this.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A leader that was deposed and lives says itself what became of a request; it has this long for it.
const LAST_WORD: Duration = Duration::from_millis(500);

/// A request being put together.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) address: Arc<str>,
    pub(super) guarantee: Guarantee,
    pub(super) partitions: Vec<Part>,
    /// Of batches before compression.
    pub(super) charged_bytes: usize,
    /// Set when it is handed to a connection.
    pub(super) sent: Arc<AtomicBool>,
}

/// One partition's share of a request.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) queue: Arc<PartitionQueue>,
    pub(super) partition: TopicPartition,
    pub(super) epoch: LeaderEpoch,
    pub(super) batches: Vec<QueuedBatch>,
}

/// What became of one partition's share.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// Written, as the receipt says; without one when no acknowledgement was asked for.
    Written(Option<ProduceReceipt>),
    Failed(RequestError),
}

/// A request that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) address: Arc<str>,
    pub(super) partitions: Vec<(Part, Fate)>,
    /// Batches over a limit that only building could tell.
    pub(super) unbuildable: Vec<(QueuedBatch, ProduceError)>,
}

impl Draft {
    pub(super) fn new(address: Arc<str>, guarantee: Guarantee) -> Self {
        let sent = Arc::new(AtomicBool::new(false));
        Self { address, guarantee, partitions: Vec::new(), charged_bytes: 0, sent }
    }

    /// Builds, sends and waits. `deadline` bounds the wait for a connection and for its turn on it.
    pub(super) async fn run(mut self, shared: Arc<Shared>, deadline: Instant) -> Finished {
        let cluster = &*shared.cluster;
        let identity = match self.identity(&shared, deadline).await {
            Ok(identity) => identity,
            Err(error) => {
                let failed = |part| (part, Fate::Failed(error.clone()));
                let partitions = self.partitions.into_iter().map(failed).collect();
                return Finished { address: self.address, partitions, unbuildable: Vec::new() };
            }
        };
        let (header, payload, unbuildable) = self.build(&shared.config, identity, deadline);
        let fates = if header.partitions.is_empty() {
            Vec::new()
        } else {
            let exchanged = tokio::select! {
                biased;
                exchanged = self.exchange(cluster, &header, payload, deadline) => exchanged,
                () = self.led_by_others(cluster) => Err(self.abandoned()),
            };
            match exchanged {
                Ok(fates) => fates,
                Err(error) => vec![Fate::Failed(error); self.partitions.len()],
            }
        };
        let partitions = self.partitions.into_iter().zip(fates).collect();
        Finished { address: self.address, partitions, unbuildable }
    }

    /// Who the producer is, for partitions that do not know yet.
    async fn identity(
        &self,
        shared: &Shared,
        deadline: Instant,
    ) -> Result<Option<ProducerIdentity>, RequestError> {
        let is_numbered = self.is_numbered(&shared.config);
        if !is_numbered || !self.partitions.iter().any(|part| part.queue.needs_identity()) {
            return Ok(None);
        }
        shared.identity.get(&shared.cluster, deadline).await.map(Some)
    }

    /// What is never answered is never repeated, and nobody could say which of its numbers are used.
    fn is_numbered(&self, config: &ProducerConfig) -> bool {
        config.idempotent && self.guarantee.acks() != Acks::None
    }

    fn build(
        &mut self,
        config: &ProducerConfig,
        identity: Option<ProducerIdentity>,
        deadline: Instant,
    ) -> (ProduceRequest, Vec<Bytes>, Vec<(QueuedBatch, ProduceError)>) {
        let mut payload = Vec::new();
        let mut unbuildable = Vec::new();
        let mut headers = Vec::with_capacity(self.partitions.len());
        let is_numbered = self.is_numbered(config);
        for part in &mut self.partitions {
            let mut batch_bytes = 0;
            for mut batch in std::mem::take(&mut part.batches) {
                let number = is_numbered.then(|| part.queue.number(&batch, identity)).flatten();
                match batch.bytes(number) {
                    Ok(bytes) => {
                        if let Some(number) = number {
                            part.queue.use_number(&mut batch, number);
                        }
                        batch_bytes += bytes.len();
                        payload.push(bytes);
                        part.batches.push(batch);
                    }
                    Err(error) => {
                        let detail = error.to_string().into();
                        unbuildable.push((batch, ProduceError::InvalidBatch { detail }));
                    }
                }
            }
            headers.push(ProducePartition {
                partition: part.partition,
                leader_epoch: Some(part.epoch),
                batch_bytes: u32::try_from(batch_bytes).unwrap_or(u32::MAX),
            });
        }
        let left = deadline.saturating_duration_since(Instant::now()).min(config.request_timeout);
        let request = ProduceRequest {
            acks: self.guarantee.acks(),
            durability: self.guarantee.durability(),
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            partitions: headers,
        };
        (request, payload, unbuildable)
    }

    async fn exchange(
        &self,
        cluster: &Cluster,
        request: &ProduceRequest,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Fate>, RequestError> {
        let connection = cluster.produce_pool().get(&self.address, deadline).await?;
        self.sent.store(true, Ordering::Release);
        if request.acks == Acks::None {
            connection.send_unanswered(request, payload, deadline).await?;
            return Ok(self.partitions.iter().map(|_| Fate::Written(None)).collect());
        }
        // The broker answers by its own deadline; one that does not loses the connection. Giving up
        // earlier here would mean repeating a request that is still being carried out.
        let broker_wait = Duration::from_millis(request.timeout_ms.into());
        let last = Instant::now() + broker_wait + cluster.config().request_timeout;
        let (answer, _) = connection.request(request, payload, broker_wait, last).await?;
        fates(answer, request.partitions.len(), &self.address)
    }

    /// Returns when others lead all of its partitions, and this broker, if it has been sent the request, had the time to say
    /// what became of it. A broker that is cut off or stands still would be waited for in vain for very long.
    async fn led_by_others(&self, cluster: &Cluster) {
        let mut known = cluster.watch_metadata();
        let mut pause = ASK_AFTER;
        while !self.has_moved(&cluster.metadata()) {
            tokio::select! {
                // The sender of changes lives in the cluster.
                _ = known.changed() => {}
                () = sleep(pause) => {
                    pause = (pause * 2).min(ASK_AGAIN_AFTER);
                    let topics: BTreeSet<_> =
                        self.partitions.iter().map(|part| part.queue.topic.clone()).collect();
                    let topics: Vec<_> = topics.into_iter().collect();
                    // Nobody can say now; there will be another time.
                    drop(cluster.refresh(&topics, cluster.deadline()).await);
                }
            }
        }
        if self.sent.load(Ordering::Acquire) {
            sleep(LAST_WORD).await;
        }
    }

    fn has_moved(&self, metadata: &Metadata) -> bool {
        self.partitions.iter().all(|part| {
            metadata.has_later_leader(&part.queue.topic, part.queue.partition, part.epoch)
        })
    }

    fn abandoned(&self) -> RequestError {
        if self.sent.load(Ordering::Acquire) {
            let reason = "it is silent, and others lead its partitions now".into();
            RequestError::ConnectionLost { address: self.address.clone(), reason, sent: true }
        } else {
            let message = "others lead its partitions now, nothing was sent";
            RequestError::Refused(Failure::new(ErrorCode::NotLeader, message))
        }
    }
}

fn fates(
    answer: ProduceResponse,
    expected: usize,
    address: &Arc<str>,
) -> Result<Vec<Fate>, RequestError> {
    if answer.partitions.len() != expected {
        let detail = format!("{} outcomes for {expected} partitions", answer.partitions.len());
        return Err(RequestError::Protocol { address: address.clone(), detail: detail.into() });
    }
    let fate = |outcome: Result<ProduceReceipt, Failure>| match outcome {
        Ok(receipt) => Fate::Written(Some(receipt)),
        Err(failure) => Fate::Failed(RequestError::Refused(failure)),
    };
    Ok(answer.partitions.into_iter().map(fate).collect())
}

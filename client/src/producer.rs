//! The producer: records in, batches out, an outcome for each record.
//!
//! A record is copied once, into the buffer of its partition's open batch. A sender task forms requests per
//! broker from what is ready. While a partition's request is in flight its next batches fill, so batches
//! grow with the load and a lone record does not wait. One request may carry several batches of a
//! partition, which is why one request in flight per partition is enough to keep a fast link busy and, with
//! retries, to keep its order.
//!
//! **When a leader fails.** The producer finds the new one by itself, from brokers that are left, and sends again; the order
//! within a partition stays. Whether a request whose answer was lost was carried out is *indeterminate*: the connection was
//! lost or silent after sending, or the broker answered `Timeout` or `NotEnoughReplicasAfterAppend`. As long as
//! [`ProducerConfig::idempotent`] is on, every batch has a number, and brokers know those that they have: sending again writes
//! nothing twice. A record whose delivery fails all the same, because its time is over, may have been written or not
//! (`is_indeterminate`); what comes after it goes on, and nothing that was sent before can be written twice by that.
//!
//! Without idempotence [`ProducerConfig::retry_indeterminate`] decides:
//!
//! - `true` (the default): at least once. The batches of the request are sent again, in order, before any later ones. If the
//!   first attempt was carried out as well, a reader sees them twice, as a run: `1 2 3 1 2 3 4`. Records that are read for the
//!   first time are always in order.
//! - `false`: at most once. Their deliveries fail with an error whose `is_indeterminate` is true, later records go on, and
//!   nothing is ever written twice.
//!
//! Every other failure is determinate: nothing was written, and sending again writes each record once.

mod config;
mod delivery;
mod identity;
mod queue;
mod request;
mod sender;
mod shared;
mod topics;

use std::{sync::Arc, time::Duration};

use tidemark_protocol::{limits::BATCH_BYTES_MAX, message::Api};
use tokio::{
    sync::{AcquireError, TryAcquireError},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    error::{ProduceError, RequestError},
    record::ProducerRecord,
    tasks,
};
pub use config::ProducerConfig;
pub use delivery::Delivery;
use shared::Shared;
use topics::TopicQueues;

/// A request without an answer for so long is told as an obstacle.
const UNANSWERED_AFTER: Duration = Duration::from_secs(1);
/// What a batch needs beside its records.
const BATCH_OVERHEAD_BYTES: usize = 61;

/// Sends records. All methods take `&self` and may be called from many tasks; records sent one after the
/// other to a partition are written in that order.
///
/// ```
/// # use tidemark_client::{Client, ClientConfig, NewTopic, testing::FakeBroker};
/// use tidemark_client::{ProducerConfig, ProducerRecord};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = FakeBroker::start().await?;
/// # let client = Client::connect(ClientConfig::new(broker.address())).await?;
/// # client.admin().create_topic(NewTopic::new("orders")).await?;
/// let producer = client.producer(ProducerConfig::default());
/// // `send` returns when the record is in the buffer; what it returns resolves when it is safe.
/// let delivery = producer.send(ProducerRecord::to("orders").key("42").value("two teas")).await?;
/// let delivered = delivery.await?;
/// assert_eq!(delivered.offset, Some(0));
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    stop: CancellationToken,
    sender: Option<JoinHandle<()>>,
}

impl Producer {
    pub(crate) fn start(cluster: Arc<Cluster>, mut config: ProducerConfig) -> Self {
        config.batch_bytes = config.batch_bytes.min(BATCH_BYTES_MAX);
        config.request_bytes = config.request_bytes.min(BATCH_BYTES_MAX);
        config.max_in_flight = config.max_in_flight.max(1);
        let shared = Arc::new(Shared::new(cluster, config));
        let stop = CancellationToken::new();
        let sending = sender::run(shared.clone(), stop.clone());
        let sender = Some(tasks::spawn("producer-sender", "", sending));
        Self { shared, stop, sender }
    }

    /// Accepts a record into the buffer, waiting while the buffer is full. The first record for a topic
    /// also waits for the topic's metadata.
    ///
    /// The future returned inside resolves when the record is acknowledged as configured. Dropping this
    /// future before it is ready means that the record was not accepted.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ProduceError> {
        let bytes = self.bytes_of(&record)?;
        let topic = match self.shared.topic(&record.topic) {
            Some(topic) => topic,
            None => self.look_up(&record.topic).await?,
        };
        self.reserve(bytes).await.map_err(|_| ProduceError::Closed)?;
        self.accept(&topic, &record, bytes)
    }

    /// Accepts a record if that needs no waiting; otherwise gives it back with
    /// [`ProduceError::WouldBlock`]. The first record for a topic always needs waiting.
    pub fn try_send(&self, record: ProducerRecord) -> Result<Delivery, TrySendError> {
        self.try_accept(&record).map_err(|error| TrySendError { record: Box::new(record), error })
    }

    /// Waits until every record accepted before this call is delivered or has failed, and does not let
    /// batches linger meanwhile.
    ///
    /// # Errors
    /// The first failure since the last flush, also of records whose own futures told it already.
    pub async fn flush(&self) -> Result<(), ProduceError> {
        let hurry = self.shared.hurry();
        for topic in self.shared.topics() {
            for queue in topic.queues() {
                for outcome in queue.outcomes() {
                    // The failure is kept where it is met; here only the end matters.
                    drop(outcome.done().await);
                }
            }
        }
        drop(hurry);
        self.shared.take_failure().map_or(Ok(()), Err)
    }

    /// What keeps the oldest undelivered records from being delivered at the moment, and for how long they have waited: the
    /// failure of an attempt that is being repeated (a leader that is gone, too few in-sync replicas, a full disk), or a
    /// broker that has not answered for a second. `None` when all goes well.
    pub fn obstacle(&self) -> Option<(Duration, ProduceError)> {
        let topics = self.shared.topics();
        let queues = topics.iter().flat_map(|topic| topic.queues());
        let obstacles = queues.filter_map(|queue| {
            let oldest = queue.oldest()?;
            let waited = oldest.opened.elapsed();
            let source = match oldest.last_error {
                Some(error) => (*error).clone(),
                None if oldest.is_sent && waited >= UNANSWERED_AFTER => unanswered(waited),
                None => return None,
            };
            let (topic, partition) = (queue.topic.clone(), queue.partition);
            let maybe_written = oldest.maybe_written || oldest.is_sent;
            Some((waited, ProduceError::Request { topic, partition, source, maybe_written }))
        });
        obstacles.max_by_key(|(waited, _)| *waited)
    }

    /// Flushes, and ends the sender. Errors as [`Producer::flush`].
    pub async fn close(mut self) -> Result<(), ProduceError> {
        let flushed = self.flush().await;
        self.stop.cancel();
        if let Some(sender) = self.sender.take() {
            // It ends by being told to; a panic in it has failed the flush.
            drop(sender.await);
        }
        flushed
    }

    fn try_accept(&self, record: &ProducerRecord) -> Result<Delivery, ProduceError> {
        let bytes = self.bytes_of(record)?;
        let topic = self.shared.topic(&record.topic).ok_or(ProduceError::WouldBlock)?;
        match self.shared.room.try_acquire_many(bytes) {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::NoPermits) => {
                self.shared.wake.notify_one();
                return Err(ProduceError::WouldBlock);
            }
            Err(TryAcquireError::Closed) => return Err(ProduceError::Closed),
        }
        self.accept(&topic, record, bytes)
    }

    /// What the record will hold of the buffer.
    fn bytes_of(&self, record: &ProducerRecord) -> Result<u32, ProduceError> {
        let bytes = record.batch_bytes_max();
        let max = self.shared.config.buffer_bytes.min(BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES);
        let fits = u32::try_from(bytes).ok().filter(|_| bytes <= max);
        fits.ok_or(ProduceError::RecordTooLarge { bytes, max })
    }

    /// Takes `bytes` of the buffer; they are given back when the record is settled.
    async fn reserve(&self, bytes: u32) -> Result<(), AcquireError> {
        if let Ok(permit) = self.shared.room.try_acquire_many(bytes) {
            permit.forget();
            return Ok(());
        }
        let _hurry = self.shared.hurry();
        self.shared.room.acquire_many(bytes).await?.forget();
        Ok(())
    }

    /// Puts a record into its queue. `bytes` of the buffer have been taken for it.
    fn accept(
        &self,
        topic: &TopicQueues,
        record: &ProducerRecord,
        bytes: u32,
    ) -> Result<Delivery, ProduceError> {
        let config = &*self.shared.config;
        let charged_bytes = bytes as usize;
        let queue = topic.queue_for(record, charged_bytes, config.batch_bytes);
        let queue = queue.inspect_err(|_| self.shared.room.add_permits(charged_bytes))?;
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(tasks::now_ms);
        let (delivery, tell) = queue.add(record, timestamp_ms, charged_bytes, config);
        self.shared.tell_sender(queue, tell);
        Ok(delivery)
    }

    async fn look_up(&self, name: &Arc<str>) -> Result<Arc<TopicQueues>, ProduceError> {
        let cluster = &self.shared.cluster;
        let known = cluster
            .topic(name, cluster.deadline())
            .await
            .map_err(|source| ProduceError::Lookup { topic: name.clone(), source })?;
        let topic = known.ok_or_else(|| ProduceError::UnknownTopic { topic: name.clone() })?;
        Ok(self.shared.set_partitions(name, topic.partition_count()))
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let unsettled_bytes = self.shared.unsettled_bytes();
        if self.sender.is_some() && unsettled_bytes > 0 {
            tracing::warn!(
                unsettled_bytes,
                "a producer was dropped without close: records may be lost"
            );
        }
        self.stop.cancel();
    }
}

fn unanswered(after: Duration) -> RequestError {
    RequestError::TimedOut {
        address: "the leader".into(),
        api: Api::Produce.name(),
        after,
        sent: true,
    }
}

/// A record that [`Producer::try_send`] did not take, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct TrySendError {
    pub record: Box<ProducerRecord>,
    pub error: ProduceError,
}

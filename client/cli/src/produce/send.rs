//! The sending loop: from the queue of the source into the producer, and the outcomes back into a tally.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use tidemark_client::{Delivered, Delivery, Durability, ProduceError, Producer};
use tidemark_protocol::PartitionIndex;

use super::{Landed, Mould, Summary, obstacle, source::Source};
use crate::{exit::CliError, input::InputOptions, progress::Progress};

/// Most outcomes waited for at once; beyond it, sending waits for the oldest.
const DELIVERIES_MAX: usize = 1 << 20;

/// What became of the records so far.
#[derive(Debug)]
pub(super) struct Tally {
    started: Instant,
    records: u64,
    bytes: u64,
    failed: u64,
    partitions: BTreeMap<PartitionIndex, Landed>,
    /// The first failure.
    pub(super) error: Option<CliError>,
}

struct Sender<'a> {
    producer: Arc<Producer>,
    mould: &'a Mould,
    /// In the order of sending, with the bytes of key and value.
    outstanding: VecDeque<(Delivery, u64)>,
    tally: &'a mut Tally,
}

/// Sends everything, waits for every outcome, and says whether Ctrl-C cut it short.
pub(super) async fn send_all(
    producer: Producer,
    mould: &Mould,
    source: Source,
    options: InputOptions,
    tally: &mut Tally,
) -> bool {
    let producer = Arc::new(producer);
    tokio::select! {
        interrupted = send(producer.clone(), mould, source, options, tally) => interrupted,
        never = obstacle::tell(&producer) => match never {},
    }
}

async fn send(
    producer: Arc<Producer>,
    mould: &Mould,
    source: Source,
    options: InputOptions,
    tally: &mut Tally,
) -> bool {
    let mut progress = Progress::new(source.total_bytes);
    let mut chunks = source.start(options);
    let mut sender = Sender { producer, mould, outstanding: VecDeque::new(), tally };
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut interrupted = false;
    let mut read_bytes = 0;
    while sender.tally.error.is_none() {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            // A failure must be heard of while the input is silent.
            () = sender.next_outcome(), if !sender.outstanding.is_empty() => continue,
            _ = &mut interrupt => {
                interrupted = true;
                break;
            }
        };
        match chunk {
            Some(Ok(chunk)) => {
                read_bytes += chunk.bytes;
                if let Err(error) = sender.send(chunk.records).await {
                    sender.tally.fail(error);
                }
            }
            Some(Err(error)) => sender.tally.error = Some(error),
            None => break,
        }
        sender.take_outcomes();
        progress.update(read_bytes, sender.tally.records, sender.tally.bytes);
    }
    // A second Ctrl-C stops waiting as well.
    tokio::select! {
        () = sender.finish() => interrupted,
        _ = tokio::signal::ctrl_c() => true,
    }
}

impl Sender<'_> {
    async fn send(&mut self, records: Vec<crate::input::InputRecord>) -> Result<(), ProduceError> {
        for input in records {
            let record = self.mould.record(input);
            let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
            let bytes = (length(&record.key) + length(&record.value)) as u64;
            let delivery = match self.producer.try_send(record) {
                Ok(delivery) => delivery,
                Err(refused) if matches!(refused.error, ProduceError::WouldBlock) => {
                    self.producer.send(*refused.record).await?
                }
                Err(refused) => return Err(refused.error),
            };
            self.outstanding.push_back((delivery, bytes));
            if self.outstanding.len() >= DELIVERIES_MAX {
                self.next_outcome().await;
            }
        }
        Ok(())
    }

    /// Waits for the oldest outcome. May be given up at any time; nothing is lost by it.
    async fn next_outcome(&mut self) {
        if let Some((delivery, bytes)) = self.outstanding.front_mut() {
            self.tally.record(delivery.await, *bytes);
            self.outstanding.pop_front();
        }
    }

    /// Takes what is known already, without waiting.
    fn take_outcomes(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let Some((delivery, bytes)) = self.outstanding.front_mut() {
            let Poll::Ready(outcome) = Pin::new(delivery).poll(&mut context) else { break };
            self.tally.record(outcome, *bytes);
            self.outstanding.pop_front();
        }
    }

    async fn finish(&mut self) {
        // Every failure is also in an outcome; the flush is for what still lingers.
        drop(self.producer.flush().await);
        while !self.outstanding.is_empty() {
            self.next_outcome().await;
        }
    }
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            records: 0,
            bytes: 0,
            failed: 0,
            partitions: BTreeMap::new(),
            error: None,
        }
    }

    fn fail(&mut self, error: ProduceError) {
        self.failed += 1;
        if self.error.is_none() {
            self.error = Some(error.into());
        }
    }

    fn record(&mut self, outcome: Result<Delivered, ProduceError>, bytes: u64) {
        let delivered = match outcome {
            Ok(delivered) => delivered,
            Err(error) => return self.fail(error),
        };
        self.records += 1;
        self.bytes += bytes;
        let Delivered { partition, offset, timestamp_ms, receipt } = delivered;
        let durability = receipt.map(|receipt| durability_name(receipt.durability));
        let landed = self.partitions.entry(partition).or_insert(Landed {
            partition,
            records: 0,
            first_offset: offset,
            last_offset: offset,
            max_timestamp_ms: timestamp_ms,
            durability,
        });
        landed.records += 1;
        landed.first_offset = landed.first_offset.min(offset);
        landed.last_offset = landed.last_offset.max(offset);
        landed.max_timestamp_ms = landed.max_timestamp_ms.max(timestamp_ms);
        if durability == Some("memory") {
            landed.durability = durability;
        }
    }

    pub(super) fn summary(&mut self, topic: &str) -> Summary {
        Summary {
            topic: topic.to_owned(),
            records: self.records,
            bytes: self.bytes,
            failed_records: self.failed,
            elapsed_seconds: self.started.elapsed().as_secs_f64(),
            partitions: std::mem::take(&mut self.partitions).into_values().collect(),
        }
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Disk => "disk",
        Durability::Memory | Durability::Topic => "memory",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemark_protocol::messages::ProduceReceipt;

    use super::*;
    use crate::exit::Exit;

    fn delivered(partition: PartitionIndex, offset: u64, durability: Durability) -> Delivered {
        let receipt = ProduceReceipt {
            base_offset: offset,
            record_count: 1,
            leader_epoch: 0,
            durability,
            replicas_memory: 1,
            replicas_durable: 1,
            log_start_offset: 0,
        };
        Delivered {
            partition,
            offset: Some(offset),
            timestamp_ms: 5,
            receipt: Some(Arc::new(receipt)),
        }
    }

    #[test]
    fn outcomes_add_up_by_partition_and_the_weakest_durability_counts() {
        let mut tally = Tally::new();
        tally.record(Ok(delivered(1, 10, Durability::Disk)), 3);
        tally.record(Ok(delivered(1, 11, Durability::Memory)), 4);
        tally.record(Ok(delivered(0, 7, Durability::Disk)), 5);
        let summary = tally.summary("t");
        assert_eq!((summary.records, summary.bytes, summary.failed_records), (3, 12, 0));
        let [zero, one] = &summary.partitions[..] else { panic!("two partitions") };
        assert_eq!((zero.first_offset, zero.durability), (Some(7), Some("disk")));
        assert_eq!((one.first_offset, one.last_offset), (Some(10), Some(11)));
        assert_eq!(one.durability, Some("memory"));
    }

    #[test]
    fn the_first_failure_is_the_one_reported() {
        let mut tally = Tally::new();
        let unknown = ProduceError::UnknownTopic { topic: "t".into() };
        tally.record(Err(unknown), 1);
        tally.record(Err(ProduceError::Closed), 1);
        assert_eq!(tally.failed, 2);
        assert_eq!(tally.error.map(|error| error.exit), Some(Exit::NotFound));
    }
}

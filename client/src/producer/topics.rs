//! The queues of one topic, and which of them a record goes to.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use tidemark_protocol::{PartitionIndex, partitioner::partition_for_key};

use super::queue::PartitionQueue;
use crate::{error::ProduceError, record::ProducerRecord, tasks};

/// One topic as a producer sees it. Replaced when the topic gets more partitions; the queues stay.
#[derive(Debug)]
pub(super) struct TopicQueues {
    name: Arc<str>,
    queues: Vec<Arc<PartitionQueue>>,
    sticky: Sticky,
}

/// Where records without a key go: to one partition until it was given a batch's worth, then to another
/// (KIP-794). Full batches for few, even shares in the long run.
#[derive(Debug)]
struct Sticky {
    partition: AtomicU32,
    bytes: AtomicUsize,
}

impl TopicQueues {
    pub(super) fn new(name: Arc<str>, partitions: u32) -> Self {
        Self { name, queues: Vec::new(), sticky: Sticky::new() }.with_partitions(partitions)
    }

    /// The same queues and more, or fewer when the topic was replaced by a smaller one.
    pub(super) fn with_partitions(&self, partitions: u32) -> Self {
        let queue = |index: PartitionIndex| match self.queues.get(index as usize) {
            Some(queue) => queue.clone(),
            None => Arc::new(PartitionQueue::new(self.name.clone(), index)),
        };
        Self {
            name: self.name.clone(),
            queues: (0..partitions).map(queue).collect(),
            sticky: Sticky::new(),
        }
    }

    pub(super) fn partition_count(&self) -> u32 {
        u32::try_from(self.queues.len()).expect("it was made from a u32")
    }

    pub(super) fn queues(&self) -> &[Arc<PartitionQueue>] {
        &self.queues
    }

    /// The queue of the record's partition: the one it names, that of its key, or the sticky one.
    pub(super) fn queue_for(
        &self,
        record: &ProducerRecord,
        record_bytes: usize,
        batch_bytes: usize,
    ) -> Result<&Arc<PartitionQueue>, ProduceError> {
        let partitions = self.partition_count();
        let unknown = |partition| ProduceError::UnknownPartition {
            topic: self.name.clone(),
            partition,
            partitions,
        };
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, _) if partitions == 0 => return Err(unknown(0)),
            (None, Some(key)) => partition_for_key(key, partitions),
            (None, None) => self.sticky.choose(record_bytes, batch_bytes, partitions),
        };
        self.queues.get(partition as usize).ok_or_else(|| unknown(partition))
    }
}

impl Sticky {
    fn new() -> Self {
        Self { partition: AtomicU32::new(random_u32()), bytes: AtomicUsize::new(0) }
    }

    /// Threads that race here may exceed a batch's worth; nothing depends on the exact moment.
    fn choose(&self, record_bytes: usize, batch_bytes: usize, partitions: u32) -> PartitionIndex {
        let before = self.bytes.fetch_add(record_bytes, Ordering::Relaxed);
        if before > 0 && before.saturating_add(record_bytes) > batch_bytes {
            self.bytes.store(record_bytes, Ordering::Relaxed);
            // Any other partition: a step of at least one, less than once around.
            let step = if partitions > 1 { 1 + random_u32() % (partitions - 1) } else { 0 };
            let next = (self.partition.load(Ordering::Relaxed) % partitions + step) % partitions;
            self.partition.store(next, Ordering::Relaxed);
        }
        self.partition.load(Ordering::Relaxed) % partitions
    }
}

fn random_u32() -> u32 {
    u32::try_from(tasks::random_u64() >> 32).expect("the upper half of 64 bits")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn chosen(topic: &TopicQueues, record: &ProducerRecord) -> PartitionIndex {
        topic.queue_for(record, 100, 1000).unwrap().partition
    }

    #[test]
    fn keys_choose_as_kafka_does_and_an_explicit_partition_wins() {
        let topic = TopicQueues::new("t".into(), 7);
        let record = ProducerRecord::to("t").key("abc");
        assert_eq!(chosen(&topic, &record), 479_470_107 % 7);
        assert_eq!(chosen(&topic, &record.clone().partition(6)), 6);
        assert!(topic.queue_for(&record.partition(7), 100, 1000).is_err());
    }

    #[test]
    fn records_without_a_key_stay_for_a_batch_and_then_move_to_another_partition() {
        let topic = TopicQueues::new("t".into(), 4);
        let record = ProducerRecord::to("t").value("x");
        let partitions: Vec<_> = (0..4000).map(|_| chosen(&topic, &record)).collect();
        let mut shares = BTreeMap::new();
        for batch in partitions.chunks(10) {
            assert!(batch.iter().all(|partition| *partition == batch[0]), "{batch:?}");
            *shares.entry(batch[0]).or_insert(0) += 1;
        }
        for pair in partitions.chunks(10).collect::<Vec<_>>().windows(2) {
            assert_ne!(pair[0][0], pair[1][0], "the next batch goes elsewhere");
        }
        assert!(shares.values().all(|share| *share > 50), "{shares:?}");
    }
}

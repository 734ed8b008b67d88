//! Topics in memory: what the fake broker stores and answers about it.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, TopicId, TopicPartition,
    batch::{Batch, BatchHeader, batches, stamp},
    ids::NO_TIMESTAMP,
    limits::BATCH_BYTES_MAX,
    messages::{
        Durability, FetchedPartition, ListOffsetsPartition, ListedOffset, OffsetQuery,
        PartitionMetadata, ProducePartition, ProduceReceipt, TopicMetadata, TopicSettings,
    },
};

/// Of every partition that nobody has given another leader.
const FIRST_EPOCH: LeaderEpoch = 7;

#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: BTreeMap<String, Topic>,
    created: u8,
}

#[derive(Debug)]
struct Topic {
    id: TopicId,
    partitions: Vec<Log>,
}

#[derive(Clone, Debug)]
struct Log {
    leader: Option<BrokerId>,
    epoch: LeaderEpoch,
    batches: Vec<Batch>,
    start: Offset,
    end: Offset,
    producers: BTreeMap<i64, Producer>,
}

/// A producer with an identity, as one partition knows it.
#[derive(Clone, Debug, Default)]
struct Producer {
    epoch: i16,
    next_sequence: i32,
    /// The last five batches: first sequence, records, offset.
    last: VecDeque<(i32, u32, Offset)>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            leader: Some(1),
            epoch: FIRST_EPOCH,
            batches: Vec::new(),
            start: 0,
            end: 0,
            producers: BTreeMap::new(),
        }
    }
}

impl Log {
    /// Where the batch is if it was written before; otherwise it is the producer's next from now on.
    fn recognize(&mut self, header: &BatchHeader) -> Result<Option<Offset>, Failure> {
        let BatchHeader { producer_id, producer_epoch, base_sequence, record_count, .. } = *header;
        if producer_id < 0 {
            return Ok(None);
        }
        let refuse = |code| Err(Failure::new(code, "as numbered"));
        let known = self.producers.get(&producer_id).cloned();
        let mut producer = match known {
            Some(known) if known.epoch > producer_epoch => {
                return refuse(ErrorCode::InvalidProducerEpoch);
            }
            Some(known) if known.epoch == producer_epoch => known,
            Some(_) => Producer { epoch: producer_epoch, ..Producer::default() },
            None => Producer {
                epoch: producer_epoch,
                next_sequence: base_sequence,
                last: VecDeque::new(),
            },
        };
        let is_it = |(first, records, _): &&(i32, u32, Offset)| {
            (*first, *records) == (base_sequence, record_count)
        };
        if let Some((_, _, offset)) = producer.last.iter().find(is_it) {
            return Ok(Some(*offset));
        }
        if producer.next_sequence != base_sequence {
            return refuse(ErrorCode::OutOfOrderSequence);
        }
        producer.next_sequence += record_count.cast_signed();
        producer.last.push_back((base_sequence, record_count, self.end));
        if producer.last.len() > 5 {
            producer.last.pop_front();
        }
        self.producers.insert(producer_id, producer);
        Ok(None)
    }

    /// Refuses what is not for this leader, or for another epoch of it.
    fn led_by(&self, at: BrokerId, epoch: Option<LeaderEpoch>) -> Result<(), Failure> {
        let refuse = |code, message: &str| Err(Failure::new(code, message));
        if self.leader != Some(at) {
            return refuse(ErrorCode::NotLeader, "another broker leads it, or none");
        }
        match epoch {
            Some(epoch) if epoch < self.epoch => {
                refuse(ErrorCode::FencedLeaderEpoch, "the epoch is older")
            }
            Some(epoch) if epoch > self.epoch => {
                refuse(ErrorCode::UnknownLeaderEpoch, "the epoch is not known yet")
            }
            _ => Ok(()),
        }
    }
}

impl Topics {
    pub(super) fn create(&mut self, name: &str, partitions: u32) -> Result<TopicId, Failure> {
        if self.by_name.contains_key(name) {
            return Err(Failure::new(ErrorCode::TopicExists, format!("topic {name} exists")));
        }
        self.created += 1;
        let id = TopicId([self.created; 16]);
        let partitions = vec![Log::default(); partitions as usize];
        self.by_name.insert(name.to_owned(), Topic { id, partitions });
        Ok(id)
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<TopicId, Failure> {
        Ok(self.by_name.remove(name).ok_or_else(unknown)?.id)
    }

    pub(super) fn add_partitions(&mut self, name: &str, partitions: u32) -> Result<u32, Failure> {
        let topic = self.by_name.get_mut(name).ok_or_else(unknown)?;
        topic.partitions.resize(partitions as usize, Log::default());
        Ok(partitions)
    }

    pub(super) fn metadata(&self, names: Option<&[String]>) -> Vec<TopicMetadata> {
        let wanted = |name: &String| names.is_none_or(|names| names.contains(name));
        let partition = |log: &Log| PartitionMetadata {
            leader: log.leader,
            leader_epoch: log.epoch,
            partition_epoch: log.epoch,
            replicas: vec![1],
            isr: vec![1],
            ..PartitionMetadata::default()
        };
        let topics = self.by_name.iter().filter(|(name, _)| wanted(name));
        let described = topics.map(|(name, topic)| TopicMetadata {
            name: name.clone(),
            id: topic.id,
            partitions: topic.partitions.iter().map(partition).collect(),
            settings: TopicSettings::new(),
        });
        described.collect()
    }

    pub(super) fn set_leader(&mut self, topic: &str, partition: u32, leader: Option<BrokerId>) {
        if let Some(topic) = self.by_name.get_mut(topic) {
            let log = &mut topic.partitions[partition as usize];
            log.leader = leader;
            log.epoch += 1;
        }
    }

    pub(super) fn append(
        &mut self,
        at: BrokerId,
        part: &ProducePartition,
        payload: Bytes,
    ) -> Result<ProduceReceipt, Failure> {
        let log = self.log_mut(part.partition)?;
        log.led_by(at, part.leader_epoch)?;
        let invalid = |detail: String| Failure::new(ErrorCode::InvalidBatch, detail);
        let batches: Vec<Batch> = batches(payload)
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(error.to_string()))?;
        for batch in &batches {
            batch
                .validate_for_append(BATCH_BYTES_MAX)
                .map_err(|error| invalid(error.to_string()))?;
        }
        let mut base_offset = log.end;
        for (index, batch) in batches.iter().enumerate() {
            // Tests send what may be there already by itself.
            if let Some(offset) = log.recognize(&batch.header)? {
                assert!(batches.len() == 1, "batch {index} was written before");
                base_offset = offset;
                break;
            }
            let mut bytes = BytesMut::from(&batch.bytes()[..]);
            stamp(&mut bytes, log.end, log.epoch);
            let stored = Batch::parse(&mut bytes.freeze()).expect("it was parsed before");
            log.end = stored.header.next_offset();
            log.batches.push(stored);
        }
        Ok(ProduceReceipt {
            base_offset,
            record_count: batches.iter().map(|batch| batch.header.record_count).sum(),
            leader_epoch: log.epoch,
            durability: Durability::Memory,
            replicas_memory: 1,
            replicas_durable: 0,
            log_start_offset: log.start,
        })
    }

    /// Batches from `offset` on, about `max_bytes`, at least one if there is one.
    pub(super) fn read(
        &self,
        (at, epoch): (BrokerId, Option<LeaderEpoch>),
        partition: TopicPartition,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<(FetchedPartition, Bytes, Offset), Failure> {
        let log = self.log(partition)?;
        log.led_by(at, epoch)?;
        if offset < log.start || offset > log.end {
            let message = format!("offset {offset} is outside {} to {}", log.start, log.end);
            return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let mut payload = BytesMut::new();
        let mut next = offset;
        for batch in log.batches.iter().filter(|batch| batch.header.next_offset() > offset) {
            if !payload.is_empty() && payload.len() + batch.bytes().len() > max_bytes {
                break;
            }
            payload.extend_from_slice(batch.bytes());
            next = batch.header.next_offset();
        }
        let fetched = FetchedPartition {
            high_watermark: log.end,
            log_start_offset: log.start,
            leader_epoch: log.epoch,
            batch_bytes: u32::try_from(payload.len()).expect("tests are small"),
        };
        Ok((fetched, payload.freeze(), next))
    }

    pub(super) fn list(
        &self,
        at: BrokerId,
        question: &ListOffsetsPartition,
    ) -> Result<ListedOffset, Failure> {
        let log = self.log(question.partition)?;
        log.led_by(at, question.leader_epoch)?;
        let records = || log.batches.iter().flat_map(|batch| batch.records().unwrap_or_default());
        let found = match question.query {
            OffsetQuery::Earliest => Some((log.start, NO_TIMESTAMP)),
            OffsetQuery::Latest => None,
            OffsetQuery::Timestamp => records()
                .find(|record| record.timestamp_ms >= question.timestamp_ms)
                .map(|record| (record.offset, record.timestamp_ms)),
            OffsetQuery::MaxTimestamp => records()
                .max_by_key(|record| record.timestamp_ms)
                .map(|record| (record.offset, record.timestamp_ms)),
        };
        let (offset, timestamp_ms) = found.unwrap_or((log.end, NO_TIMESTAMP));
        Ok(ListedOffset { offset, timestamp_ms, leader_epoch: log.epoch })
    }

    pub(super) fn delete_records(
        &mut self,
        at: BrokerId,
        partition: TopicPartition,
        before: Option<Offset>,
    ) -> Result<Offset, Failure> {
        let log = self.log_mut(partition)?;
        log.led_by(at, None)?;
        log.start = before.unwrap_or(log.end).clamp(log.start, log.end);
        Ok(log.start)
    }

    pub(super) fn trim(&mut self, topic: &str, partition: u32, offset: Offset) {
        if let Some(topic) = self.by_name.get_mut(topic) {
            topic.partitions[partition as usize].start = offset;
        }
    }

    pub(super) fn stored(&self, topic: &str, partition: u32) -> Vec<Batch> {
        let topic = self.by_name.get(topic);
        topic.map_or_else(Vec::new, |topic| topic.partitions[partition as usize].batches.clone())
    }

    fn log(&self, wanted: TopicPartition) -> Result<&Log, Failure> {
        let topic = self.by_name.values().find(|topic| topic.id == wanted.topic_id);
        topic.and_then(|topic| topic.partitions.get(wanted.partition as usize)).ok_or_else(unknown)
    }

    fn log_mut(&mut self, wanted: TopicPartition) -> Result<&mut Log, Failure> {
        let topic = self.by_name.values_mut().find(|topic| topic.id == wanted.topic_id);
        topic
            .and_then(|topic| topic.partitions.get_mut(wanted.partition as usize))
            .ok_or_else(unknown)
    }
}

fn unknown() -> Failure {
    Failure::new(ErrorCode::UnknownTopicOrPartition, "no such topic or partition")
}

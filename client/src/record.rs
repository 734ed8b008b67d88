//! Records as programs hand them over and get them back.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_protocol::{
    LeaderEpoch, Offset, PartitionIndex, TimestampMs,
    batch::{Batch, Record, RecordHeader},
    messages::{Acks, Durability, ProduceReceipt},
};

/// A record to be sent.
#[derive(Clone, Debug)]
pub struct ProducerRecord {
    /// Keep one `Arc` and clone it: then naming the topic costs nothing per record.
    pub topic: Arc<str>,
    /// `None`: chosen by the key, or by the producer when there is none.
    pub partition: Option<PartitionIndex>,
    /// `None`: the time when the producer accepts it.
    pub timestamp_ms: Option<TimestampMs>,
    pub key: Option<Bytes>,
    /// `None` is a tombstone in compacted topics.
    pub value: Option<Bytes>,
    pub headers: Vec<RecordHeader>,
    /// `None`: as the producer is configured.
    pub acks: Option<Acks>,
    /// `None`: as the producer is configured.
    pub durability: Option<Durability>,
}

impl ProducerRecord {
    /// An empty record for this topic.
    pub fn to(topic: impl Into<Arc<str>>) -> Self {
        Self {
            topic: topic.into(),
            partition: None,
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
            acks: None,
            durability: None,
        }
    }

    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(RecordHeader { key: key.into(), value: Some(value.into()) });
        self
    }

    #[must_use]
    pub fn partition(mut self, partition: PartitionIndex) -> Self {
        self.partition = Some(partition);
        self
    }

    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: TimestampMs) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Asks for these acknowledgements instead of the producer's. Records that ask for different ones do
    /// not share a batch.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.acks = Some(acks);
        self
    }

    /// Asks for this durability instead of the producer's. Records that ask for different ones do not share
    /// a batch.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// About how much of a batch the record takes, in bytes; never too little.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        /// Varints of length, timestamp, offset, key length, value length and header count.
        const RECORD_OVERHEAD_BYTES_MAX: usize = 36;
        const HEADER_OVERHEAD_BYTES_MAX: usize = 10;
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|header| HEADER_OVERHEAD_BYTES_MAX + header.key.len() + length(&header.value))
            .sum();
        RECORD_OVERHEAD_BYTES_MAX + length(&self.key) + length(&self.value) + headers
    }
}

/// Where a record ended up, and how safe it was when the broker answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub partition: PartitionIndex,
    /// `None` with [`Acks::None`]: nobody said.
    pub offset: Option<Offset>,
    /// The timestamp the record was given. A topic may be configured to replace it.
    pub timestamp_ms: TimestampMs,
    /// What was reached; shared by all records of the same request and partition. `None` with [`Acks::None`].
    pub receipt: Option<Arc<ProduceReceipt>>,
}

/// A record that was read.
///
/// Key and value are slices of the bytes received: keeping one keeps the whole push or fetch it came in.
/// Copy what is kept for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub topic: Arc<str>,
    pub partition: PartitionIndex,
    pub offset: Offset,
    pub timestamp_ms: TimestampMs,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<RecordHeader>,
    /// Epoch of the leader that appended it.
    pub leader_epoch: LeaderEpoch,
}

impl ConsumedRecord {
    pub(crate) fn new(
        topic: Arc<str>,
        partition: PartitionIndex,
        leader_epoch: LeaderEpoch,
        record: Record,
    ) -> Self {
        let Record { offset, timestamp_ms, key, value, headers } = record;
        Self { topic, partition, offset, timestamp_ms, key, value, headers, leader_epoch }
    }
}

/// A batch that was read, as the broker stores it.
#[derive(Clone, Debug)]
pub struct ConsumedBatch {
    pub topic: Arc<str>,
    pub partition: PartitionIndex,
    /// The first batch after a seek may begin below the position: skip records below `position`.
    pub batch: Batch,
    /// Records of the batch below this offset were not asked for.
    pub position: Offset,
    /// End of what was readable when the broker sent it.
    pub high_watermark: Offset,
}

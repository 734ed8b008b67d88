//! What the metadata log consists of: facts, decided once, that every node applies in the same order.
//!
//! An entry of the log is one decision: one version byte and a `MessagePack` array of records. Records evolve by
//! adding optional fields at the end; a kind that an older build does not know stops it, because skipping a fact
//! would let two nodes disagree.

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, DirectoryId, PartitionIndex, TopicId,
    messagepack::{self, MessageError},
    messages::TopicSettings,
};

use crate::{decide::CLUSTER_PARTITIONS_MAX, image::Partition};

/// Version byte in front of every entry.
const ENTRY_VERSION: u8 = 1;
/// Longest list in a record, and most records in an entry: the partitions of the cluster.
const LIST_ELEMENTS_MAX: usize = CLUSTER_PARTITIONS_MAX as usize;

/// Identity of one run of a broker process, random at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncarnationId(#[serde(with = "serde_bytes")] pub [u8; 16]);

/// One fact. A decision is one or more of them, committed together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetadataRecord {
    /// A broker process started. It is fenced, its broker epoch is the index of this entry, and it is being
    /// drained if it was.
    BrokerRegistered {
        broker_id: BrokerId,
        incarnation: IncarnationId,
        directory: DirectoryId,
        host: String,
        port: u16,
        rack: Option<String>,
    },
    /// What a broker may do, after the change.
    BrokerChanged {
        broker_id: BrokerId,
        broker_epoch: BrokerEpoch,
        fenced: bool,
        in_controlled_shutdown: bool,
        draining: bool,
    },
    /// The broker is forgotten. It holds no replicas.
    BrokerUnregistered { broker_id: BrokerId },
    /// A topic exists, without partitions yet.
    TopicCreated { id: TopicId, name: String, settings: TopicSettings },
    /// Partitions were added, from index `first_partition` on. An empty log is in sync wherever it is, so
    /// every replica starts in the ISR and the first leads, in leader epoch 0.
    PartitionsAdded {
        topic_id: TopicId,
        first_partition: PartitionIndex,
        /// The replicas of each partition, in order of preference.
        replicas: Vec<Vec<BrokerId>>,
    },
    /// Partitions of one topic, after the change.
    PartitionsChanged { topic_id: TopicId, changes: Vec<PartitionChange> },
    /// All settings of a topic that are not left to their default, after the change.
    TopicSettingsChanged { topic_id: TopicId, settings: TopicSettings },
    /// The topic, its partitions and their data are gone.
    TopicDeleted { topic_id: TopicId },
    /// See [`crate::Image::replication_throttle`].
    ReplicationThrottled { bytes_per_second: Option<u64> },
    /// Producer ids below `next` belong to brokers that were handed them, for good.
    ProducerIdsAllocated { next: u64 },
}

/// One partition after a change. Its partition epoch says which state the change was made on: the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionChange {
    pub partition: PartitionIndex,
    pub state: Partition,
    /// It was given a leader that may lack committed records.
    pub is_unclean: bool,
}

/// An entry of the log that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the entry has version {found}; this build reads {ENTRY_VERSION}")]
    Version { found: u8 },
    #[error("the entry cannot be decoded: {0}")]
    Decode(#[from] MessageError),
}

/// The bytes of one entry, in the log and on the wire. No records are no bytes.
pub fn encode_entry(records: &[MetadataRecord]) -> Vec<u8> {
    if records.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![ENTRY_VERSION];
    messagepack::encode(&records, &mut bytes).expect("plain data encodes into a vector");
    bytes
}

/// Reads what [`encode_entry`] wrote. The bytes may be anything.
pub fn decode_entry(bytes: &[u8]) -> Result<Vec<MetadataRecord>, RecordError> {
    match bytes.split_first() {
        None => Ok(Vec::new()),
        Some((&ENTRY_VERSION, body)) => Ok(messagepack::decode(body, LIST_ELEMENTS_MAX)?),
        Some((&found, _)) => Err(RecordError::Version { found }),
    }
}

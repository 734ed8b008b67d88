//! The image as bytes, so that a restart need not replay the log from the beginning. Pure: where the bytes are
//! kept is the quorum's business.
//!
//! `"TDMI" | u16 version | u32 payload bytes | payload (MessagePack) | u32 CRC-32`, big-endian, the CRC over
//! everything in front of it. A reader gets the image or a reason why not; it never guesses.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    Failure, TopicId,
    messagepack::{self, MessageError},
    messages::TopicSettings,
};

use crate::{
    decide::CLUSTER_PARTITIONS_MAX,
    image::{Broker, Image, Partition, Topic},
    settings::TopicConfig,
    shared_map::SharedMap,
};

const MAGIC: [u8; 4] = *b"TDMI";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 10;
const CRC_BYTES: usize = 4;
/// Longest list in a snapshot: no topic, and not the cluster, has more partitions.
const LIST_ELEMENTS_MAX: usize = CLUSTER_PARTITIONS_MAX as usize;

/// Why bytes are not a snapshot this build can use.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it has format version {found}; this build reads up to {VERSION}")]
    Newer { found: u16 },
    #[error("it cannot be decoded: {0}")]
    Decode(#[from] MessageError),
    #[error("it contradicts itself: topic {topic} {problem}")]
    Contradiction { topic: TopicId, problem: &'static str },
    #[error("topic {topic} has settings this build refuses: {failure}")]
    Settings { topic: TopicId, failure: Failure },
}

#[derive(Serialize, Deserialize)]
struct Snapshot<'a> {
    metadata_index: u64,
    brokers: Vec<Cow<'a, Broker>>,
    topics: Vec<SnapshotTopic<'a>>,
    replication_throttle: Option<u64>,
    #[serde(default)]
    next_producer_id: u64,
}

#[derive(Serialize, Deserialize)]
struct SnapshotTopic<'a> {
    id: TopicId,
    name: Cow<'a, str>,
    settings: Cow<'a, TopicSettings>,
    partitions: Vec<Cow<'a, Partition>>,
}

impl Image {
    /// The image as bytes; [`Image::from_snapshot`] is the way back.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let snapshot = Snapshot {
            metadata_index: self.metadata_index,
            brokers: self.brokers.values().map(Cow::Borrowed).collect(),
            topics: self.topics().map(|topic| SnapshotTopic::of(topic)).collect(),
            replication_throttle: self.replication_throttle,
            next_producer_id: self.next_producer_id,
        };
        let mut payload = Vec::new();
        messagepack::encode(&snapshot, &mut payload).expect("plain data encodes into a vector");
        let length = u32::try_from(payload.len()).expect("bounded by partitions, far below 4 GiB");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len() + CRC_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.append(&mut payload);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads what [`Image::to_snapshot`] wrote. The bytes may be anything.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Snapshot<'_> = messagepack::decode(payload(bytes)?, LIST_ELEMENTS_MAX)?;
        let mut names = SharedMap::default();
        let mut topics = SharedMap::default();
        let mut partition_count = 0_u32;
        for topic in snapshot.topics {
            let topic = topic.restore()?;
            let id = topic.id;
            let refuse = |problem| SnapshotError::Contradiction { topic: id, problem };
            partition_count = partition_count
                .checked_add(topic.partition_count())
                .ok_or_else(|| refuse("has one partition too many"))?;
            if names.insert(topic.name.clone(), id).is_some() {
                return Err(refuse("has the name of another"));
            }
            if topics.insert(id, Arc::new(topic)).is_some() {
                return Err(refuse("is there twice"));
            }
        }
        let brokers = snapshot.brokers.into_iter().map(|b| (b.id, b.into_owned())).collect();
        Ok(Self {
            metadata_index: snapshot.metadata_index,
            brokers: Arc::new(brokers),
            topics,
            names,
            partition_count,
            replication_throttle: snapshot.replication_throttle,
            next_producer_id: snapshot.next_producer_id,
        })
    }
}

impl<'a> SnapshotTopic<'a> {
    fn of(topic: &'a Topic) -> Self {
        Self {
            id: topic.id,
            name: Cow::Borrowed(&topic.name),
            settings: Cow::Borrowed(&topic.settings),
            partitions: topic.partitions.iter().map(|one| Cow::Borrowed(&**one)).collect(),
        }
    }

    fn restore(self) -> Result<Topic, SnapshotError> {
        let id = self.id;
        if let Some(problem) = self.partitions.iter().find_map(|partition| partition.problem()) {
            return Err(SnapshotError::Contradiction { topic: id, problem });
        }
        let settings = self.settings.into_owned();
        let config = TopicConfig::from_settings(&settings)
            .map_err(|failure| SnapshotError::Settings { topic: id, failure })?;
        let partitions = self.partitions.into_iter().map(|one| Arc::new(one.into_owned()));
        Ok(Topic {
            id,
            name: (*self.name).into(),
            settings,
            config,
            partitions: partitions.collect(),
        })
    }
}

fn payload(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let damaged = SnapshotError::Damaged;
    let (checked, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(damaged("it is too short"))?;
    let (head, payload) =
        checked.split_first_chunk::<HEAD_BYTES>().ok_or(damaged("it is too short"))?;
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(damaged("it does not start with the magic number"));
    }
    if crc32fast::hash(checked) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum does not match"));
    }
    // Only a file whose checksum holds may claim to be newer: everything else is damage.
    let found = u16::from_be_bytes([v0, v1]);
    if found != VERSION {
        return Err(SnapshotError::Newer { found });
    }
    if usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])) != Ok(payload.len()) {
        return Err(damaged("its length does not match"));
    }
    Ok(payload)
}

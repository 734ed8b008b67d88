//! What a group coordinator's log consists of: the kinds of keys, the value of each, and how they are bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    LeaderEpoch, Offset, PartitionIndex, TimestampMs, TopicId, TopicPartition,
};

use crate::{
    ProducerEpoch, ProducerId,
    groups::assignor::Assignor,
    record::{Record, RecordError, decode_key, decode_value, encode, encode_key},
};

/// What a record is about. The order and content of the fields never change: compaction compares their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    Epochs { group: String },
    Topics { group: String },
    Member { group: String, member: String },
    Target { group: String, member: String },
    Current { group: String, member: String },
    Classic { group: String },
    Offset { group: String, topic_id: TopicId, partition: PartitionIndex },
    Pending { group: String, producer_id: ProducerId, topic_id: TopicId, partition: PartitionIndex },
    Seek { group: String, id: u64 },
    Producer { producer_id: ProducerId },
}

impl Key {
    /// Reads the key of a record. The bytes may be anything.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        decode_key(bytes)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epochs { group } => write!(out, "epochs of {group}"),
            Self::Topics { group } => write!(out, "topics of {group}"),
            Self::Member { member, .. } => write!(out, "member {member}"),
            Self::Target { member, .. } => write!(out, "target of {member}"),
            Self::Current { member, .. } => write!(out, "current {member}"),
            Self::Classic { group } => write!(out, "generation of {group}"),
            Self::Offset { topic_id, partition, .. } => {
                write!(out, "offset of {topic_id}/{partition}")
            }
            Self::Pending { producer_id, topic_id, partition, .. } => {
                write!(out, "offset of {topic_id}/{partition} pending for {producer_id}")
            }
            Self::Seek { id, .. } => write!(out, "seek {id}"),
            Self::Producer { producer_id } => write!(out, "producer {producer_id}"),
        }
    }
}

/// A group with server-side assignment: how far it is. `epoch >= assignment >=` every member's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    /// Grows with every change of members, subscriptions or topics.
    pub epoch: i32,
    /// The group epoch that the targets were computed for.
    pub assignment: i32,
}

/// The topics that a group's members are subscribed to, as the targets were computed with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribedTopics {
    /// Number of partitions.
    pub partitions: BTreeMap<TopicId, u32>,
}

/// What a member said about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name under which a static member keeps its place over restarts.
    pub instance: Option<String>,
    pub rack: Option<String>,
    pub client_id: String,
    pub host: String,
    pub topics: BTreeSet<String>,
    pub regex: Option<String>,
    /// How long it may take to give up a partition, its processing included.
    pub rebalance_timeout_ms: u32,
    pub assignor: Option<Assignor>,
}

/// What a member is to have in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub partitions: BTreeSet<TopicPartition>,
}

/// Where a member is on its way to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// It has what it is to have at its epoch.
    Stable,
    /// It was told to give up partitions and has not said that it did.
    Unrevoked,
    /// It waits for partitions that others still hold.
    Unreleased,
}

/// What a member has now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// [`crate::groups::LEAVE_STATIC_EPOCH`] for a static member that is away.
    pub epoch: i32,
    /// The epoch before, 0 if there was none. Requests made in it may be under way.
    pub previous_epoch: i32,
    pub state: MemberState,
    /// What it may consume.
    pub assigned: BTreeSet<TopicPartition>,
    /// What it was told to give up. Nobody else gets it before.
    pub revoking: BTreeSet<TopicPartition>,
}

impl Current {
    /// A member that has nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            epoch: 0,
            previous_epoch: 0,
            state: MemberState::Stable,
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
        }
    }

    /// Whether the member may be consuming the partition.
    pub fn holds(&self, partition: &TopicPartition) -> bool {
        self.assigned.contains(partition) || self.revoking.contains(partition)
    }

    /// Everything the member may be consuming.
    pub fn held(&self) -> impl Iterator<Item = &TopicPartition> {
        self.assigned.iter().chain(&self.revoking)
    }
}

/// The last complete generation of a classic group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicGeneration {
    pub generation: i32,
    /// `consumer`, `connect`, …; `None` when the group has no members.
    pub protocol_type: Option<String>,
    /// The assignor its leader went by.
    pub protocol: Option<String>,
    pub leader: Option<String>,
    pub members: BTreeMap<String, ClassicMember>,
}

/// A member of a classic group, in one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicMember {
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub session_timeout_ms: u32,
    pub rebalance_timeout_ms: u32,
    /// Its subscription, in the group's protocol; opaque.
    #[serde(with = "serde_bytes")]
    pub metadata: Vec<u8>,
    /// What the leader assigned to it; opaque.
    #[serde(with = "serde_bytes")]
    pub assignment: Vec<u8>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetValue {
    /// The next record to read.
    pub offset: Offset,
    /// Epoch of the last record read, if the client said.
    pub leader_epoch: Option<LeaderEpoch>,
    pub metadata: String,
    pub committed_ms: TimestampMs,
    /// For an offset that came out of a transaction: where in this log it was committed within the transaction.
    /// Two commits of one partition are told apart by their place in the log, however late a transaction ends.
    pub position: Option<Offset>,
}

impl OffsetValue {
    /// Reads the value of a record. The bytes may be anything.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        decode_value(bytes)
    }
}

/// An administrator's change of offsets, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seek {
    pub at_ms: TimestampMs,
    /// Who asked for it.
    pub by: String,
    /// The change that this one took back.
    pub undo_of: Option<u64>,
    pub changes: Vec<SeekChange>,
}

/// One partition's part in a [`Seek`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeekChange {
    pub partition: TopicPartition,
    /// `None`: there was no committed offset.
    pub before: Option<Offset>,
    /// The metadata that went with it.
    pub before_metadata: String,
    /// `None`: the committed offset was removed.
    pub after: Option<Offset>,
}

/// A transactional producer that committed offsets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerFence {
    /// The highest epoch seen; requests with lower ones are a zombie's.
    pub epoch: ProducerEpoch,
    /// The highest epoch of a transaction coordinator that ended a transaction here; -1 if none did.
    pub coordinator_epoch: i32,
    /// Whether a transaction of `epoch` is open.
    pub is_open: bool,
    pub updated_ms: TimestampMs,
}

impl ProducerFence {
    /// Reads the value of a record. The bytes may be anything.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        decode_value(bytes)
    }
}

/// A record in its meaning. `None` as the last field is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Epochs(String, Option<Epochs>),
    Topics(String, Option<SubscribedTopics>),
    Member(String, String, Option<Member>),
    Target(String, String, Option<Target>),
    Current(String, String, Option<Current>),
    Classic(String, Option<ClassicGeneration>),
    Offset(String, TopicPartition, Option<OffsetValue>),
    Pending(String, ProducerId, TopicPartition, Option<OffsetValue>),
    Seek(String, u64, Option<Seek>),
    Producer(ProducerId, Option<ProducerFence>),
}

impl Change {
    pub(crate) fn encode(&self) -> Record {
        fn bytes<T: Serialize>(value: Option<&T>) -> Option<Vec<u8>> {
            value.map(encode)
        }
        let value = match self {
            Self::Epochs(_, value) => bytes(value.as_ref()),
            Self::Topics(_, value) => bytes(value.as_ref()),
            Self::Member(_, _, value) => bytes(value.as_ref()),
            Self::Target(_, _, value) => bytes(value.as_ref()),
            Self::Current(_, _, value) => bytes(value.as_ref()),
            Self::Classic(_, value) => bytes(value.as_ref()),
            Self::Offset(_, _, value) | Self::Pending(_, _, _, value) => bytes(value.as_ref()),
            Self::Seek(_, _, value) => bytes(value.as_ref()),
            Self::Producer(_, value) => bytes(value.as_ref()),
        };
        Record { key: encode_key(&self.key()), value }
    }

    /// Reads what [`Change::encode`] wrote. The bytes may be anything.
    pub(crate) fn decode(record: &Record) -> Result<Self, RecordError> {
        let value = record.value.as_deref();
        Ok(match Key::from_bytes(&record.key)? {
            Key::Epochs { group } => Self::Epochs(group, optional(value)?),
            Key::Topics { group } => Self::Topics(group, optional(value)?),
            Key::Member { group, member } => Self::Member(group, member, optional(value)?),
            Key::Target { group, member } => Self::Target(group, member, optional(value)?),
            Key::Current { group, member } => Self::Current(group, member, optional(value)?),
            Key::Classic { group } => Self::Classic(group, optional(value)?),
            Key::Offset { group, topic_id, partition } => {
                Self::Offset(group, TopicPartition { topic_id, partition }, optional(value)?)
            }
            Key::Pending { group, producer_id, topic_id, partition } => {
                let partition = TopicPartition { topic_id, partition };
                Self::Pending(group, producer_id, partition, optional(value)?)
            }
            Key::Seek { group, id } => Self::Seek(group, id, optional(value)?),
            Key::Producer { producer_id } => Self::Producer(producer_id, optional(value)?),
        })
    }

    fn key(&self) -> Key {
        match self {
            Self::Epochs(group, _) => Key::Epochs { group: group.clone() },
            Self::Topics(group, _) => Key::Topics { group: group.clone() },
            Self::Member(group, member, _) => {
                Key::Member { group: group.clone(), member: member.clone() }
            }
            Self::Target(group, member, _) => {
                Key::Target { group: group.clone(), member: member.clone() }
            }
            Self::Current(group, member, _) => {
                Key::Current { group: group.clone(), member: member.clone() }
            }
            Self::Classic(group, _) => Key::Classic { group: group.clone() },
            Self::Offset(group, TopicPartition { topic_id, partition }, _) => {
                Key::Offset { group: group.clone(), topic_id: *topic_id, partition: *partition }
            }
            Self::Pending(group, producer_id, TopicPartition { topic_id, partition }, _) => {
                Key::Pending {
                    group: group.clone(),
                    producer_id: *producer_id,
                    topic_id: *topic_id,
                    partition: *partition,
                }
            }
            Self::Seek(group, id, _) => Key::Seek { group: group.clone(), id: *id },
            Self::Producer(producer_id, _) => Key::Producer { producer_id: *producer_id },
        }
    }
}

fn optional<T: serde::de::DeserializeOwned>(
    value: Option<&[u8]>,
) -> Result<Option<T>, RecordError> {
    value.map(decode_value).transpose()
}

//! Records of a coordinator's log: a key that compaction goes by, and a value or a tombstone.
//!
//! Key and value are each one version byte and a MessagePack value. Keys are never written differently by a later
//! build: compaction compares bytes. Values grow by optional fields at their end. A kind or version that an older
//! build does not know stops it: half a state is worse than none.

use serde::{Serialize, de::DeserializeOwned};
use tidemark_protocol::{
    LeaderEpoch, Offset,
    limits::BATCH_BYTES_MAX,
    messagepack::{self, MessageError},
};

use crate::limits::LIST_ELEMENTS_MAX;

const VERSION: u8 = 1;
/// Longest key, in bytes: two names, a few numbers, and what MessagePack needs around them.
const KEY_BYTES_MAX: usize = 1024;

/// One record, as it is appended and read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Vec<u8>,
    /// `None` is a tombstone: the key is gone.
    pub value: Option<Vec<u8>>,
}

/// The key of the record that every coordinator begins with. Kinds of coordinators have keys of their own; none is this.
const OPENING: &str = "Opening";

impl Record {
    /// What a coordinator writes before anything else, and before anything is answered: once it is committed, nothing that
    /// other leaders have left uncommitted can come back and make an answer wrong, not even one that needs no record
    /// (the Raft dissertation's rule for reads, section 6.4). It says nothing about the state.
    pub fn opening(leader_epoch: LeaderEpoch) -> Self {
        Self { key: encode_key(&OPENING), value: Some(encode(&leader_epoch)) }
    }

    pub fn is_opening(&self) -> bool {
        decode_key::<String>(&self.key).is_ok_and(|key| key == OPENING)
    }

    /// Length of key and value, in bytes.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("its {part} is empty")]
    Empty { part: &'static str },
    #[error("its {part} has version {found}; this build reads {VERSION}")]
    Version { part: &'static str, found: u8 },
    #[error("its {part} has {bytes} bytes; at most {limit_bytes} are possible")]
    TooLarge { part: &'static str, bytes: usize, limit_bytes: usize },
    #[error("its {part} cannot be decoded: {error}")]
    Decode { part: &'static str, error: MessageError },
}

/// Why a log does not load. Nothing is served from it until somebody has looked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("record {offset}: {error}")]
    Record { offset: Offset, error: RecordError },
    #[error("record {offset} comes after the log had got to {expected}")]
    Order { offset: Offset, expected: Offset },
    #[error("the log contradicts itself: {0}")]
    Contradiction(String),
}

pub(crate) fn encode_key<T: Serialize>(key: &T) -> Vec<u8> {
    let bytes = encode(key);
    assert!(bytes.len() <= KEY_BYTES_MAX, "names are bounded when they come in: {}", bytes.len());
    bytes
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    messagepack::encode(value, &mut bytes).expect("plain data encodes into a vector");
    bytes
}

pub(crate) fn decode_key<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    decode_part("key", bytes, KEY_BYTES_MAX)
}

pub(crate) fn decode_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    decode_part("value", bytes, BATCH_BYTES_MAX)
}

fn decode_part<T: DeserializeOwned>(
    part: &'static str,
    bytes: &[u8],
    limit_bytes: usize,
) -> Result<T, RecordError> {
    if bytes.len() > limit_bytes {
        return Err(RecordError::TooLarge { part, bytes: bytes.len(), limit_bytes });
    }
    match bytes.split_first() {
        None => Err(RecordError::Empty { part }),
        Some((&VERSION, body)) => messagepack::decode(body, LIST_ELEMENTS_MAX)
            .map_err(|error| RecordError::Decode { part, error }),
        Some((&found, _)) => Err(RecordError::Version { part, found }),
    }
}

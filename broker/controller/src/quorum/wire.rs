//! What controllers' quorums say to each other, in our own encoding: `u8 version | u32 CRC-32 of the rest, big-endian |
//! MessagePack`. The frame's own checksum covers its header only, and an entry that arrives otherwise than it was sent would be
//! written to the log.
//!
//! Every kind of message that is used, and no other. Bytes that are not exactly that are refused; what a decoded
//! message may do to the library is judged elsewhere. Protobuf is neither written nor read.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    limits::FRAME_BYTES_MAX,
    messagepack::{self, MessageError},
};

use super::entry::{self, EntryError};

/// Largest message, in bytes. With what goes around it, it fits a frame.
pub const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - (1 << 20);
/// Bytes of entries after which no further one joins a message.
const ENTRIES_BYTES: usize = 16 << 20;
/// Most entries in one message.
const ENTRIES_MAX: usize = 1 << 16;
const VERSION: u8 = 2;
const CRC_BYTES: usize = 4;
/// What the library writes into a vote request of a leadership transfer.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// Kinds of messages, by their number on the wire.
const KINDS: &[(u8, MessageType)] = &[
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgRequestPreVote),
    (6, MessageType::MsgRequestPreVoteResponse),
    (7, MessageType::MsgHeartbeat),
    (8, MessageType::MsgHeartbeatResponse),
    (9, MessageType::MsgTimeoutNow),
];
const SNAPSHOT_PART: u8 = 32;
const SNAPSHOT_GOT: u8 = 33;

/// What came in.
#[derive(Debug)]
pub(super) enum Inbound {
    Raft(Message),
    Part { term: u64, part: Part },
    Got { term: u64, got: Got },
}

/// A piece of a leader's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Which snapshot: the index behind it, and its length.
    pub end: u64,
    pub total_bytes: u64,
    /// Where in it the piece belongs.
    pub at: u64,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// How much of a snapshot has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Got {
    pub end: u64,
    pub bytes: u64,
}

/// A message that is not one.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("it has {bytes} bytes; at most {MESSAGE_BYTES_MAX} make a message")]
    TooLarge { bytes: usize },
    #[error("it is empty")]
    Empty,
    #[error("it has version {found}; this build reads {VERSION}")]
    Version { found: u8 },
    #[error("it was damaged on the way")]
    Damaged,
    #[error("it is of a kind {found} that this build does not know")]
    Kind { found: u8 },
    #[error("it cannot be decoded: {0}")]
    Decode(#[from] MessageError),
    #[error("it is for another controller, or for this one before its disk was replaced")]
    Misdirected,
    #[error("it lacks what its kind must have")]
    Incomplete,
    #[error(transparent)]
    Entry(#[from] EntryError),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    kind: u8,
    /// The library's number of the controller it is for.
    to: u64,
    term: u64,
    log_term: u64,
    index: u64,
    commit: u64,
    commit_term: u64,
    reject: bool,
    reject_hint: u64,
    is_transfer: bool,
    entries: Vec<WireEntry>,
    part: Option<Part>,
    got: Option<Got>,
}

#[derive(Serialize, Deserialize)]
struct WireEntry {
    term: u64,
    kind: u8,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
}

impl Wire {
    fn new(kind: u8, to: u64, term: u64) -> Self {
        Self {
            kind,
            to,
            term,
            log_term: 0,
            index: 0,
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            is_transfer: false,
            entries: Vec::new(),
            part: None,
            got: None,
        }
    }

    fn encode(&self) -> Bytes {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        messagepack::encode(self, &mut bytes).expect("plain data encodes into a vector");
        let crc = crc32fast::hash(&bytes[1 + CRC_BYTES..]);
        bytes[1..=CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
        bytes.into()
    }
}

/// A message of the library as messages of ours: several if its entries are too many for one. Empty for kinds that
/// are not used.
pub(super) fn encode(message: &Message) -> Vec<Bytes> {
    let Some(kind) = number_of(message.get_msg_type()) else { return Vec::new() };
    let mut wire = Wire {
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        is_transfer: message.context == TRANSFER,
        ..Wire::new(kind, message.to, message.term)
    };
    let mut encoded = Vec::new();
    let mut bytes = 0;
    for entry in message.get_entries() {
        let (kind, payload) = entry::payload(entry);
        let is_full = bytes + payload.len() > ENTRIES_BYTES || wire.entries.len() == ENTRIES_MAX;
        if is_full && !wire.entries.is_empty() {
            encoded.push(wire.encode());
            // The next continues where this one ends.
            wire.index = entry.index - 1;
            wire.log_term = wire.entries.last().map_or(wire.log_term, |last| last.term);
            wire.entries.clear();
            bytes = 0;
        }
        bytes += payload.len();
        wire.entries.push(WireEntry { term: entry.term, kind, payload: payload.to_vec() });
    }
    encoded.push(wire.encode());
    encoded
}

pub(super) fn encode_part(to: u64, term: u64, part: Part) -> Bytes {
    Wire { part: Some(part), ..Wire::new(SNAPSHOT_PART, to, term) }.encode()
}

pub(super) fn encode_got(to: u64, term: u64, got: Got) -> Bytes {
    Wire { got: Some(got), ..Wire::new(SNAPSHOT_GOT, to, term) }.encode()
}

/// Reads a message from `from` to `me`, in the library's numbers. The bytes may be anything.
pub(super) fn decode(bytes: &[u8], from: u64, me: u64) -> Result<Inbound, WireError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLarge { bytes: bytes.len() });
    }
    let wire: Wire = match bytes.split_first() {
        None => return Err(WireError::Empty),
        Some((&VERSION, rest)) => match rest.split_first_chunk::<CRC_BYTES>() {
            Some((crc, body)) if crc32fast::hash(body) == u32::from_be_bytes(*crc) => {
                messagepack::decode(body, ENTRIES_MAX)?
            }
            _ => return Err(WireError::Damaged),
        },
        Some((&found, _)) => return Err(WireError::Version { found }),
    };
    if wire.to != me {
        return Err(WireError::Misdirected);
    }
    let term = wire.term;
    match wire.kind {
        SNAPSHOT_PART => {
            let part = wire.part.ok_or(WireError::Incomplete)?;
            Ok(Inbound::Part { term, part })
        }
        SNAPSHOT_GOT => Ok(Inbound::Got { term, got: wire.got.ok_or(WireError::Incomplete)? }),
        _ => message(wire, from).map(Inbound::Raft),
    }
}

fn message(wire: Wire, from: u64) -> Result<Message, WireError> {
    let found = wire.kind;
    let kind = KINDS.iter().find(|(number, _)| *number == found);
    let (_, kind) = kind.ok_or(WireError::Kind { found })?;
    let mut message = Message::default();
    message.set_msg_type(*kind);
    (message.from, message.to, message.term) = (from, wire.to, wire.term);
    (message.index, message.log_term) = (wire.index, wire.log_term);
    (message.commit, message.commit_term) = (wire.commit, wire.commit_term);
    (message.reject, message.reject_hint) = (wire.reject, wire.reject_hint);
    if wire.is_transfer {
        message.context = Bytes::from_static(TRANSFER);
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(wire.entries.len());
    let mut index = wire.index;
    for one in wire.entries {
        index = index.checked_add(1).ok_or(WireError::Incomplete)?;
        let entry = entry::entry(index, one.term, one.kind, one.payload.into())?;
        entry::content(&entry)?;
        entries.push(entry);
    }
    message.set_entries(entries.into());
    Ok(message)
}

fn number_of(kind: MessageType) -> Option<u8> {
    KINDS.iter().find(|(_, known)| *known == kind).map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(payloads: &[usize]) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.to, message.term) = (7, 4);
        (message.index, message.log_term, message.commit) = (10, 2, 9);
        let entries = payloads.iter().zip(11_u64..).map(|(bytes, index)| {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (index, if index < 13 { 3 } else { 4 });
            entry.data = vec![0; *bytes].into();
            entry
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }

    #[test]
    fn entries_that_are_too_many_for_one_message_go_in_several_that_continue_each_other() {
        // Payloads that are not records are refused on arrival; these are only counted.
        let messages = encode(&append(&[10 << 20, 5 << 20, 5 << 20, 20 << 20, 1]));
        let places = messages.iter().map(|bytes| {
            assert!(bytes.len() < MESSAGE_BYTES_MAX);
            let wire: Wire = messagepack::decode(&bytes[1 + CRC_BYTES..], ENTRIES_MAX).unwrap();
            (wire.index, wire.log_term, wire.entries.len())
        });
        let places: Vec<_> = places.collect();
        assert_eq!(places, [(10, 2, 2), (12, 3, 1), (13, 4, 1), (14, 4, 1)]);
    }

    #[test]
    fn what_was_said_is_heard() {
        let mut said = append(&[0, 0]);
        said.from = 3;
        let bytes = encode(&said);
        let Inbound::Raft(heard) = decode(&bytes[0], 3, 7).unwrap() else { panic!("a message") };
        assert_eq!(heard, said);
        assert!(matches!(decode(&bytes[0], 3, 8), Err(WireError::Misdirected)));
        for end in 0..bytes[0].len() {
            assert!(decode(&bytes[0][..end], 3, 7).is_err());
            let mut damaged = bytes[0].to_vec();
            damaged[end] ^= 1;
            let refused = decode(&damaged, 3, 7);
            assert!(
                matches!(refused, Err(WireError::Damaged | WireError::Version { .. })),
                "{end}"
            );
        }
    }

    #[test]
    fn what_is_not_records_is_refused_on_arrival() {
        let bytes = encode(&append(&[5]));
        assert!(matches!(decode(&bytes[0], 3, 7), Err(WireError::Entry(_))));
    }
}

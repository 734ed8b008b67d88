//! Entries between their three forms: the library's, bytes on disk or on the wire, and records.
//!
//! An entry holds the records of one decision or one change of voters, in our own encodings. The library's
//! protobuf form of a change exists only while a leader proposes it; it is neither stored nor sent nor read.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use super::members::{Change, ChangeError};
use crate::record::{self, MetadataRecord, RecordError};

/// What the payload of an entry is, as a byte.
pub(super) const RECORDS: u8 = 0;
pub(super) const CHANGE: u8 = 1;

/// What an entry is taken to add to its payload, in bytes.
const OVERHEAD_BYTES: usize = 32;

/// What an entry says.
#[derive(Debug)]
pub(super) enum Content {
    Records(Vec<MetadataRecord>),
    Change(Change),
}

/// An entry that this build cannot use.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("entry {index} is of a kind {found} that this build does not know")]
    Kind { index: u64, found: u8 },
    #[error("entry {index}: {source}")]
    Records { index: u64, source: RecordError },
    #[error("entry {index}: {source}")]
    Change { index: u64, source: ChangeError },
}

/// An entry of the library, from bytes that [`content`] has to approve of.
pub(super) fn entry(
    raft_index: u64,
    term: u64,
    kind: u8,
    payload: Bytes,
) -> Result<Entry, EntryError> {
    let mut entry = Entry::default();
    (entry.index, entry.term) = (raft_index, term);
    match kind {
        RECORDS => entry.data = payload,
        CHANGE => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.context = payload;
        }
        found => return Err(EntryError::Kind { index: shown(raft_index), found }),
    }
    Ok(entry)
}

/// The kind of an entry, and the bytes that stand for it.
pub(super) fn payload(entry: &Entry) -> (u8, &Bytes) {
    match entry.get_entry_type() {
        EntryType::EntryNormal => (RECORDS, &entry.data),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => (CHANGE, &entry.context),
    }
}

/// What an entry is taken to cost in memory and on the wire.
pub(super) fn bytes(entry: &Entry) -> usize {
    payload(entry).1.len() + OVERHEAD_BYTES
}

/// What an entry says.
pub(super) fn content(entry: &Entry) -> Result<Content, EntryError> {
    let index = shown(entry.index);
    let (kind, payload) = payload(entry);
    if kind == CHANGE {
        let change = Change::decode(payload);
        return change.map(Content::Change).map_err(|source| EntryError::Change { index, source });
    }
    let records = record::decode_entry(payload);
    records.map(Content::Records).map_err(|source| EntryError::Records { index, source })
}

/// The index of an entry as everybody but the library counts: from 0.
pub(super) fn shown(raft_index: u64) -> u64 {
    raft_index.saturating_sub(1)
}

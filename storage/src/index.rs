//! The sparse index of a segment: from an offset or a time to a position near it.
//!
//! While a segment is written its index grows in memory ([`SparseIndex`]): one writer appends, any
//! number of readers search, nobody waits. On disk (`.index`) it is an [`IndexFile`]: entries plus
//! the *seal*, which says how much of the segment was durable when it was written and what the
//! running checksum over its batch headers was there. Both are caches: a log without them is slower
//! to open and to search, never wrong.

use std::sync::{
    OnceLock,
    atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{Offset, TimestampMs};

/// "No timestamp seen yet": below every real one.
pub(crate) const NO_MAX_TIMESTAMP: TimestampMs = i64::MIN;

/// Slots in the first chunk; each further chunk doubles, so small segments stay small.
const FIRST_CHUNK_SLOTS: usize = 16;
/// 2^17 times the first chunk: more entries than a 2 GiB segment at one entry per KiB has.
const CHUNKS: usize = 17;

/// A boundary between two batches of a segment, and what is known about everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexEntry {
    /// Offset of the batch that starts here, or would.
    pub offset: Offset,
    /// Bytes from the start of the file.
    pub position: u64,
    /// Running checksum over the headers of all batches in front.
    pub chain: u32,
    /// Newest timestamp of all batches in front, [`NO_MAX_TIMESTAMP`] if there are none.
    pub max_timestamp: TimestampMs,
}

#[derive(Debug, Default)]
struct Slot {
    relative_offset: AtomicU64,
    position: AtomicU32,
    chain: AtomicU32,
    max_timestamp: AtomicI64,
}

/// An index that one thread appends to while others search it without waiting.
#[derive(Debug)]
pub(crate) struct SparseIndex {
    base: Offset,
    len: AtomicUsize,
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
}

impl SparseIndex {
    pub(crate) fn new(base: Offset) -> Self {
        Self { base, len: AtomicUsize::new(0), chunks: [const { OnceLock::new() }; CHUNKS] }
    }

    /// Adds an entry behind all others. Only the segment's writer calls this. A full index takes
    /// no more: searches get longer walks, not wrong answers.
    pub(crate) fn push(&self, entry: IndexEntry) {
        let index = self.len.load(Ordering::Relaxed);
        let (chunk, slot) = locate(index);
        let Some(chunk_cell) = self.chunks.get(chunk) else { return };
        let Ok(position) = u32::try_from(entry.position) else { return };
        let slots = chunk_cell.get_or_init(|| {
            std::iter::repeat_with(Slot::default).take(FIRST_CHUNK_SLOTS << chunk).collect()
        });
        let slot = &slots[slot];
        slot.relative_offset.store(entry.offset - self.base, Ordering::Relaxed);
        slot.position.store(position, Ordering::Relaxed);
        slot.chain.store(entry.chain, Ordering::Relaxed);
        slot.max_timestamp.store(entry.max_timestamp, Ordering::Relaxed);
        // Publishes the slot: a reader that sees the new length sees its content.
        self.len.store(index + 1, Ordering::Release);
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self, index: usize) -> IndexEntry {
        let (chunk, slot) = locate(index);
        let slots = self.chunks[chunk].get().expect("entries below `len` were published");
        let slot = &slots[slot];
        IndexEntry {
            offset: self.base + slot.relative_offset.load(Ordering::Relaxed),
            position: slot.position.load(Ordering::Relaxed).into(),
            chain: slot.chain.load(Ordering::Relaxed),
            max_timestamp: slot.max_timestamp.load(Ordering::Relaxed),
        }
    }

    /// The last entry for which `before` holds; `before` must hold for a prefix of the entries.
    pub(crate) fn last_where(&self, before: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if before(&self.get(middle)) { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1).map(|index| self.get(index))
    }

    pub(crate) fn to_vec(&self) -> Vec<IndexEntry> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }
}

/// Chunk and slot of the entry with this index: chunk `k` holds `FIRST_CHUNK_SLOTS << k` entries.
fn locate(index: usize) -> (usize, usize) {
    let shifted = index / FIRST_CHUNK_SLOTS + 1;
    let chunk = usize::BITS - 1 - shifted.leading_zeros();
    let chunk = chunk as usize;
    (chunk, index - FIRST_CHUNK_SLOTS * ((1 << chunk) - 1))
}

/// What the `.index` file of a segment holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    /// Where the chain starts: ties the file to one segment of one incarnation of one partition.
    pub salt: u32,
    /// How far the segment was durable, and indexed, when this was written.
    pub seal: IndexEntry,
    /// Ordered; all in front of the seal.
    pub entries: Vec<IndexEntry>,
}

impl IndexFile {
    /// Whether the parts fit each other, the segment and its salt.
    pub(crate) fn is_consistent(&self, base: Offset, salt: u32) -> bool {
        let mut previous =
            IndexEntry { offset: base, position: 0, chain: salt, max_timestamp: NO_MAX_TIMESTAMP };
        self.salt == salt
            && self.entries.iter().chain([&self.seal]).all(|entry| {
                let ordered = entry.offset >= previous.offset
                    && entry.position >= previous.position
                    && entry.max_timestamp >= previous.max_timestamp;
                previous = *entry;
                ordered
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> IndexEntry {
        IndexEntry {
            offset: 1000 + index * 10,
            position: index * 4096,
            chain: u32::try_from(index).unwrap(),
            max_timestamp: 5 * i64::try_from(index).unwrap(),
        }
    }

    #[test]
    fn entries_come_back_across_chunk_boundaries() {
        let index = SparseIndex::new(1000);
        for i in 0..1000 {
            index.push(entry(i));
        }
        assert_eq!(index.len(), 1000);
        for i in 0..1000 {
            assert_eq!(index.get(usize::try_from(i).unwrap()), entry(i));
        }
    }

    #[test]
    fn a_search_finds_the_last_entry_at_or_before() {
        let index = SparseIndex::new(1000);
        assert_eq!(index.last_where(|e| e.offset <= 5000), None);
        for i in 0..100 {
            index.push(entry(i));
        }
        assert_eq!(index.last_where(|e| e.offset <= 999), None);
        assert_eq!(index.last_where(|e| e.offset <= 1000), Some(entry(0)));
        assert_eq!(index.last_where(|e| e.offset <= 1515), Some(entry(51)));
        assert_eq!(index.last_where(|e| e.max_timestamp < 26), Some(entry(5)));
        assert_eq!(index.last_where(|_| true), Some(entry(99)));
    }

    #[test]
    fn readers_see_whole_entries_while_the_writer_appends() {
        let index = SparseIndex::new(1000);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000).for_each(|i| index.push(entry(i))));
            scope.spawn(|| {
                while index.len() < 20_000 {
                    if let Some(last) = index.last_where(|_| true) {
                        assert_eq!(last, entry(last.position / 4096));
                    }
                }
            });
        });
    }

    #[test]
    fn an_index_file_with_another_salt_or_disorder_is_not_consistent() {
        let file = IndexFile { salt: 7, seal: entry(9), entries: vec![entry(3)] };
        assert!(file.is_consistent(1000, 7));
        assert!(!file.is_consistent(1000, 8));
        assert!(!file.is_consistent(1031, 7), "an entry in front of the segment");
        let disorder = IndexFile { entries: vec![entry(4), entry(3)], ..file };
        assert!(!disorder.is_consistent(1000, 7));
    }
}

//! The newest offset of every key, in bounded memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use tidemark_protocol::Offset;

/// Maps keys to the newest offset at which they were seen. Holds 128 bits of each key's hash instead
/// of the key; the hash is keyed by chance, so that nobody can make two keys collide on purpose.
#[derive(Debug)]
pub(crate) struct LatestOffsets {
    hashers: [RandomState; 2],
    offsets: HashMap<[u64; 2], Offset>,
    keys_max: usize,
}

impl LatestOffsets {
    /// Room for `keys_max` keys, at about 32 bytes each once they are there.
    pub(crate) fn new(keys_max: usize) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { hashers, offsets: HashMap::new(), keys_max: keys_max.max(1) }
    }

    /// Notes a record; offsets come in increasing order. `false`: there is no room for another key.
    pub(crate) fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        if let Some(latest) = self.offsets.get_mut(&hash) {
            *latest = offset;
            return true;
        }
        if self.offsets.len() >= self.keys_max {
            return false;
        }
        self.offsets.insert(hash, offset);
        true
    }

    /// Whether a record with the same key was noted behind `offset`.
    pub(crate) fn supersede(&self, key: &[u8], offset: Offset) -> bool {
        self.offsets.get(&self.hash(key)).is_some_and(|latest| *latest > offset)
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [self.hashers[0].hash_one(key), self.hashers[1].hash_one(key)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_record_of_the_same_key_supersedes() {
        let mut latest = LatestOffsets::new(10);
        assert!(latest.note(b"a", 1) && latest.note(b"b", 2) && latest.note(b"a", 3));
        assert!(latest.supersede(b"a", 1));
        assert!(!latest.supersede(b"a", 3));
        assert!(!latest.supersede(b"b", 2));
        assert!(!latest.supersede(b"unknown", 0));
    }

    #[test]
    fn a_full_map_still_follows_the_keys_it_has() {
        let mut latest = LatestOffsets::new(2);
        assert!(latest.note(b"a", 1) && latest.note(b"b", 2));
        assert!(!latest.note(b"c", 3), "no room");
        assert!(latest.note(b"a", 4));
        assert!(latest.supersede(b"a", 1));
    }
}

//! An ordered map whose clones share what has not changed since: the shape of an image that is published after
//! every commit. It is a sorted list of sorted chunks, all behind `Arc`s; a change copies one chunk and the list
//! of pointers to the others, not one entry per topic. It knows nothing of what it holds.

use std::{borrow::Borrow, fmt, sync::Arc};

/// A chunk that grows beyond this is split.
const CHUNK_ENTRIES_MAX: usize = 128;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

#[derive(Clone)]
pub(crate) struct SharedMap<K, V> {
    /// In order; none is empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

/// Where a key is, or would be.
struct Place {
    chunk: usize,
    entry: Result<usize, usize>,
}

impl<K: Ord, V> SharedMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry } = self.find(key);
        let entry = entry.ok()?;
        Some(&self.chunks[chunk][entry].1)
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Entries in order of their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(key, value)| (key, value))
    }

    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Place
    where
        K: Borrow<Q>,
    {
        let starts_behind = self.chunks.partition_point(|chunk| chunk[0].0.borrow() <= key);
        let chunk = starts_behind.saturating_sub(1);
        let entry = self.chunks.get(chunk).map_or(Err(0), |chunk| {
            chunk.binary_search_by(|(present, _)| present.borrow().cmp(key))
        });
        Place { chunk, entry }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry } = self.find(key);
        let entry = entry.ok()?;
        let chunk = &mut Arc::make_mut(&mut self.chunks)[chunk];
        Some(&mut Arc::make_mut(chunk)[entry].1)
    }

    /// Adds or replaces; returns what was replaced.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Place { chunk: place, entry } = self.find(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.is_empty() {
            chunks.push(Arc::default());
        }
        let chunk = Arc::make_mut(&mut chunks[place]);
        match entry {
            Ok(entry) => return Some(std::mem::replace(&mut chunk[entry].1, value)),
            Err(entry) => chunk.insert(entry, (key, value)),
        }
        self.len += 1;
        if chunk.len() > CHUNK_ENTRIES_MAX {
            let second_half = chunk.split_off(chunk.len() / 2);
            chunks.insert(place + 1, Arc::new(second_half));
        }
        None
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk: place, entry } = self.find(key);
        let entry = entry.ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[place]);
        let (_, value) = chunk.remove(entry);
        self.len -= 1;
        // Two neighbours that fit into half a chunk become one, so that chunks do not get ever smaller.
        let next_entries = chunks.get(place + 1).map_or(0, |next| next.len());
        if chunks[place].is_empty() {
            chunks.remove(place);
        } else if next_entries > 0 && chunks[place].len() + next_entries <= CHUNK_ENTRIES_MAX / 2 {
            let next = chunks.remove(place + 1);
            Arc::make_mut(&mut chunks[place]).extend(next.iter().cloned());
        }
        Some(value)
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

/// Equal entries, however they are spread over chunks.
impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &SharedMap<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert!(map.iter().eq(model.iter()));
        assert_eq!(map.len(), model.len());
        assert!(map.chunks.iter().all(|chunk| (1..=CHUNK_ENTRIES_MAX).contains(&chunk.len())));
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_and_its_clones_stay_as_they_were(
            steps in prop::collection::vec((0..600_u16, any::<u32>(), 0..10_u8), 1..2_000),
            growing in any::<bool>(),
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut kept = (map.clone(), model.clone());
            for (key, value, choice) in steps {
                match choice {
                    0 => {
                        check(&kept.0, &kept.1);
                        kept = (map.clone(), model.clone());
                    }
                    1 => {
                        if let Some(present) = map.get_mut(&key) {
                            *present = value;
                            model.insert(key, value);
                        }
                    }
                    2..6 if growing => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    2..4 => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    _ => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            check(&map, &model);
            check(&kept.0, &kept.1);
        }
    }

    #[test]
    fn a_change_copies_one_chunk_and_shares_the_rest() {
        let mut map = SharedMap::default();
        for key in 0..10_000_u16 {
            map.insert(key, u32::from(key));
        }
        let before = map.clone();
        *map.get_mut(&5_000).unwrap() = 1;
        map.remove(&9_000);
        let shared = map.chunks.iter().zip(before.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(a, b));
        assert_eq!(shared.count(), before.chunks.len() - 2);
        for key in 0..10_000_u16 {
            map.remove(&key);
        }
        assert_eq!((map.len(), map.chunks.len()), (0, 0));
    }
}

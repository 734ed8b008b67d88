//! What must hold in every state of every run: Raft's own properties, seen from outside.

use std::collections::BTreeMap;

use tidemark_controller::{Committed, EntryId, Image, MetadataRecord};
use tidemark_protocol::{NodeId, messages::VoterId};

/// What the world has seen so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Who led in a term.
    leaders: BTreeMap<u64, VoterId>,
    /// Term and records of everything that was delivered anywhere, by index.
    committed: BTreeMap<u64, (u64, Vec<MetadataRecord>)>,
    /// The entry in front of each that was ever in a log.
    before: BTreeMap<EntryId, Option<EntryId>>,
    /// The image behind each index.
    images: BTreeMap<u64, Image>,
}

/// A log, as far as it is durable: where it begins, and the terms from there on.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogView {
    pub first: u64,
    pub terms: Vec<u64>,
}

impl LogView {
    pub(crate) fn new(entries: impl Iterator<Item = EntryId>) -> Self {
        let mut view = Self::default();
        for entry in entries {
            if view.terms.is_empty() {
                view.first = entry.index;
            }
            view.terms.push(entry.term);
        }
        view
    }

    /// Whether an entry is in the log; what lies before the log counts as being there.
    pub(crate) fn has(&self, entry: EntryId) -> bool {
        let Some(place) = entry.index.checked_sub(self.first) else { return true };
        self.terms.get(usize::try_from(place).unwrap()) == Some(&entry.term)
    }
}

impl Oracle {
    /// A cluster has begun: its first entry is committed, by nobody.
    pub(crate) fn begin(&mut self) {
        self.committed.insert(0, (1, Vec::new()));
    }

    pub(crate) fn committed_end(&self) -> u64 {
        self.committed.last_key_value().map_or(0, |(index, _)| index + 1)
    }

    pub(crate) fn is_committed(&self, entry: EntryId) -> bool {
        self.committed.get(&entry.index).is_some_and(|(term, _)| *term == entry.term)
    }

    /// Election safety, and leader completeness.
    pub(crate) fn leads(&mut self, who: VoterId, term: u64, log: &LogView) {
        let leader = *self.leaders.entry(term).or_insert(who);
        assert_eq!(leader, who, "two leaders in term {term}");
        for (index, (committed_term, _)) in &self.committed {
            if *committed_term < term {
                let entry = EntryId { index: *index, term: *committed_term };
                assert!(log.has(entry), "{who:?} leads term {term} without {entry:?}");
            }
        }
    }

    /// State machine safety, and commitment by a majority: of the voters as the one that delivers the entry knew them
    /// before it did, or after (a change counts from when it is applied, and may be committed together with
    /// entries behind it). `electorates` are the logs of either.
    pub(crate) fn delivered(
        &mut self,
        who: NodeId,
        entry: &Committed,
        electorates: &[Vec<LogView>],
    ) {
        let id = EntryId { index: entry.index, term: entry.term };
        if let Some((term, records)) = self.committed.get(&entry.index) {
            assert_eq!(*term, entry.term, "node {who}: another entry at {}", entry.index);
            assert_eq!(*records, entry.records, "node {who}: {id:?} says something else");
            return;
        }
        assert_eq!(entry.index, self.committed_end(), "node {who}: a gap");
        let counts = electorates.iter().map(|logs| {
            let count = logs.iter().filter(|log| log.has(id)).count();
            (count, logs.len())
        });
        let counts: Vec<_> = counts.collect();
        let is_majority = counts.iter().any(|(count, of)| *count > of / 2);
        assert!(is_majority, "node {who}: {id:?} is on {counts:?} of the voters");
        self.committed.insert(entry.index, (entry.term, entry.records.clone()));
    }

    /// Whoever stands at an index has the same image.
    pub(crate) fn stands_at(&mut self, who: NodeId, image: &Image) {
        let index = image.metadata_index();
        let known = self.images.entry(index).or_insert_with(|| image.clone());
        assert!(*known == *image, "node {who} has another image at {index}");
    }

    /// Log matching: an entry has one predecessor in every log, and so has that one.
    pub(crate) fn log(&mut self, who: NodeId, log: &LogView) {
        let mut previous = None;
        for (place, term) in log.terms.iter().enumerate() {
            let entry = EntryId { index: log.first + place as u64, term: *term };
            if previous.is_some() {
                let known = *self.before.entry(entry).or_insert(previous);
                assert_eq!(known, previous, "node {who}: logs part before {entry:?}");
            }
            previous = Some(entry);
        }
    }
}

//! Decisions that are in the quorum's log and not committed yet, and those who wait for them. Whatever is said rests
//! on everything decided before it, refusals too, so it is said when that is committed.

use std::collections::VecDeque;

use tidemark_protocol::{BrokerId, Failure};

use super::event::Token;
use crate::{command::Answer, quorum::EntryId};

#[derive(Debug)]
pub(super) enum Waiting {
    Command { token: Token, outcome: Result<Answer, Failure> },
    Heartbeat { token: Token, broker_id: BrokerId },
}

#[derive(Debug)]
struct Entry {
    id: EntryId,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: VecDeque<Entry>,
    /// Commands and heartbeats in all entries.
    pub(super) waiting: usize,
}

impl Pending {
    pub(super) fn push(&mut self, id: EntryId) {
        self.entries.push_back(Entry { id, waiting: Vec::new() });
    }

    /// Lets it wait for everything decided so far; handed back when there is nothing to wait for.
    pub(super) fn wait(&mut self, waiting: Waiting) -> Option<Waiting> {
        let Some(last) = self.entries.back_mut() else { return Some(waiting) };
        last.waiting.push(waiting);
        self.waiting += 1;
        None
    }

    /// Those who waited for the entry, which is committed. Entries that nobody here proposed are none of theirs.
    pub(super) fn settle(&mut self, id: EntryId) -> Vec<Waiting> {
        let Some(first) = self.entries.front() else { return Vec::new() };
        assert!(
            first.id.index >= id.index,
            "entry {id:?} is committed, and {:?} was not",
            first.id
        );
        if first.id.index > id.index {
            return Vec::new();
        }
        assert_eq!(first.id, id, "a leader's entry was replaced in its own term");
        let settled = self.entries.pop_front().expect("just looked at").waiting;
        self.waiting -= settled.len();
        settled
    }

    /// Everybody, in order, when it is not known what becomes of the decisions.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.waiting = 0;
        std::mem::take(&mut self.entries).into_iter().flat_map(|entry| entry.waiting)
    }
}

//! What is assigned, how far each partition has been read, and who reads it.
//!
//! Plain state without I/O. A slot's version changes whenever what was read ahead for it is no longer what
//! comes next.

use std::{collections::HashMap, sync::Arc};

use tidemark_protocol::{Offset, PartitionIndex};

use super::{config::Position, session::SessionId};

/// One assigned partition.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) topic: Arc<str>,
    pub(super) partition: PartitionIndex,
    /// Offset of the next record to be handed out.
    pub(super) position: Offset,
    /// Offset after what was received of it: where another reader goes on without a gap.
    pub(super) received: Offset,
    /// Last heard; `None` before the broker has said anything.
    pub(super) high_watermark: Option<Offset>,
    pub(super) paused: bool,
    /// Reading it has failed and not been seen to work again.
    pub(super) failing: bool,
    /// Where to go on, since the position is out of range; looked up before it is read again.
    pub(super) reset: Option<Position>,
    /// Who reads it; `None`: somebody must be found.
    pub(super) reader: Option<SessionId>,
    /// Of what was read ahead.
    pub(super) version: u64,
    /// Whether it is assigned. Others wait to be used again.
    assigned: bool,
}

/// The assignment. A slot's number stays for as long as its partition is assigned.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    by_name: HashMap<Arc<str>, HashMap<PartitionIndex, usize>>,
}

impl Slots {
    /// A later entry for the same partition replaces the earlier one.
    pub(super) fn new(assigned: Vec<(Arc<str>, PartitionIndex, Offset)>) -> Self {
        let mut slots = Self::default();
        for (topic, partition, position) in assigned {
            match slots.find(&topic, partition) {
                Some(at) => slots.all[at].position = position,
                None => slots.add(topic, partition, position),
            }
        }
        slots
    }

    /// Adds a partition that is not assigned.
    pub(super) fn add(&mut self, topic: Arc<str>, partition: PartitionIndex, position: Offset) {
        let free = self.all.iter().position(|slot| !slot.assigned);
        let at = free.unwrap_or(self.all.len());
        let before = self.by_name.entry(topic.clone()).or_default().insert(partition, at);
        assert!(before.is_none(), "{topic}/{partition} is assigned twice");
        let slot = Slot {
            topic,
            partition,
            position,
            received: position,
            high_watermark: None,
            paused: false,
            failing: false,
            reset: None,
            reader: None,
            // What was read ahead for the last one here is not for this one.
            version: free.map_or(0, |at| self.all[at].version + 1),
            assigned: true,
        };
        match self.all.get_mut(at) {
            Some(free) => *free = slot,
            None => self.all.push(slot),
        }
    }

    /// Takes a partition away; says who reads it.
    pub(super) fn remove(&mut self, at: usize) -> Option<SessionId> {
        let slot = &mut self.all[at];
        let reader = slot.reader;
        slot.detach();
        slot.assigned = false;
        if let Some(of_topic) = self.by_name.get_mut(&slot.topic) {
            of_topic.remove(&slot.partition);
            if of_topic.is_empty() {
                self.by_name.remove(&slot.topic);
            }
        }
        reader
    }

    pub(super) fn find(&self, topic: &str, partition: PartitionIndex) -> Option<usize> {
        self.by_name.get(topic)?.get(&partition).copied()
    }

    pub(super) fn get(&self, at: usize) -> &Slot {
        &self.all[at]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut Slot {
        &mut self.all[at]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.all.iter().filter(|slot| slot.assigned)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Slots nobody reads and somebody should.
    pub(super) fn unread(&self) -> Vec<usize> {
        let wanted = |slot: &Slot| slot.assigned && slot.reader.is_none() && !slot.paused;
        (0..self.all.len()).filter(|at| wanted(&self.all[*at])).collect()
    }

    /// Takes everything from a reader that is no more. What it had read ahead for these is void, so that
    /// whoever comes next begins at the position.
    pub(super) fn detach_all(&mut self, reader: SessionId) {
        for slot in self.all.iter_mut().filter(|slot| slot.reader == Some(reader)) {
            slot.detach();
        }
    }

    /// The slots of a reader.
    pub(super) fn of(&self, reader: SessionId) -> impl Iterator<Item = usize> {
        (0..self.all.len()).filter(move |at| self.all[*at].reader == Some(reader))
    }
}

impl Slot {
    /// Nobody reads it any more, and what was read ahead for it is void.
    pub(super) fn detach(&mut self) {
        self.reader = None;
        self.version += 1;
    }
}

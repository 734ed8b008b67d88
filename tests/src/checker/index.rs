//! A history sorted for the questions that judges ask: who wrote a value, what stands at an offset, who read what.

use std::collections::{BTreeMap, HashMap, HashSet};

use tidemark_protocol::Offset;

use crate::history::{
    Action, History, OpId, Operation, Outcome, Partition, Poll, Read, Send, TransactionId, Value,
};

/// One value that is known to stand at an offset, and how it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) read: Read,
    pub(super) by: OpId,
    /// Acknowledged by a leader, or else read.
    pub(super) acknowledged: bool,
    /// Known to stay: acknowledged for good, or read by somebody who reads only what is committed.
    pub(super) firm: bool,
}

/// What is known of one partition.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// In order of offset, those of one offset in order of the history.
    pub(super) sightings: Vec<Sighting>,
    /// Offsets of firm sightings, each once, in order.
    pub(super) firm: Vec<Offset>,
    /// Records below this may have been deleted.
    pub(super) log_start: Offset,
    /// The largest offset anybody read.
    pub(super) read_max: Option<Offset>,
}

impl Versions {
    /// The first firm offset from `from` (included) up to `to` (excluded).
    pub(super) fn firm_between(&self, from: Offset, to: Offset) -> Option<Offset> {
        let from = from.max(self.log_start);
        let first = self.firm.partition_point(|offset| *offset < from);
        self.firm.get(first).copied().filter(|offset| *offset < to)
    }
}

/// Where a value was read.
#[derive(Clone, Copy, Debug)]
struct ReadAt<'a> {
    partition: &'a Partition,
    offset: Offset,
}

/// A value that must be there and that nobody read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing<'a> {
    pub(super) op: OpId,
    pub(super) partition: &'a Partition,
    pub(super) value: Value,
    pub(super) offset: Option<Offset>,
}

#[derive(Debug)]
pub(super) struct Index<'a> {
    pub(super) history: &'a History,
    pub(super) partitions: BTreeMap<&'a Partition, Versions>,
    /// Looked up, never iterated.
    writers: HashMap<Value, OpId>,
    /// The first committed read of each value. Looked up, never iterated.
    reads: HashMap<Value, ReadAt<'a>>,
    /// Values that were read by somebody who reads everything. Looked up, never iterated.
    uncommitted_reads: HashSet<Value>,
    /// How transactions ended, as far as their producers were told.
    pub(super) ends: BTreeMap<&'a TransactionId, (bool, Outcome)>,
}

impl<'a> Index<'a> {
    pub(super) fn new(history: &'a History) -> Self {
        let mut index = Self {
            history,
            partitions: BTreeMap::new(),
            writers: HashMap::new(),
            reads: HashMap::new(),
            uncommitted_reads: HashSet::new(),
            ends: BTreeMap::new(),
        };
        for (op, operation) in history.operations.iter().enumerate() {
            match &operation.action {
                Action::Send(send) => index.add_send(op, operation, send),
                Action::Poll(poll) => index.add_poll(op, poll),
                Action::EndTransaction { transaction, commit } => {
                    index.ends.insert(transaction, (*commit, operation.outcome));
                }
                _ => {}
            }
        }
        let log_starts = history.log_starts();
        for (partition, versions) in &mut index.partitions {
            versions.log_start = log_starts.get(partition).copied().unwrap_or(0);
            versions.sightings.sort_by_key(|sighting| (sighting.read.offset, sighting.by));
            let firm = versions.sightings.iter().filter(|sighting| sighting.firm);
            versions.firm = firm.map(|sighting| sighting.read.offset).collect();
            versions.firm.dedup();
        }
        index
    }

    fn add_send(&mut self, op: OpId, operation: &Operation, send: &'a Send) {
        let versions = self.partitions.entry(&send.partition).or_default();
        for value in &send.values {
            let before = self.writers.insert(*value, op);
            assert!(before.is_none(), "{value} was sent twice: values are unique by contract");
        }
        // Records of a transaction are not there until it is decided, and an unsafe acknowledgement says nothing of later.
        if let Some((base, epoch)) = send.acknowledged
            && operation.outcome == Outcome::Ok
            && send.survives
            && send.transaction.is_none()
        {
            for (offset, value) in (base..).zip(&send.values) {
                let read = Read { offset, value: *value, epoch };
                let sighting = Sighting { read, by: op, acknowledged: true, firm: true };
                versions.sightings.push(sighting);
            }
        }
    }

    fn add_poll(&mut self, op: OpId, poll: &'a Poll) {
        for (partition, reads) in &poll.records {
            let versions = self.partitions.entry(partition).or_default();
            for read in reads {
                let firm = !poll.uncommitted;
                versions.sightings.push(Sighting {
                    read: *read,
                    by: op,
                    acknowledged: false,
                    firm,
                });
                versions.read_max = versions.read_max.max(Some(read.offset));
                if firm {
                    let at = ReadAt { partition, offset: read.offset };
                    self.reads.entry(read.value).or_insert(at);
                } else {
                    self.uncommitted_reads.insert(read.value);
                }
            }
        }
    }

    fn operation(&self, op: OpId) -> &'a Operation {
        &self.history.operations[op]
    }

    /// The operation that sent a value.
    pub(super) fn writer(&self, value: Value) -> Option<(OpId, &'a Operation, &'a Send)> {
        let op = *self.writers.get(&value)?;
        let operation = self.operation(op);
        match &operation.action {
            Action::Send(send) => Some((op, operation, send)),
            _ => None,
        }
    }

    /// Whether somebody who reads what is committed read it.
    pub(super) fn is_committed(&self, value: Value) -> bool {
        self.reads.contains_key(&value)
    }

    /// Sends, in the order in which they were invoked.
    pub(super) fn sends(&self) -> impl Iterator<Item = (OpId, &'a Operation, &'a Send)> {
        self.history.operations.iter().enumerate().filter_map(|(op, operation)| {
            match &operation.action {
                Action::Send(send) => Some((op, operation, send)),
                _ => None,
            }
        })
    }

    /// Polls, in the order in which they were recorded.
    pub(super) fn polls(&self) -> impl Iterator<Item = (OpId, &'a Operation, &'a Poll)> {
        self.history.operations.iter().enumerate().filter_map(|(op, operation)| {
            match &operation.action {
                Action::Poll(poll) => Some((op, operation, poll)),
                _ => None,
            }
        })
    }

    /// Values that must be there and that nobody read, with their offsets as far as one can tell.
    pub(super) fn missing(&self) -> impl Iterator<Item = Missing<'a>> {
        let promised =
            self.sends().filter(|(_, operation, send)| self.is_promised(operation, send));
        promised.flat_map(|(op, _, send)| {
            let base = self.base_of(send);
            let missing = move |(place, value): (usize, &Value)| {
                let offset = base.map(|base| base + place as u64);
                Missing { op, partition: &send.partition, value: *value, offset }
            };
            let unread = send.values.iter().enumerate().filter(|(_, value)| !self.is_read(**value));
            unread.map(missing).filter(|missing| !self.is_deleted(missing)).collect::<Vec<_>>()
        })
    }

    fn is_read(&self, value: Value) -> bool {
        self.reads.contains_key(&value) || self.uncommitted_reads.contains(&value)
    }

    fn is_deleted(&self, missing: &Missing<'_>) -> bool {
        let log_start = self.partitions[missing.partition].log_start;
        missing.offset.map_or(log_start > 0, |offset| offset < log_start)
    }

    /// Offset of the first value of a send: told, or told by another value of it that was read.
    pub(super) fn base_of(&self, send: &Send) -> Option<Offset> {
        let told = send.acknowledged.map(|(base, _)| base);
        told.or_else(|| {
            let mut places = (0..).zip(&send.values);
            places.find_map(|(place, value)| {
                let at = self.reads.get(value).filter(|at| *at.partition == send.partition)?;
                at.offset.checked_sub(place)
            })
        })
    }

    /// Whether the values of a send must be there: it was said so, or one of them was read.
    fn is_promised(&self, operation: &Operation, send: &Send) -> bool {
        let decided = match &send.transaction {
            None => send.survives && operation.outcome == Outcome::Ok,
            Some(transaction) => self.ends.get(transaction) == Some(&(true, Outcome::Ok)),
        };
        decided || send.values.iter().any(|value| self.is_committed(*value))
    }
}

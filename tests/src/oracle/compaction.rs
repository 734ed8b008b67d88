//! S24, compaction: what is left of a log has the last record of every key, each record that is left is what was written
//! there, and the mark of a removal stays as long as the topic says. And S22 with it: what is left says the same.
//!
//! Everything that is committed was written down here when it was, whole. A log is compared with it when a compaction has been
//! installed, and all of them are when everything is in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use bytes::Bytes;
use tidemark_coordinator::{GroupLoader, Record, TransactionLoader};
use tidemark_protocol::{Offset, TopicPartition, batch::batches};

use super::{Verdict, require, violation};
use crate::sim::core::{MS, Micros, SECOND};

/// How much sooner than everybody else a clock may come to something.
const SKEW_US: Micros = 6 * SECOND;

/// The last word on a key.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Offset,
    /// If it is a removal: when it was seen to be committed.
    removed_us: Option<Micros>,
}

/// What was committed of one partition of a compacted topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    end: Offset,
    records: BTreeMap<Offset, u64>,
    last: BTreeMap<Vec<u8>, Last>,
    groups: GroupLoader,
    transactions: TransactionLoader,
    /// Something of it was not read.
    pub(super) has_gap: bool,
}

/// What a log's records are replayed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Groups,
    Transactions,
}

impl Whole {
    /// The next record that was committed.
    pub(super) fn take(&mut self, at: Offset, record: &Record, kind: Kind, now_us: Micros) {
        self.records.insert(at, hash(record));
        let removed_us = record.value.is_none().then_some(now_us);
        self.last.insert(record.key.clone(), Last { at, removed_us });
        // What does not decode is somebody else's to find.
        match kind {
            Kind::Groups => drop(self.groups.replay(at, record)),
            Kind::Transactions => drop(self.transactions.replay(at, record)),
        }
    }

    /// Everything below is taken in.
    pub(super) fn ends_at(&mut self, end: Offset) {
        self.end = end;
    }

    pub(super) fn end(&self) -> Offset {
        self.end
    }

    /// Compares what a log holds, from its start to where this ends.
    pub(super) fn compare(
        &self,
        (partition, kind): (TopicPartition, Kind),
        bytes: &Bytes,
        keeps_removals_us: Micros,
        now_us: Micros,
    ) -> Verdict {
        let mut held = BTreeSet::new();
        let (mut groups, mut transactions) = (GroupLoader::new(), TransactionLoader::new());
        for batch in batches(bytes.clone()) {
            let broken = |error: &dyn std::fmt::Display| {
                violation("S24", format!("{partition} does not decode: {error}"))
            };
            let batch = batch.map_err(|error| broken(&error))?;
            batch.verify_crc().map_err(|error| broken(&error))?;
            for record in batch.records().map_err(|error| broken(&error))? {
                let at = record.offset;
                if at >= self.end {
                    continue;
                }
                let key = record.key.map(|key| key.to_vec()).unwrap_or_default();
                let record = Record { key, value: record.value.map(|value| value.to_vec()) };
                require(self.records.get(&at) == Some(&hash(&record)), "S24", || {
                    format!("{partition} has another record at {at} than was committed there")
                })?;
                held.insert(at);
                match kind {
                    Kind::Groups => drop(groups.replay(at, &record)),
                    Kind::Transactions => drop(transactions.replay(at, &record)),
                }
            }
        }
        for (key, last) in &self.last {
            let may_be_gone = last
                .removed_us
                .is_some_and(|since_us| since_us + keeps_removals_us <= now_us + SKEW_US);
            require(may_be_gone || held.contains(&last.at), "S24", || {
                format!("{partition} has lost the last record of a key, {last:?}: {key:?}")
            })?;
        }
        let is_same = match kind {
            Kind::Groups => groups.state() == self.groups.clone().state(),
            Kind::Transactions => transactions.state() == self.transactions.clone().state(),
        };
        require(is_same, "S22", || {
            format!(
                "what is left of {partition} says something else than all of it, up to {}",
                self.end
            )
        })
    }
}

/// How long a topic keeps the marks of removals.
pub fn keeps_removals_us(delete_retention_ms: u64) -> Micros {
    delete_retention_ms.saturating_mul(MS)
}

fn hash(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&record.key, &record.value).hash(&mut hasher);
    hasher.finish()
}

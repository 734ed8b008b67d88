//! What flows through topics: batches, records and bytes, in and out.
//!
//! A partition keeps the `Arc` of its topic's counters, so the data path does no look-up; the register here only
//! remembers which topics exist.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{scrape::Scrape, table};

/// The door through which records came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Native,
}

impl Protocol {
    const ALL: [Self; 1] = [Self::Native];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
        }
    }
}

/// Some batches: how many, with how many records and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub batches: u64,
    pub records: u64,
    pub bytes: u64,
}

/// The counters of one topic.
#[derive(Debug, Default)]
pub struct TopicMetrics {
    produced: [FlowCounters; Protocol::ALL.len()],
    consumed: [FlowCounters; Protocol::ALL.len()],
}

#[derive(Debug, Default)]
struct FlowCounters {
    batches: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
}

impl TopicMetrics {
    /// Counts batches that were appended. Three relaxed additions.
    pub fn produced(&self, protocol: Protocol, flow: Flow) {
        self.produced[protocol as usize].add(flow);
    }

    /// Counts batches that were handed to a reader.
    pub fn consumed(&self, protocol: Protocol, flow: Flow) {
        self.consumed[protocol as usize].add(flow);
    }
}

impl FlowCounters {
    fn add(&self, flow: Flow) {
        self.batches.fetch_add(flow.batches, Ordering::Relaxed);
        self.records.fetch_add(flow.records, Ordering::Relaxed);
        self.bytes.fetch_add(flow.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Flow {
        Flow {
            batches: self.batches.load(Ordering::Relaxed),
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// The topics that have counters, by name.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: Mutex<BTreeMap<String, Arc<TopicMetrics>>>,
}

impl Topics {
    pub(super) fn get(&self, name: &str) -> Arc<TopicMetrics> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = by_name.get(name) {
            return Arc::clone(metrics);
        }
        Arc::clone(by_name.entry(name.to_owned()).or_default())
    }

    pub(super) fn forget(&self, name: &str) {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn scrape(&self, scrape: &Scrape) {
        // Copied out, so that no topic waits to be created while a scrape is written.
        let topics = self.by_name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, topic) in topics {
            for protocol in Protocol::ALL {
                let labels = [name.as_str(), protocol.name()];
                let produced = topic.produced[protocol as usize].read();
                scrape.counter(&table::BATCHES_IN, &labels, produced.batches);
                scrape.counter(&table::RECORDS_IN, &labels, produced.records);
                scrape.counter(&table::BYTES_IN, &labels, produced.bytes);
                let consumed = topic.consumed[protocol as usize].read();
                scrape.counter(&table::BATCHES_OUT, &labels, consumed.batches);
                scrape.counter(&table::RECORDS_OUT, &labels, consumed.records);
                scrape.counter(&table::BYTES_OUT, &labels, consumed.bytes);
            }
        }
    }
}

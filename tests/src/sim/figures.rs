//! Counts of what a run consisted of: what the oracles had to look at, and how much of it there was.

use std::collections::BTreeMap;

/// Counts of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Steps of the simulation.
    pub events: u64,
    pub messages: u64,
    /// Faults that were injected, by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// Things that happened in the cluster, by name: elections, ISR changes, truncations.
    pub happened: BTreeMap<&'static str, u64>,
    /// Operations of clients, by outcome.
    pub operations: BTreeMap<&'static str, u64>,
    /// How often each oracle has looked.
    pub checks: BTreeMap<&'static str, u64>,
}

impl Figures {
    pub fn fault(&mut self, class: &'static str) {
        self.fault_times(class, 1);
    }

    pub fn fault_times(&mut self, class: &'static str, times: u64) {
        if times > 0 {
            *self.faults.entry(class).or_insert(0) += times;
        }
    }

    pub fn happened(&mut self, what: &'static str) {
        self.happened_times(what, 1);
    }

    pub fn happened_times(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.happened.entry(what).or_insert(0) += times;
        }
    }

    pub fn operation(&mut self, outcome: &'static str) {
        *self.operations.entry(outcome).or_insert(0) += 1;
    }

    pub fn check(&mut self, oracle: &'static str) {
        *self.checks.entry(oracle).or_insert(0) += 1;
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.messages += other.messages;
        for (into, from) in [
            (&mut self.faults, &other.faults),
            (&mut self.happened, &other.happened),
            (&mut self.operations, &other.operations),
            (&mut self.checks, &other.checks),
        ] {
            for (name, count) in from {
                *into.entry(name).or_insert(0) += count;
            }
        }
    }

    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }

    pub fn operations_total(&self) -> u64 {
        self.operations.values().sum()
    }
}

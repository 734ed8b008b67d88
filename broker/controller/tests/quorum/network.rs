//! A network that delays, reorders, doubles and loses messages, and lets some nodes not hear others.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemark_protocol::{NodeId, messages::VoterId};

use crate::chance::Chance;

/// What can go wrong with a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// One in this many is lost; 0 for none.
    pub lost_one_in: u64,
    /// One in this many arrives twice; 0 for none.
    pub doubled_one_in: u64,
    pub delay_max_ms: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub from: VoterId,
    pub to: NodeId,
    pub message: Bytes,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    flights: BTreeMap<(u64, u64), Flight>,
    sent: u64,
    pub weather: Weather,
    /// Pairs of which the second does not hear the first.
    cut: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub(crate) fn send(&mut self, now_ms: u64, flight: &Flight, chance: &mut Chance) {
        let Weather { lost_one_in, doubled_one_in, delay_max_ms } = self.weather;
        if lost_one_in > 0 && chance.one_in(lost_one_in) {
            return;
        }
        let copies = if doubled_one_in > 0 && chance.one_in(doubled_one_in) { 2 } else { 1 };
        for _ in 0..copies {
            let delay_ms = 1 + chance.below(delay_max_ms.max(1));
            self.sent += 1;
            self.flights.insert((now_ms + delay_ms, self.sent), flight.clone());
        }
    }

    /// The next message that has arrived by now, if the receiver hears the sender.
    pub(crate) fn arrived(&mut self, now_ms: u64) -> Option<Flight> {
        loop {
            let first = self.flights.first_entry().filter(|first| first.key().0 <= now_ms)?;
            let flight = first.remove();
            if !self.cut.contains(&(flight.from.node, flight.to)) {
                return Some(flight);
            }
        }
    }

    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Nobody of one side hears the other.
    pub(crate) fn split(&mut self, one: &[NodeId], other: &[NodeId]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.cut(a, b);
            self.cut(b, a);
        }
    }

    pub(crate) fn mend(&mut self) {
        self.cut.clear();
    }
}

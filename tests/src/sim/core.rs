//! What every part of a simulation acts through: the time, the queue of what is to come, one source of randomness and
//! the trace. It knows what an event is called and whom it is for, and nothing of what follows from it.

use std::{cmp::Ordering, collections::BinaryHeap};

use tidemark_protocol::{NodeId, TopicPartition};

use super::{
    client::ClientId,
    figures::Figures,
    network::ConnectionId,
    node::NodeTimer,
    trace::{Trace, Who},
};
use crate::random::Random;

/// Simulated time, in microseconds since the beginning.
pub type Micros = u64;

/// One millisecond.
pub const MS: Micros = 1_000;
/// One second.
pub const SECOND: Micros = 1_000_000;

/// Something that is going to happen.
#[derive(Debug)]
pub enum Event {
    /// The next parcel of one direction of a connection arrives.
    Arrive { connection: ConnectionId, lane: usize },
    /// A connection that was dialled has not been accepted for too long.
    DialTimeout { connection: ConnectionId },
    /// What was sent in one direction has been held up for too long.
    Unacknowledged { connection: ConnectionId, lane: usize, since_us: Micros },
    /// A node set itself a timer, in one life of its process.
    Node { node: NodeId, life: u64, timer: NodeTimer },
    /// A client set itself a timer.
    Client { client: ClientId, timer: u64 },
    /// It is time for another fault.
    Fault,
    /// A fault of limited duration ends.
    Mend { mend: Mend },
    /// The clock of the oracles that look at everything.
    Look,
}

/// The end of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    Start {
        node: NodeId,
    },
    Resume {
        node: NodeId,
    },
    Unblock {
        pairs: Vec<(u32, u32)>,
    },
    FreeDisk {
        node: NodeId,
    },
    FastDisk {
        node: NodeId,
    },
    /// Not the end of a fault but its next step.
    Transfer {
        partition: TopicPartition,
        from: NodeId,
        to: NodeId,
    },
    /// Another one is to lead. Everybody hears of it as soon as they do.
    Lead {
        partition: TopicPartition,
        to: NodeId,
    },
    Crash {
        node: NodeId,
    },
    /// A leader is about to let a replica in.
    Ambush {
        ambush: Ambush,
        leader: NodeId,
        newcomer: NodeId,
    },
    /// What a leader has asked of a controller is overtaken by what it asks over its next connection.
    Overtake {
        leader: NodeId,
        controller: NodeId,
        late_us: Micros,
    },
}

/// What happens as soon as some leader is about to let a replica in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambush {
    /// The replica loses everything.
    Wipe,
    /// That it is to be let in arrives late.
    LateChange,
}

struct Due {
    at_us: Micros,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: that is what a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.order).cmp(&(self.at_us, self.order))
    }
}

/// Time, queue, randomness, trace.
pub struct Core {
    now_us: Micros,
    queue: BinaryHeap<Due>,
    order: u64,
    pub random: Random,
    pub trace: Trace,
    pub figures: Figures,
}

impl Core {
    pub fn new(random: Random, trace: Trace) -> Self {
        Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            random,
            trace,
            figures: Figures::default(),
        }
    }

    pub fn now_us(&self) -> Micros {
        self.now_us
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us / MS
    }

    /// Queues an event. Of two at the same time, the one queued first happens first.
    pub fn after(&mut self, delay_us: Micros, event: Event) {
        self.order += 1;
        let due = Due { at_us: self.now_us + delay_us, order: self.order, event };
        self.queue.push(due);
    }

    /// Goes on to the next event, unless it is later than `until_us`.
    pub fn next(&mut self, until_us: Micros) -> Option<Event> {
        if self.queue.peek().is_none_or(|due| due.at_us > until_us) {
            self.now_us = self.now_us.max(until_us);
            return None;
        }
        let due = self.queue.pop()?;
        self.now_us = due.at_us;
        self.figures.events += 1;
        Some(due.event)
    }

    /// Events that wait, for the oracle that wants queues to stay short.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Between `low` and `high`, both included.
    pub fn draw(&mut self, low: u64, high: u64) -> u64 {
        self.random.between(low, high + 1)
    }

    /// True in so many of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.random.between(0, 1000) < per_mille
    }

    /// Notes what happened. `figures` go into the hash by which two runs are compared, `text` is made only for people.
    pub fn note(
        &mut self,
        who: Who,
        label: &'static str,
        figures: [u64; 2],
        text: impl FnOnce() -> String,
    ) {
        self.trace.note(self.now_us, who, label, figures, text);
    }
}

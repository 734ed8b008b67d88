//! What happened, in two forms: a hash, by which two runs of a seed are found to be the same, and lines for people, which
//! are made only when somebody wants to read them.

use std::{collections::VecDeque, fmt};

use tidemark_protocol::NodeId;

use super::{client::ClientId, core::Micros};

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    World,
    Node(NodeId),
    Client(ClientId),
}

impl Who {
    fn number(self) -> u64 {
        match self {
            Self::World => 0,
            Self::Node(node) => 1 << 32 | u64::from(node),
            Self::Client(client) => 2 << 32 | u64::from(client),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => out.pad("world"),
            Self::Node(node) => out.pad(&format!("node {node}")),
            Self::Client(client) => out.pad(&format!("client {client}")),
        }
    }
}

/// How much of it is kept as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Only the hash.
    Hash,
    /// The latest lines, for the report of a failure.
    Latest(usize),
    /// Printed as it happens.
    Print,
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    verbosity: Verbosity,
    hash: u64,
    entries: u64,
    latest: VecDeque<String>,
}

impl Trace {
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, hash: 0xcbf2_9ce4_8422_2325, entries: 0, latest: VecDeque::new() }
    }

    pub fn note(
        &mut self,
        now_us: Micros,
        who: Who,
        label: &'static str,
        figures: [u64; 2],
        text: impl FnOnce() -> String,
    ) {
        self.entries += 1;
        for part in [now_us, who.number(), figures[0], figures[1]] {
            self.mix(part);
        }
        for byte in label.bytes() {
            self.mix(u64::from(byte));
        }
        if self.verbosity == Verbosity::Hash {
            return;
        }
        let seconds = now_us / 1_000_000;
        let micros = now_us % 1_000_000;
        let line = format!("{seconds:>4}.{micros:06} {who:<9} {label:<12} {}", text());
        match self.verbosity {
            Verbosity::Hash => {}
            Verbosity::Print => print_line(&line),
            Verbosity::Latest(max) => {
                if self.latest.len() == max {
                    self.latest.pop_front();
                }
                self.latest.push_back(line);
            }
        }
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash ^ self.entries
    }

    /// The latest lines, oldest first.
    pub fn latest(&self) -> impl Iterator<Item = &str> {
        self.latest.iter().map(String::as_str)
    }

    /// FNV-1a over the bytes of a number: order matters, and that is all that is asked of it.
    fn mix(&mut self, part: u64) {
        self.hash = (self.hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

#[expect(clippy::print_stdout, reason = "it is asked for, to be read")]
fn print_line(line: &str) {
    println!("{line}");
}

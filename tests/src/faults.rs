//! Random faults for a cluster under load, drawn from a seed: one or two at a time, held for a while, and undone.
//!
//! What is drawn follows from the seed; when it hits depends on the machine. It judges nothing and waits for nothing but
//! what it does itself.

use std::{collections::BTreeMap, fmt, thread, time::Duration};

use anyhow::Result;
use tidemark_protocol::NodeId;

use crate::{
    cluster::{Cluster, view},
    network::End,
    proxy::{Rules, Way},
    random::Random,
};

/// How long faults are held: from shorter than anything notices to longer than any timeout of the default settings
/// between nodes.
const HOLD_MS: (u64, u64) = (50, 4_000);

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Kill(NodeId),
    /// SIGTERM, and waits for its end.
    Stop(NodeId),
    Pause(NodeId),
    /// Everything to and from the node is lost.
    Isolate(NodeId),
    /// Between two nodes, in both directions.
    Part(NodeId, NodeId),
    /// From the first end to the second.
    Deafen(End, End),
    /// All connections to the node end with a reset; only through a proxy, like those below.
    Reset(NodeId),
    /// Slow and narrow links to and from the node.
    Slow(NodeId),
    /// Connections to the node break at random, some in the middle of a frame.
    Fray(NodeId),
}

impl Fault {
    /// Its name in counts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Pause(_) => "pause",
            Self::Isolate(_) => "isolate",
            Self::Part(..) => "part",
            Self::Deafen(..) => "deafen",
            Self::Reset(_) => "reset",
            Self::Slow(_) => "slow",
            Self::Fray(_) => "fray",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// Faults from a seed, and what came of them so far.
#[derive(Debug)]
pub struct Faults {
    random: Random,
    topic: String,
    /// How often each kind was injected.
    pub injected: BTreeMap<&'static str, u64>,
}

impl Faults {
    /// `topic` is the one whose leaders are aimed at.
    pub fn new(seed: u64, topic: &str) -> Self {
        let (topic, injected) = (topic.to_owned(), BTreeMap::new());
        Self { random: Random::new(seed), topic, injected }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn total(&self) -> u64 {
        self.injected.values().sum()
    }

    /// Injects one fault, or two at once, and holds them; the cluster is left as it is then. `tell` hears of each before
    /// it happens.
    pub fn strike(&mut self, cluster: &mut Cluster, tell: impl Fn(String)) -> Result<()> {
        let count = if self.random.one_in(4) { 2 } else { 1 };
        for _ in 0..count {
            let fault = self.draw(cluster);
            tell(fault.to_string());
            self.inject(cluster, fault)?;
            *self.injected.entry(fault.name()).or_default() += 1;
            // The second may well come while the first is being dealt with.
            let longest_ms = if self.random.one_in(2) { HOLD_MS.1 } else { HOLD_MS.1 / 8 };
            self.hold(longest_ms);
        }
        Ok(())
    }

    /// Whether the cluster gets the time to recover in full before the next strike.
    pub fn grants_recovery(&mut self) -> bool {
        !self.random.one_in(3)
    }

    fn hold(&mut self, longest_ms: u64) {
        // A fault has a length: there is nothing to await.
        thread::sleep(Duration::from_millis(self.random.between(HOLD_MS.0, longest_ms)));
    }

    fn draw(&mut self, cluster: &mut Cluster) -> Fault {
        let node = self.target(cluster);
        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != node).collect();
        let by_process =
            [Fault::Kill(node), Fault::Kill(node), Fault::Stop(node), Fault::Pause(node)];
        if self.random.one_in(2) {
            return *self.random.pick(&by_process);
        }
        let here = End::Node(node);
        let mut by_network = vec![
            Fault::Isolate(node),
            Fault::Deafen(End::Clients, here),
            Fault::Deafen(here, End::Clients),
        ];
        if !cluster.network().tells_pairs_apart() {
            by_network.extend([Fault::Reset(node), Fault::Slow(node), Fault::Fray(node)]);
        } else if !others.is_empty() {
            let other = *self.random.pick(&others);
            let there = End::Node(other);
            by_network.extend([
                Fault::Part(node, other),
                Fault::Deafen(here, there),
                Fault::Deafen(there, here),
            ]);
        }
        *self.random.pick(&by_network)
    }

    /// A leader, the active controller or anybody.
    fn target(&mut self, cluster: &Cluster) -> NodeId {
        let anybody = *self.random.pick(&cluster.ids());
        let Ok(metadata) = cluster.metadata() else { return anybody };
        let topic = view::find(&metadata, &self.topic);
        let leaders: Vec<NodeId> = topic
            .map(|topic| topic.partitions.iter().filter_map(|partition| partition.leader).collect())
            .unwrap_or_default();
        match self.random.between(0, 3) {
            0 if !leaders.is_empty() => *self.random.pick(&leaders),
            1 => metadata.controller_id.unwrap_or(anybody),
            _ => anybody,
        }
    }

    fn inject(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(node) => cluster.kill(node),
            // Only what runs can be told to stop.
            Fault::Stop(node) if cluster.is_up(node) => cluster.terminate(node),
            Fault::Stop(_) => Ok(()),
            Fault::Pause(node) => cluster.pause(node),
            Fault::Isolate(node) => cluster.network().isolate(node),
            Fault::Part(one, other) => {
                cluster.network().cut(End::Node(one), End::Node(other))?;
                cluster.network().cut(End::Node(other), End::Node(one))
            }
            Fault::Deafen(from, to) => cluster.network().cut(from, to),
            Fault::Reset(node) => {
                self.rules(cluster, node, |_| Rules { cut: true, ..Rules::default() });
                Ok(())
            }
            Fault::Slow(node) => {
                self.rules(cluster, node, |random| {
                    let delay = Duration::from_millis(random.between(5, 200));
                    let bytes_per_second = Some(random.between(50_000, 2_000_000));
                    Rules::both(&Way { delay, bytes_per_second, ..Way::default() })
                });
                Ok(())
            }
            Fault::Fray(node) => {
                self.rules(cluster, node, |random| {
                    let break_one_in = random.between(5, 100);
                    let cut_short_one_in = random.between(5, 100);
                    Rules::both(&Way { break_one_in, cut_short_one_in, ..Way::default() })
                });
                Ok(())
            }
        }
    }

    fn rules(
        &mut self,
        cluster: &mut Cluster,
        node: NodeId,
        rules: impl FnOnce(&mut Random) -> Rules,
    ) {
        let rules = rules(&mut self.random);
        if let Some(proxy) = cluster.network().proxy(node) {
            proxy.set(rules);
        }
    }
}

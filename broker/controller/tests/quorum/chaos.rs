//! Random lives of a cluster: everything goes wrong for a while, then nothing does, and all must be well again.

use tidemark_controller::{Quorum, QuorumEvent, VoterChange};
use tidemark_protocol::{NodeId, messages::VoterId};

use crate::{cluster::Cluster, network::Weather};

/// How long things go wrong.
const STORM_MS: u64 = 3_000;
/// How long the cluster may take to be well again.
const RECOVERY_MS: u64 = 6_000;

/// What can go wrong; each in about half of all lives.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Kill,
    PowerLoss,
    Partition,
    Pause,
    Transfer,
    Wipe,
    Membership,
}

const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::PowerLoss,
    Fault::Partition,
    Fault::Pause,
    Fault::Transfer,
    Fault::Wipe,
    Fault::Membership,
];

/// A disk that was lost, until its voter is replaced.
#[derive(Clone, Copy)]
struct Replacement {
    old: VoterId,
    new: VoterId,
}

pub(crate) struct Life {
    pub cluster: Cluster,
    faults: Vec<Fault>,
    replacement: Option<Replacement>,
    /// A node that is to leave, or to come.
    visitor: Option<(VoterId, bool)>,
}

impl Life {
    pub(crate) fn new(seed: u64) -> Self {
        let voters = if seed.is_multiple_of(2) { 3 } else { 5 };
        let mut cluster = Cluster::new(seed, voters);
        let chance = &mut cluster.chance;
        let mut coin = || chance.one_in(2);
        let faults = FAULTS.into_iter().filter(|_| coin()).collect();
        let (is_lossy, is_doubling, is_slow) = (coin(), coin(), coin());
        cluster.network.weather = Weather {
            lost_one_in: if is_lossy { 2 + cluster.chance.below(20) } else { 0 },
            doubled_one_in: if is_doubling { 5 } else { 0 },
            delay_max_ms: if is_slow { 80 } else { 5 },
        };
        Self { cluster, faults, replacement: None, visitor: None }
    }

    /// The whole life.
    pub(crate) fn run(&mut self) {
        while self.cluster.now_ms < STORM_MS {
            let calm_ms = 5 + self.cluster.chance.below(60);
            for _ in 0..calm_ms {
                self.cluster.advance();
                self.work();
            }
            self.trouble();
            self.maintain();
        }
        self.heal();
    }

    /// The client asks the leader, or whoever thinks that it is.
    fn work(&mut self) {
        let cluster = &mut self.cluster;
        if !cluster.chance.one_in(8) {
            return;
        }
        let nodes = cluster.nodes();
        for node in nodes.into_iter().filter(|node| cluster.is_running(*node)).collect::<Vec<_>>() {
            let count = 1 + cluster.chance.below(3);
            let taken = (0..count).filter(|_| cluster.propose(node).is_ok()).count();
            if taken > 0 && !cluster.chance.one_in(4) {
                cluster.step(node, QuorumEvent::Flush);
            }
        }
        cluster.collect_answers();
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn trouble(&mut self) {
        let nodes = self.cluster.nodes();
        let Some(node) = self.cluster.chance.pick(&nodes) else { return };
        match self.cluster.chance.below(10) {
            0 | 1 if !self.cluster.is_running(node) => self.cluster.start(node),
            0 if self.has(Fault::Kill) => self.lose(node, Cluster::kill),
            1 if self.has(Fault::PowerLoss) => self.lose(node, Cluster::lose_power),
            2 if self.has(Fault::PowerLoss) => self.stop_the_disk(node),
            3 if self.has(Fault::Partition) => self.part(node),
            4 | 5 => self.cluster.network.mend(),
            6 if self.has(Fault::Pause) => {
                let for_ms = self.cluster.chance.below(600);
                self.cluster.pause(node, for_ms);
            }
            7 if self.has(Fault::Transfer) => {
                let to = self.cluster.chance.one_in(2).then_some(node);
                if let Some(leader) = self.cluster.leader() {
                    self.cluster.step(leader, QuorumEvent::TransferLeadership { to });
                }
            }
            8 if self.has(Fault::Wipe) => self.wipe(node),
            9 if self.has(Fault::Membership) => self.invite(),
            _ => {}
        }
    }

    /// Takes a process away; some of the others see its connections close.
    fn lose(&mut self, node: NodeId, how: fn(&mut Cluster, NodeId)) {
        let cluster = &mut self.cluster;
        if !cluster.is_running(node) {
            return;
        }
        how(cluster, node);
        for other in cluster.nodes() {
            if other != node && cluster.chance.one_in(2) {
                cluster.step(other, QuorumEvent::PeerLost { node });
            }
        }
    }

    /// Power is going to fail within the next operations of the disk, in the middle of one.
    fn stop_the_disk(&mut self, node: NodeId) {
        let cluster = &mut self.cluster;
        if cluster.is_running(node) {
            let operations = cluster.chance.below(30);
            let disk = &cluster.hosts[&node].disk;
            disk.stop_at(disk.operations() + operations);
            cluster.note(format_args!("the disk of {node} stops in {operations} operations"));
        }
    }

    fn part(&mut self, node: NodeId) {
        let cluster = &mut self.cluster;
        cluster.note(format_args!("the network parts at {node}"));
        let nodes = cluster.nodes();
        match cluster.chance.below(3) {
            0 => {
                let others: Vec<_> = nodes.into_iter().filter(|other| *other != node).collect();
                cluster.network.split(&[node], &others);
            }
            1 => {
                let (one, other): (Vec<_>, Vec<_>) =
                    nodes.into_iter().partition(|_| cluster.chance.one_in(2));
                cluster.network.split(&one, &other);
            }
            _ => {
                let other = cluster.chance.pick(&nodes).unwrap_or(node);
                cluster.network.cut(node, other);
            }
        }
    }

    /// A disk is lost for good. Only one at a time: nobody promises more.
    fn wipe(&mut self, node: NodeId) {
        let cluster = &mut self.cluster;
        if self.replacement.is_some() || self.visitor.is_some() {
            return;
        }
        let old = cluster.hosts[&node].me;
        if cluster.leader().is_none_or(|leader| !cluster.voters(leader).contains(&old)) {
            return;
        }
        let new = cluster.add_passive(node);
        cluster.note(format_args!("node {node} has lost its disk"));
        self.replacement = Some(Replacement { old, new });
    }

    /// One more controller, or one fewer.
    fn invite(&mut self) {
        let cluster = &mut self.cluster;
        if self.replacement.is_some() || self.visitor.is_some() {
            return;
        }
        let Some(leader) = cluster.leader() else { return };
        let voters = cluster.voters(leader);
        if voters.len() < 5 {
            let node = 1 + cluster.nodes().last().copied().unwrap_or(0);
            let me = cluster.add_passive(node);
            self.visitor = Some((me, true));
        } else if let Some(voter) = cluster.chance.pick(&voters) {
            self.visitor = Some((voter, false));
        }
    }

    /// Whoever looks after the cluster asks for the changes that are due, until they have happened.
    fn maintain(&mut self) {
        let cluster = &mut self.cluster;
        let Some(leader) = cluster.leader() else { return };
        let voters = cluster.voters(leader);
        if let Some(Replacement { old, new }) = self.replacement {
            if voters.contains(&old) {
                cluster.change_voters(VoterChange::Remove(old));
            } else if !voters.contains(&new) {
                cluster.change_voters(VoterChange::Add(new));
            } else if is_settled(cluster, new, true) {
                self.replacement = None;
            }
        }
        if let Some((voter, is_coming)) = self.visitor {
            if voters.contains(&voter) == is_coming {
                if is_settled(cluster, voter, is_coming) {
                    self.visitor = None;
                }
            } else if is_coming {
                cluster.change_voters(VoterChange::Add(voter));
            } else {
                cluster.change_voters(VoterChange::Remove(voter));
            }
        }
    }

    /// Nothing goes wrong any more: there is a leader, everybody agrees, and work gets done.
    fn heal(&mut self) {
        let cluster = &mut self.cluster;
        cluster.note(format_args!("nothing goes wrong any more"));
        cluster.network.mend();
        cluster.network.weather = Weather { delay_max_ms: 5, ..Weather::default() };
        for node in cluster.nodes() {
            if cluster.hosts[&node].disk.stopped().is_some() {
                cluster.lose_power(node);
            }
            cluster.hosts[&node].disk.stop_at(u64::MAX);
            if !cluster.is_running(node) {
                cluster.start(node);
            }
        }
        let limit_ms = cluster.now_ms + RECOVERY_MS;
        loop {
            self.cluster.run(20);
            self.maintain();
            let cluster = &mut self.cluster;
            cluster.collect_answers();
            assert!(cluster.now_ms < limit_ms, "not well again:\n{}", cluster.describe());
            if self.replacement.is_none() && self.visitor.is_none() && is_well(cluster) {
                break;
            }
        }
        let cluster = &mut self.cluster;
        // A leadership may be changing hands.
        let (leader, last) = loop {
            let leader = cluster.leader();
            let proposed = leader.map(|leader| (leader, cluster.propose(leader)));
            if let Some((leader, Ok(last))) = proposed {
                break (leader, last);
            }
            assert!(cluster.now_ms < limit_ms, "the cluster takes no decisions");
            cluster.advance();
        };
        cluster.step(leader, QuorumEvent::Flush);
        cluster.run_until(1_000, "the last decision is everywhere", |cluster| {
            members(cluster).all(|node| cluster.process(node).image.metadata_index() > last.index)
        });
        for node in members(cluster).collect::<Vec<_>>() {
            let image = cluster.process(node).image.clone();
            cluster.oracle.stands_at(node, &image);
        }
    }
}

/// Whether a majority of the voters knows a change, so that no crash takes it back.
fn is_settled(cluster: &Cluster, voter: VoterId, is_in: bool) -> bool {
    let Some(leader) = cluster.leader() else { return false };
    let voters = cluster.voters(leader);
    let knows =
        |node: NodeId| cluster.is_running(node) && cluster.voters(node).contains(&voter) == is_in;
    let count = voters.iter().filter(|voter| knows(voter.node)).count();
    count > voters.len() / 2
}

/// Those that vote as far as the leader knows.
fn members(cluster: &Cluster) -> impl Iterator<Item = NodeId> + use<> {
    let leader = cluster.leader();
    let voters = leader.map(|leader| cluster.voters(leader)).unwrap_or_default();
    voters.into_iter().map(|voter| voter.node)
}

fn is_well(cluster: &Cluster) -> bool {
    let Some(leader) = cluster.leader() else { return false };
    let status = cluster.process(leader).quorum.status();
    let end = status.log_end_index;
    members(cluster).all(|node| {
        let other = cluster.process(node).quorum.status();
        other.term == status.term
            && other.leader == Some(leader)
            && cluster.process(node).image.metadata_index() == end
    })
}

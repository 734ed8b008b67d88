//! Controllers on simulated disks, in one thread, with a client that has them create topics.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, path::Path};

use tidemark_controller::{
    EntryId, Image, MetadataRecord, ProposeError, Quorum, QuorumAction, QuorumConfig, QuorumError,
    QuorumEvent, RaftQuorum, VoterChange,
};
use tidemark_protocol::{
    DirectoryId, NodeId, TopicId,
    messages::{TopicSettings, VoterId},
};
use tidemark_storage::testing::SimDisk;

use crate::{
    chance::Chance,
    network::{Flight, Network},
    oracle::{LogView, Oracle},
};

const DIR: &str = "/metadata";
pub(crate) const TICK_MS: u64 = 20;
/// Lines of the trace that a failure prints.
const TRACE_LINES: usize = 80;

/// A running process.
pub(crate) struct Process {
    pub quorum: RaftQuorum<SimDisk>,
    pub image: Image,
    leads: bool,
    /// The voters as it knew them before the last step.
    voters: Vec<VoterId>,
    /// Ticks at these times, modulo the length of a tick.
    phase_ms: u64,
    /// Does not run before; its messages wait.
    paused_until_ms: u64,
    waiting: Vec<Flight>,
}

/// A machine, whether its process runs or not.
pub(crate) struct Host {
    pub me: VoterId,
    pub disk: SimDisk,
    pub process: Option<Process>,
    /// The log as it was when somebody looked last.
    pub log: LogView,
    log_ends: (Option<EntryId>, Option<EntryId>),
    /// How far a process of this directory has delivered.
    delivered: u64,
}

pub(crate) struct Cluster {
    pub seed: u64,
    pub now_ms: u64,
    pub hosts: BTreeMap<NodeId, Host>,
    /// The logs on disks that are no more, as they were.
    lost: BTreeMap<VoterId, LogView>,
    pub network: Network,
    pub oracle: Oracle,
    pub chance: Chance,
    /// What the client was told is in the log of some leader, and has no answer for yet.
    pub proposed: Vec<EntryId>,
    pub acknowledged: u64,
    topics: u64,
    directories: u8,
    pub config: QuorumConfig,
    trace: Vec<String>,
    /// Of everything that happened.
    pub fingerprint: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.trace.len().saturating_sub(TRACE_LINES);
            let mut out = std::io::stderr().lock();
            writeln!(out, "{}", self.trace[from..].join("\n")).unwrap();
            writeln!(out, "seed {}, at {} ms", self.seed, self.now_ms).unwrap();
        }
    }
}

impl Cluster {
    /// A cluster of so many voters, all of them running, with snapshots every few decisions.
    pub(crate) fn new(seed: u64, voters: u32) -> Self {
        Self::with_snapshots_every(3_000, seed, voters)
    }

    pub(crate) fn with_snapshots_every(bytes: u64, seed: u64, voters: u32) -> Self {
        let config = QuorumConfig {
            tick_ms: TICK_MS,
            snapshot_every_bytes: bytes,
            ..QuorumConfig::default()
        };
        let mut cluster = Self {
            seed,
            now_ms: 0,
            hosts: BTreeMap::new(),
            lost: BTreeMap::new(),
            network: Network::default(),
            oracle: Oracle::default(),
            chance: Chance::new(seed),
            proposed: Vec::new(),
            acknowledged: 0,
            topics: 0,
            directories: 0,
            config,
            trace: Vec::new(),
            fingerprint: 0,
        };
        cluster.oracle.begin();
        for node in 1..=voters {
            cluster.add_host(node);
        }
        let all: Vec<VoterId> = cluster.hosts.values().map(|host| host.me).collect();
        for node in 1..=voters {
            let host = &cluster.hosts[&node];
            RaftQuorum::bootstrap(host.disk.clone(), Path::new(DIR), host.me, &all).unwrap();
            cluster.start(node);
        }
        cluster
    }

    /// A machine with an empty disk, in place of any other of that number.
    pub(crate) fn add_host(&mut self, node: NodeId) -> VoterId {
        self.directories += 1;
        let me = VoterId { node, directory: DirectoryId([self.directories; 16]) };
        let disk = SimDisk::new(self.chance.next());
        let host = Host {
            me,
            disk,
            process: None,
            log: LogView::default(),
            log_ends: (None, None),
            delivered: 0,
        };
        if let Some(gone) = self.hosts.insert(node, host) {
            self.lost.insert(gone.me, gone.log);
        }
        me
    }

    /// A node that was never in the cluster.
    pub(crate) fn add_passive(&mut self, node: NodeId) -> VoterId {
        let me = self.add_host(node);
        let disk = self.hosts[&node].disk.clone();
        RaftQuorum::bootstrap(disk, Path::new(DIR), me, &[]).unwrap();
        self.start(node);
        me
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub(crate) fn is_running(&self, node: NodeId) -> bool {
        self.hosts[&node].process.is_some()
    }

    pub(crate) fn process(&self, node: NodeId) -> &Process {
        self.hosts[&node].process.as_ref().expect("it runs")
    }

    /// Whoever leads in the newest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leading = self.hosts.iter().filter_map(|(node, host)| {
            let status = host.process.as_ref()?.quorum.status();
            status.is_leader.then_some((status.term, *node))
        });
        leading.max().map(|(_, node)| node)
    }

    pub(crate) fn start(&mut self, node: NodeId) {
        self.try_start(node).unwrap_or_else(|error| panic!("node {node}: {error}"));
    }

    pub(crate) fn try_start(&mut self, node: NodeId) -> Result<(), QuorumError> {
        let seed = self.chance.next();
        let phase_ms = self.chance.below(TICK_MS);
        let config = QuorumConfig { seed, ..self.config.clone() };
        let host = self.hosts.get_mut(&node).unwrap();
        let (quorum, image) = RaftQuorum::open(host.disk.clone(), Path::new(DIR), host.me, config)?;
        host.process = Some(Process {
            quorum,
            image,
            leads: false,
            voters: Vec::new(),
            phase_ms,
            paused_until_ms: 0,
            waiting: Vec::new(),
        });
        let index = self.process(node).image.metadata_index();
        self.note(format_args!("node {node} starts at {index}"));
        self.look_at(node);
        let image = self.process(node).image.clone();
        self.oracle.stands_at(node, &image);
        Ok(())
    }

    /// The process is gone; the disk as well, in as far as it was not synced.
    pub(crate) fn lose_power(&mut self, node: NodeId) {
        self.note(format_args!("node {node} loses power"));
        let host = self.hosts.get_mut(&node).unwrap();
        host.process = None;
        host.disk.power_loss();
        host.delivered = 0;
    }

    /// The process is gone.
    pub(crate) fn kill(&mut self, node: NodeId) {
        self.note(format_args!("node {node} is killed"));
        let host = self.hosts.get_mut(&node).unwrap();
        host.process = None;
        host.disk.crash();
    }

    pub(crate) fn pause(&mut self, node: NodeId, for_ms: u64) {
        let until_ms = self.now_ms + for_ms;
        if let Some(process) = &mut self.hosts.get_mut(&node).unwrap().process {
            process.paused_until_ms = until_ms;
        }
        self.note(format_args!("node {node} is paused for {for_ms} ms"));
    }

    pub(crate) fn step(&mut self, node: NodeId, event: QuorumEvent) {
        let now_ms = self.now_ms;
        let Some(process) = &mut self.hosts.get_mut(&node).unwrap().process else { return };
        let mut actions = Vec::new();
        process.voters = voters_of(&process.quorum);
        process.quorum.step(now_ms, event, &mut actions);
        self.act(node, actions);
    }

    fn act(&mut self, node: NodeId, actions: Vec<QuorumAction>) {
        self.look_at(node);
        let from = self.hosts[&node].me;
        for action in actions {
            match action {
                QuorumAction::Send { to, message } => {
                    self.fingerprint = mixed(self.fingerprint, &message);
                    let flight = Flight { from, to: to.node, message };
                    self.network.send(self.now_ms, &flight, &mut self.chance);
                }
                QuorumAction::Committed(entry) => {
                    let before = self.logs_of(&self.process(node).voters);
                    let after = self.logs_of(&self.voters(node));
                    self.oracle.delivered(node, &entry, &[before, after]);
                    let host = self.hosts.get_mut(&node).unwrap();
                    host.delivered = host.delivered.max(entry.index + 1);
                    let process = host.process.as_mut().unwrap();
                    process.image.apply(entry.index, &entry.records).unwrap();
                    self.note(format_args!(
                        "node {node} commits {} of {}",
                        entry.index, entry.term
                    ));
                }
                QuorumAction::Restored { image } => {
                    self.note(format_args!("node {node} restored to {}", image.metadata_index()));
                    self.oracle.stands_at(node, &image);
                    let process = self.hosts.get_mut(&node).unwrap().process.as_mut().unwrap();
                    assert!(image.metadata_index() >= process.image.metadata_index());
                    process.image = image;
                }
                QuorumAction::Role { term, leader, is_leader } => {
                    self.note(format_args!("node {node} in {term}: {leader:?} {is_leader}"));
                    let host = self.hosts.get_mut(&node).unwrap();
                    let process = host.process.as_mut().unwrap();
                    if is_leader && !process.leads {
                        self.oracle.leads(host.me, term, &host.log);
                    }
                    process.leads = is_leader;
                }
                QuorumAction::Failed { error } => {
                    // What a disk that was stopped brings about: the end of the process.
                    self.note(format_args!("node {node} fails: {error}"));
                    assert!(self.hosts[&node].disk.stopped().is_some(), "{error}");
                    self.lose_power(node);
                    return;
                }
            }
        }
        self.take_snapshot(node);
    }

    fn take_snapshot(&mut self, node: NodeId) {
        let process = self.hosts.get_mut(&node).unwrap().process.as_mut().unwrap();
        if process.quorum.wants_snapshot() {
            self.oracle.stands_at(node, &process.image);
            let taken = process.quorum.snapshot(&process.image);
            let index = process.image.metadata_index();
            self.note(format_args!("node {node} takes a snapshot of {index}: {}", taken.is_ok()));
            self.look_at(node);
        }
    }

    /// Compares a node's log with all others, if it has changed.
    fn look_at(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).unwrap();
        let Some(process) = &host.process else { return };
        let index = process.image.metadata_index();
        assert!(index >= host.delivered, "node {node} has delivered {} already", host.delivered);
        let mut entries = process.quorum.log();
        let ends = (entries.next(), entries.next_back());
        if ends != host.log_ends {
            host.log_ends = ends;
            host.log = LogView::new(process.quorum.log());
            self.oracle.log(node, &host.log);
        }
    }

    fn logs_of(&self, voters: &[VoterId]) -> Vec<LogView> {
        let log_of = |voter: &VoterId| {
            let host = self.hosts.get(&voter.node).filter(|host| host.me == *voter);
            host.map_or_else(|| self.lost[voter].clone(), |host| host.log.clone())
        };
        voters.iter().map(log_of).collect()
    }

    /// Lets a millisecond pass.
    pub(crate) fn advance(&mut self) {
        self.now_ms += 1;
        while let Some(flight) = self.network.arrived(self.now_ms) {
            let to = flight.to;
            let Some(host) = self.hosts.get_mut(&to) else { continue };
            let Some(process) = &mut host.process else { continue };
            if process.paused_until_ms > self.now_ms {
                process.waiting.push(flight);
            } else {
                self.receive(to, flight);
            }
        }
        for node in self.nodes() {
            let Some(process) = &mut self.hosts.get_mut(&node).unwrap().process else { continue };
            if process.paused_until_ms > self.now_ms {
                continue;
            }
            for flight in std::mem::take(&mut process.waiting) {
                self.receive(node, flight);
            }
            let phase_ms = self.hosts[&node].process.as_ref().map(|process| process.phase_ms);
            if phase_ms == Some(self.now_ms % TICK_MS) {
                self.step(node, QuorumEvent::Tick);
            }
        }
    }

    fn receive(&mut self, to: NodeId, flight: Flight) {
        let Flight { from, message, .. } = flight;
        self.step(to, QuorumEvent::Received { from, message });
    }

    pub(crate) fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms {
            self.advance();
        }
    }

    /// Lets time pass until something holds.
    pub(crate) fn run_until(&mut self, within_ms: u64, what: &str, is_so: impl Fn(&Self) -> bool) {
        let limit_ms = self.now_ms + within_ms;
        while !is_so(self) {
            assert!(self.now_ms < limit_ms, "not within {within_ms} ms: {what}");
            self.advance();
        }
    }

    /// Has a node take a decision, if it leads.
    pub(crate) fn propose(&mut self, node: NodeId) -> Result<EntryId, ProposeError> {
        self.topics += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.topics.to_be_bytes());
        let record = MetadataRecord::TopicCreated {
            id: TopicId(id),
            name: format!("topic-{}", self.topics),
            settings: TopicSettings::new(),
        };
        let process = self.hosts.get_mut(&node).unwrap().process.as_mut().unwrap();
        let proposed = process.quorum.propose(&[record]);
        if let Ok(id) = &proposed {
            self.proposed.push(*id);
        }
        proposed
    }

    /// Decisions that are committed are acknowledged; those whose place was taken never will be.
    pub(crate) fn collect_answers(&mut self) {
        let end = self.oracle.committed_end();
        let (known, open): (Vec<_>, Vec<_>) =
            self.proposed.drain(..).partition(|entry| entry.index < end);
        self.proposed = open;
        let kept = known.into_iter().filter(|entry| self.oracle.is_committed(*entry)).count();
        self.acknowledged += kept as u64;
    }

    pub(crate) fn change_voters(&mut self, change: VoterChange) {
        if let Some(leader) = self.leader() {
            self.step(leader, QuorumEvent::ChangeVoters(change));
        }
    }

    pub(crate) fn voters(&self, as_known_to: NodeId) -> Vec<VoterId> {
        voters_of(&self.process(as_known_to).quorum)
    }

    /// Where everybody stands.
    pub(crate) fn describe(&self) -> String {
        let line = |(node, host): (&NodeId, &Host)| match &host.process {
            Some(process) => format!("{node}: {:?}", process.quorum.status()),
            None => format!("{node}: down"),
        };
        self.hosts.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let mut line = String::new();
        write!(line, "{:>6} {what}", self.now_ms).unwrap();
        self.fingerprint = mixed(self.fingerprint, line.as_bytes());
        self.trace.push(line);
    }
}

fn voters_of(quorum: &RaftQuorum<SimDisk>) -> Vec<VoterId> {
    quorum.status().voters.iter().map(|voter| voter.id).collect()
}

/// FNV-1a.
fn mixed(fingerprint: u64, bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(fingerprint ^ 0xcbf2_9ce4_8422_2325, fold)
}

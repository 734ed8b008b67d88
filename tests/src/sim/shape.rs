//! What a seed draws before anything happens: how large the cluster is, how small its limits are, what its clients want,
//! and which faults there are. Swarm style: each class of faults is there in half of all seeds, so that every pair of
//! them is together in a quarter, and each alone in some.

use tidemark_controller::CreateTopic;
use tidemark_protocol::{NodeId, messages::TopicSettings};

use super::{
    core::{Core, MS, Micros, SECOND},
    network::Delays,
};
use crate::random::Random;

/// Where transactions write.
pub const LEDGER: &str = "ledger";
/// What copiers make of the ledger.
pub const COPIES: &str = "copies";
pub const TRANSACTIONS: &str = "__transactions";
pub const GROUPS: &str = "__groups";

/// Whether a topic is for those who know nothing of coordinators.
pub fn is_plain(topic: &str) -> bool {
    topic.starts_with("topic-")
}

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultClass {
    /// kill -9: the page cache stays.
    Crash,
    /// In the middle of an operation on the disk.
    CrashMidway,
    PowerLoss,
    /// Several nodes lose power at once.
    PowerLossOfMany,
    CleanRestart,
    FsyncError,
    BitRot,
    FullDisk,
    SlowDisk,
    BrokenConnection,
    /// Links cut between groups of nodes, in both directions.
    Partition,
    /// Links cut in one direction.
    OneWayCut,
    Pause,
    MetadataLag,
    Reassignment,
    WipedDisk,
    RecreatedTopic,
    Settings,
    Leadership,
    /// A leader is replaced and leads again, so quickly that nobody has written anything meanwhile.
    ThereAndBack,
    /// Bits of record batches flip on the way, and TCP does not notice.
    Corruption,
    /// A leader's change of an in-sync set arrives when the leader has long gone on.
    LateChange,
    /// A leader's answer arrives when another one has led meanwhile, and it leads again.
    LateAnswer,
}

impl FaultClass {
    /// Those that a seed draws one by one. The others came later, and are drawn apart.
    pub const ALL: &[Self] = &[
        Self::Crash,
        Self::CrashMidway,
        Self::PowerLoss,
        Self::PowerLossOfMany,
        Self::CleanRestart,
        Self::FsyncError,
        Self::BitRot,
        Self::FullDisk,
        Self::SlowDisk,
        Self::BrokenConnection,
        Self::Partition,
        Self::OneWayCut,
        Self::Pause,
        Self::MetadataLag,
        Self::Reassignment,
        Self::WipedDisk,
        Self::RecreatedTopic,
        Self::Settings,
        Self::Leadership,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CrashMidway => "crash midway",
            Self::PowerLoss => "power loss",
            Self::PowerLossOfMany => "power loss of many",
            Self::CleanRestart => "clean restart",
            Self::FsyncError => "fsync error",
            Self::BitRot => "bit rot",
            Self::FullDisk => "full disk",
            Self::SlowDisk => "slow disk",
            Self::BrokenConnection => "broken connection",
            Self::Partition => "partition",
            Self::OneWayCut => "one-way cut",
            Self::Pause => "pause",
            Self::MetadataLag => "metadata lag",
            Self::Reassignment => "reassignment",
            Self::WipedDisk => "wiped disk",
            Self::RecreatedTopic => "recreated topic",
            Self::Settings => "settings changed",
            Self::Leadership => "leadership moved",
            Self::ThereAndBack => "leadership there and back",
            Self::Corruption => "corruption on the way",
            Self::LateChange => "late change of an in-sync set",
            Self::LateAnswer => "late answer of a leader",
        }
    }
}

/// A topic as it is created.
#[derive(Clone, Debug)]
pub struct TopicShape {
    pub name: String,
    pub partitions: u32,
    pub replication_factor: u16,
    pub min_insync_replicas: u16,
    /// Acknowledged only when on stable storage.
    pub durable: bool,
    /// How old a segment becomes before the next one is begun.
    pub segment_ms: u64,
    /// How old a record becomes before it may be deleted; `None`: older than any run.
    pub retention_ms: Option<u64>,
    /// Compacted; and how long the marks of removals are kept.
    pub delete_retention_ms: Option<u64>,
}

/// Everything that is drawn beforehand.
#[derive(Clone, Debug)]
pub struct Shape {
    pub controllers: Vec<NodeId>,
    /// All nodes; every one is a broker.
    pub nodes: Vec<NodeId>,
    pub shards: usize,
    pub queue_max: usize,
    pub topics: Vec<TopicShape>,
    pub producers: u32,
    pub consumers: u32,
    /// Longest pause between two operations of a producer.
    pub think_us: Micros,
    pub delays: Delays,
    pub replica_lag_ms: u64,
    pub session_timeout_ms: u64,
    /// Most bytes of one partition in a leader's answer.
    pub push_bytes: usize,
    pub fetch_bytes: usize,
    pub snapshot_every: u64,
    pub faults: Vec<FaultClass>,
    /// Longest time between two faults.
    pub fault_pause_us: Micros,
    /// How long metadata may take from the controller's mouth to the broker's ear.
    pub metadata_lag_us: Micros,
    pub flush_us: Micros,
    /// What coordinators need; none in half of all runs.
    pub coordinated: Vec<TopicShape>,
    /// Producers with transactions; two of them share an id.
    pub transactors: u32,
    /// Members of groups; at least two in each group.
    pub members: u32,
    /// Producers with transactions that copy the ledger, offsets included; two of them share an id and a group.
    pub copiers: u32,
    /// Transactional producers commit offsets that nobody goes by, too, and others change and remove them beside.
    pub has_loose_offsets: bool,
    /// Members of groups come and go all the time, and their connections break while they have sent something.
    pub has_restless_members: bool,
    /// How far the wall clock of each node is off, in the order of the nodes.
    pub skews_ms: Vec<i64>,
    /// After so many epochs a transactional producer gets another id.
    pub epoch_max: i16,
}

impl Shape {
    /// Draws one. The order of the draws is the meaning of a seed: add new ones at the end.
    pub fn draw(random: &mut Random) -> Self {
        let controllers = *random.pick(&[1, 3, 3, 3, 3, 3, 5]);
        let extra = random.between(0, 3);
        let nodes: Vec<NodeId> = (1..=controllers)
            .chain((0..).map(|at| controllers + 1 + at).take(
                usize::try_from(if controllers == 1 { extra + 2 } else { extra }).expect("a few"),
            ))
            .collect();
        let topics =
            (0..random.between(1, 4)).map(|at| draw_topic(random, at, nodes.len())).collect();
        let faults = FaultClass::ALL.iter().copied().filter(|_| random.one_in(2)).collect();
        let max_us = random.between(300, 3 * MS);
        let mut shape = Self {
            controllers: (1..=controllers).collect(),
            nodes,
            shards: usize::try_from(random.between(1, 3)).expect("a few"),
            queue_max: usize::try_from(random.between(2, 64)).expect("a few"),
            topics,
            producers: u32::try_from(random.between(1, 5)).expect("a few"),
            consumers: u32::try_from(random.between(1, 3)).expect("a few"),
            think_us: random.between(20 * MS, 400 * MS),
            delays: Delays {
                min_us: 50,
                max_us,
                spikes_per_mille: random.between(0, 20),
                spike_us: random.between(MS, 300 * MS),
            },
            replica_lag_ms: random.between(300, 3_000),
            session_timeout_ms: random.between(300, 2_000),
            push_bytes: usize::try_from(random.between(100, 8_000)).expect("a few"),
            fetch_bytes: usize::try_from(random.between(100, 8_000)).expect("a few"),
            snapshot_every: random.between(3, 100),
            faults,
            fault_pause_us: random.between(500 * MS, 8 * SECOND),
            metadata_lag_us: random.between(MS, 2 * SECOND),
            flush_us: random.between(100, 20 * MS),
            coordinated: Vec::new(),
            transactors: 0,
            members: 0,
            copiers: 0,
            has_loose_offsets: false,
            has_restless_members: false,
            skews_ms: Vec::new(),
            epoch_max: i16::MAX,
        };
        let mut apart = random.clone().fork();
        if random.one_in(2) {
            shape.coordinate(random);
        }
        if apart.one_in(4) {
            shape.faults.push(FaultClass::ThereAndBack);
        }
        for class in [FaultClass::Corruption, FaultClass::LateChange, FaultClass::LateAnswer] {
            if apart.one_in(3) {
                shape.faults.push(class);
            }
        }
        shape
    }

    /// Draws what coordinators and their clients are like.
    fn coordinate(&mut self, random: &mut Random) {
        let replication_factor = u16::try_from(self.nodes.len().min(3)).expect("a few");
        let topic = |name: &str, partitions| TopicShape {
            name: name.to_owned(),
            partitions,
            replication_factor,
            min_insync_replicas: if replication_factor < 3 { 1 } else { 2 },
            durable: true,
            segment_ms: 20_000,
            retention_ms: None,
            delete_retention_ms: None,
        };
        self.coordinated = vec![topic(TRANSACTIONS, 2), topic(GROUPS, 2), topic(LEDGER, 3)];
        self.transactors = u32::try_from(random.between(0, 5)).expect("a few");
        self.members = u32::try_from(random.between(0, 5)).expect("a few");
        self.epoch_max = *random.pick(&[3, 10, i16::MAX]);
        // Apart from what was drawn before there was any of this: half of these seeds mean what they meant.
        let mut apart = random.clone().fork();
        if apart.one_in(2) {
            self.commit_in_transactions(&mut apart);
            let short = apart.one_in(2);
            let segment_ms = if short { apart.between(1_000, 4_000) } else { 20_000 };
            let retention_ms = short.then(|| apart.between(1_000, 6_000));
            let is_compacted = apart.one_in(2);
            // Often so short that whoever is away for a second misses the mark of a removal.
            let most_ms = *apart.pick(&[500, 500, 20_000]);
            let delete_retention_ms = apart.between(0, most_ms);
            for log in self.coordinated.iter_mut().take(2).filter(|_| is_compacted) {
                log.delete_retention_ms = Some(delete_retention_ms);
                log.segment_ms = apart.between(1_000, 4_000);
            }
            let copies = TopicShape { segment_ms, retention_ms, ..topic(COPIES, 2) };
            self.coordinated.extend((self.copiers > 0).then_some(copies));
            self.has_restless_members = apart.one_in(2);
        }
    }

    /// Draws who commits offsets in transactions.
    fn commit_in_transactions(&mut self, random: &mut Random) {
        self.copiers = u32::try_from(random.between(0, 5)).expect("a few");
        self.has_loose_offsets = self.copiers == 0 || random.one_in(2);
        self.transactors = self.transactors.max(2);
        let most = *random.pick(&[1, 50, 5_000]);
        let mut skew = |_: &NodeId| i64::try_from(random.between(0, most)).expect("seconds");
        self.skews_ms = self.nodes.iter().map(&mut skew).collect();
    }

    /// Whether the marks of removals in coordinators' logs go while somebody may be away.
    pub fn forgets_removals(&self) -> bool {
        self.coordinated.iter().filter_map(|topic| topic.delete_retention_ms).any(|ms| ms < 5_000)
    }

    pub fn has(&self, class: FaultClass) -> bool {
        self.faults.contains(&class)
    }
}

fn draw_topic(random: &mut Random, at: u64, nodes: usize) -> TopicShape {
    let nodes = u64::try_from(nodes).expect("a few");
    let replication_factor = *random.pick(&[1, 2, 3, 3, 3, 3, 4]);
    let replication_factor = replication_factor.min(nodes);
    let min_insync_replicas = match replication_factor {
        1 => 1,
        2 => random.between(1, 3),
        most => random.between(1, most),
    };
    TopicShape {
        name: format!("topic-{at}"),
        partitions: u32::try_from(random.between(1, 4)).expect("a few"),
        replication_factor: u16::try_from(replication_factor).expect("a few"),
        min_insync_replicas: u16::try_from(min_insync_replicas).expect("a few"),
        durable: !random.one_in(5),
        segment_ms: random.between(1_000, 20_000),
        retention_ms: None,
        delete_retention_ms: None,
    }
}

impl TopicShape {
    /// The command that creates it, under an id that no topic has had.
    pub fn command(&self, core: &mut Core) -> CreateTopic {
        let mut settings = TopicSettings::default();
        let mut set = |name: &str, value: String| {
            settings.insert(name.to_owned(), value);
        };
        set("min_insync_replicas", self.min_insync_replicas.to_string());
        set("durability", if self.durable { "disk" } else { "memory" }.to_owned());
        set("max_batch_bytes", "65536".to_owned());
        set("segment_bytes", "65536".to_owned());
        set("segment_ms", self.segment_ms.to_string());
        if let Some(delete_retention_ms) = self.delete_retention_ms {
            set("cleanup_policy", "compact".to_owned());
            set("delete_retention_ms", delete_retention_ms.to_string());
        }
        if let Some(retention_ms) = self.retention_ms {
            set("retention_ms", retention_ms.to_string());
        }
        CreateTopic {
            name: self.name.clone(),
            id: super::world::World::draw_topic_id(core),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            settings,
            seed: core.random.next_u64(),
            validate_only: false,
        }
    }
}

//! `failover`: for how long produce stops when a broker is killed: from `kill -9` of a partition's leader, and of the active
//! controller, to the next acknowledged durable produce.
//!
//! What is timed is what an application sees, the client library with its own retries included. The record that ends the
//! outage was sent after the kill. Times are reported, not judged.
#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use tidemark_benches::cluster::Cluster;
use tidemark_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
use tidemark_protocol::{NodeId, messages::MetadataResponse};
use tokio::{sync::watch, task::JoinSet};

const TOPIC: &str = "failover";
/// Between two records of the probe: how finely an outage is measured.
const PACE: Duration = Duration::from_millis(1);
/// Records of the probe without an outcome, at most.
const WINDOW: usize = 1_000;
/// Acknowledgements before a kill: everything is warm by then.
const WARM: usize = 100;
/// Longest outage before this program gives up.
const PATIENCE: Duration = Duration::from_mins(1);
/// Kills that only move leadership, until there is a victim of the kind wanted.
const SHUFFLES_MAX: usize = 20;

/// Measures how long produce stops when a broker is killed.
#[derive(Parser, Serialize)]
struct Arguments {
    /// How often to kill, for each kind of victim.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Brokers. A single one is started again at once: then it is its restart that is measured.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Partitions of the topic; each kill is felt on one of them.
    #[arg(long, default_value_t = 6)]
    partitions: u32,
    /// Whom to kill.
    #[arg(long, value_delimiter = ',', default_values_t = [Victim::Leader, Victim::Controller])]
    victims: Vec<Victim>,
    /// Where brokers keep their files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    #[serde(skip)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Victim {
    /// The leader of the partition that is produced to, which is not the active controller.
    Leader,
    /// The active controller, which does not lead that partition.
    Controller,
    /// A broker that is both.
    Both,
}

impl std::fmt::Display for Victim {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value().expect("none is hidden");
        out.write_str(value.get_name())
    }
}

/// The outages of one kind of victim.
#[derive(Serialize)]
struct Outages {
    victim: Victim,
    /// Sorted.
    milliseconds: Vec<f64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let mut cluster = Cluster::start(&programs.join("tidemarkd"), dir.path(), arguments.nodes)
        .context("start `tidemarkd`; build it with `cargo build --release --workspace`")?;
    cluster.create_topic(TOPIC, arguments.partitions, true)?;
    let mut all = Vec::new();
    for victim in &arguments.victims {
        let mut milliseconds = Vec::new();
        for kill in 1..=arguments.kills {
            progress(&format!("{victim}: kill {kill} of {}", arguments.kills));
            let outage = kill_one(&mut cluster, *victim)?;
            milliseconds.push(outage.as_secs_f64() * 1e3);
        }
        progress("");
        milliseconds.sort_by(f64::total_cmp);
        let outages = Outages { victim: *victim, milliseconds };
        outages.print();
        all.push(outages);
    }
    if let Some(path) = &arguments.json {
        let report = serde_json::json!({ "arguments": &arguments, "outages": &all });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

impl Outages {
    fn print(&self) {
        let count = self.milliseconds.len();
        // The nearest rank: of fifty, the 99th percentile is the largest.
        let at = |percent: usize| {
            let rank = (count * percent).div_ceil(100).max(1);
            self.milliseconds.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        let (min, median, p99, max) = (at(0), at(50), at(99), at(100));
        println!(
            "{}: {} kills, produce stopped for: median {median:.0} ms, p99 {p99:.0} ms, max {max:.0} ms, min {min:.0} ms",
            self.victim, count,
        );
    }
}

/// Kills once and measures, and brings everything back.
fn kill_one(cluster: &mut Cluster, victim: Victim) -> Result<Duration> {
    let (node, partition) = find(cluster, victim)?;
    let probe = Probe::start(cluster.bootstrap(), partition)?;
    for _ in 0..WARM {
        probe.next()?;
    }
    let killed_at = cluster.kill(node);
    if cluster.bootstrap().len() == 1 {
        cluster.start_node(node)?;
    }
    let outage = loop {
        let (sent_at, acknowledged_at) = probe.next()?;
        if sent_at > killed_at {
            break acknowledged_at - killed_at;
        }
    };
    probe.end()?;
    if cluster.bootstrap().len() > 1 {
        cluster.start_node(node)?;
    }
    cluster.await_in_sync(TOPIC)?;
    Ok(outage)
}

/// A node of the kind wanted, and a partition to feel its loss on. Kills without measuring until there is one.
fn find(cluster: &mut Cluster, victim: Victim) -> Result<(NodeId, u32)> {
    for _ in 0..SHUFFLES_MAX {
        let metadata = cluster.metadata()?;
        let controller = metadata.controller_id.context("a controller")?;
        if let Some(found) = choose(&metadata, controller, victim) {
            return Ok(found);
        }
        cluster.kill(controller);
        cluster.await_metadata("another controller", |metadata| {
            metadata.controller_id.is_some_and(|id| id != controller)
        })?;
        cluster.start_node(controller)?;
        cluster.await_in_sync(TOPIC)?;
    }
    bail!("no {victim} to kill: leaders do not spread");
}

fn choose(
    metadata: &MetadataResponse,
    controller: NodeId,
    victim: Victim,
) -> Option<(NodeId, u32)> {
    let topic = metadata.topics.iter().find(|topic| topic.name == TOPIC)?;
    let mut led = (0..).zip(&topic.partitions).filter_map(|(i, known)| Some((known.leader?, i)));
    // A single node is everything at once.
    if metadata.brokers.len() == 1 {
        return led.next();
    }
    match victim {
        Victim::Leader => led.find(|(leader, _)| *leader != controller),
        Victim::Both => led.find(|(leader, _)| *leader == controller),
        Victim::Controller => {
            led.find(|(leader, _)| *leader != controller).map(|(_, index)| (controller, index))
        }
    }
}

/// A producer of small durable records to one partition, and when each was sent and acknowledged.
struct Probe {
    acknowledgements: mpsc::Receiver<(Instant, Instant)>,
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Probe {
    fn start(bootstrap: Vec<String>, partition: u32) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, acknowledgements) = mpsc::channel();
        let (stop, stopped) = watch::channel(false);
        let probing = probe(bootstrap, partition, tell, stopped);
        let thread = thread::spawn(move || runtime.block_on(probing));
        Ok(Self { acknowledgements, stop, thread })
    }

    fn next(&self) -> Result<(Instant, Instant)> {
        let next = self.acknowledgements.recv_timeout(PATIENCE);
        next.context("nothing was acknowledged any more")
    }

    fn end(self) -> Result<()> {
        self.stop.send_replace(true);
        self.thread.join().expect("a probe does not panic")
    }
}

async fn probe(
    bootstrap: Vec<String>,
    partition: u32,
    tell: mpsc::Sender<(Instant, Instant)>,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let client = Client::connect(ClientConfig { bootstrap, ..ClientConfig::default() }).await?;
    let producer = client.producer(ProducerConfig::default());
    let mut outcomes = JoinSet::new();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        tokio::select! {
            _tick = pace.tick(), if outcomes.len() < WINDOW => {
                let record = ProducerRecord::to(TOPIC).partition(partition).value("probe");
                let sent_at = Instant::now();
                let delivery = producer.send(record).await?;
                outcomes.spawn(async move { delivery.await.map(|_| (sent_at, Instant::now())) });
            }
            Some(ended) = outcomes.join_next() => {
                // Nobody listens any more after the measurement.
                tell.send(ended??).ok();
            }
        }
    }
    Ok(())
}

/// On one line of a terminal; an empty text clears it.
fn progress(text: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        // Losing sight of the progress is no reason to stop.
        write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush()).ok();
    }
}

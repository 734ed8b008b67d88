//! `groups`: how fast a large group settles, whom that disturbs, and how many commits one broker takes.
//!
//! A hundred members share three hundred partitions, into each of which a record is written again and again at a steady pace.
//! Again and again a member joins, one leaves, one falls silent; each time it is measured how long it took until every member
//! had what it was to have, and for how long a partition that stayed with its member gave no record. The same is measured
//! while nothing happens, to compare with. Times are reported, not judged.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports to a person"
)]

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use serde::Serialize;
use tidemark_benches::cluster::Cluster;
use tidemark_client::{
    Client, ClientConfig, GroupConfig, NewTopic, ProducerConfig, ProducerRecord,
};
use tidemark_protocol::{PartitionIndex, TopicPartition, messages::OffsetToCommit};
use tokio::{sync::watch, task::JoinHandle};

const TOPIC: &str = "groups";
const GROUP: &str = "groups";
/// How long anything may take before this program gives up.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long partitions are watched before and after a change.
const SETTLED: Duration = Duration::from_secs(3);
/// How often the coordinator is asked whether all is in order: how finely that is seen.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Measures how groups settle, and how many commits a broker takes.
#[derive(Parser, Serialize)]
struct Arguments {
    #[arg(long, default_value_t = 100)]
    members: usize,
    #[arg(long, default_value_t = 300)]
    partitions: u32,
    /// Between two records of one partition, in milliseconds: how finely a pause is seen.
    #[arg(long, default_value_t = 50)]
    pace_ms: u64,
    /// How often a member joins, leaves and falls silent.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How long commits are measured.
    #[arg(long, default_value_t = 10)]
    commit_seconds: u64,
    /// Groups that commit at the same time, one commit under way each.
    #[arg(long, default_value_t = 64)]
    committers: usize,
    /// Where the broker keeps its files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    #[serde(skip)]
    json: Option<PathBuf>,
}

/// When each partition was read last, by whom, and its longest pause since it was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    member: usize,
    at: Option<Instant>,
    longest: Duration,
    changed_hands: bool,
}

/// What all members report to.
#[derive(Debug, Default)]
struct Board(Mutex<BTreeMap<PartitionIndex, Reading>>);

impl Board {
    fn read(&self, partition: PartitionIndex, member: usize) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = board.entry(partition).or_default();
        let now = Instant::now();
        if let Some(before) = reading.at {
            reading.longest = reading.longest.max(now - before);
        }
        reading.changed_hands |= reading.at.is_some() && reading.member != member;
        (reading.member, reading.at) = (member, Some(now));
    }

    /// Forgets pauses; who reads what stays.
    fn begin(&self) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for reading in board.values_mut() {
            (reading.longest, reading.changed_hands) = (Duration::ZERO, false);
        }
    }

    fn look(&self) -> BTreeMap<PartitionIndex, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Member {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// One kind of change, over all rounds. Every vector is sorted.
#[derive(Default, Serialize)]
struct Change {
    what: &'static str,
    /// Until every member had what it was to have, as the coordinator says.
    settled_ms: Vec<f64>,
    moved: usize,
    /// Longest time without a record, of every partition that stayed where it was.
    unmoved_pauses_ms: Vec<f64>,
    /// The same of partitions that changed hands.
    moved_pauses_ms: Vec<f64>,
}

#[derive(Serialize)]
struct Commits {
    per_minute: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let cluster = Cluster::start(&programs.join("tidemarkd"), dir.path(), 1)
        .context("start `tidemarkd`; build it with `cargo build --release --workspace`")?;
    let address = cluster.bootstrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (changes, commits) = runtime.block_on(async {
        let changes = rebalances(&arguments, &address).await?;
        anyhow::Ok((changes, commits(&arguments, &address).await?))
    })?;
    for change in &changes {
        println!("{change}");
    }
    println!(
        "commits: {:.0} a minute; p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
        commits.per_minute, commits.p50_ms, commits.p99_ms, commits.p999_ms, commits.max_ms
    );
    if let Some(path) = &arguments.json {
        let report = serde_json::json!({
            "arguments": &arguments, "changes": &changes, "commits": &commits,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

async fn connect(address: &[String]) -> Result<Client> {
    let config = ClientConfig { bootstrap: address.to_vec(), ..ClientConfig::default() };
    Ok(Client::connect(config).await?)
}

async fn rebalances(arguments: &Arguments, address: &[String]) -> Result<[Change; 4]> {
    let client = connect(address).await?;
    let admin = client.admin().with_timeout(PATIENCE);
    // In memory: what is measured is the group, and not how many flushes a second the disk takes.
    let topic = NewTopic::new(TOPIC).partitions(arguments.partitions);
    admin.create_topic(topic.setting("durability", "memory")).await?;
    let board = Arc::<Board>::default();
    let mut members = Vec::new();
    for number in 0..arguments.members {
        members.push(join(&client, number, &board));
    }
    settled(&client, arguments.members).await?;
    let writing = Arc::new(AtomicBool::new(true));
    let pace = Duration::from_millis(arguments.pace_ms);
    let writer = spawn(write(client.clone(), arguments.partitions, pace, Arc::clone(&writing)));
    let mut changes =
        ["nothing", "join", "leave", "crash"].map(|what| Change { what, ..Change::default() });
    let [nothing, join_, leave, crash] = &mut changes;
    let count = members.len();
    let mut number = count;
    let mut joined = |members: &mut Vec<Member>| {
        members.push(join(&client, number, &board));
        number += 1;
    };
    tokio::time::sleep(SETTLED).await;
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        board.begin();
        nothing.measure(&client, &board, count).await?;

        board.begin();
        joined(&mut members);
        join_.measure(&client, &board, count + 1).await?;

        board.begin();
        let leaver = members.remove(0);
        leaver.stop.send_replace(true);
        leave.measure(&client, &board, count).await?;
        leaver.task.await?;

        board.begin();
        members.remove(0).task.abort();
        crash.measure(&client, &board, count - 1).await?;
        joined(&mut members);
        settled(&client, count).await?;
    }
    for change in &mut changes {
        for times in
            [&mut change.settled_ms, &mut change.unmoved_pauses_ms, &mut change.moved_pauses_ms]
        {
            times.sort_unstable_by(f64::total_cmp);
        }
    }

    writing.store(false, Ordering::Relaxed);
    writer.await??;
    for member in members {
        member.task.abort();
    }
    Ok(changes)
}

fn join(client: &Client, number: usize, board: &Arc<Board>) -> Member {
    let mut config = GroupConfig::new(GROUP).topic(TOPIC);
    config.consumer.prefetch_bytes = 256 << 10;
    let mut member = client.group_consumer(config);
    let (stop, stopped) = watch::channel(false);
    let board = Arc::clone(board);
    let task = spawn(async move {
        while !*stopped.borrow() {
            // An error is a rebalance that went against it, and the next poll goes on.
            for record in member.poll(Duration::from_millis(100)).await.unwrap_or_default() {
                board.read(record.partition, number);
            }
        }
        drop(member.close().await);
    });
    Member { stop, task }
}

async fn write(
    client: Client,
    partitions: u32,
    pace: Duration,
    writing: Arc<AtomicBool>,
) -> Result<()> {
    let producer = client.producer(ProducerConfig::default());
    let topic: Arc<str> = TOPIC.into();
    let mut ticks = tokio::time::interval(pace);
    while writing.load(Ordering::Relaxed) {
        ticks.tick().await;
        for partition in 0..partitions {
            let record = ProducerRecord::to(topic.clone()).partition(partition).value("x");
            drop(producer.send(record).await?);
        }
    }
    Ok(producer.close().await?)
}

/// Waits until the coordinator says that so many members have what they are to have.
async fn settled(client: &Client, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let admin = client.admin().with_timeout(PATIENCE);
    loop {
        if let Ok(group) = admin.describe_group(GROUP).await
            && group.members.len() == count
            && group.state == tidemark_protocol::messages::GroupState::Stable
        {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{count} members do not settle");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

impl Change {
    /// Waits until everything is in order again with so many members, and takes note of how long it took.
    async fn measure(&mut self, client: &Client, board: &Board, count: usize) -> Result<()> {
        let begun = Instant::now();
        settled(client, count).await?;
        self.settled_ms.push(milliseconds(begun.elapsed()));
        tokio::time::sleep(SETTLED).await;
        for reading in board.look().into_values() {
            let pause_ms = milliseconds(reading.longest);
            if reading.changed_hands {
                self.moved += 1;
                self.moved_pauses_ms.push(pause_ms);
            } else {
                self.unmoved_pauses_ms.push(pause_ms);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, settled_ms, moved, unmoved_pauses_ms, moved_pauses_ms } = self;
        write!(out, "{what}: settled in {}", spread(settled_ms))?;
        write!(out, "; pause of partitions that stayed {}", spread(unmoved_pauses_ms))?;
        write!(out, "; {moved} moved, pause {}", spread(moved_pauses_ms))
    }
}

fn spread(sorted: &[f64]) -> String {
    let Some(max) = sorted.last() else { return "-".to_owned() };
    let (median, p99) = (percentile(sorted, 50), percentile(sorted, 99));
    format!("median {median:.0} ms, p99 {p99:.0} ms, max {max:.0} ms")
}

/// The nearest rank. There is at least one.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Groups that do nothing but commit, each waiting for one commit before the next.
async fn commits(arguments: &Arguments, address: &[String]) -> Result<Commits> {
    let client = connect(address).await?;
    let topic_id = client.admin().describe_topic(TOPIC).await?.topic.id;
    let until = Instant::now() + Duration::from_secs(arguments.commit_seconds);
    let count = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for number in 0..arguments.committers {
        let (client, count) = (connect(address).await?, Arc::clone(&count));
        tasks.push(spawn(async move {
            let group = format!("committer-{number}");
            let admin = client.admin().with_timeout(PATIENCE);
            let mut latencies = Histogram::<u64>::new(3)?;
            let mut offset = 0;
            while Instant::now() < until {
                offset += 1;
                let one = OffsetToCommit {
                    partition: TopicPartition { topic_id, partition: 0 },
                    offset,
                    leader_epoch: None,
                    metadata: String::new(),
                };
                let begun = Instant::now();
                let outcomes = admin.commit_offsets(&group, vec![one]).await?;
                ensure!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
                latencies.record(u64::try_from(begun.elapsed().as_micros())?)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(latencies)
        }));
    }
    let mut all = Histogram::<u64>::new(3)?;
    for task in tasks {
        all.add(task.await??)?;
    }
    let at = |quantile: f64| milliseconds(Duration::from_micros(all.value_at_quantile(quantile)));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_minute = count.load(Ordering::Relaxed) as f64 * 60.0 / arguments.commit_seconds as f64;
    Ok(Commits {
        per_minute,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: at(1.0),
    })
}

#[expect(clippy::disallowed_methods, reason = "a program of its own, which ends with its tasks")]
fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

//! A pipeline that reads, processes and writes, exactly once: three brokers, a group of workers in processes of their own, and
//! everything of it killed, stopped and replaced at random. In the end input and output are compared record by record.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tidemark_client::{
    Client, ClientConfig, ConsumerConfig, Isolation, NewTopic, Position, ProducerConfig,
    ProducerRecord,
};
use tidemark_protocol::{Offset, PartitionIndex, messages::CoordinatorKind};
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, PATIENCE},
    effort,
    random::Random,
};
use tokio::time::sleep;

use super::{
    fleet::{Fleet, Task},
    rig::{read_all, runtime},
};

/// Faults in the ordinary run; `TIDEMARK_TEST_KILLS` asks for more.
const FAULTS: u64 = 6;
const PARTITIONS: u32 = 4;
const WORKERS: usize = 3;
const GROUP: &str = "copy";
/// How long whoever is stopped stands still: longer than sessions and transactions last.
const STOPPED_MS: (u64, u64) = (500, 6_000);
/// Between two records of the source.
const WRITE_PAUSE: Duration = Duration::from_millis(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillBroker,
    KillCoordinatorOfTransactions,
    KillCoordinatorOfGroup,
    StopBroker,
    KillWorker,
    StopWorker,
    ReplaceWorker,
}

/// Every kind, in the order in which the first faults come; then they come at random.
const KINDS: [Fault; 7] = [
    Fault::KillWorker,
    Fault::KillCoordinatorOfTransactions,
    Fault::ReplaceWorker,
    Fault::KillCoordinatorOfGroup,
    Fault::StopWorker,
    Fault::StopBroker,
    Fault::KillBroker,
];

#[test]
fn read_process_write_is_exactly_once_whoever_is_killed() -> Result<()> {
    let (faults, seed) = (effort::kills(FAULTS)?, effort::seed(1)?);
    // Broken on purpose, by whoever wants to see this test fail.
    let offsets_apart = std::env::var_os("TIDEMARK_TEST_OFFSETS_APART").is_some();
    let config = ClusterConfig::nodes(3).flag("group-session-timeout", "2s");
    cluster::with(config.flag("group-heartbeat-interval", "500ms"), |cluster| {
        for topic in ["source", "target"] {
            let topic = NewTopic::new(topic).partitions(PARTITIONS).replication_factor(3);
            cluster.create_topic(topic)?;
        }
        let began = Instant::now();
        let brokers = cluster.bootstrap().join(",");
        let task = Task { brokers, from: "source", to: "target", group: GROUP, offsets_apart };
        let mut random = Random::new(seed);
        let mut fleet = Fleet::start(task, WORKERS, random.fork())?;
        let is_over = Arc::<AtomicBool>::default();
        let writer = run("writer", write_source(cluster.client_config(), is_over.clone()))?;
        let watching = Arc::<AtomicBool>::default();
        let watcher = run("watcher", watch(cluster.client_config(), watching.clone()))?;
        let done = mistreat(cluster, &mut fleet, faults, &mut random);
        is_over.store(true, Ordering::Release);
        let healed = cluster.heal();
        joined(writer)?;
        let done = done.with_context(|| errors(&fleet)).with_context(|| format!("seed {seed}"))?;
        healed?;
        let source = read(cluster, "source", Isolation::ReadCommitted)?;
        await_copied(cluster, &source).with_context(|| errors(&fleet))?;
        let said = fleet.finish()?;
        watching.store(true, Ordering::Release);
        let watched = joined(watcher)?;
        let target = read(cluster, "target", Isolation::ReadCommitted)?;
        let everything = read(cluster, "target", Isolation::ReadUncommitted)?;
        let figures = Figures {
            faults: done,
            took: began.elapsed(),
            records: count(&source),
            uncommitted: count(&everything) - count(&target),
            commits: said.commits.load(Ordering::Acquire),
            aborts: said.aborts.load(Ordering::Acquire),
            fenced: said.fenced.load(Ordering::Acquire),
            errors: said.errors.lock().map(|it| it.len()).unwrap_or_default(),
        };
        tell(&figures);
        compare(&source, &target).with_context(|| format!("seed {seed}"))?;
        for (partition, seen) in watched {
            let values = &target[&partition];
            ensure!(
                seen.len() <= values.len() && seen.iter().zip(values).all(|(a, b)| a == b),
                "seed {seed}: of partition {partition} something else was read meanwhile than afterwards"
            );
        }
        Ok(())
    })
}

type Values = BTreeMap<PartitionIndex, Vec<String>>;

fn count(values: &Values) -> usize {
    values.values().map(Vec::len).sum()
}

/// What a run came to.
#[derive(Debug)]
struct Figures {
    faults: BTreeMap<Fault, u64>,
    took: Duration,
    records: usize,
    /// Records in the target that count for nobody.
    uncommitted: usize,
    commits: u64,
    aborts: u64,
    fenced: u64,
    errors: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, times) in &self.faults {
            writeln!(out, "{fault:?}: {times}")?;
        }
        writeln!(
            out,
            "{} records in the source; {} records of aborted transactions in the target",
            self.records, self.uncommitted
        )?;
        writeln!(
            out,
            "transactions: {} committed, {} aborted on purpose; workers: {} fenced, {} begun anew after an error",
            self.commits, self.aborts, self.fenced, self.errors
        )?;
        write!(out, "{} seconds", self.took.as_secs())
    }
}

#[expect(clippy::print_stdout, reason = "for whoever asks with --nocapture")]
fn tell(figures: &Figures) {
    println!("{figures}");
}

fn errors(fleet: &Fleet) -> String {
    let errors = fleet.said().errors.lock().map(|errors| errors.clone()).unwrap_or_default();
    let last = errors.iter().rev().take(10).cloned().collect::<Vec<_>>();
    format!("the last errors of workers: {last:#?}")
}

/// Runs on a thread of its own.
fn run<T: Send + 'static>(
    name: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let runtime = runtime()?;
    let thread = thread::Builder::new().name(name.to_owned());
    Ok(thread.spawn(move || runtime.block_on(work))?)
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_panic| anyhow!("a thread has panicked"))?
}

/// One fault after the other, with commits during and after each.
fn mistreat(
    cluster: &mut Cluster,
    fleet: &mut Fleet,
    faults: u64,
    random: &mut Random,
) -> Result<BTreeMap<Fault, u64>> {
    let mut done = BTreeMap::new();
    fleet.await_commits(5)?;
    for number in 0..faults {
        let first = usize::try_from(number).ok().and_then(|number| KINDS.get(number));
        let fault = *first.unwrap_or_else(|| random.pick(&KINDS));
        inflict(fault, cluster, fleet, random)
            .with_context(|| format!("fault {number}, {fault:?}"))?;
        cluster.check_processes()?;
        *done.entry(fault).or_default() += 1;
    }
    Ok(done)
}

fn inflict(
    fault: Fault,
    cluster: &mut Cluster,
    fleet: &mut Fleet,
    random: &mut Random,
) -> Result<()> {
    let place = usize::try_from(random.between(0, fleet.len() as u64))?;
    let time = Duration::from_millis(random.between(STOPPED_MS.0, STOPPED_MS.1));
    let any = *random.pick(&cluster.ids());
    match fault {
        Fault::KillWorker => fleet.kill(place)?,
        Fault::StopWorker => fleet.pause(place, time)?,
        Fault::ReplaceWorker => fleet.replace(place)?,
        Fault::StopBroker => {
            cluster.pause(any)?;
            thread::sleep(time);
            fleet.await_commits(5).context("while a broker stands still")?;
        }
        Fault::KillBroker => kill(cluster, fleet, any)?,
        Fault::KillCoordinatorOfGroup => {
            let found = cluster.await_coordinator(CoordinatorKind::Group, GROUP)?;
            kill(cluster, fleet, found.broker)?;
        }
        Fault::KillCoordinatorOfTransactions => {
            let id = Fleet::transactional_id(place);
            let found = cluster.await_coordinator(CoordinatorKind::Transaction, &id)?;
            kill(cluster, fleet, found.broker)?;
        }
    }
    cluster.heal()?;
    fleet.await_commits(5).context("afterwards")?;
    for topic in ["source", "target", "__groups", "__transactions"] {
        cluster.await_in_sync(topic)?;
    }
    Ok(())
}

fn kill(cluster: &mut Cluster, fleet: &Fleet, id: u32) -> Result<()> {
    cluster.kill(id)?;
    fleet.await_commits(5).with_context(|| format!("while node {id} is gone"))
}

async fn connect(settings: &ClientConfig) -> Client {
    loop {
        match Client::connect(settings.clone()).await {
            Ok(client) => return client,
            Err(_nobody_there) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn write_source(settings: ClientConfig, is_over: Arc<AtomicBool>) -> Result<()> {
    let client = connect(&settings).await;
    let producer = client.producer(ProducerConfig::default());
    for number in 0_u32.. {
        if is_over.load(Ordering::Acquire) {
            break;
        }
        let record = ProducerRecord::to("source").partition(number % PARTITIONS);
        drop(producer.send(record.value(number.to_string())).await?);
        sleep(WRITE_PAUSE).await;
    }
    Ok(producer.close().await?)
}

/// Reads what is committed of the target all the time, as somebody does who acts on it.
async fn watch(settings: ClientConfig, is_over: Arc<AtomicBool>) -> Result<Values> {
    let client = connect(&settings).await;
    let isolated =
        ConsumerConfig { isolation: Isolation::ReadCommitted, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(isolated);
    consumer.assign_topic("target", Position::Earliest).await?;
    let mut seen = Values::new();
    while !is_over.load(Ordering::Acquire) {
        for record in consumer.poll(Duration::from_millis(200)).await? {
            let value = record.value.context("a value")?;
            seen.entry(record.partition).or_default().push(String::from_utf8(value.to_vec())?);
        }
    }
    Ok(seen)
}

fn read(cluster: &Cluster, topic: &str, isolation: Isolation) -> Result<Values> {
    runtime()?.block_on(async {
        let client = Client::connect(cluster.client_config()).await?;
        read_all(&client, topic, isolation).await
    })
}

/// Waits until the group has committed everything that is in the source.
fn await_copied(cluster: &Cluster, source: &Values) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let runtime = runtime()?;
    runtime.block_on(async {
        let client = Client::connect(cluster.client_config()).await?;
        let admin = client.admin();
        let mut ends: BTreeMap<PartitionIndex, Offset> = BTreeMap::new();
        for (partition, values) in source {
            // Nothing but records is in the source: offsets are counts.
            ends.insert(*partition, values.len() as Offset);
        }
        loop {
            let mut committed = BTreeMap::new();
            for found in admin.fetch_offsets(GROUP, None).await? {
                if let Ok(Some(offset)) = found.outcome {
                    committed.insert(found.partition.partition, offset.offset);
                }
            }
            if ends == committed {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "of {ends:?} only {committed:?} is committed");
            sleep(Duration::from_millis(100)).await;
        }
    })
}

/// Record by record: what the target has is what the source has.
fn compare(source: &Values, target: &Values) -> Result<()> {
    ensure!(count(source) > 0, "nothing was written");
    for partition in 0..PARTITIONS {
        let none = Vec::new();
        let wanted = source.get(&partition).unwrap_or(&none);
        let found = target.get(&partition).unwrap_or(&none);
        let differs = wanted.iter().zip(found).position(|(a, b)| a != b);
        if differs.is_some() || wanted.len() != found.len() {
            let at = differs.unwrap_or(wanted.len().min(found.len()));
            let around = |all: &[String]| {
                all.iter().skip(at.saturating_sub(2)).take(6).cloned().collect::<Vec<_>>()
            };
            bail!(
                "partition {partition}, record {at} of {} and {}: {:?} in the source, {:?} in the target",
                wanted.len(),
                found.len(),
                around(wanted),
                around(found)
            );
        }
    }
    Ok(())
}

//! Transactions over real brokers: all or nothing, once, whoever is killed in the middle.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tidemark_client::{
    Client, ClientConfig, ConsumerConfig, ErrorCode, Isolation, NewTopic, Position, ProducerConfig,
    ProducerRecord, TransactionError, TransactionalConfig, TransactionalProducer,
};
use tidemark_protocol::{PartitionIndex, TopicPartition};
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, PATIENCE},
    effort,
    random::Random,
};
use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

/// Kills in the ordinary run; `TIDEMARK_TEST_KILLS` asks for more.
const KILLS: u64 = 3;
const PARTITIONS: u32 = 3;
const GROUP: &str = "copy";
/// Between an error and the next try.
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// How long a poll for what is left waits before it counts as the end.
const QUIET: Duration = Duration::from_secs(2);

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn replicated(name: &str) -> NewTopic {
    NewTopic::new(name).partitions(PARTITIONS).replication_factor(3)
}

fn config(id: &str) -> TransactionalConfig {
    TransactionalConfig { timeout: PATIENCE, ..TransactionalConfig::new(id) }
}

/// Everything that can be read of a topic, by partition, until nothing has come for a while.
async fn read_all(
    client: &Client,
    topic: &str,
    isolation: Isolation,
) -> Result<BTreeMap<PartitionIndex, Vec<String>>> {
    let config = ConsumerConfig { isolation, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    consumer.assign_topic(topic, Position::Earliest).await?;
    let mut read: BTreeMap<PartitionIndex, Vec<String>> = BTreeMap::new();
    loop {
        let records = consumer.poll(QUIET).await?;
        if records.is_empty() {
            return Ok(read);
        }
        for record in records {
            let value = record.value.context("a value")?;
            read.entry(record.partition).or_default().push(String::from_utf8(value.to_vec())?);
        }
    }
}

async fn flat(client: &Client, topic: &str, isolation: Isolation) -> Result<Vec<String>> {
    Ok(read_all(client, topic, isolation).await?.into_values().flatten().collect())
}

/// Writes a record, and waits until it is there.
async fn send(producer: &mut TransactionalProducer, topic: &str, value: &str) -> Result<()> {
    let record = ProducerRecord::to(topic).partition(0).value(value.to_owned());
    producer.send(record).await?.await?;
    Ok(())
}

#[test]
fn what_is_committed_is_read_and_what_is_aborted_is_not() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut producer = client.transactional_producer(config("one")).await?;
            for (value, commit) in [("a", true), ("b", false), ("c", true), ("d", false)] {
                producer.begin()?;
                send(&mut producer, "t", value).await?;
                send(&mut producer, "t", &format!("{value}{value}")).await?;
                if commit { producer.commit().await? } else { producer.abort().await? }
            }
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["a", "aa", "c", "cc"], "{committed:?}");
            let all = flat(&client, "t", Isolation::ReadUncommitted).await?;
            ensure!(all.len() == 8, "{all:?}");
            // What is open holds back what comes behind it, from whomever.
            producer.begin()?;
            send(&mut producer, "t", "open").await?;
            let other = client.producer(ProducerConfig::default());
            other.send(ProducerRecord::to("t").partition(0).value("behind")).await?.await?;
            producer.send(ProducerRecord::to("t").partition(0).value("open, too")).await?.await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["a", "aa", "c", "cc"], "{committed:?}");
            producer.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed.len() == 7, "{committed:?}");
            producer.close().await;
            Ok(())
        })
    })
}

#[test]
fn of_two_processes_with_one_id_the_first_is_over() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut first = client.transactional_producer(config("one")).await?;
            first.begin()?;
            send(&mut first, "t", "zombie").await?;
            let mut second = client.transactional_producer(config("one")).await?;
            let error = first.commit().await.err().context("it was fenced")?;
            let error = if error.is_fenced() {
                error
            } else {
                first.abort().await.err().context("it was fenced")?
            };
            ensure!(error.is_fenced(), "{error}");
            second.begin()?;
            send(&mut second, "t", "owner").await?;
            second.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["owner"], "{committed:?}");
            Ok(())
        })
    })
}

#[test]
fn a_transaction_that_is_open_for_too_long_is_aborted_and_its_producer_goes_on() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let slow = TransactionalConfig {
                transaction_timeout: Duration::from_millis(500),
                ..config("slow")
            };
            let mut producer = client.transactional_producer(slow).await?;
            producer.begin()?;
            send(&mut producer, "t", "late").await?;
            let other = client.producer(ProducerConfig::default());
            other.send(ProducerRecord::to("t").partition(0).value("next")).await?.await?;
            // It is read as soon as the transaction in front of it is over.
            let isolated =
                ConsumerConfig { isolation: Isolation::ReadCommitted, ..ConsumerConfig::default() };
            let mut consumer = client.consumer(isolated);
            consumer.assign_topic("t", Position::Earliest).await?;
            let records = consumer.poll(PATIENCE).await?;
            let values: Vec<_> = records.iter().filter_map(|it| it.value.as_deref()).collect();
            ensure!(values == [b"next"], "{records:?}");
            let error = producer.commit().await.err().context("it is over")?;
            ensure!(error.code() == Some(ErrorCode::TransactionAborted), "{error}");
            producer.abort().await?;
            producer.begin()?;
            send(&mut producer, "t", "again").await?;
            producer.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["next", "again"], "{committed:?}");
            Ok(())
        })
    })
}

#[test]
fn the_command_line_shows_transactions_and_aborts_one() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        let cli = cluster.cli();
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut producer = client.transactional_producer(config("hanging")).await?;
            producer.begin()?;
            let record = ProducerRecord::to("t").partition(0).value("never");
            producer.send(record).await?.await?;
            let listed = cli.done(&["txn", "list"]);
            let listed = listed.text();
            ensure!(listed.contains("hanging") && listed.contains("ongoing"), "{listed}");
            let described = cli.done(&["txn", "describe", "hanging"]);
            ensure!(described.text().contains("t/0"), "{}", described.text());
            cli.done(&["txn", "abort", "hanging", "--yes"]);
            let error = producer.commit().await.err().context("it was aborted")?;
            ensure!(error.code() == Some(ErrorCode::TransactionAborted), "{error}");
            producer.abort().await?;
            let consumed = cli.done(&["consume", "t", "-e", "--read-committed"]);
            ensure!(consumed.bytes().is_empty(), "{}", consumed.text());
            let consumed = cli.done(&["consume", "t", "-e"]);
            ensure!(consumed.text() == "never\n", "{}", consumed.text());
            Ok(())
        })
    })
}

/// What the workers share with the test.
#[derive(Debug, Default)]
struct Progress {
    /// Transactions that were committed.
    commits: AtomicU64,
    /// Workers that gave up in the middle, without a word.
    crashes: AtomicU64,
    /// Nothing more is written into the source.
    is_complete: AtomicBool,
}

#[test]
fn read_process_write_is_exactly_once_while_brokers_and_workers_are_killed() -> Result<()> {
    let kills = effort::kills(KILLS)?;
    let seed = effort::seed(1)?;
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        cluster.create_topic(replicated("source"))?;
        cluster.create_topic(replicated("target"))?;
        let progress = Arc::<Progress>::default();
        let (settings, seen) = (cluster.client_config(), Arc::clone(&progress));
        let runtime = runtime()?;
        let working = thread::Builder::new()
            .name("workers".to_owned())
            .spawn(move || runtime.block_on(work(settings, seen, seed)))?;
        let outcome = mistreat(cluster, &progress, kills, seed);
        cluster.heal()?;
        progress.is_complete.store(true, Ordering::Release);
        working.join().map_err(|_panic| anyhow!("the workers panicked"))?.context("workers")?;
        outcome?;
        compare(cluster).with_context(|| format!("seed {seed}"))?;
        let crashes = progress.crashes.load(Ordering::Acquire);
        ensure!(crashes > 0, "no worker was lost in the middle of a transaction");
        Ok(())
    })
}

/// Kills one broker after the other, and waits for commits in between.
fn mistreat(cluster: &mut Cluster, progress: &Progress, kills: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    await_commits(progress, 5)?;
    for kill in 0..kills {
        let ids = cluster.ids();
        let id = *random.pick(&ids);
        cluster.kill(id)?;
        await_commits(progress, 5).with_context(|| format!("kill {kill} of node {id}"))?;
        cluster.heal()?;
        await_commits(progress, 5).with_context(|| format!("after kill {kill} of node {id}"))?;
        for topic in ["source", "target", "__groups", "__transactions"] {
            cluster.await_in_sync(topic)?;
        }
    }
    Ok(())
}

fn await_commits(progress: &Progress, count: u64) -> Result<()> {
    let wanted = progress.commits.load(Ordering::Acquire) + count;
    let deadline = std::time::Instant::now() + PATIENCE;
    while progress.commits.load(Ordering::Acquire) < wanted {
        ensure!(std::time::Instant::now() < deadline, "nothing is committed any more");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Writes into the source and copies it, until it is complete and everything is copied.
async fn work(settings: ClientConfig, progress: Arc<Progress>, seed: u64) -> Result<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(write_source(settings.clone(), Arc::clone(&progress)));
    for worker in 0..2 {
        let (settings, progress) = (settings.clone(), Arc::clone(&progress));
        tasks.spawn(copy_all(settings, progress, worker, Random::new(seed + u64::from(worker))));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn connect(settings: &ClientConfig) -> Client {
    loop {
        match Client::connect(settings.clone()).await {
            Ok(client) => return client,
            Err(_nobody_there) => sleep(AFTER_ERROR).await,
        }
    }
}

async fn write_source(settings: ClientConfig, progress: Arc<Progress>) -> Result<()> {
    let client = connect(&settings).await;
    let producer = client.producer(ProducerConfig::default());
    for number in 0_u32.. {
        if progress.is_complete.load(Ordering::Acquire) {
            break;
        }
        let record = ProducerRecord::to("source").partition(number % PARTITIONS);
        drop(producer.send(record.value(number.to_string())).await?);
        sleep(Duration::from_millis(4)).await;
    }
    Ok(producer.close().await?)
}

/// One worker through all its lives.
async fn copy_all(
    settings: ClientConfig,
    progress: Arc<Progress>,
    worker: u32,
    mut random: Random,
) -> Result<()> {
    loop {
        match copy(&settings, &progress, worker, &mut random).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                tell(worker, &error);
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "for whoever asks with --nocapture")]
fn tell(worker: u32, error: &anyhow::Error) {
    println!("worker {worker} begins anew: {error:#}");
}

/// One life of a worker: `true` when everything is copied, `false` when it was lost in the middle.
async fn copy(
    settings: &ClientConfig,
    progress: &Progress,
    worker: u32,
    random: &mut Random,
) -> Result<bool> {
    let client = Client::connect(settings.clone()).await?;
    let mine: Vec<_> = (0..PARTITIONS).filter(|partition| partition % 2 == worker).collect();
    // First of all: from here on nobody else commits offsets under this id.
    let mut producer = client.transactional_producer(config(&format!("worker-{worker}"))).await?;
    let positions = positions(&client, &mine).await?;
    let isolated =
        ConsumerConfig { isolation: Isolation::ReadCommitted, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(isolated);
    let mut assigned = Vec::new();
    for (partition, offset) in positions {
        let begin = offset.map_or(Position::Earliest, Position::Offset);
        assigned.push(("source", partition, begin));
    }
    consumer.assign(assigned).await?;
    loop {
        let was_complete = progress.is_complete.load(Ordering::Acquire);
        let records = consumer.poll(Duration::from_millis(500)).await?;
        if records.is_empty() {
            if was_complete {
                return Ok(true);
            }
            continue;
        }
        producer.begin()?;
        for record in &records {
            let value = record.value.clone().unwrap_or_default();
            let copy = ProducerRecord::to("target").partition(record.partition).value(value);
            drop(producer.send(copy).await?);
        }
        if random.one_in(8) {
            // As if the process was killed: what it has sent may be there, and must not count.
            progress.crashes.fetch_add(1, Ordering::AcqRel);
            return Ok(false);
        }
        let mut offsets = Vec::new();
        for partition in &mine {
            if let Some(position) = consumer.position("source", *partition) {
                offsets.push(("source", *partition, position));
            }
        }
        producer.send_offsets(GROUP, None, offsets).await?;
        if random.one_in(16) {
            producer.abort().await?;
            return Ok(false);
        }
        commit(&mut producer).await?;
        progress.commits.fetch_add(1, Ordering::AcqRel);
    }
}

/// Commits, asking again as long as nobody knows.
async fn commit(producer: &mut TransactionalProducer) -> Result<(), TransactionError> {
    loop {
        match producer.commit().await {
            Err(error) if error.is_indeterminate() => sleep(AFTER_ERROR).await,
            ended => return ended,
        }
    }
}

async fn positions(
    client: &Client,
    mine: &[PartitionIndex],
) -> Result<Vec<(PartitionIndex, Option<u64>)>> {
    let admin = client.admin();
    let metadata = admin.metadata(Some(vec!["source".to_owned()])).await?;
    let topic_id = metadata.topics.first().context("the source is there")?.id;
    let wanted = mine.iter().map(|partition| TopicPartition { topic_id, partition: *partition });
    let fetched = admin.fetch_offsets(GROUP, Some(wanted.collect())).await;
    let fetched = match fetched {
        Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => Vec::new(),
        fetched => fetched?,
    };
    let mut positions = Vec::new();
    for partition in mine {
        let found = fetched.iter().find(|it| it.partition.partition == *partition);
        let offset = match found {
            None => None,
            Some(found) => {
                let offset = found.outcome.clone();
                let offset =
                    offset.map_err(|failure| anyhow!("offset of {partition}: {failure}"))?;
                offset.map(|committed| committed.offset)
            }
        };
        positions.push((*partition, offset));
    }
    Ok(positions)
}

/// Record by record: what the target has is what the source has.
fn compare(cluster: &Cluster) -> Result<()> {
    runtime()?.block_on(async {
        let client = Client::connect(cluster.client_config()).await?;
        let source = read_all(&client, "source", Isolation::ReadCommitted).await?;
        let target = read_all(&client, "target", Isolation::ReadCommitted).await?;
        let count: usize = source.values().map(Vec::len).sum();
        ensure!(count > 0, "nothing was written");
        for partition in 0..PARTITIONS {
            let (none, wanted) = (Vec::new(), source.get(&partition));
            let (wanted, found) =
                (wanted.unwrap_or(&none), target.get(&partition).unwrap_or(&none));
            let differs = wanted.iter().zip(found).position(|(a, b)| a != b);
            if differs.is_some() || wanted.len() != found.len() {
                let at = differs.unwrap_or(wanted.len().min(found.len()));
                let around = |all: &[String]| {
                    let around = all.iter().skip(at.saturating_sub(2)).take(6);
                    around.cloned().collect::<Vec<_>>()
                };
                bail!(
                    "partition {partition}, record {at} of {} and {}: {:?} in the source, {:?} in the target",
                    wanted.len(), found.len(), around(wanted), around(found)
                );
            }
        }
        Ok(())
    })
}

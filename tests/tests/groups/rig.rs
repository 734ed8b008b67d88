//! What the tests of groups share: a cluster with short sessions, a topic with records, and members in tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tidemark_client::{
    Client, ClientConfig, ConsumedRecord, GroupConfig, GroupConsumer, NewTopic, ProducerConfig,
    ProducerRecord, Rebalance,
};
use tidemark_protocol::{Offset, PartitionIndex};
use tidemark_tests::{
    checker::{self, Kind},
    cluster::{Cluster, ClusterConfig, PATIENCE},
    history::{Action, History, Member, Outcome, Partition, Poll, Read},
};
use tokio::{sync::watch, task::JoinHandle};

/// A member that is not heard of for this long is put out.
pub(crate) const SESSION: &str = "2s";
/// How long one poll waits.
const POLL_WAIT: Duration = Duration::from_millis(200);

/// So many nodes, whose groups notice soon that a member is gone.
pub(crate) fn config(nodes: u32) -> ClusterConfig {
    let config = ClusterConfig::nodes(nodes).flag("group-session-timeout", SESSION);
    config.flag("group-heartbeat-interval", "500ms")
}

/// Runs on a runtime with threads, as programs do.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

pub(crate) async fn client(cluster: &Cluster) -> Result<Client> {
    Ok(Client::connect(ClientConfig { client_id: "worker".to_owned(), ..cluster.client_config() })
        .await?)
}

pub(crate) async fn create(client: &Client, topic: &str, partitions: u32) -> Result<()> {
    let admin = client.admin().with_timeout(PATIENCE);
    admin.create_topic(NewTopic::new(topic).partitions(partitions)).await?;
    Ok(())
}

/// Writes `count` records, spread over the partitions; says how many each got.
pub(crate) async fn produce(
    client: &Client,
    topic: &str,
    partitions: u32,
    count: u32,
) -> Result<BTreeMap<PartitionIndex, u64>> {
    let producer = client.producer(ProducerConfig::default());
    let mut deliveries = Vec::new();
    let mut counts = BTreeMap::new();
    for number in 0..count {
        let partition = number % partitions;
        let record = ProducerRecord::to(topic).partition(partition).value(number.to_string());
        deliveries.push(producer.send(record).await?);
        *counts.entry(partition).or_default() += 1;
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(counts)
}

/// What a member was handed, and what became of its partitions, as far as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) assigned: BTreeSet<PartitionIndex>,
    pub(crate) rebalances: Vec<Rebalance>,
    pub(crate) records: Vec<(PartitionIndex, Offset)>,
    /// The same, a poll each, with who the member was to the group.
    polls: Vec<Poll>,
    pub(crate) failure: Option<String>,
}

/// A member that polls in a task.
pub(crate) struct Worker {
    seen: watch::Receiver<Seen>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

pub(crate) fn group(name: &str, topic: &str) -> GroupConfig {
    let mut config = GroupConfig::new(name).topic(topic);
    config.auto_commit = Some(Duration::from_millis(100));
    config
}

impl Worker {
    pub(crate) fn start(client: &Client, config: GroupConfig) -> Self {
        let (seen_in, seen) = watch::channel(Seen::default());
        let (stop, stopped) = watch::channel(false);
        let rebalances: Arc<Mutex<Vec<Rebalance>>> = Arc::default();
        let group = config.group.as_str().into();
        let told = Arc::clone(&rebalances);
        let member = client.group_consumer(config).on_rebalance(move |rebalance| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push(rebalance.clone());
        });
        let task = spawn(work((group, member), seen_in, stopped, rebalances));
        Self { seen, stop, task }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until what it has seen is as wanted.
    pub(crate) async fn await_seen(
        &self,
        what: &str,
        mut wanted: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen> {
        let mut seen = self.seen.clone();
        let waited = seen.wait_for(|seen| wanted(seen));
        match tokio::time::timeout(PATIENCE, waited).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            _ => anyhow::bail!("{what}: not so after {PATIENCE:?}: {:?}", self.seen()),
        }
    }

    pub(crate) async fn await_assigned(&self, count: usize) -> Result<Seen> {
        let what = format!("{count} partitions are assigned");
        self.await_seen(&what, |seen| seen.assigned.len() == count).await
    }

    /// Leaves in order.
    pub(crate) async fn close(self) -> Result<()> {
        self.stop.send_replace(true);
        self.task.await?
    }

    /// Stops without a word, as a process that is killed.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

async fn work(
    (group, mut member): (Arc<str>, GroupConsumer),
    seen: watch::Sender<Seen>,
    stopped: watch::Receiver<bool>,
    rebalances: Arc<Mutex<Vec<Rebalance>>>,
) -> Result<()> {
    while !*stopped.borrow() {
        let polled = member.poll(POLL_WAIT).await;
        let identity = member.member();
        let assigned = member.assignment().into_iter().map(|(_, partition)| partition).collect();
        let told = rebalances.lock().unwrap_or_else(PoisonError::into_inner).clone();
        seen.send_modify(|seen| {
            seen.assigned = assigned;
            seen.rebalances = told;
            match &polled {
                Ok(records) => {
                    let places = records.iter().map(|record| (record.partition, record.offset));
                    seen.records.extend(places);
                    let generation = u64::try_from(identity.epoch).unwrap_or(0);
                    let (group, id) = (Arc::clone(&group), identity.member.as_str().into());
                    seen.polls.push(poll(records, Member { group, generation, id }));
                }
                Err(error) => seen.failure = Some(error.to_string()),
            }
        });
    }
    Ok(member.close().await?)
}

/// What a poll returned, as the checker takes it.
fn poll(records: &[ConsumedRecord], member: Member) -> Poll {
    let mut by_partition: BTreeMap<Partition, Vec<Read>> = BTreeMap::new();
    for record in records {
        let read = Read { offset: record.offset, value: 0, epoch: record.leader_epoch };
        let partition = Partition::new(record.topic.clone(), record.partition);
        by_partition.entry(partition).or_default().push(read);
    }
    Poll { records: by_partition.into_iter().collect(), member: Some(member), ..Poll::default() }
}

/// Fails if two of them were handed records of a partition in one epoch.
fn judge(workers: &[&Worker]) -> Result<()> {
    let mut history = History::default();
    for (process, worker) in (0..).zip(workers) {
        for poll in worker.seen().polls {
            let operation = history.invoke(process, 0, Action::Poll(poll));
            history.complete(operation, 0, Outcome::Ok);
        }
    }
    let report = checker::check(&history);
    ensure!(report.count(Kind::DoubleDelivery) == 0, "{report}");
    Ok(())
}

/// Waits until the workers together have seen every record, none of which two of them had in one epoch; fails if anything is
/// missing after that.
pub(crate) async fn await_all(
    workers: &[&Worker],
    wanted: &BTreeMap<PartitionIndex, u64>,
) -> Result<()> {
    let total: usize =
        wanted.values().map(|count| usize::try_from(*count).unwrap_or(usize::MAX)).sum();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all: BTreeSet<_> = workers.iter().flat_map(|worker| worker.seen().records).collect();
        if all.len() >= total {
            return judge(workers);
        }
        ensure!(Instant::now() < deadline, "{} of {total} records were read", all.len());
        let mut changes: Vec<_> = workers.iter().map(|worker| worker.seen.clone()).collect();
        let changed =
            changes.iter_mut().map(|seen| Box::pin(async move { drop(seen.changed().await) }));
        let any = futures(changed.collect());
        // An error: nothing has changed for a while, which the deadline judges.
        drop(tokio::time::timeout(Duration::from_secs(1), any).await);
    }
}

/// Completes when the first of these does.
async fn futures(mut all: Vec<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
    std::future::poll_fn(|context| {
        let is_ready = all.iter_mut().any(|one| one.as_mut().poll(context).is_ready());
        if is_ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[expect(clippy::disallowed_methods, reason = "a test ends with its tasks")]
fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

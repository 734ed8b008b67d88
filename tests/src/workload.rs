//! Clients at work while a cluster is mistreated: producers of unique values, consumers of everything, and what they saw.
//!
//! They use the client library as an application would, on a thread of their own, and write down a [`History`]. They refuse
//! to judge it; see [`verdict`].

mod consuming;
mod producing;
mod recorder;
pub mod replicas;
pub mod verdict;

use std::{
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tidemark_client::{Client, ClientConfig, Transport};
use tidemark_protocol::PartitionIndex;
use tokio::{runtime::Runtime, sync::watch, task::JoinSet};

pub use self::recorder::Recorder;
use crate::history::{History, ProcessId, Repeats};

/// Between an error and the next try.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Who is at work, on one topic that exists already.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    pub topic: String,
    pub partitions: u32,
    /// Producers as they are by default: they send again whatever is not answered, and nothing is written twice.
    pub numbered_producers: u32,
    /// Producers without idempotence that leave a record alone when its outcome is unknown.
    pub careful_producers: u32,
    /// Producers without idempotence that send it again, and may write it twice.
    pub blind_producers: u32,
    /// Consumers of all partitions from their starts; every second one fetches instead of being pushed to.
    pub consumers: u32,
    /// Of each producer, over all partitions.
    pub records_per_second: u32,
    pub record_bytes: usize,
    /// Sends of each producer without an outcome, at most.
    pub window: usize,
    /// After this long a producer gives up on a record.
    pub delivery_timeout: Duration,
}

impl WorkloadConfig {
    pub fn new(topic: &str, partitions: u32) -> Self {
        Self {
            topic: topic.to_owned(),
            partitions,
            numbered_producers: 2,
            careful_producers: 1,
            blind_producers: 1,
            consumers: 2,
            records_per_second: 200,
            record_bytes: 200,
            window: 200,
            delivery_timeout: Duration::from_secs(15),
        }
    }
}

/// What the clients are to do; they look whenever they are between two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Working,
    /// Producers send nothing new and wait for outcomes.
    Draining,
    /// Consumers end, too.
    Over,
}

/// Clients at work.
#[derive(Debug)]
pub struct Workload {
    config: WorkloadConfig,
    recorder: Recorder,
    phase: watch::Sender<Phase>,
    drained: watch::Receiver<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Workload {
    /// Sets the clients to work. The thread that calls must be one that reaches the cluster, see
    /// [`crate::network::Network`].
    pub fn start(client: ClientConfig, config: WorkloadConfig) -> Result<Self> {
        let recorder = Recorder::new(&config.topic);
        let (phase, follow) = watch::channel(Phase::Working);
        let (tell_drained, drained) = watch::channel(false);
        let clients = run(client, config.clone(), recorder.clone(), follow, tell_drained);
        let runtime = runtime()?;
        let thread = thread::Builder::new().name("workload".to_owned());
        let thread = Some(thread.spawn(move || runtime.block_on(clients))?);
        Ok(Self { config, recorder, phase, drained, thread })
    }

    /// Waits until every partition has acknowledged something that was sent after this call began.
    pub fn await_progress(&self, patience: Duration) -> Result<Duration> {
        let partitions = 0..self.config.partitions;
        self.recorder.await_progress(partitions, patience).with_context(|| {
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            if ended { "the clients have stopped" } else { "the clients are at work" }
        })
    }

    /// Ends the work and, once everything is up again, reads everything once more from the start. The history.
    ///
    /// To be called when faults are over and all replicas are in sync.
    pub fn finish(mut self, client: ClientConfig, patience: Duration) -> Result<History> {
        self.phase.send_replace(Phase::Draining);
        // Its end is as good: that of the thread is looked at below.
        runtime()?.block_on(self.drained.wait_for(|drained| *drained)).ok();
        self.recorder.healed();
        let reading = consuming::read_all(client, &self.config, &self.recorder, patience);
        let read = runtime()?.block_on(reading);
        self.phase.send_replace(Phase::Over);
        let thread = self.thread.take().expect("finished once");
        thread.join().map_err(|_panic| anyhow!("the workload panicked"))??;
        read.context("the final read")?;
        Ok(self.recorder.history())
    }

    /// Writes down what was done to the system, for whoever reads the history.
    pub fn note(&self, what: impl Into<String>) {
        self.recorder.note(what.into());
    }

    /// The history so far.
    pub fn history(&self) -> History {
        self.recorder.history()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Over);
        if let Some(thread) = self.thread.take() {
            // Whoever drops it without `finish` has an error of their own.
            drop(thread.join());
        }
    }
}

/// Runs all clients until the phase is over. The first failure ends all.
async fn run(
    client: ClientConfig,
    config: WorkloadConfig,
    recorder: Recorder,
    phase: watch::Receiver<Phase>,
    tell_drained: watch::Sender<bool>,
) -> Result<()> {
    let mut producers = JoinSet::new();
    let mut consumers = JoinSet::new();
    let mut processes: std::ops::RangeFrom<ProcessId> = 1..;
    let mut next = || processes.next().expect("fewer than 4 billion");
    for (repeats, count) in [
        (Repeats::Numbered, config.numbered_producers),
        (Repeats::Never, config.careful_producers),
        (Repeats::Blindly, config.blind_producers),
    ] {
        for _ in 0..count {
            let context = Worker::new(next(), &client, &config, &recorder, &phase);
            producers.spawn(producing::produce(context, repeats));
        }
    }
    for number in 0..config.consumers {
        let transport = if number % 2 == 0 { Transport::Push } else { Transport::Fetch };
        let context = Worker::new(next(), &client, &config, &recorder, &phase);
        consumers.spawn(consuming::consume(context, transport));
    }
    let context = Worker::new(next(), &client, &config, &recorder, &phase);
    consumers.spawn(consuming::watch_ends(context));
    while let Some(ended) = producers.join_next().await {
        ended??;
    }
    tell_drained.send_replace(true);
    while let Some(ended) = consumers.join_next().await {
        ended??;
    }
    Ok(())
}

/// What every client has.
#[derive(Clone, Debug)]
struct Worker {
    process: ProcessId,
    client: ClientConfig,
    config: WorkloadConfig,
    recorder: Recorder,
    phase: watch::Receiver<Phase>,
}

impl Worker {
    fn new(
        process: ProcessId,
        client: &ClientConfig,
        config: &WorkloadConfig,
        recorder: &Recorder,
        phase: &watch::Receiver<Phase>,
    ) -> Self {
        let (client, config) = (client.clone(), config.clone());
        Self { process, client, config, recorder: recorder.clone(), phase: phase.clone() }
    }

    /// Connects, however long that takes; fails when the work is over first.
    async fn connect(&self) -> Result<Client> {
        loop {
            match Client::connect(self.client.clone()).await {
                Ok(client) => return Ok(client),
                Err(error) if self.is_at_least(Phase::Over) => return Err(error.into()),
                Err(_nobody_there) => tokio::time::sleep(AFTER_ERROR).await,
            }
        }
    }

    fn is_at_least(&self, phase: Phase) -> bool {
        *self.phase.borrow() >= phase
    }

    fn partitions(&self) -> std::ops::Range<PartitionIndex> {
        0..self.config.partitions
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

//! Readers: consumers that follow everything, one that asks where partitions end, and one that reads all at the end.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tidemark_client::{
    Client, ClientConfig, ConsumeError, ConsumedRecord, Consumer, ConsumerConfig, OffsetSpec,
    Position, Transport,
};
use tidemark_protocol::{Offset, PartitionIndex};
use tokio::time::{Instant, sleep, timeout_at};

use super::{AFTER_ERROR, Phase, Recorder, Worker, WorkloadConfig};
use crate::history::{Action, Outcome, Poll, ProcessId, Read};

/// Longest wait of one poll for a record.
const POLL_WAIT: Duration = Duration::from_millis(200);
/// Between two questions for the ends of partitions.
const BETWEEN_ENDS: Duration = Duration::from_millis(250);
/// The process of the final read.
const FINAL_READER: ProcessId = 1_000;

/// Reads everything from the start until the work is over.
pub(super) async fn consume(worker: Worker, transport: Transport) -> Result<()> {
    let client = worker.connect().await?;
    let config = ConsumerConfig { transport, ..ConsumerConfig::default() };
    let reader = Reader::new(worker.process, &worker.config, &worker.recorder);
    let mut consumer = client.consumer(config);
    while !worker.is_at_least(Phase::Over) {
        if consumer.assignment().is_empty() {
            if reader.assign(&mut consumer).await.is_err() {
                sleep(AFTER_ERROR).await;
            }
        } else if !reader.poll(&mut consumer).await? {
            sleep(AFTER_ERROR).await;
        }
    }
    Ok(())
}

/// Asks for the ends of all partitions, again and again, until the work is over.
pub(super) async fn watch_ends(mut worker: Worker) -> Result<()> {
    let client = worker.connect().await?;
    let admin = client.admin();
    let topic = worker.config.topic.clone();
    while !worker.is_at_least(Phase::Over) {
        let questions: Vec<_> =
            worker.partitions().map(|index| (&topic, index, OffsetSpec::Latest)).collect();
        let invoked_ns = worker.recorder.now_ns();
        let answers = admin.list_offsets(&questions).await.unwrap_or_default();
        for (index, answer) in (0..).zip(answers) {
            let (end, outcome) = match answer {
                Ok(answer) => (Some((answer.offset, answer.leader_epoch)), Outcome::Ok),
                Err(_refused) => (None, Outcome::Info),
            };
            let partition = worker.recorder.partition(index);
            let action = Action::ReadEnd { partition, end };
            worker.recorder.did(worker.process, invoked_ns, action, outcome);
        }
        let next = Instant::now() + BETWEEN_ENDS;
        // Ends early with the work.
        timeout_at(next, worker.phase.wait_for(|phase| *phase == Phase::Over)).await.ok();
    }
    Ok(())
}

/// Reads every partition from its start to where it ends now, and fails if it cannot within `patience`.
pub(super) async fn read_all(
    client: ClientConfig,
    config: &WorkloadConfig,
    recorder: &Recorder,
    patience: Duration,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    let client = Client::connect(client).await?;
    let reader = Reader::new(FINAL_READER, config, recorder);
    let mut consumer = client.consumer(ConsumerConfig::default());
    let ends = loop {
        let assigned = match reader.assign(&mut consumer).await {
            Ok(()) => consumer.end_offsets().await,
            Err(error) => Err(error),
        };
        match assigned {
            Ok(ends) => break ends,
            Err(error) if Instant::now() > deadline => return Err(error).context("the ends"),
            Err(_not_yet) => sleep(AFTER_ERROR).await,
        }
    };
    loop {
        let behind: Vec<_> = ends
            .iter()
            .filter(|(topic, index, end)| consumer.position(topic, *index) < Some(*end))
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still to read after {patience:?}: {behind:?}");
        if !reader.poll(&mut consumer).await? {
            sleep(AFTER_ERROR).await;
        }
    }
}

/// Writes down what a consumer does.
struct Reader {
    process: ProcessId,
    topic: String,
    partitions: u32,
    recorder: Recorder,
}

impl Reader {
    fn new(process: ProcessId, config: &WorkloadConfig, recorder: &Recorder) -> Self {
        let (topic, partitions) = (config.topic.clone(), config.partitions);
        Self { process, topic, partitions, recorder: recorder.clone() }
    }

    /// Goes to the start of every partition.
    async fn assign(&self, consumer: &mut Consumer) -> Result<(), ConsumeError> {
        let invoked_ns = self.recorder.now_ns();
        let all = (0..self.partitions).map(|index| (&self.topic, index, Position::Earliest));
        consumer.assign(all).await?;
        let action = Action::Assign(self.positions(consumer));
        self.recorder.did(self.process, invoked_ns, action, Outcome::Ok);
        Ok(())
    }

    fn positions(&self, consumer: &Consumer) -> Vec<(crate::history::Partition, Offset)> {
        let at = |index| {
            let position = consumer.position(&self.topic, index).unwrap_or(0);
            (self.recorder.partition(index), position)
        };
        (0..self.partitions).map(at).collect()
    }

    /// Polls once. False when it should pause before the next; an error when what came cannot be explained by faults.
    async fn poll(&self, consumer: &mut Consumer) -> Result<bool> {
        let invoked_ns = self.recorder.now_ns();
        match consumer.poll(POLL_WAIT).await {
            Ok(records) => {
                let action = Action::Poll(poll_of(&self.recorder, &records)?);
                self.recorder.did(self.process, invoked_ns, action, Outcome::Ok);
                Ok(true)
            }
            Err(ConsumeError::OffsetOutOfRange { partition, offset, .. }) => {
                let partition = self.recorder.partition(partition);
                let action = Action::OutOfRange { partition, position: offset };
                self.recorder.did(self.process, invoked_ns, action, Outcome::Ok);
                // From the start again, as soon as that works.
                Ok(self.assign(consumer).await.is_ok())
            }
            Err(error @ ConsumeError::Corrupt { .. }) => Err(error).context("a damaged batch"),
            Err(_interrupted) => {
                let action = Action::Poll(Poll::default());
                self.recorder.did(self.process, invoked_ns, action, Outcome::Info);
                Ok(false)
            }
        }
    }
}

/// By partition, in the order in which they came.
fn poll_of(recorder: &Recorder, records: &[ConsumedRecord]) -> Result<Poll> {
    let mut by_partition: BTreeMap<PartitionIndex, Vec<Read>> = BTreeMap::new();
    for record in records {
        let bytes = record.value.as_deref().unwrap_or_default();
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let Ok(value) = text.trim().parse() else {
            bail!(
                "{}/{} at {}: not a value: {bytes:?}",
                record.topic,
                record.partition,
                record.offset
            );
        };
        let read = Read { offset: record.offset, value, epoch: record.leader_epoch };
        by_partition.entry(record.partition).or_default().push(read);
    }
    let named = by_partition.into_iter().map(|(index, reads)| (recorder.partition(index), reads));
    Ok(Poll { records: named.collect(), ..Poll::default() })
}

//! A producer: one record after the other at a steady pace, round the partitions, each with a value of its own.

use std::time::Duration;

use anyhow::Result;
use tidemark_client::{
    Acks, Delivery, Durability, ProduceError, Producer, ProducerConfig, ProducerRecord,
};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use super::{Phase, Recorder, Worker};
use crate::history::{OpId, Outcome, Repeats};

/// Sends until told to drain, then waits for the last outcome.
pub(super) async fn produce(mut worker: Worker, repeats: Repeats) -> Result<()> {
    let client = worker.connect().await?;
    let producer = client.producer(ProducerConfig {
        acks: Acks::All,
        durability: Durability::Topic,
        delivery_timeout: worker.config.delivery_timeout,
        request_timeout: worker.client.request_timeout,
        idempotent: repeats == Repeats::Numbered,
        retry_indeterminate: repeats == Repeats::Blindly,
        ..ProducerConfig::default()
    });
    let pause = Duration::from_secs(1) / worker.config.records_per_second.max(1);
    let mut pace = tokio::time::interval(pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut outcomes = JoinSet::new();
    let mut numbers = 0..;
    while !worker.is_at_least(Phase::Draining) {
        tokio::select! {
            _tick = pace.tick(), if outcomes.len() < worker.config.window => {
                let number = numbers.next().expect("without end");
                send(&worker, &producer, number, repeats, &mut outcomes).await;
            }
            Some(ended) = outcomes.join_next() => ended?,
            _changed = worker.phase.changed() => {}
        }
    }
    while let Some(ended) = outcomes.join_next().await {
        ended?;
    }
    // Every outcome has been told already.
    producer.close().await.ok();
    Ok(())
}

async fn send(
    worker: &Worker,
    producer: &Producer,
    number: u64,
    repeats: Repeats,
    outcomes: &mut JoinSet<()>,
) {
    let Worker { process, config, recorder, .. } = worker;
    let value = Recorder::value(*process, number);
    let index = u32::try_from(number % u64::from(config.partitions)).expect("a partition");
    let width = config.record_bytes;
    let record = ProducerRecord::to(config.topic.as_str())
        .partition(index)
        .key(process.to_string())
        .value(format!("{value:>width$}"));
    let op = recorder.sending(*process, index, value, repeats);
    match producer.send(record).await {
        Ok(delivery) => drop(outcomes.spawn(outcome(recorder.clone(), op, delivery))),
        Err(error) => recorder.ended(op, failed(&error)),
    }
}

async fn outcome(recorder: Recorder, op: OpId, delivery: Delivery) {
    match delivery.await {
        Ok(delivered) => {
            let receipt = delivered.receipt.expect("asked for acknowledgements");
            let offset = delivered.offset.expect("asked for acknowledgements");
            recorder.acknowledged(op, (offset, receipt.leader_epoch));
        }
        Err(error) => recorder.ended(op, failed(&error)),
    }
}

fn failed(error: &ProduceError) -> Outcome {
    if error.is_indeterminate() { Outcome::Info } else { Outcome::Fail }
}

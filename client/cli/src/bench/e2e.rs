//! `tidemark bench e2e`: how long a record takes from its producer to a consumer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use tidemark_client::{Client, ConsumedBatch, Consumer, ConsumerConfig, Position};
use tokio::{
    runtime::Handle,
    task::{JoinError, JoinHandle},
};

use super::{
    Bed, Subject, Volume,
    load::{Gauge, Load, Loaded, STAMP_BYTES, StopOnDrop},
    produce,
    report::{self, BenchReport, LoadReport},
};
use crate::{
    consume::{Ends, Slices},
    exit::{CliError, Exit},
    position::{Point, Range},
    progress::Progress,
    session::Session,
};

/// How long the run goes on when neither `--records` nor `--duration` says so.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// The last records are lost when they have not come so long after they were acknowledged.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Measure the way of a record from its producer to a consumer
///
/// One producer and one consumer in this process; the latency counts from when a record was due.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark bench e2e
  tidemark bench e2e --rate 10k --record-bytes 1KiB --duration 30s
  tidemark bench e2e --durability disk --records 50k -o json")]
pub(super) struct E2eArgs {
    #[command(flatten)]
    pub(super) bed: Bed,

    #[command(flatten)]
    volume: Volume,

    /// Records per second
    #[arg(short, long, value_name = "COUNT", default_value = "10k", value_parser = crate::quantity::parse_count)]
    rate: u64,
}

pub(super) async fn measure(
    session: &Session,
    client: &Client,
    args: &E2eArgs,
    subject: &Subject,
) -> Result<BenchReport, CliError> {
    let mut consumer = at_the_end(client, subject).await?;
    let rate = produce::rate_of(args.rate);
    let volume = &args.volume;
    let gauge = Arc::new(Gauge::default());
    let _stop = StopOnDrop(gauge.clone());
    let since = Instant::now();
    let load = Load {
        topic: subject.name.as_str().into(),
        record_bytes: usize::try_from(volume.record_bytes).unwrap_or(usize::MAX),
        records: volume.records,
        duration: volume.duration.or(volume.records.is_none().then_some(DURATION_DEFAULT)),
        rate: Some(rate),
        stamped_since: Some(since),
        gauge,
    };
    let expected = expected_records(&load);
    let producer = client.producer(volume.tuning.producer_config(session));
    let runtime = Handle::current();
    let sending = tokio::task::spawn_blocking(move || load.run(&producer, &runtime));
    let mut receiver = Receiver { since, latency: report::histogram(), records: 0, bytes: 0 };
    receiver.receive_all(&mut consumer, sending, expected).await?;
    let elapsed = since.elapsed();
    Ok(BenchReport::new("e2e", subject, receiver.records, receiver.bytes, elapsed)
        .with_load(LoadReport::new(1, Some(rate), &volume.tuning))
        .with_latency("from due to consumed", &receiver.latency))
}

/// For the progress only.
fn expected_records(load: &Load) -> u64 {
    let by_time =
        load.duration.zip(load.rate).map(|(duration, rate)| duration.as_secs_f64() * rate);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive estimate"
    )]
    let by_time = by_time.map_or(u64::MAX, |records| records as u64);
    load.records.unwrap_or(u64::MAX).min(by_time)
}

/// A consumer that will see what is produced from now on, and nothing else.
async fn at_the_end(client: &Client, subject: &Subject) -> Result<Consumer, CliError> {
    let range = Range { from: Some(Point::End), to: None };
    let names = [subject.name.clone()];
    let slices = Slices::resolve(&client.admin(), &names, &[], range, Ends::Now).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    let open = slices.open().map(|(topic, partition, at)| (topic, partition, Position::Offset(at)));
    consumer.assign(open.collect::<Vec<_>>()).await?;
    Ok(consumer)
}

struct Receiver {
    /// What the stamps count from.
    since: Instant,
    latency: Histogram<u64>,
    records: u64,
    bytes: u64,
}

impl Receiver {
    /// Receives until all that was sent has come.
    async fn receive_all(
        &mut self,
        consumer: &mut Consumer,
        mut sending: JoinHandle<Result<Loaded, CliError>>,
        expected: u64,
    ) -> Result<(), CliError> {
        let mut progress = Progress::new(Some(expected));
        let mut sent = None;
        let mut last_heard = Instant::now();
        while sent.is_none_or(|sent| self.records < sent) {
            let batches = tokio::select! {
                batches = consumer.poll_batches(POLL_WAIT) => batches?,
                loaded = &mut sending, if sent.is_none() => {
                    sent = Some(finished(loaded)?.records);
                    last_heard = Instant::now();
                    continue;
                }
            };
            if !batches.is_empty() {
                last_heard = Instant::now();
            } else if sent.is_some() && last_heard.elapsed() > SILENCE_MAX {
                return Err(CliError::new(
                    Exit::Timeout,
                    format!("{} of {} records have come", self.records, sent.unwrap_or(0)),
                ));
            }
            for batch in batches {
                self.receive(&batch)?;
            }
            progress.update(self.records, self.records, self.bytes);
        }
        Ok(())
    }

    fn receive(&mut self, batch: &ConsumedBatch) -> Result<(), CliError> {
        let now = self.since.elapsed();
        let broken = |detail: String| CliError::error(format!("a record cannot be read: {detail}"));
        for record in batch.batch.iter_records().map_err(|error| broken(error.to_string()))? {
            let record = record.map_err(|error| broken(error.to_string()))?;
            let value = record.value.unwrap_or_default();
            let stamp = value.first_chunk::<STAMP_BYTES>().ok_or_else(|| {
                broken("it has no stamp; does somebody else produce to this topic?".to_owned())
            })?;
            let due = Duration::from_nanos(u64::from_be_bytes(*stamp));
            report::record(&mut self.latency, now.saturating_sub(due));
            self.records += 1;
            self.bytes += value.len() as u64;
        }
        Ok(())
    }
}

fn finished(loaded: Result<Result<Loaded, CliError>, JoinError>) -> Result<Loaded, CliError> {
    loaded.expect("a load does not panic")
}

//! `tidemark bench produce`: how fast records are acknowledged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::Args;
use tidemark_client::Client;
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    Bed, RECORDS_DEFAULT, Subject, Volume,
    load::{Gauge, Load, Loaded, StopOnDrop},
    report::{self, BenchReport, LoadReport},
};
use crate::{exit::CliError, progress::Progress, session::Session};

/// How often the progress looks at the load.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Measure producing: throughput, and latency to the acknowledgement
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark bench produce
  tidemark bench produce --record-bytes 100 --records 5M --partitions 8 --producers 2
  tidemark bench produce --rate 10k --duration 30s --durability disk --json produce.json")]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    pub(super) bed: Bed,

    #[command(flatten)]
    volume: Volume,

    /// Records per second, over all producers [default: as fast as it goes]
    #[arg(short, long, value_name = "COUNT", value_parser = crate::quantity::parse_count)]
    rate: Option<u64>,

    /// How many producers share the work
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    producers: u32,
}

pub(super) async fn measure(
    session: &Session,
    client: &Client,
    args: &ProduceArgs,
    subject: &Subject,
) -> Result<BenchReport, CliError> {
    let rate = args.rate.map(rate_of);
    let started = Instant::now();
    let loaded = send(session, client, subject, &args.volume, (args.producers, rate)).await?;
    let elapsed = started.elapsed();
    let bytes = loaded.records * args.volume.record_bytes;
    Ok(BenchReport::new("produce", subject, loaded.records, bytes, elapsed)
        .with_load(LoadReport::new(args.producers, rate, &args.volume.tuning))
        .with_latency("from due or sent to acknowledged", &loaded.latency))
}

#[expect(clippy::cast_precision_loss, reason = "a rate on a command line")]
pub(super) fn rate_of(records_per_second: u64) -> f64 {
    (records_per_second as f64).max(1e-3)
}

/// Sends the volume with so many producers at a total rate, showing progress.
pub(super) async fn send(
    session: &Session,
    client: &Client,
    subject: &Subject,
    volume: &Volume,
    (producers, rate): (u32, Option<f64>),
) -> Result<Loaded, CliError> {
    let records = volume.records.or(volume.duration.is_none().then_some(RECORDS_DEFAULT));
    let gauge = Arc::new(Gauge::default());
    let _stop = StopOnDrop(gauge.clone());
    let mut loads = JoinSet::new();
    for number in 0..u64::from(producers) {
        let producer = client.producer(volume.tuning.producer_config(session));
        let load = Load {
            topic: subject.name.as_str().into(),
            record_bytes: usize::try_from(volume.record_bytes).unwrap_or(usize::MAX),
            records: records.map(|records| share(records, number, producers)),
            duration: volume.duration,
            rate: rate.map(|rate| rate / f64::from(producers)),
            stamped_since: None,
            gauge: gauge.clone(),
        };
        let runtime = Handle::current();
        loads.spawn_blocking(move || load.run(&producer, &runtime));
    }
    let mut progress = Progress::new(records);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let mut all = Loaded { records: 0, latency: report::histogram() };
    loop {
        tokio::select! {
            load = loads.join_next() => match load {
                Some(load) => {
                    let load = load.expect("a load does not panic")?;
                    all.records += load.records;
                    all.latency += load.latency;
                }
                None => return Ok(all),
            },
            _ = ticks.tick() => {
                let sent = gauge.sent.load(Ordering::Relaxed);
                progress.update(sent, sent, sent * volume.record_bytes);
            }
        }
    }
}

/// The part of `records` for producer `number`.
fn share(records: u64, number: u64, producers: u32) -> u64 {
    let producers = u64::from(producers);
    records / producers + u64::from(number < records % producers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_share_all_records() {
        assert_eq!((0..3).map(|number| share(10, number, 3)).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!((0..4).map(|number| share(2, number, 4)).sum::<u64>(), 2);
    }
}

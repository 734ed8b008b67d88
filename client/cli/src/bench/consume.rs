//! `tidemark bench consume`: how fast a topic is read from its start.

use std::time::{Duration, Instant};

use clap::Args;
use tidemark_client::{Client, ConsumerConfig, Position, Transport};
use tidemark_protocol::batch::BatchError;

use super::{Bed, Subject, Volume, produce, report::BenchReport};
use crate::{
    consume::{Ends, Slices},
    exit::{CliError, Exit},
    position::{Point, Range},
    progress::Progress,
    session::Session,
};

/// Reading has failed when nothing comes for so long although there is more.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Measure consuming: throughput from the start of a topic to its end
///
/// A new topic is filled first, with the records and settings given. Every record is decoded.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark bench consume
  tidemark bench consume --topic orders
  tidemark bench consume --record-bytes 100 --records 5M --fetch")]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    pub(super) bed: Bed,

    #[command(flatten)]
    volume: Volume,

    /// Ask for records instead of having them pushed
    #[arg(long)]
    fetch: bool,
}

pub(super) async fn measure(
    session: &Session,
    client: &Client,
    args: &ConsumeArgs,
    subject: &Subject,
) -> Result<BenchReport, CliError> {
    if subject.created {
        produce::send(session, client, subject, &args.volume, (1, None)).await?;
    }
    let range = Range { from: None, to: Some(Point::End) };
    let names = [subject.name.clone()];
    let mut slices = Slices::resolve(&client.admin(), &names, &[], range, Ends::Now).await?;
    let total = slices.record_count().unwrap_or(0);
    let wanted = args.volume.records.filter(|_| !subject.created).map_or(total, |n| n.min(total));
    let transport = if args.fetch { Transport::Fetch } else { Transport::Push };
    let mut consumer = client.consumer(ConsumerConfig { transport, ..ConsumerConfig::default() });
    let started = Instant::now();
    let open = slices.open().map(|(topic, partition, at)| (topic, partition, Position::Offset(at)));
    consumer.assign(open.collect::<Vec<_>>()).await?;
    let mut progress = Progress::new(Some(wanted));
    let (mut records, mut bytes) = (0, 0);
    while records < wanted && !slices.is_done() {
        let batches = consumer.poll_batches(SILENCE_MAX).await?;
        if batches.is_empty() {
            return Err(CliError::new(
                Exit::Timeout,
                format!("nothing came for {SILENCE_MAX:?}, {records} of {wanted} records in"),
            ));
        }
        for batch in batches {
            let broken = |error: BatchError| CliError::error(error.to_string());
            for record in batch.batch.iter_records().map_err(broken)? {
                records += 1;
                bytes += record.map_err(broken)?.value.map_or(0, |value| value.len()) as u64;
            }
            if let Some(slice) = slices.slice(&batch.topic, batch.partition) {
                slice.next = slice.next.max(batch.batch.header.next_offset());
            }
        }
        progress.update(records, records, bytes);
    }
    Ok(BenchReport::new("consume", subject, records, bytes, started.elapsed()))
}

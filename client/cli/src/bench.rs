//! `tidemark bench`: throughput and latency of producing, consuming and the way from one to the other.
//!
//! Latencies of a load with a `--rate` count from when a record was due, not from when it was sent, so that a
//! stall is felt by every record it delays (no coordinated omission). The load runs on threads of its own,
//! because a runtime's timer is too coarse to pace it.

mod consume;
mod e2e;
mod load;
mod produce;
mod report;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use tidemark_client::{Admin, Client, NewTopic};

use crate::{
    exit::{CliError, Exit},
    output,
    produce::Tuning,
    quantity,
    session::{self, Session},
};
use report::BenchReport;

/// What is produced when neither `--records` nor `--duration` says how much.
const RECORDS_DEFAULT: u64 = 500_000;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Produce(produce::ProduceArgs),
    Consume(consume::ConsumeArgs),
    E2e(e2e::E2eArgs),
}

/// The topic under test, and where the result goes.
#[derive(Debug, Args)]
struct Bed {
    /// A topic that exists [default: a new one named bench-…, deleted at the end]
    #[arg(short, long)]
    topic: Option<String>,

    /// Partitions of the new topic
    #[arg(short, long, default_value_t = 1, conflicts_with = "topic")]
    partitions: u32,

    /// A setting of the new topic, name=value; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = crate::topic::parse_setting)]
    #[arg(conflicts_with = "topic")]
    set: Vec<(String, String)>,

    /// Keep the new topic instead of deleting it at the end
    #[arg(long, conflicts_with = "topic")]
    keep: bool,

    /// Also write the report to this file, as JSON; `-o json` prints it instead
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How much is sent, and how.
#[derive(Clone, Debug, Args)]
struct Volume {
    /// How many records [default: 500,000, or as many as fit in --duration]
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = quantity::parse_count)]
    records: Option<u64>,

    /// For how long
    #[arg(short, long, value_parser = quantity::parse_duration)]
    duration: Option<Duration>,

    /// Size of each value; its bytes are random and do not compress
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = quantity::parse_bytes)]
    record_bytes: u64,

    #[command(flatten)]
    tuning: Tuning,
}

/// The topic of one run.
#[derive(Debug)]
struct Subject {
    name: String,
    partitions: u32,
    created: bool,
}

pub(crate) async fn run(session: &Session, args: BenchArgs) -> Result<Exit, CliError> {
    let bed = match &args.verb {
        Verb::Produce(args) => &args.bed,
        Verb::Consume(args) => &args.bed,
        Verb::E2e(args) => &args.bed,
    };
    if bed.json.as_deref() == Some(Path::new("-")) {
        return Err(CliError::usage("--json takes the name of a file")
            .with_hint("-o json prints the report as JSON on standard output"));
    }
    let client = session.client().await?;
    let admin = client.admin();
    let subject = prepare(&admin, bed).await?;
    let outcome = tokio::select! {
        outcome = measure(session, &client, &args.verb, &subject) => outcome.map(Some),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    if subject.created && !bed.keep {
        // The outcome matters more than the tidying.
        if let Err(error) = admin.delete_topic(&subject.name, None).await {
            output::note(format_args!("note: {} is left behind: {error}", subject.name));
        }
    }
    let Some(report) = outcome? else { return Ok(Exit::Interrupted) };
    if let Some(path) = &bed.json {
        std::fs::write(path, output::json(&report)?).map_err(|error| {
            CliError::error(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    session.output.print(&report)?;
    Ok(Exit::Success)
}

async fn measure(
    session: &Session,
    client: &Client,
    verb: &Verb,
    subject: &Subject,
) -> Result<BenchReport, CliError> {
    match verb {
        Verb::Produce(args) => produce::measure(session, client, args, subject).await,
        Verb::Consume(args) => consume::measure(session, client, args, subject).await,
        Verb::E2e(args) => e2e::measure(session, client, args, subject).await,
    }
}

async fn prepare(admin: &Admin, bed: &Bed) -> Result<Subject, CliError> {
    if let Some(name) = &bed.topic {
        let topic = session::topic(admin, name).await?;
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        return Ok(Subject { name: name.clone(), partitions, created: false });
    }
    let mut topic = NewTopic::new(format!("bench-{:x}", session::now_ms()));
    topic.partitions = Some(bed.partitions);
    topic.settings = bed.set.iter().cloned().collect();
    let name = topic.name.clone();
    let partitions = admin.create_topic(topic).await?.partitions;
    Ok(Subject { name, partitions, created: true })
}

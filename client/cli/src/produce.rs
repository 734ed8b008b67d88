//! `tidemark produce`: from standard input or files into a topic.
//!
//! What is read is what is sent: no trimming, no decoding, no completing. The first failure stops the reading;
//! what was accepted before is waited for and reported.

mod obstacle;
mod send;
mod source;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tidemark_client::{Acks, Client, Compression, Durability, ProducerConfig, ProducerRecord};
use tidemark_protocol::{
    Offset, PartitionIndex, TimestampMs, batch::RecordHeader, limits::BATCH_BYTES_MAX,
};

use crate::{
    escape,
    exit::{CliError, Exit},
    input::{InputOptions, InputRecord, Shape},
    output::{self, Format, Page, Report, Tone},
    quantity,
    session::{self, Session},
};
use send::Tally;
use source::Source;

/// How long a record may take to be acknowledged when `--timeout` does not say.
const DELIVERY_TIMEOUT: Duration = Duration::from_mins(2);

/// Write records from standard input or files into a topic
///
/// Every line is a record, its end not included; empty lines are records with an empty value. With -K a line
/// is split into key and value, with --json it is a JSON object as `tidemark consume -o json` prints it:
/// `{"key":…,"value":…,"headers":[{"key":…,"value":…}],"timestamp_ms":…}`, with `key_base64` and
/// `value_base64` for bytes that are no text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seq 1000 | tidemark produce orders
  tidemark produce orders -K : access.log
  tidemark produce orders --json --compression zstd dump.jsonl
  tidemark produce orders -D '\\n\\n' --durability disk -v
  tidemark produce pictures --whole --key cat cat.png")]
pub(crate) struct ProduceArgs {
    /// Name of the topic
    topic: String,

    /// Files to read, one after the other; `-` is standard input [default: standard input]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    #[command(flatten)]
    input: InputArgs,

    /// Key of every record
    #[arg(short, long, conflicts_with_all = ["key_delimiter", "json"])]
    key: Option<String>,

    /// A header of every record, name=value; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<RecordHeader>,

    /// Partition for every record [default: chosen by the key; without a key, batches take turns]
    #[arg(short, long)]
    partition: Option<PartitionIndex>,

    #[command(flatten)]
    tuning: Tuning,

    /// Also say where the records went, by partition
    #[arg(short, long)]
    verbose: bool,

    /// Say nothing when all went well
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

/// How input becomes records.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct InputArgs {
    /// What ends a record, with escapes \n \t \r \0 \\ \xNN
    #[arg(short = 'D', long, default_value = "\\n", value_parser = parse_delimiter)]
    delimiter: Vec<Bytes>,

    /// A zero byte ends a record, as `find -print0` writes
    #[arg(short = '0', long, conflicts_with_all = ["delimiter", "json", "whole"])]
    null: bool,

    /// Each line is a JSON object, see --help
    #[arg(short, long, conflicts_with_all = ["delimiter", "whole", "key_delimiter"])]
    json: bool,

    /// Each file is one record
    #[arg(short, long, conflicts_with = "delimiter")]
    whole: bool,

    /// What ends the key within a record, with the same escapes; every record must have one
    #[arg(short = 'K', long, value_parser = parse_delimiter)]
    key_delimiter: Vec<Bytes>,

    /// Send records with an empty value as tombstones, which delete their key in compacted topics
    #[arg(short = 'Z', long)]
    tombstones: bool,
}

/// Whom to wait for, and how to batch.
#[derive(Clone, Debug, Args)]
pub(crate) struct Tuning {
    /// Who must have a record before it counts: 0 nobody, 1 the leader, all in-sync replicas
    #[arg(long, value_enum, default_value_t = AcksArg::All, hide_possible_values = true)]
    #[arg(value_name = "0|1|all")]
    pub acks: AcksArg,

    /// How safe each copy must be: as the topic is configured, in memory, or on stable storage
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "topic|memory|disk")]
    pub durability: DurabilityArg,

    /// Compress batches: none, gzip, snappy, lz4 or zstd
    #[arg(short = 'z', long, value_name = "CODEC", default_value = "none")]
    pub compression: Compression,

    /// A batch is sent when it has this many bytes, before compression
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = quantity::parse_bytes)]
    pub batch_bytes: u64,

    /// How long a record waits for company while the connection is idle
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = quantity::parse_duration)]
    pub linger: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    #[value(name = "0", alias = "none")]
    None,
    #[value(name = "1", alias = "leader")]
    Leader,
    #[value(name = "all", alias = "-1")]
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DurabilityArg {
    #[default]
    Topic,
    Memory,
    Disk,
}

impl Tuning {
    pub(crate) fn producer_config(&self, session: &Session) -> ProducerConfig {
        ProducerConfig {
            acks: match self.acks {
                AcksArg::None => Acks::None,
                AcksArg::Leader => Acks::Leader,
                AcksArg::All => Acks::All,
            },
            durability: match self.durability {
                DurabilityArg::Topic => Durability::Topic,
                DurabilityArg::Memory => Durability::Memory,
                DurabilityArg::Disk => Durability::Disk,
            },
            compression: self.compression,
            batch_bytes: usize::try_from(self.batch_bytes)
                .unwrap_or(usize::MAX)
                .min(BATCH_BYTES_MAX),
            linger: self.linger,
            delivery_timeout: session.timeout.unwrap_or(DELIVERY_TIMEOUT),
            ..ProducerConfig::default()
        }
    }
}

impl InputArgs {
    fn options(&self) -> InputOptions {
        let only = |bytes: &[Bytes]| bytes.first().map(|bytes| bytes.to_vec());
        let shape = if self.json {
            Shape::JsonLines
        } else if self.whole {
            Shape::Whole
        } else if self.null {
            Shape::Delimited(vec![0])
        } else {
            Shape::Delimited(only(&self.delimiter).unwrap_or_else(|| b"\n".to_vec()))
        };
        InputOptions {
            shape,
            key_delimiter: only(&self.key_delimiter),
            empty_is_tombstone: self.tombstones,
            record_bytes_max: BATCH_BYTES_MAX,
        }
    }
}

fn parse_delimiter(text: &str) -> Result<Bytes, String> {
    match escape::unescape(text)? {
        bytes if bytes.is_empty() => Err("a delimiter has at least one byte".to_owned()),
        bytes => Ok(bytes.into()),
    }
}

fn parse_header(text: &str) -> Result<RecordHeader, String> {
    match text.split_once('=') {
        Some((key, value)) => {
            Ok(RecordHeader { key: key.to_owned(), value: Some(Bytes::from(value.to_owned())) })
        }
        None => Err(format!("`{text}` is not a header; write it like trace=abc")),
    }
}

/// What every record of this command has in common.
#[derive(Debug)]
struct Mould {
    blank: ProducerRecord,
}

impl Mould {
    fn new(args: &ProduceArgs) -> Self {
        let mut blank = ProducerRecord::to(args.topic.as_str());
        blank.partition = args.partition;
        blank.key = args.key.clone().map(Bytes::from);
        blank.headers.clone_from(&args.headers);
        Self { blank }
    }

    fn record(&self, input: InputRecord) -> ProducerRecord {
        let InputRecord { key, value, headers, timestamp_ms } = input;
        let mut record = self.blank.clone();
        record.key = key.or(record.key);
        record.value = value;
        record.headers.extend(headers);
        record.timestamp_ms = timestamp_ms;
        record
    }
}

pub(crate) async fn run(session: &Session, args: ProduceArgs) -> Result<Exit, CliError> {
    let source = Source::open(&args.files)?;
    let client = session.client().await?;
    check_target(&client, &args).await?;
    let producer = client.producer(args.tuning.producer_config(session));
    let mut tally = Tally::new();
    let interrupted =
        send::send_all(producer, &Mould::new(&args), source, args.input.options(), &mut tally)
            .await;
    let summary = tally.summary(&args.topic);
    if !matches!(session.output.format, Format::Table | Format::Name) {
        session.output.print(&summary)?;
    } else if !args.quiet {
        summary.describe(args.verbose);
    }
    match tally.error {
        Some(error) if summary.records > 0 => Err(CliError { exit: Exit::Partial, ..error }),
        Some(error) => Err(error),
        None if interrupted => Ok(Exit::Interrupted),
        None => Ok(Exit::Success),
    }
}

/// Refuses before anything is read what could only fail.
async fn check_target(client: &Client, args: &ProduceArgs) -> Result<(), CliError> {
    let topic = session::topic(&client.admin(), &args.topic).await?;
    let partitions = topic.partitions.len();
    match args.partition {
        Some(partition) if partition as usize >= partitions => Err(CliError::new(
            Exit::NotFound,
            format!("{} has no partition {partition}: it has {partitions}", args.topic),
        )),
        _ => Ok(()),
    }
}

/// What was done, for standard error or as a report.
#[derive(Serialize)]
struct Summary {
    topic: String,
    records: u64,
    /// Of keys and values, before compression.
    bytes: u64,
    failed_records: u64,
    elapsed_seconds: f64,
    partitions: Vec<Landed>,
}

/// What one partition got.
#[derive(Debug, Serialize)]
struct Landed {
    partition: PartitionIndex,
    records: u64,
    /// `null` when no acknowledgement was asked for.
    first_offset: Option<Offset>,
    last_offset: Option<Offset>,
    max_timestamp_ms: TimestampMs,
    /// The weakest of the durability receipts; `null` when no acknowledgement was asked for.
    durability: Option<&'static str>,
}

impl Summary {
    fn describe(&self, verbose: bool) {
        let elapsed = Duration::from_secs_f64(self.elapsed_seconds);
        let failed = match self.failed_records {
            0 => String::new(),
            failed => format!("; {} failed", quantity::counted(failed, "record")),
        };
        output::note(format_args!(
            "produced {} ({}) to {} in {}, {} records/s{failed}",
            quantity::counted(self.records, "record"),
            quantity::bytes(self.bytes),
            self.topic,
            quantity::duration(elapsed),
            quantity::rate(quantity::per_second(self.records, elapsed)),
        ));
        for it in self.partitions.iter().filter(|_| verbose) {
            let offsets = match (it.first_offset, it.last_offset) {
                (Some(first), Some(last)) => format!("offsets {first} to {last}"),
                _ => "offsets unknown".to_owned(),
            };
            output::note(format_args!(
                "  partition {}: {}, {offsets}, acknowledged {}",
                it.partition,
                quantity::counted(it.records, "record"),
                match it.durability {
                    Some("disk") => "on disk",
                    Some(_) => "in memory",
                    None => "by nobody",
                },
            ));
        }
    }
}

impl Report for Summary {
    const SCHEMA: &'static str = "tidemark/produce/1";

    fn page(&self, page: &mut Page) {
        page.line(&self.topic, Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.topic.clone()]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(line: &[&str]) -> ProduceArgs {
        let cli = Cli::try_parse_from([&["tidemark", "produce", "t"], line].concat())
            .unwrap_or_else(|error| panic!("{line:?}: {error}"));
        match cli.command {
            Command::Produce(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_flags_choose_the_shape_of_the_input() {
        assert_eq!(parsed(&[]).input.options().shape, Shape::Delimited(b"\n".to_vec()));
        assert_eq!(parsed(&["-0"]).input.options().shape, Shape::Delimited(b"\0".to_vec()));
        assert_eq!(
            parsed(&["-D", r"\x1e;"]).input.options().shape,
            Shape::Delimited(b"\x1e;".to_vec())
        );
        assert_eq!(parsed(&["--json"]).input.options().shape, Shape::JsonLines);
        assert_eq!(parsed(&["--whole"]).input.options().shape, Shape::Whole);
        assert_eq!(parsed(&["-K", r"\t"]).input.options().key_delimiter, Some(b"\t".to_vec()));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for line in [
            &["--json", "--whole"][..],
            &["-0", "-D", ","],
            &["--key", "k", "-K", ":"],
            &["-q", "-v"],
            &["-D", ""],
            &["-H", "novalue"],
            &["--acks", "2"],
            &["--compression", "rar"],
        ] {
            let words = [&["tidemark", "produce", "t"], line].concat();
            assert!(Cli::try_parse_from(&words).is_err(), "{line:?} was accepted");
        }
    }

    #[test]
    fn a_record_takes_its_own_key_and_both_kinds_of_headers() {
        let args = parsed(&["--key", "k", "-H", "a=1", "-H", "b=2=3", "-p", "4"]);
        let header = RecordHeader { key: "c".to_owned(), value: None };
        let record = Mould::new(&args).record(InputRecord {
            value: Some(Bytes::from_static(b"v")),
            headers: vec![header],
            ..InputRecord::default()
        });
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.partition, Some(4));
        let names: Vec<_> = record.headers.iter().map(|header| header.key.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(record.headers[1].value.as_deref(), Some(&b"2=3"[..]));
    }
}

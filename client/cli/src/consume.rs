//! `tidemark consume`: records out of topics, as their values, in any format, or as JSON lines.

mod group;
mod print;
mod reader;
mod slices;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use clap::Args;
use tidemark_client::{Client, Consumer, ConsumerConfig, Isolation, Position};
use tidemark_protocol::PartitionIndex;

use crate::{
    exit::{CliError, Exit},
    output::Format,
    position::{GRAMMAR, Range},
    progress::Progress,
    session::{self, Session},
    template::{LANGUAGE, Template},
};
use print::{Printed, Printer};
pub(crate) use slices::{Ends, Slices, extents};

/// How long one poll waits; only progress depends on it.
const POLL_WAIT: Duration = Duration::from_millis(500);
/// The values, and nothing but a line end after each.
const VALUES: &str = "%v\\n";
/// For `--meta-only`.
const METADATA: &str = "%t %p %o %d %K %V\\n";

const EXAMPLES: &str = "\
Examples:
  tidemark consume orders
  tidemark consume orders -e > orders.txt
  tidemark consume orders --offset -10 -e -f '%p/%o %d %k=%v\\n'
  tidemark consume orders --offset @-1h:@-5m -o json
  tidemark consume orders -p 3 --offset 100:+5 --meta-only
  tidemark consume orders --group billing";

/// Read records from topics
///
/// Starts at the first record there is and follows until Ctrl-C; -e stops at the end, -n after so many
/// records, a range like 100:200 where it or the topic ends. Prints the value of each record and a line end, byte for byte
/// what was put in.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\nPositions:\n{GRAMMAR}\n\nFormats:\n{LANGUAGE}"),
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct ConsumeArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,

    /// Where to begin and to stop: an offset, a time, or a range of them; see --help
    #[arg(long, value_name = "POSITION", default_value = "start", allow_hyphen_values = true)]
    offset: String,

    /// Stop at the end of the topic as it is now instead of waiting for more
    #[arg(short, long)]
    exit_at_end: bool,

    /// Wait for what is not there yet, also when a range says where to stop; without a range the default
    #[arg(long, conflicts_with = "exit_at_end")]
    follow: bool,

    /// Stop after this many records
    #[arg(short, long, value_name = "COUNT", value_parser = crate::quantity::parse_count)]
    num: Option<u64>,

    /// Print at most so many records a second, about
    #[arg(long, value_name = "COUNT", value_parser = parse_rate)]
    rate: Option<u64>,

    /// Read as a member of this consumer group: it hands out the partitions and remembers how far it is
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,

    /// Name of this member in the group: while it is away, for less than a session, its partitions stay its own
    #[arg(long, value_name = "NAME", requires = "group")]
    instance: Option<String>,

    /// Only these partitions, separated by commas [default: all]
    #[arg(short, long, value_name = "PARTITIONS", value_delimiter = ',')]
    partition: Vec<PartitionIndex>,

    /// What to print for each record; see --help for the verbs [default: '%v\n']
    #[arg(short, long, conflicts_with = "meta_only")]
    format: Option<Template>,

    /// Print where records are and how large, not what they hold
    #[arg(long)]
    meta_only: bool,

    /// Leave out what is part of aborted transactions, and wait for the end of open ones
    #[arg(long)]
    read_committed: bool,

    /// Only records with exactly this key
    #[arg(short, long)]
    key: Option<String>,

    /// Only records whose value contains this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = crate::quantity::parse_count(text)?;
    if rate > 0 { Ok(rate) } else { Err("nothing would ever be printed".to_owned()) }
}

/// When records are due, if they are to come at a rate.
#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Instant,
    rate: Option<u64>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self { began: Instant::now(), rate }
    }

    /// Waits until `printed` records may have been printed.
    async fn wait(self, printed: u64) {
        let Some(rate) = self.rate else { return };
        #[expect(clippy::cast_precision_loss, reason = "a pace for people")]
        let due = Duration::from_secs_f64(printed as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
    }
}

impl ConsumeArgs {
    fn isolation(&self) -> Isolation {
        if self.read_committed { Isolation::ReadCommitted } else { Isolation::ReadUncommitted }
    }
}

pub(crate) async fn run(session: &Session, args: ConsumeArgs) -> Result<Exit, CliError> {
    let mut range = Range::parse(&args.offset, session::now_ms())?;
    if args.exit_at_end && range.to.is_none() && args.group.is_none() {
        range.to = Some(crate::position::Point::End);
    }
    let ends = if args.follow { Ends::Eventually } else { Ends::Now };
    let mut printer = printer(session, &args)?;
    let client = session.client().await?;
    if let Some(group) = &args.group {
        return group::run(&client, &args, group, range, printer).await;
    }
    let admin = client.admin();
    let mut slices = Slices::resolve(&admin, &args.topics, &args.partition, range, ends).await?;
    if slices.is_done() || args.num == Some(0) {
        return Ok(Exit::Success);
    }
    let mut consumer = assigned(&client, &slices, args.isolation()).await?;
    let pace = Pace::new(args.rate);
    let mut progress = Progress::new(args.num.or_else(|| slices.record_count()));
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut reader_gone = pin!(reader::gone());
    loop {
        let batches = tokio::select! {
            batches = async {
                pace.wait(printer.records()).await;
                consumer.poll_batches(POLL_WAIT).await
            } => batches?,
            () = &mut reader_gone => return Ok(Exit::Success),
            _ = &mut interrupt => {
                printer.flush()?;
                // Ctrl-C is how following ends, and how reading up to somewhere is cut short.
                let bounded = args.num.is_some() || slices.record_count().is_some();
                return Ok(if bounded { Exit::Interrupted } else { Exit::Success });
            }
        };
        for batch in batches {
            let Some(slice) = slices.slice(&batch.topic, batch.partition) else { continue };
            if slice.is_done() {
                // Only now, when there is more than was asked for: to pause one partition is to read again what was read
                // ahead of the others.
                consumer.pause(&batch.topic, batch.partition)?;
                continue;
            }
            if printer.print(&batch, slice, args.num)? == Printed::Enough {
                printer.flush()?;
                return Ok(Exit::Success);
            }
        }
        printer.flush()?;
        // Ends of transactions, and what was aborted, are passed without a batch to show for it.
        slices.pass(|topic, partition| consumer.position(topic, partition));
        if slices.is_done() || printer.reader_is_gone() {
            return Ok(Exit::Success);
        }
        if !printer.is_terminal() {
            let position = if args.num.is_some() { printer.records() } else { slices.passed() };
            progress.update(position, printer.records(), printer.bytes());
        }
    }
}

fn printer(session: &Session, args: &ConsumeArgs) -> Result<Printer, CliError> {
    let template = |text: &str| text.parse::<Template>().expect("the format is a constant");
    let style = match (session.output.format, &args.format) {
        (Format::Json, Some(_)) => {
            return Err(CliError::usage(
                "-f and -o json are two ways to print a record; choose one",
            ));
        }
        (Format::Json, None) if args.meta_only => print::Style::JsonMetadata,
        (Format::Json, None) => print::Style::Json,
        (Format::Table, Some(template)) => print::Style::Template(template.clone()),
        (Format::Table, None) if args.meta_only => print::Style::Template(template(METADATA)),
        (Format::Table, None) => print::Style::Template(template(VALUES)),
        (Format::Yaml | Format::Name, _) => {
            return Err(CliError::usage("records have neither names nor a YAML form")
                .with_hint("use -o json for JSON lines, or -f for any other format"));
        }
    };
    let filter = print::Filter {
        key: args.key.clone().map(String::into_bytes),
        grep: args.grep.as_deref().map(|text| memchr::memmem::Finder::new(text).into_owned()),
    };
    Ok(Printer::new(style, filter))
}

async fn assigned(
    client: &Client,
    slices: &Slices,
    isolation: Isolation,
) -> Result<Consumer, CliError> {
    let mut consumer = client.consumer(ConsumerConfig { isolation, ..ConsumerConfig::default() });
    let partitions = slices
        .open()
        .map(|(topic, partition, offset)| (topic, partition, Position::Offset(offset)));
    consumer.assign(partitions).await?;
    Ok(consumer)
}

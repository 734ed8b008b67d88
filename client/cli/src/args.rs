//! The argument tree: global flags, the verbs, and which of them needs what to run.

use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use tidemark_protocol::frame::{VERSION_MAX, VERSION_MIN};

use crate::{
    bench, broker, cluster, consume,
    exit::{CliError, EXIT_CODES_HELP, Exit},
    group,
    output::{self, Color, Format, Output, Page, Report},
    partition, produce, quantity,
    session::Session,
    topic, up,
};

const EXAMPLES: &str = "\
Examples:
  tidemark topic create orders --partitions 3
  seq 1000 | tidemark produce orders
  tidemark consume orders --offset -10 -e -f '%p/%o %v\\n'
  tidemark topic describe orders
  tidemark bench e2e --records 100k";

/// The command line of Tidemark: topics, records, brokers and benchmarks.
#[derive(Debug, Parser)]
#[command(
    name = "tidemark",
    version,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES_HELP}"),
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Brokers to ask first, host:port, separated by commas
    #[arg(
        short,
        long,
        global = true,
        env = "TIDEMARK_BROKERS",
        value_delimiter = ',',
        default_value = "127.0.0.1:9092"
    )]
    pub brokers: Vec<String>,

    /// How to print the result
    #[arg(short, long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "table|json|yaml|name")]
    pub output: Format,

    /// Leave out the column names of tables
    #[arg(long, global = true)]
    pub no_headers: bool,

    /// When to use colour; `auto` is on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "auto|always|never")]
    pub color: Color,

    /// How long to wait for the cluster before giving up [default: 10s; delivering a record: 2m]
    #[arg(long, global = true, value_name = "DURATION", value_parser = quantity::parse_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, list, describe, change, trim and delete topics
    Topic(topic::TopicArgs),
    Produce(Box<produce::ProduceArgs>),
    Consume(Box<consume::ConsumeArgs>),
    /// Look at consumer groups, set their offsets, put members out
    Group(group::GroupArgs),
    /// Measure throughput and latency
    Bench(Box<bench::BenchArgs>),
    /// List, describe, drain and remove brokers
    Broker(broker::BrokerArgs),
    /// Look at the cluster as a whole, and choose its controllers
    Cluster(cluster::ClusterArgs),
    /// List and describe partitions, move their replicas, choose their leaders
    Partition(partition::PartitionArgs),
    Up(up::UpArgs),
    /// Print the script that makes a shell complete this command line
    Completion(CompletionArgs),
    /// Print the version of this program and of the protocol it speaks
    Version,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark completion bash > ~/.local/share/bash-completion/completions/tidemark
  tidemark completion zsh > ~/.zfunc/_tidemark
  tidemark completion fish > ~/.config/fish/completions/tidemark.fish")]
pub(crate) struct CompletionArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the verb to its end.
pub(crate) fn run(cli: Cli) -> Result<Exit, CliError> {
    let Globals { brokers, output, no_headers, color, timeout } = cli.globals;
    let session = Session { brokers, timeout, output: Output::new(output, !no_headers, color) };
    match cli.command {
        Command::Topic(args) => small_runtime()?.block_on(topic::run(&session, args)),
        Command::Produce(args) => large_runtime()?.block_on(produce::run(&session, *args)),
        Command::Consume(args) => large_runtime()?.block_on(consume::run(&session, *args)),
        Command::Group(args) => small_runtime()?.block_on(group::run(&session, args)),
        Command::Bench(args) => large_runtime()?.block_on(bench::run(&session, *args)),
        Command::Broker(args) => small_runtime()?.block_on(broker::run(&session, args)),
        Command::Cluster(args) => small_runtime()?.block_on(cluster::run(&session, args)),
        Command::Partition(args) => small_runtime()?.block_on(partition::run(&session, args)),
        Command::Up(args) => small_runtime()?.block_on(up::run(&session, args)),
        Command::Completion(args) => completion(&args),
        Command::Version => session.output.print(&VERSION).map(|()| Exit::Success),
    }
}

/// Administration needs no threads, and starting none is the quickest start.
fn small_runtime() -> Result<tokio::runtime::Runtime, CliError> {
    built(tokio::runtime::Builder::new_current_thread())
}

/// Moving data: the caller's thread reads and writes files while workers drive the sockets.
fn large_runtime() -> Result<tokio::runtime::Runtime, CliError> {
    built(tokio::runtime::Builder::new_multi_thread())
}

fn built(mut builder: tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, CliError> {
    builder.enable_all().build().map_err(|error| CliError::error(format!("cannot start: {error}")))
}

fn completion(args: &CompletionArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidemark", &mut script);
    output::print_bytes(&script).map(|()| Exit::Success)
}

#[derive(Serialize)]
struct VersionReport {
    version: &'static str,
    protocol_version_min: u16,
    protocol_version_max: u16,
}

const VERSION: VersionReport = VersionReport {
    version: env!("CARGO_PKG_VERSION"),
    protocol_version_min: VERSION_MIN,
    protocol_version_max: VERSION_MAX,
};

impl Report for VersionReport {
    const SCHEMA: &'static str = "tidemark/version/1";

    fn page(&self, page: &mut Page) {
        let line = format!(
            "tidemark {}, protocol {} to {}",
            self.version, self.protocol_version_min, self.protocol_version_max
        );
        page.line(&line, output::Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.version.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every flag is documented, and every verb says what it is for.
    #[test]
    fn every_verb_and_every_flag_has_help() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "`{path}` says nothing about itself");
            for argument in command.get_arguments() {
                let described = argument.get_help().is_some() || argument.get_id() == "shell";
                assert!(described, "`{path}` does not document {}", argument.get_id());
            }
            for inner in command.get_subcommands() {
                visit(inner, &path);
            }
        }
        visit(&Cli::command(), "");
    }

    /// Every line of an "Examples" block must be accepted by the parser itself.
    #[test]
    fn every_example_in_the_help_parses() {
        fn visit(command: &clap::Command, examples: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines =
                help.lines().filter(|line| line.starts_with("  ") && line.contains("tidemark "));
            examples
                .extend(lines.map(|line| line[line.find("tidemark ").unwrap_or(0)..].to_owned()));
            for inner in command.get_subcommands() {
                visit(inner, examples);
            }
        }
        let mut examples = Vec::new();
        visit(&Cli::command(), &mut examples);
        assert!(examples.len() >= 5, "{examples:?}");
        for example in examples {
            let end = [" | ", " > ", " < "].iter().filter_map(|mark| example.find(mark)).min();
            let words = shell_words(&example[..end.unwrap_or(example.len())]);
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    /// Splits at blanks, except between single quotes.
    fn shell_words(line: &str) -> Vec<String> {
        line.split('\'')
            .enumerate()
            .flat_map(|(at, part)| match at % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }
}

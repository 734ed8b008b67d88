//! `tidemark topic add-partitions`: more partitions, never fewer.

use clap::Args;
use serde::Serialize;

use crate::{
    exit::{CliError, Exit},
    output::{self, Page, Report, Tone},
    quantity,
    session::Session,
};

/// Raise the partition count of a topic
///
/// Records stay where they are, but from then on a key may map to another partition than before, so that the
/// order of one key is kept only among records before the change and among those after it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark topic add-partitions orders --total 8
  tidemark topic add-partitions orders --add 2")]
pub(crate) struct AddPartitionsArgs {
    /// Name of the topic
    #[arg(value_name = "TOPIC")]
    name: String,

    #[command(flatten)]
    goal: Goal,

    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Goal {
    /// How many there shall be
    #[arg(short, long, value_name = "COUNT")]
    total: Option<u32>,

    /// How many more there shall be
    #[arg(short, long, value_name = "COUNT")]
    add: Option<u32>,
}

#[derive(Serialize)]
struct Grown {
    topic: String,
    dry_run: bool,
    partitions_before: u32,
    partitions: u32,
}

impl Report for Grown {
    const SCHEMA: &'static str = "tidemark/topic.add-partitions/1";

    fn page(&self, page: &mut Page) {
        let verb = if self.dry_run { "would have" } else { "has" };
        let line = format!(
            "{} {verb} {} partitions, up from {}",
            self.topic, self.partitions, self.partitions_before
        );
        page.line(&line, Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.topic.clone()]
    }
}

pub(super) async fn run(session: &Session, args: AddPartitionsArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let topic = super::described(&admin, &args.name).await?;
    let before = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    let total = match (args.goal.total, args.goal.add) {
        (Some(total), _) => total,
        (None, more) => before.saturating_add(more.unwrap_or(0)),
    };
    if total <= before {
        return Err(CliError::new(
            Exit::Conflict,
            format!(
                "{} has {} already, and none can be taken away",
                args.name,
                quantity::counted(before.into(), "partition")
            ),
        ));
    }
    let partitions = admin.add_partitions(&args.name, total, args.dry_run).await?;
    if topic.record_count() > 0 {
        output::note("note: records with a key may go to another partition than before");
    }
    session.output.print(&Grown {
        topic: args.name,
        dry_run: args.dry_run,
        partitions_before: before,
        partitions,
    })?;
    Ok(Exit::Success)
}

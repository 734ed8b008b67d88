//! `tidemark group seek`: set where a group goes on, by offset, by time, to an end, or by so many records.

use clap::Args;
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{Offset, PartitionIndex, TopicPartition};

use super::{Change, changes, table_of_changes, who};
use crate::{
    confirm::Consent,
    consume::extents,
    exit::{CliError, Exit},
    output::{self, Page, Report, Tone},
    position::{GRAMMAR, Point, Range},
    session::{self, Session},
};

/// Set where a consumer group goes on
///
/// The group must have no members: stop them first. Shows every offset before and after, and asks. What was there before can
/// be brought back with `group undo`; `group history` lists the changes.
#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  tidemark group seek billing orders --to start
  tidemark group seek billing orders --to @-1h --dry-run
  tidemark group seek billing orders --to 1200 --partition 3 --yes
  tidemark group seek billing orders --by -100",
    after_long_help = format!("\
Examples:
  tidemark group seek billing orders --to start
  tidemark group seek billing orders --to @-1h --dry-run
  tidemark group seek billing orders --to 1200 --partition 3 --yes
  tidemark group seek billing orders --by -100

Positions:
{GRAMMAR}")
)]
pub(crate) struct SeekArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,

    /// Topics whose offsets are set
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,

    /// The next record to read: an offset or a time, `start` or `end`; see --help
    #[arg(
        long,
        value_name = "POSITION",
        allow_hyphen_values = true,
        required_unless_present = "by"
    )]
    to: Option<String>,

    /// So many records on (`+100`) or back (`-100`) from what is committed
    #[arg(long, value_name = "RECORDS", allow_hyphen_values = true, conflicts_with = "to")]
    by: Option<i64>,

    /// Only these partitions, separated by commas [default: all]
    #[arg(short, long, value_name = "PARTITIONS", value_delimiter = ',')]
    partition: Vec<PartitionIndex>,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
pub(super) struct Sought {
    pub(super) group: String,
    pub(super) dry_run: bool,
    /// The change that this one took back.
    pub(super) undo_of: Option<u64>,
    pub(super) changes: Vec<Change>,
}

impl Report for Sought {
    const SCHEMA: &'static str = "tidemark/group.seek/1";

    fn page(&self, page: &mut Page) {
        page.table(&table_of_changes(&self.changes));
        if self.dry_run {
            page.line("nothing was changed", Tone::Plain);
        }
    }

    fn names(&self) -> Vec<String> {
        vec![self.group.clone()]
    }
}

pub(super) async fn run(session: &Session, args: SeekArgs) -> Result<Exit, CliError> {
    let point = args.to.as_deref().map(|to| Point::parse(to, session::now_ms())).transpose()?;
    let admin = session.admin().await?;
    let mut offsets = Vec::new();
    for topic in &args.topics {
        offsets.extend(targets(&admin, &args, topic, point).await?);
    }
    let planned = admin.seek_group(&args.group, &who(), offsets.clone(), true).await?;
    let mut report = Sought {
        group: args.group.clone(),
        dry_run: args.consent.dry_run,
        undo_of: None,
        changes: changes(&admin, &planned).await?,
    };
    if !args.consent.dry_run {
        if !args.consent.yes {
            output::note(output::plain_table(&table_of_changes(&report.changes)).trim_end());
        }
        args.consent.obtain("Set these offsets?")?;
        let done = admin.seek_group(&args.group, &who(), offsets, false).await?;
        report.changes = changes(&admin, &done).await?;
    }
    session.output.print(&report)?;
    Ok(Exit::Success)
}

/// Where the group is to go on in each partition of a topic.
async fn targets(
    admin: &Admin,
    args: &SeekArgs,
    topic: &str,
    point: Option<Point>,
) -> Result<Vec<(TopicPartition, Offset)>, CliError> {
    let known = session::topic(admin, topic).await?;
    let count = known.partitions.len();
    if let Some(missing) = args.partition.iter().find(|it| **it as usize >= count) {
        let message = format!("{topic} has no partition {missing}: it has {count}");
        return Err(CliError::new(Exit::NotFound, message));
    }
    let wanted = |it: &PartitionIndex| args.partition.is_empty() || args.partition.contains(it);
    let partitions: Vec<PartitionIndex> = (0..).take(count).filter(wanted).collect();
    let ids: Vec<_> = partitions
        .iter()
        .map(|partition| TopicPartition { topic_id: known.id, partition: *partition })
        .collect();
    let range = Range { from: point, to: None };
    let extents = extents(admin, topic, &partitions, range).await?;
    let offsets: Vec<Offset> = match (point, args.by) {
        (Some(point), _) => {
            extents.iter().map(|extent| point.resolve(extent, extent.from_time)).collect()
        }
        (None, by) => {
            let by = by.unwrap_or(0);
            let committed = admin.fetch_offsets(&args.group, Some(ids.clone())).await?;
            let moved = committed.into_iter().zip(&extents).map(|(one, extent)| {
                let committed = one.outcome.map_err(|failure| CliError::from_failure(&failure))?;
                let committed = committed.map(|committed| committed.offset).ok_or_else(|| {
                    let place = format!("{topic}/{}", one.partition.partition);
                    let message = format!("{} has committed nothing for {place}", args.group);
                    CliError::new(Exit::NotFound, message).with_hint("say where to go on with --to")
                })?;
                Ok(committed.saturating_add_signed(by).clamp(extent.start, extent.end))
            });
            moved.collect::<Result<_, CliError>>()?
        }
    };
    Ok(ids.into_iter().zip(offsets).collect())
}

//! `tidemark group history` and `undo`: the changes of a group's offsets from outside, and taking them back.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::TimestampMs;

use super::{Change, changes, or_dash, seek::Sought, table_of_changes, who};
use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows},
    quantity,
    session::{self, Session},
};

/// List the changes of a group's offsets that can be taken back
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark group history billing
  tidemark group history billing -o json")]
pub(crate) struct HistoryArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,
}

/// Bring back the offsets that a `group seek` replaced
///
/// The group must have no members. An undo is a change like others: it can be taken back, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark group undo billing
  tidemark group undo billing 3 --yes")]
pub(crate) struct UndoArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,

    /// Number of the change, from `group history` [default: the last one]
    #[arg(value_name = "NUMBER")]
    number: Option<u64>,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct History {
    group: String,
    /// Oldest first.
    changes: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    number: Option<u64>,
    at_ms: TimestampMs,
    by: String,
    undo_of: Option<u64>,
    partitions: Vec<Change>,
}

impl Report for History {
    const SCHEMA: &'static str = "tidemark/group.history/1";

    fn page(&self, page: &mut Page) {
        let now_ms = session::now_ms();
        let mut rows = Rows::new(&[">NUMBER", "WHEN", "BY", ">PARTITIONS", "WHAT"]);
        for entry in &self.changes {
            let what = entry
                .undo_of
                .map_or_else(|| "seek".to_owned(), |number| format!("undo of {number}"));
            rows.push(vec![
                or_dash(entry.number),
                quantity::ago(entry.at_ms, now_ms),
                entry.by.clone(),
                entry.partitions.len().to_string(),
                what,
            ]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.changes.iter().filter_map(|entry| entry.number).map(|it| it.to_string()).collect()
    }
}

pub(super) async fn run(session: &Session, args: &HistoryArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut history = History { group: args.group.clone(), changes: Vec::new() };
    for seek in admin.seek_history(&args.group).await? {
        history.changes.push(Entry {
            number: seek.id,
            at_ms: seek.at_ms,
            partitions: changes(&admin, &seek).await?,
            by: seek.by,
            undo_of: seek.undo_of,
        });
    }
    session.output.print(&history)?;
    Ok(Exit::Success)
}

pub(super) async fn undo(session: &Session, args: UndoArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let seeks = admin.seek_history(&args.group).await?;
    let seek = match args.number {
        Some(number) => seeks.into_iter().find(|seek| seek.id == Some(number)),
        None => seeks.into_iter().next_back(),
    };
    let seek = seek.ok_or_else(|| {
        let message = format!("{} remembers no such change of offsets", args.group);
        let hint = format!("`tidemark group history {}` shows those there are", args.group);
        CliError::new(Exit::NotFound, message).with_hint(hint)
    })?;
    let back = |change: Change| Change { before: change.after, after: change.before, ..change };
    let mut report = Sought {
        group: args.group.clone(),
        dry_run: args.consent.dry_run,
        undo_of: seek.id,
        changes: changes(&admin, &seek).await?.into_iter().map(back).collect(),
    };
    if !args.consent.dry_run {
        if !args.consent.yes {
            output::note(output::plain_table(&table_of_changes(&report.changes)).trim_end());
        }
        args.consent.obtain("Bring these offsets back?")?;
        let done = admin.undo_seek(&args.group, &who(), seek.id).await?;
        report.changes = changes(&admin, &done).await?;
    }
    session.output.print(&report)?;
    Ok(Exit::Success)
}

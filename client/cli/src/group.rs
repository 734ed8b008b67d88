//! `tidemark group`: consumer groups, how far they are behind, and setting their offsets. One file per verb.

mod delete;
mod describe;
mod history;
mod kick;
mod lag;
mod list;
mod seek;

use std::{collections::BTreeMap, sync::Arc};

use clap::{Args, Subcommand};
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{
    Offset, PartitionIndex, TopicId, TopicPartition,
    messages::{GroupSeek, GroupState},
};

use crate::{
    exit::{CliError, Exit},
    output::Rows,
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::ListArgs),
    Describe(describe::DescribeArgs),
    Lag(lag::LagArgs),
    Seek(seek::SeekArgs),
    History(history::HistoryArgs),
    Undo(history::UndoArgs),
    Delete(delete::DeleteArgs),
    Kick(kick::KickArgs),
}

pub(crate) async fn run(session: &Session, args: GroupArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::List(args) => list::run(session, &args).await,
        Verb::Describe(args) => describe::run(session, &args).await,
        Verb::Lag(args) => lag::run(session, &args).await,
        Verb::Seek(args) => seek::run(session, args).await,
        Verb::History(args) => history::run(session, &args).await,
        Verb::Undo(args) => history::undo(session, args).await,
        Verb::Delete(args) => delete::run(session, args).await,
        Verb::Kick(args) => kick::run(session, args).await,
    }
}

/// A state in a word.
fn state(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "empty",
        GroupState::Reconciling => "reconciling",
        GroupState::Stable => "stable",
        GroupState::PreparingRebalance => "preparing-rebalance",
        GroupState::CompletingRebalance => "completing-rebalance",
    }
}

/// Topics by id, as far as there still are such topics.
struct Names(BTreeMap<TopicId, Arc<str>>);

impl Names {
    async fn of(
        admin: &Admin,
        partitions: impl Iterator<Item = &TopicPartition>,
    ) -> Result<Self, CliError> {
        let mut ids: Vec<_> = partitions.map(|id| id.topic_id).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(Self(if ids.is_empty() { BTreeMap::new() } else { admin.topic_names(ids).await? }))
    }

    /// The topic's name; its id when there is no such topic any more.
    fn get(&self, id: TopicPartition) -> String {
        let name = self.0.get(&id.topic_id);
        name.map_or_else(|| id.topic_id.to_string(), ToString::to_string)
    }
}

/// One partition's part in a change of offsets.
#[derive(Serialize)]
struct Change {
    topic: String,
    partition: PartitionIndex,
    /// `null`: nothing was committed.
    before: Option<Offset>,
    /// `null`: the committed offset was removed.
    after: Option<Offset>,
}

/// A change's partitions, by name.
async fn changes(admin: &Admin, seek: &GroupSeek) -> Result<Vec<Change>, CliError> {
    let names = Names::of(admin, seek.changes.iter().map(|change| &change.partition)).await?;
    let mut changes: Vec<_> = seek
        .changes
        .iter()
        .map(|change| Change {
            topic: names.get(change.partition),
            partition: change.partition.partition,
            before: change.before,
            after: change.after,
        })
        .collect();
    changes
        .sort_by(|left, right| (&left.topic, left.partition).cmp(&(&right.topic, right.partition)));
    Ok(changes)
}

fn table_of_changes(changes: &[Change]) -> Rows {
    let mut rows = Rows::new(&["TOPIC", ">PARTITION", ">BEFORE", ">AFTER", ">BY"]);
    for change in changes {
        let by = match (change.before, change.after) {
            (Some(before), Some(after)) if after >= before => format!("+{}", after - before),
            (Some(before), Some(after)) => format!("-{}", before - after),
            _ => String::new(),
        };
        rows.push(vec![
            change.topic.clone(),
            change.partition.to_string(),
            or_dash(change.before),
            or_dash(change.after),
            by,
        ]);
    }
    rows
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Who is at the keyboard, for the history of changes.
fn who() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let name = user.unwrap_or_else(|| "tidemark-cli".to_owned());
    name.chars().filter(|c| !c.is_control()).take(60).collect()
}

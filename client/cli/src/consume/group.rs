//! `tidemark consume --group`: as a member of a consumer group, which hands out the partitions and remembers how far it is.
//!
//! What was printed is committed before more is asked for, so that what a member had not printed when it died is printed by
//! another, and nothing twice but what was printed and not committed yet.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use tidemark_client::{
    Client, ConsumedRecord, GroupConfig, GroupConsumer, GroupError, Rebalance, StartAt,
};
use tidemark_protocol::{Offset, PartitionIndex};

use super::{ConsumeArgs, POLL_WAIT, Pace, print::Printed, print::Printer, reader};
use crate::{
    exit::{CliError, Exit},
    output,
    position::{Point, Range},
    progress::Progress,
};

/// Most records between two commits.
const RECORDS_PER_COMMIT_MAX: usize = 4096;

type Places = BTreeMap<(Arc<str>, PartitionIndex), Offset>;

/// Reads as a member of the group until told to stop.
pub(super) async fn run(
    client: &Client,
    args: &ConsumeArgs,
    group: &str,
    range: Range,
    mut printer: Printer,
) -> Result<Exit, CliError> {
    let mut config = config(args, group, range)?;
    config.topics.clone_from(&args.topics);
    let wait = |why: &str| output::note(format_args!("waiting: {why}"));
    let mut member = client.group_consumer(config).on_rebalance(announce).on_waiting(wait);
    let mut progress = Progress::new(args.num);
    let pace = Pace::new(args.rate);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut reader_gone = pin!(reader::gone());
    let mut ends: Option<Places> = None;
    let exit = loop {
        let records = tokio::select! {
            records = async {
                pace.wait(printer.records()).await;
                member.poll(POLL_WAIT).await
            } => records?,
            () = &mut reader_gone => break Exit::Success,
            _ = &mut interrupt => {
                let bounded = args.num.is_some() || args.exit_at_end;
                break if bounded { Exit::Interrupted } else { Exit::Success };
            }
        };
        let (printed, done) = print(&mut printer, records, args.num)?;
        printer.flush()?;
        // Ends of transactions, and what was aborted, are passed without a record to show for it.
        noted(match done {
            Printed::Enough => member.commit_offsets(offsets(printed)).await,
            Printed::More => member.commit().await,
        })?;
        if done == Printed::Enough || printer.reader_is_gone() {
            break Exit::Success;
        }
        if args.exit_at_end && is_at_end(&member, &mut ends).await? {
            break Exit::Success;
        }
        if !printer.is_terminal() {
            progress.update(printer.records(), printer.records(), printer.bytes());
        }
    };
    member.close().await?;
    Ok(exit)
}

fn config(args: &ConsumeArgs, group: &str, range: Range) -> Result<GroupConfig, CliError> {
    let start_at = match (range.from, range.to) {
        (None | Some(Point::Start), None) => StartAt::Earliest,
        (Some(Point::End), None) => StartAt::Latest,
        _ => {
            return Err(CliError::usage("a group remembers where it is: --offset is `start` or `end`, for where it has not been yet")
                .with_hint(format!("`tidemark group seek {group} TOPIC --to POSITION` sets where it goes on")));
        }
    };
    if !args.partition.is_empty() {
        return Err(CliError::usage("a group chooses the partitions: leave --partition out"));
    }
    let mut config = GroupConfig::new(group);
    config.start_at = start_at;
    config.instance.clone_from(&args.instance);
    // Only what was printed is committed.
    config.auto_commit = None;
    config.consumer.isolation = args.isolation();
    // At a rate a few times a second, or lag would move in leaps.
    let at_once =
        args.rate.map_or(usize::MAX, |rate| usize::try_from(rate / 4).unwrap_or(usize::MAX));
    config.consumer.poll_records_max = at_once.clamp(1, RECORDS_PER_COMMIT_MAX);
    Ok(config)
}

/// Prints records; says which offset comes after the last of each partition.
fn print(
    printer: &mut Printer,
    records: Vec<ConsumedRecord>,
    limit: Option<u64>,
) -> Result<(Places, Printed), CliError> {
    let mut printed = Places::new();
    for record in records {
        let (place, next) = ((record.topic.clone(), record.partition), record.offset + 1);
        let done = printer.print_record(record, limit)?;
        printed.insert(place, next);
        if done == Printed::Enough {
            return Ok((printed, done));
        }
    }
    Ok((printed, Printed::More))
}

fn offsets(printed: Places) -> impl Iterator<Item = (Arc<str>, PartitionIndex, Offset, String)> {
    printed
        .into_iter()
        .map(|((topic, partition), offset)| (topic, partition, offset, String::new()))
}

/// A commit that was refused is no reason to stop.
fn noted(committed: Result<(), GroupError>) -> Result<(), CliError> {
    match committed {
        Ok(()) => Ok(()),
        // Others have the partitions by now, and print these records again.
        Err(error) if error.code().is_some() => {
            output::note(format_args!("not committed, others go on from before: {error}"));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether everything is printed that there was when the partitions were assigned.
async fn is_at_end(member: &GroupConsumer, ends: &mut Option<Places>) -> Result<bool, CliError> {
    let assigned = member.assignment();
    if assigned.is_empty() {
        *ends = None;
        return Ok(false);
    }
    let is_known = |ends: &Places| {
        ends.len() == assigned.len() && assigned.iter().all(|it| ends.contains_key(it))
    };
    if !ends.as_ref().is_some_and(is_known) {
        let asked = member.end_offsets().await?;
        let found = asked.into_iter().map(|(topic, partition, end)| ((topic, partition), end));
        *ends = Some(found.collect());
    }
    let known = ends.iter().flatten();
    Ok(known.into_iter().all(|((topic, partition), end)| {
        member.position(topic, *partition).is_some_and(|position| position >= *end)
    }))
}

/// Tells the person at the terminal what is read from now on.
fn announce(rebalance: &Rebalance) {
    let (verb, partitions) = match rebalance {
        Rebalance::Assigned(partitions) => ("reading", partitions),
        Rebalance::Revoked(partitions) => ("giving up", partitions),
        Rebalance::Lost(partitions) => ("lost", partitions),
    };
    let mut topics: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (topic, partition) in partitions {
        topics.entry(topic).or_default().push(partition.to_string());
    }
    for (topic, partitions) in topics {
        output::note(format_args!("{verb} {topic}/{}", partitions.join(",")));
    }
}

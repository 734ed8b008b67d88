//! `tidemark group lag`: how far a group is behind, in records, bytes and time, and what becomes of that.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{Offset, PartitionIndex, messages::GroupLag};

use super::{Names, or_dash};
use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::Session,
};

/// How often `--wait` looks again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Show how far a consumer group is behind
///
/// AGE is how old the first record is that the group has not read. EMPTY IN is when there is nothing left at the present rate.
/// DELETED IN is when retention by time may delete records that were not read. LOST were deleted before they were read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark group lag billing
  tidemark group lag billing --wait 5m
  tidemark group lag billing -o json")]
pub(crate) struct LagArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,

    /// Look again until nothing is left to read, for at most this long; exits with 5 when something is left then
    #[arg(long, value_name = "DURATION", value_parser = quantity::parse_duration)]
    wait: Option<Duration>,
}

/// How far a group is behind, over all its partitions and in each.
#[derive(Serialize)]
pub(super) struct Lag {
    group: String,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Age of the oldest record that was not read.
    pub(super) age_ms: u64,
    /// Records that were deleted before they were read.
    pub(super) lost_records: u64,
    pub(super) partitions: Vec<PartitionLag>,
}

#[derive(Serialize)]
pub(super) struct PartitionLag {
    topic: String,
    partition: PartitionIndex,
    /// `null`: nothing is committed; the lag is that of a reader that begins at the start.
    committed: Option<Offset>,
    end: Option<Offset>,
    records: Option<u64>,
    bytes: Option<u64>,
    age_ms: Option<u64>,
    /// Until nothing is left, at the present rate; `null` when it does not get less or is not known.
    empty_in_ms: Option<u64>,
    /// Until retention by time may delete what was not read; `null`: never.
    deleted_in_ms: Option<u64>,
    lost_records: Option<u64>,
    member: Option<String>,
    /// Why nothing is known of it.
    error: Option<String>,
}

impl Report for Lag {
    const SCHEMA: &'static str = "tidemark/group.lag/1";

    fn page(&self, page: &mut Page) {
        page.line(&self.summary(), if self.lost_records > 0 { Tone::Bad } else { Tone::Plain });
        page.table(&self.rows());
    }

    fn names(&self) -> Vec<String> {
        vec![self.group.clone()]
    }
}

impl Lag {
    /// Asks how far the group is behind.
    pub(super) async fn of(admin: &Admin, group: &str) -> Result<Self, CliError> {
        let lags = admin.group_lag(group).await?;
        let names = Names::of(admin, lags.iter().map(|lag| &lag.partition)).await?;
        let mut lag = Self {
            group: group.to_owned(),
            records: 0,
            bytes: 0,
            age_ms: 0,
            lost_records: 0,
            partitions: Vec::with_capacity(lags.len()),
        };
        for one in lags {
            if let Ok(known) = &one.lag {
                lag.records += known.records;
                lag.bytes += known.bytes;
                lag.age_ms = lag.age_ms.max(known.age_ms);
                lag.lost_records += known.lost_records;
            }
            lag.partitions.push(partition(one, &names));
        }
        let place = |lag: &PartitionLag| (lag.topic.clone(), lag.partition);
        lag.partitions.sort_by_key(place);
        Ok(lag)
    }

    pub(super) fn summary(&self) -> String {
        let behind = format!(
            "{} behind by {}, {}, {}",
            self.group,
            quantity::counted(self.records, "record"),
            quantity::bytes(self.bytes),
            span(Some(self.age_ms)),
        );
        match self.lost_records {
            0 => behind,
            lost => format!("{behind}; {} deleted unread", quantity::counted(lost, "record")),
        }
    }

    pub(super) fn rows(&self) -> Rows {
        let mut rows = Rows::new(&[
            "TOPIC",
            ">PARTITION",
            ">COMMITTED",
            ">END",
            ">LAG",
            ">BYTES",
            ">AGE",
            ">EMPTY IN",
            ">DELETED IN",
            ">LOST",
            "MEMBER",
        ]);
        for one in &self.partitions {
            let member = one.error.as_ref().or(one.member.as_ref());
            let tone = if one.error.is_some() || one.lost_records.is_some_and(|lost| lost > 0) {
                Tone::Bad
            } else {
                Tone::Plain
            };
            rows.push_toned(
                vec![
                    one.topic.clone(),
                    one.partition.to_string(),
                    or_dash(one.committed),
                    or_dash(one.end),
                    or_dash(one.records.map(quantity::count)),
                    or_dash(one.bytes.map(quantity::bytes)),
                    span(one.age_ms),
                    span(one.empty_in_ms),
                    span(one.deleted_in_ms),
                    or_dash(one.lost_records.map(quantity::count)),
                    or_dash(member),
                ],
                tone,
            );
        }
        rows
    }
}

fn partition(one: GroupLag, names: &Names) -> PartitionLag {
    let (lag, error) = match one.lag {
        Ok(lag) => (Some(lag), None),
        Err(failure) => (None, Some(failure.to_string())),
    };
    PartitionLag {
        topic: names.get(one.partition),
        partition: one.partition.partition,
        committed: one.committed,
        end: lag.map(|lag| lag.high_watermark),
        records: lag.map(|lag| lag.records),
        bytes: lag.map(|lag| lag.bytes),
        age_ms: lag.map(|lag| lag.age_ms),
        empty_in_ms: one.drained_in_ms,
        deleted_in_ms: lag.and_then(|lag| lag.deleted_in_ms),
        lost_records: lag.map(|lag| lag.lost_records),
        member: one.member,
        error,
    }
}

fn span(ms: Option<u64>) -> String {
    or_dash(ms.map(|ms| quantity::duration(Duration::from_millis(ms))))
}

pub(super) async fn run(session: &Session, args: &LagArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    loop {
        let lag = Lag::of(&admin, &args.group).await?;
        let complete = lag.partitions.iter().all(|one| one.error.is_none());
        let is_read = complete && lag.records == 0;
        if !is_read && deadline.is_some_and(|deadline| Instant::now() < deadline) {
            // The group has to read; there is nothing here to be woken by.
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            continue;
        }
        session.output.print(&lag)?;
        return Ok(match (complete, deadline) {
            (false, _) => Exit::Partial,
            (true, Some(_)) if !is_read => Exit::Timeout,
            (true, _) => Exit::Success,
        });
    }
}

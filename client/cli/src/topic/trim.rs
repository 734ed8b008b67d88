//! `tidemark topic trim`: delete the oldest records of a topic, up to an offset or a time.

use clap::Args;
use serde::Serialize;
use tidemark_client::{Admin, OffsetSpec};
use tidemark_protocol::{Offset, PartitionIndex};

use super::Described;
use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows},
    position::{Extent, GRAMMAR, Point},
    quantity,
    session::{self, Session},
};

/// Delete the oldest records of a topic, for good
///
/// Every partition loses its records below the position; the record at the position stays. Shows what will be
/// lost and asks first. Without a terminal to ask on, --yes is required.
#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  tidemark topic trim orders --before @-7d
  tidemark topic trim orders --before 1200 --partition 3
  tidemark topic trim orders --before end --yes",
    after_long_help = format!("\
Examples:
  tidemark topic trim orders --before @-7d
  tidemark topic trim orders --before 1200 --partition 3
  tidemark topic trim orders --before end --yes

Positions:
{GRAMMAR}")
)]
pub(crate) struct TrimArgs {
    /// Name of the topic
    #[arg(value_name = "TOPIC")]
    name: String,

    /// The first position to keep: an offset or a time, see --help
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    before: String,

    /// Only these partitions, separated by commas [default: all]
    #[arg(short, long, value_name = "PARTITIONS", value_delimiter = ',')]
    partition: Vec<PartitionIndex>,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Trimmed {
    topic: String,
    dry_run: bool,
    partitions: Vec<Cut>,
}

#[derive(Serialize)]
struct Cut {
    partition: PartitionIndex,
    log_start_before: Offset,
    log_start: Offset,
    records: u64,
    /// An estimate: what the records take if all are of the same size.
    size_bytes_estimate: u64,
    trimmed: bool,
}

impl Report for Trimmed {
    const SCHEMA: &'static str = "tidemark/topic.trim/1";

    fn page(&self, page: &mut Page) {
        let mut rows =
            Rows::new(&[">PARTITION", ">START", ">NEW START", ">RECORDS", ">ABOUT", "STATUS"]);
        for cut in &self.partitions {
            let status = match (cut.trimmed, self.dry_run, cut.records) {
                (_, _, 0) => "nothing to trim",
                (true, ..) => "trimmed",
                (false, true, _) => "would be trimmed",
                (false, false, _) => "not trimmed",
            };
            rows.push(vec![
                cut.partition.to_string(),
                cut.log_start_before.to_string(),
                cut.log_start.to_string(),
                quantity::count(cut.records),
                quantity::bytes(cut.size_bytes_estimate),
                status.to_owned(),
            ]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        vec![self.topic.clone()]
    }
}

pub(super) async fn run(session: &Session, args: TrimArgs) -> Result<Exit, CliError> {
    let point = Point::parse(&args.before, session::now_ms())?;
    let admin = session.admin().await?;
    let topic = super::described(&admin, &args.name).await?;
    let mut report = Trimmed {
        topic: args.name.clone(),
        dry_run: args.consent.dry_run,
        partitions: plan(&admin, &topic, point, &args.partition).await?,
    };
    let records: u64 = report.partitions.iter().map(|cut| cut.records).sum();
    let mut errors = Vec::new();
    if !args.consent.dry_run && records > 0 {
        if !args.consent.yes {
            let bytes = report.partitions.iter().map(|cut| cut.size_bytes_estimate).sum();
            output::note(format_args!(
                "This deletes for good: {} of {}, about {}",
                quantity::counted(records, "record"),
                args.name,
                quantity::bytes(bytes)
            ));
        }
        args.consent.obtain("Trim?")?;
        errors = carry_out(&admin, &args.name, &mut report.partitions).await?;
    }
    session.output.print(&report)?;
    let done = report.partitions.len() - errors.len();
    super::conclude(done, &errors)
}

/// What each partition would lose.
async fn plan(
    admin: &Admin,
    topic: &Described,
    point: Point,
    only: &[PartitionIndex],
) -> Result<Vec<Cut>, CliError> {
    let (name, count) = (topic.description.topic.name.as_str(), topic.partitions.len());
    if let Some(missing) = only.iter().find(|it| **it as usize >= count) {
        return Err(CliError::new(
            Exit::NotFound,
            format!("{name} has no partition {missing}: it has {count}"),
        ));
    }
    let chosen = topic.partitions.iter().filter(|it| only.is_empty() || only.contains(&it.index));
    let unknown = |partition| {
        let message = format!("{name}/{partition}: nobody says what is in it, nothing was changed");
        CliError::error(message)
            .with_hint("`tidemark cluster health` says which brokers are missing")
    };
    let extents: Vec<super::Extent> = chosen
        .map(|it| topic.extent(it.index).ok_or_else(|| unknown(it.index)))
        .collect::<Result<_, _>>()?;
    let Some(timestamp_ms) = point.time() else {
        return Ok(extents.iter().map(|log| cut(log, point, None)).collect());
    };
    let spec = OffsetSpec::Timestamp(timestamp_ms);
    let questions: Vec<_> = extents.iter().map(|log| (name, log.partition, spec)).collect();
    let answers = admin.list_offsets(&questions).await?;
    extents
        .iter()
        .zip(answers)
        .map(|(log, answer)| Ok(cut(log, point, Some(answer?.offset))))
        .collect()
}

/// Trims what the plan says and notes in it what came of it.
async fn carry_out(
    admin: &Admin,
    topic: &str,
    cuts: &mut [Cut],
) -> Result<Vec<CliError>, CliError> {
    let mut cuts: Vec<&mut Cut> = cuts.iter_mut().filter(|cut| cut.records > 0).collect();
    let orders: Vec<_> =
        cuts.iter().map(|cut| (topic, cut.partition, Some(cut.log_start))).collect();
    let outcomes = admin.delete_records(&orders).await?;
    let mut errors = Vec::new();
    for (cut, outcome) in cuts.iter_mut().zip(outcomes) {
        match outcome {
            Ok(log_start) => {
                cut.log_start = log_start;
                cut.trimmed = true;
            }
            Err(error) => {
                errors.push(CliError::from(error).context(format!("partition {}", cut.partition)));
            }
        }
    }
    Ok(errors)
}

fn cut(log: &super::Extent, point: Point, time: Option<Offset>) -> Cut {
    let start = log.log_start_offset;
    let extent = Extent { start, end: log.high_watermark, from_time: time, to_time: None };
    let new_start = point.resolve(&extent, time);
    let (records, all) = (new_start - start, log.log_end_offset.saturating_sub(start));
    let share = u128::from(log.size_bytes) * u128::from(records) / u128::from(all.max(1));
    Cut {
        partition: log.partition,
        log_start_before: start,
        log_start: new_start,
        records,
        size_bytes_estimate: u64::try_from(share).unwrap_or(u64::MAX),
        trimmed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_the_record_at_the_position_and_estimates_its_share_of_the_bytes() {
        let log = super::super::Extent {
            partition: 2,
            log_start_offset: 100,
            high_watermark: 200,
            log_end_offset: 200,
            size_bytes: 1_000,
        };
        let at = cut(&log, Point::At(125), None);
        assert_eq!((at.log_start, at.records, at.size_bytes_estimate), (125, 25, 250));
        assert_eq!(cut(&log, Point::At(7), None).records, 0, "what is gone is not lost again");
        assert_eq!(cut(&log, Point::At(9_999), None).log_start, 200);
        assert_eq!(cut(&log, Point::Time(5), Some(150)).log_start, 150);
    }
}

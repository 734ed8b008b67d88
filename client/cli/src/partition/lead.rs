//! `tidemark partition transfer-leader` and `elect`: choosing who leads, among those that are in sync, or, as the last
//! resort, among those that are not.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{BrokerId, Failure, PartitionIndex, TopicPartition, messages::Election};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    placement::{self, Partition, Selection},
    session::Session,
};

/// Give the leadership of partitions to another in-sync replica
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark partition transfer-leader orders/0 --to 2
  tidemark partition transfer-leader orders/0-5 --to 3 --dry-run")]
pub(crate) struct TransferArgs {
    /// Which, as TOPIC, TOPIC/2, TOPIC/0,3 or TOPIC/0-5
    #[arg(required = true, value_name = "PARTITION")]
    partitions: Vec<Selection>,

    /// The broker that is to lead
    #[arg(long, value_name = "BROKER")]
    to: BrokerId,

    /// Show what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Let the preferred replica lead again, or, without any in sync, one that may have lost records
///
/// The preferred replica is the first one; it is elected if it is in sync. With --unclean a partition gets a leader that
/// has none because no replica in sync is left: **records that were acknowledged may be lost**.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark partition elect
  tidemark partition elect orders
  tidemark partition elect orders/3 --unclean")]
pub(crate) struct ElectArgs {
    /// Which, as TOPIC, TOPIC/2, TOPIC/0,3 or TOPIC/0-5 [default: all]
    #[arg(value_name = "PARTITION")]
    partitions: Vec<Selection>,

    /// Elect a replica that is not in sync, where none is: acknowledged records may be lost
    #[arg(long, requires = "partitions")]
    unclean: bool,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Elected {
    dry_run: bool,
    partitions: Vec<Outcome>,
}

#[derive(Serialize)]
struct Outcome {
    topic: String,
    partition: PartitionIndex,
    leader_before: Option<BrokerId>,
    /// `null` when nobody could be elected, and in a dry run of an unclean election.
    leader: Option<BrokerId>,
    error: Option<String>,
}

impl Report for Elected {
    const SCHEMA: &'static str = "tidemark/partition.elect/1";

    fn page(&self, page: &mut Page) {
        if self.partitions.is_empty() {
            page.line("nobody to elect", Tone::Plain);
            return;
        }
        let leads = if self.dry_run { ">WOULD LEAD" } else { ">LEADS" };
        let mut rows = Rows::new(&["PARTITION", ">LED", leads, "ERROR"]);
        let id = |id: Option<BrokerId>| id.map_or("-".to_owned(), |id| id.to_string());
        for it in &self.partitions {
            let error = it.error.clone().unwrap_or_else(|| "-".to_owned());
            rows.push_toned(
                vec![
                    format!("{}/{}", it.topic, it.partition),
                    id(it.leader_before),
                    id(it.leader),
                    error,
                ],
                if it.error.is_some() { Tone::Bad } else { Tone::Plain },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.partitions.iter().map(|it| format!("{}/{}", it.topic, it.partition)).collect()
    }
}

impl Elected {
    fn exit(&self) -> Exit {
        let failed = self.partitions.iter().filter(|it| it.error.is_some()).count();
        match failed {
            0 => Exit::Success,
            _ if failed < self.partitions.len() => Exit::Partial,
            _ => Exit::Error,
        }
    }
}

pub(super) async fn transfer(session: &Session, args: TransferArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut chosen = super::selected(&admin, &args.partitions).await?;
    chosen.retain(|it| it.metadata.leader != Some(args.to));
    if args.dry_run {
        let foreseen = |it: &Partition| {
            let error = (!it.metadata.isr.contains(&args.to))
                .then(|| format!("broker {} is not in sync", args.to));
            Outcome::of(it, error.is_none().then_some(args.to), error)
        };
        let partitions = chosen.iter().map(foreseen).collect();
        return print(session, &Elected { dry_run: true, partitions });
    }
    let outcomes = elected(&admin, Election::Transfer, &chosen, Some(args.to)).await?;
    print(session, &Elected { dry_run: false, partitions: outcomes })
}

pub(super) async fn elect(session: &Session, args: ElectArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut chosen = super::selected(&admin, &args.partitions).await?;
    chosen.retain(if args.unclean {
        Partition::is_leaderless
    } else {
        Partition::is_led_by_another
    });
    if args.consent.dry_run {
        let foreseen =
            |it: &Partition| Outcome::of(it, it.preferred().filter(|_| !args.unclean), None);
        let partitions = chosen.iter().map(foreseen).collect();
        return print(session, &Elected { dry_run: true, partitions });
    }
    if args.unclean && !chosen.is_empty() {
        let named: Vec<&Partition> = chosen.iter().collect();
        output::note(format_args!(
            "An unclean election may lose acknowledged records of {}, for good. Bringing one of the eligible replicas back \
             loses nothing: `tidemark partition describe` shows them.",
            placement::named(&named)
        ));
        args.consent.obtain("Elect all the same?")?;
    }
    let election = if args.unclean { Election::Unclean } else { Election::Preferred };
    let outcomes = elected(&admin, election, &chosen, None).await?;
    print(session, &Elected { dry_run: false, partitions: outcomes })
}

fn print(session: &Session, report: &Elected) -> Result<Exit, CliError> {
    session.output.print(report)?;
    Ok(report.exit())
}

/// Nobody is asked when nothing is chosen: an empty list would mean everything.
async fn elected(
    admin: &Admin,
    election: Election,
    chosen: &[Partition],
    to: Option<BrokerId>,
) -> Result<Vec<Outcome>, CliError> {
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let ids = chosen.iter().map(Partition::id).collect();
    let answers = admin.elect_leaders(election, ids, to).await?;
    Ok(outcomes(chosen, answers.into_iter().collect()))
}

fn outcomes(
    chosen: &[Partition],
    mut answers: BTreeMap<TopicPartition, Result<BrokerId, Failure>>,
) -> Vec<Outcome> {
    let outcome = |it: &Partition| match answers.remove(&it.id()) {
        Some(Ok(leader)) => Outcome::of(it, Some(leader), None),
        Some(Err(failure)) => Outcome::of(it, it.metadata.leader, Some(failure.message)),
        None => Outcome::of(it, it.metadata.leader, Some("the broker left it out".to_owned())),
    };
    chosen.iter().map(outcome).collect()
}

impl Outcome {
    fn of(partition: &Partition, leader: Option<BrokerId>, error: Option<String>) -> Self {
        Self {
            topic: partition.topic.clone(),
            partition: partition.index,
            leader_before: partition.metadata.leader,
            leader,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::ErrorCode;

    use super::*;
    use crate::placement::{partitions_of, tests::topic};

    #[test]
    fn each_partition_has_its_outcome_and_the_exit_code_is_that_of_all() {
        let topic = topic(&[(Some(2), &[1, 2], &[1, 2]), (Some(2), &[1, 2], &[2])], "1");
        let chosen = partitions_of(&topic);
        let failure = Failure::new(ErrorCode::IneligibleReplica, "broker 1 is not in sync");
        let answers = [(chosen[0].id(), Ok(1)), (chosen[1].id(), Err(failure))];
        let mut elected = Elected { dry_run: false, partitions: outcomes(&chosen, answers.into()) };
        assert_eq!(
            (elected.partitions[0].leader_before, elected.partitions[0].leader),
            (Some(2), Some(1))
        );
        assert_eq!(elected.partitions[1].error.as_deref(), Some("broker 1 is not in sync"));
        assert_eq!(elected.exit(), Exit::Partial);
        elected.partitions.remove(0);
        assert_eq!(elected.exit(), Exit::Error);
        assert_eq!(
            outcomes(&chosen, BTreeMap::new())[0].error.as_deref(),
            Some("the broker left it out")
        );
    }
}

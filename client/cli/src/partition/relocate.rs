//! `tidemark partition move` and `balance`: a plan, a question, and then watching until all have arrived.
//!
//! Given again while moves are under way, both show how far these are.

use clap::Args;
use tidemark_client::{Admin, Reassignment};
use tidemark_protocol::{
    BrokerId,
    messages::{PlanGoal, PlanMovesRequest},
};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    moves::{self, Move, Pace, Plan, Status, watch},
    output,
    placement::{Partition, Selection},
    quantity,
    session::Session,
};

/// Move replicas to other brokers, or change how many there are
///
/// Shows the plan and asks first, then shows how far the copying is. The moves go on in the cluster when this command
/// ends: given again, with the same arguments or with none, it shows how far they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark partition move orders/0 --to 1,2,3
  tidemark partition move --topic orders --on 4,5,6 --replication-factor 3 --dry-run
  tidemark partition move orders --replication-factor 3 --throttle 50MiB --yes
  tidemark partition move
  tidemark partition move --cancel")]
pub(crate) struct MoveArgs {
    /// Which, as TOPIC, TOPIC/2, TOPIC/0,3 or TOPIC/0-5
    #[arg(value_name = "PARTITION")]
    partitions: Vec<Selection>,

    /// All partitions of this topic; may be repeated
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<Selection>,

    /// Brokers for the replicas of each partition, the preferred leader first
    #[arg(long, value_name = "BROKERS", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["on", "replication_factor", "cancel"])]
    to: Vec<BrokerId>,

    /// Brokers to spread the replicas over
    #[arg(long, value_name = "BROKERS", value_delimiter = ',', conflicts_with = "cancel")]
    on: Vec<BrokerId>,

    /// Replicas per partition afterwards [default: as many as there are]
    #[arg(long, value_name = "COUNT", conflicts_with = "cancel")]
    replication_factor: Option<u16>,

    /// Take back the moves under way
    #[arg(long, conflicts_with_all = ["throttle", "no_wait"])]
    cancel: bool,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    consent: Consent,
}

/// Spread replicas and leaders evenly over the brokers, with as few moves as possible
///
/// Shows the plan and asks first, then shows how far the copying is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark partition balance --dry-run
  tidemark partition balance orders payments --throttle 50MiB --yes")]
pub(crate) struct BalanceArgs {
    /// Only these topics [default: all]
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    consent: Consent,
}

/// Where the partitions are to be.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    To(Vec<BrokerId>),
    Spread {
        brokers: Vec<BrokerId>,
        replication_factor: Option<u16>,
    },
    /// As they are, or are going to be.
    None,
}

impl MoveArgs {
    fn selections(&self) -> Vec<Selection> {
        self.partitions.iter().chain(&self.topic).cloned().collect()
    }

    fn wish(&self) -> Result<Wish, CliError> {
        let wish = if !self.to.is_empty() {
            Wish::To(self.to.clone())
        } else if !self.on.is_empty() || self.replication_factor.is_some() {
            let (brokers, replication_factor) = (self.on.clone(), self.replication_factor);
            Wish::Spread { brokers, replication_factor }
        } else {
            Wish::None
        };
        if wish != Wish::None && self.partitions.is_empty() && self.topic.is_empty() {
            let error = CliError::usage("say which partitions are to move");
            return Err(error.with_hint("name topics or partitions, like orders or orders/0"));
        }
        Ok(wish)
    }
}

pub(super) async fn run(session: &Session, args: MoveArgs) -> Result<Exit, CliError> {
    let wish = args.wish()?;
    let admin = session.admin().await?;
    let selections = args.selections();
    let chosen = super::selected(&admin, &selections).await?;
    if args.cancel {
        return cancel(session, &admin, &chosen, args.consent).await;
    }
    let sizes = match wish {
        Wish::None => Sizes::new(),
        _ => moves::progress(&admin, &chosen).await?,
    };
    let planned = match wish {
        Wish::None => Vec::new(),
        Wish::To(to) => moves::explicit(&chosen, &to, &sizes),
        Wish::Spread { brokers, replication_factor } => {
            let request = PlanMovesRequest {
                goal: PlanGoal::Place,
                topics: Vec::new(),
                partitions: chosen.iter().map(Partition::id).collect(),
                brokers,
                replication_factor,
            };
            moves::planned(admin.plan_moves(&request).await?, &sizes)
        }
    };
    let plan = Plan::new(planned, args.consent.dry_run);
    carry_out(session, &admin, plan, &chosen, (args.pace, args.consent)).await
}

pub(super) async fn balance(session: &Session, args: BalanceArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let selections: Result<Vec<Selection>, _> =
        args.topics.iter().map(|name| name.parse::<Selection>()).collect();
    let chosen = super::selected(&admin, &selections.map_err(CliError::usage)?).await?;
    let request = PlanMovesRequest {
        goal: PlanGoal::Balance,
        topics: args.topics,
        partitions: Vec::new(),
        brokers: Vec::new(),
        replication_factor: None,
    };
    let planned = admin.plan_moves(&request).await?;
    let sizes = moves::progress(&admin, &chosen).await?;
    let plan = Plan::new(moves::planned(planned, &sizes), args.consent.dry_run);
    carry_out(session, &admin, plan, &chosen, (args.pace, args.consent)).await
}

/// Begins what is planned and watches it; without anything to begin, watches what of `chosen` is under way.
async fn carry_out(
    session: &Session,
    admin: &Admin,
    mut plan: Plan,
    chosen: &[Partition],
    (pace, consent): (Pace, Consent),
) -> Result<Exit, CliError> {
    if plan.is_empty() {
        return show_under_way(session, admin, chosen, pace, consent).await;
    }
    if plan.is_dry_run() {
        plan.begin(admin, None).await?;
        session.output.print(&plan)?;
        return Ok(plan.exit());
    }
    if !consent.yes {
        plan.show("This moves:");
    }
    consent.obtain("Move?")?;
    plan.begin(admin, pace.throttle).await?;
    let moving = plan.moving();
    if !pace.no_wait && !moving.is_empty() {
        watch::until_arrived(admin, |it| it.is_moving() && moving.contains(&it.id())).await?;
        plan.arrived();
    }
    session.output.print(&plan)?;
    Ok(plan.exit())
}

async fn show_under_way(
    session: &Session,
    admin: &Admin,
    chosen: &[Partition],
    pace: Pace,
    consent: Consent,
) -> Result<Exit, CliError> {
    if let (Some(throttle), false) = (pace.throttle, consent.dry_run) {
        let throttle_bytes_per_second = Some(throttle);
        let request = Reassignment { throttle_bytes_per_second, ..Reassignment::default() };
        admin.reassign_partitions(request).await?;
    }
    let moving: Vec<Partition> = chosen.iter().filter(|it| it.is_moving()).cloned().collect();
    let sizes = moves::progress(admin, &moving).await?;
    let mut plan = Plan::new(under_way(&moving, &sizes), consent.dry_run);
    let moving = plan.moving();
    if !pace.no_wait && !consent.dry_run && !moving.is_empty() {
        output::note(format_args!(
            "{} on the way already",
            quantity::counted(moving.len() as u64, "partition")
        ));
        watch::until_arrived(admin, |it| it.is_moving() && moving.contains(&it.id())).await?;
        plan.arrived();
    }
    session.output.print(&plan)?;
    Ok(Exit::Success)
}

type Sizes = std::collections::BTreeMap<
    tidemark_protocol::TopicPartition,
    tidemark_protocol::messages::PartitionReplicas,
>;

/// The moves that are under way, as a plan.
fn under_way(partitions: &[Partition], sizes: &Sizes) -> Vec<Move> {
    let moving = partitions.iter().filter(|it| it.is_moving());
    let of = |it: &Partition| Move {
        status: Status::Moving,
        ..Move::new(it, it.origin(), it.target(), sizes.get(&it.id()))
    };
    moving.map(of).collect()
}

async fn cancel(
    session: &Session,
    admin: &Admin,
    chosen: &[Partition],
    consent: Consent,
) -> Result<Exit, CliError> {
    let mut plan = Plan::new(under_way(chosen, &Sizes::new()), consent.dry_run);
    if !plan.is_empty() {
        if !consent.yes && !consent.dry_run {
            plan.show("This takes back:");
            consent.obtain("Cancel?")?;
        }
        plan.take_back(admin).await?;
    }
    session.output.print(&plan)?;
    Ok(plan.exit())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::placement::{partitions_of, tests::topic};

    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        args: MoveArgs,
    }

    fn parsed(line: &str) -> Result<MoveArgs, clap::Error> {
        Alone::try_parse_from(line.split_whitespace()).map(|alone| alone.args)
    }

    #[test]
    fn where_to_is_said_in_one_of_two_ways() {
        let to = parsed("move orders/0 --to 3,1,2").unwrap();
        assert_eq!(to.wish(), Ok(Wish::To(vec![3, 1, 2])));
        let spread = parsed("move --topic orders --on 4,5,6 --replication-factor 3").unwrap();
        let (brokers, replication_factor) = (vec![4, 5, 6], Some(3));
        assert_eq!(spread.wish(), Ok(Wish::Spread { brokers, replication_factor }));
        assert_eq!(spread.selections().len(), 1);
        assert_eq!(parsed("move").unwrap().wish(), Ok(Wish::None));
        for wrong in [
            "move orders --to 1 --on 2",
            "move orders --to 1 --replication-factor 2",
            "move orders --to 1 --cancel",
            "move orders --cancel --no-wait",
            "move orders/0-x --to 1",
            "move orders --to one",
            "move orders --to 1 --dry-run --yes",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn nothing_moves_without_saying_what() {
        let everything = parsed("move --replication-factor 1").unwrap().wish().unwrap_err();
        assert_eq!(everything.exit, Exit::Usage);
    }

    #[test]
    fn moves_under_way_are_shown_as_the_plan_they_were() {
        let mut topic =
            topic(&[(Some(1), &[1, 2, 3, 4], &[1, 2]), (Some(1), &[1, 2], &[1, 2])], "1");
        topic.partitions[0].adding = vec![3, 4];
        topic.partitions[0].removing = vec![1, 2];
        let moves = under_way(&partitions_of(&topic), &Sizes::new());
        assert_eq!(moves.len(), 1);
        assert_eq!((&moves[0].from[..], &moves[0].to[..]), (&[1, 2][..], &[3, 4][..]));
        assert_eq!(moves[0].status, Status::Moving);
    }
}

//! `tidemark broker drain` and `undrain`: moving everything off a broker, and letting it have replicas again.

use clap::Args;
use serde::Serialize;
use tidemark_client::{Admin, Reassignment};
use tidemark_protocol::{
    BrokerId,
    messages::{BrokerChange, PlanGoal, PlanMovesRequest},
};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    moves::{self, Pace, Plan, Status, watch},
    output::{self, Page, Report, Tone},
    placement::{self, Partition},
    quantity,
    session::Session,
};

/// Move everything off a broker, so that it can be taken away
///
/// Shows the plan and asks first, then shows how far the copying is. The broker gets no new replicas until `undrain`. Given
/// again while it goes on, it shows how far it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark broker drain 3 --dry-run
  tidemark broker drain 3 --throttle 50MiB --yes
  tidemark broker drain 3 --no-wait --yes")]
pub(crate) struct DrainArgs {
    /// Id of the broker
    #[arg(value_name = "BROKER")]
    id: BrokerId,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    consent: Consent,
}

/// Let a broker have replicas again
///
/// What has moved off it stays where it is; `tidemark partition balance` moves some back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark broker undrain 3")]
pub(crate) struct UndrainArgs {
    /// Id of the broker
    #[arg(value_name = "BROKER")]
    id: BrokerId,
}

#[derive(Serialize)]
struct Changed {
    id: BrokerId,
    draining: bool,
    /// What it held when it was asked.
    replicas: u32,
}

impl Report for Changed {
    const SCHEMA: &'static str = "tidemark/broker.undrain/1";

    fn page(&self, page: &mut Page) {
        let held = quantity::counted(self.replicas.into(), "replica");
        page.line(
            &format!("broker {} may have replicas again; it holds {held}", self.id),
            Tone::Plain,
        );
    }

    fn names(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

pub(super) async fn run(session: &Session, args: DrainArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let metadata = admin.metadata(None).await?;
    let is_draining = super::known(&metadata, args.id)?.draining;
    let held: Vec<Partition> = placement::partitions(&metadata.topics)
        .into_iter()
        .filter(|it| it.metadata.replicas.contains(&args.id))
        .collect();
    let mut plan = plan(&admin, args.id, &held, args.consent.dry_run).await?;
    if args.consent.dry_run {
        admin.change_broker(args.id, BrokerChange::Drain, true).await?;
        session.output.print(&plan)?;
        return Ok(Exit::Success);
    }
    if is_draining {
        output::note(format_args!("broker {} is being drained already", args.id));
    } else {
        if !args.consent.yes {
            plan.show(&format!("This drains broker {}:", args.id));
        }
        args.consent.obtain("Drain?")?;
    }
    if let Some(throttle) = args.pace.throttle {
        let throttle_bytes_per_second = Some(throttle);
        let request = Reassignment { throttle_bytes_per_second, ..Reassignment::default() };
        admin.reassign_partitions(request).await?;
    }
    // Asked again of a broker that is drained already, it begins what could not begin before.
    admin.change_broker(args.id, BrokerChange::Drain, false).await?;
    plan.set_moving();
    if !args.pace.no_wait {
        watch::until_arrived(&admin, |it| it.metadata.replicas.contains(&args.id)).await?;
        plan.arrived();
    }
    session.output.print(&plan)?;
    Ok(Exit::Success)
}

/// What moves off the broker: what is planned, and what is on its way already.
async fn plan(
    admin: &Admin,
    id: BrokerId,
    held: &[Partition],
    dry_run: bool,
) -> Result<Plan, CliError> {
    let sizes = moves::progress(admin, held).await?;
    let request = PlanMovesRequest {
        goal: PlanGoal::Evacuate,
        topics: Vec::new(),
        partitions: Vec::new(),
        brokers: vec![id],
        replication_factor: None,
    };
    let mut moves = moves::planned(admin.plan_moves(&request).await?, &sizes);
    let leaving = held.iter().filter(|it| it.metadata.removing.contains(&id));
    for it in leaving {
        if moves.iter().all(|planned| planned.id != it.id()) {
            let size = sizes.get(&it.id());
            let under_way = moves::Move::new(it, it.origin(), it.target(), size);
            moves.push(moves::Move { status: Status::Moving, ..under_way });
        }
    }
    Ok(Plan::new(moves, dry_run))
}

pub(super) async fn undrain(session: &Session, args: UndrainArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    super::known(&admin.metadata(Some(Vec::new())).await?, args.id)?;
    let answer = admin.change_broker(args.id, BrokerChange::Undrain, false).await?;
    session.output.print(&Changed { id: args.id, draining: false, replicas: answer.replicas })?;
    Ok(Exit::Success)
}

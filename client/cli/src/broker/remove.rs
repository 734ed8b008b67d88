//! `tidemark broker remove`: making the cluster forget a broker that is gone.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{BrokerId, messages::BrokerChange};

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Tone},
    session::Session,
};

/// Forget a broker that is stopped and holds nothing any more
///
/// Refused while it is alive or holds replicas: drain it and stop it first. One that is a controller, too, stays in the
/// quorum until `tidemark cluster remove-controller`.
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_help = "\
Examples:
  tidemark broker remove 3
  tidemark broker remove 3 --dry-run"
)]
pub(crate) struct RemoveArgs {
    /// Id of the broker
    #[arg(value_name = "BROKER")]
    id: BrokerId,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Removed {
    id: BrokerId,
    dry_run: bool,
}

impl Report for Removed {
    const SCHEMA: &'static str = "tidemark/broker.remove/1";

    fn page(&self, page: &mut Page) {
        let done = if self.dry_run { "would be removed" } else { "is removed" };
        page.line(&format!("broker {} {done}", self.id), Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

pub(super) async fn run(session: &Session, args: RemoveArgs) -> Result<Exit, CliError> {
    let (id, consent) = (args.id, args.consent);
    let admin = session.admin().await?;
    super::known(&admin.metadata(Some(Vec::new())).await?, id)?;
    let refused = |error: CliError| {
        let hint = || {
            format!(
                "`tidemark broker drain {id}` moves off what it holds; then stop it, and remove it"
            )
        };
        CliError { hint: error.hint.clone().or_else(|| Some(hint())), ..error }
    };
    let change = BrokerChange::Unregister;
    admin.change_broker(id, change, true).await.map_err(|error| refused(error.into()))?;
    if !consent.dry_run {
        if !consent.yes {
            output::note(format_args!("This makes the cluster forget broker {id}."));
        }
        consent.obtain("Remove?")?;
        admin.change_broker(id, change, false).await.map_err(|error| refused(error.into()))?;
    }
    session.output.print(&Removed { id, dry_run: consent.dry_run })?;
    Ok(Exit::Success)
}

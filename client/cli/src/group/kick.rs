//! `tidemark group kick`: put a member out of its group.

use clap::Args;
use serde::Serialize;
use tidemark_client::AdminError;
use tidemark_protocol::ErrorCode;

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{Page, Report, Tone},
    session::Session,
};

/// Put a member out of its group, so that others get its partitions
///
/// Its program is told and may join again; a program that hangs cannot, and what it commits from then on is refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark group kick billing worker-3f2a9c
  tidemark group kick billing worker-3f2a9c --yes")]
pub(crate) struct KickArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,

    /// Id of the member, or its name as a static member, from `group describe`
    #[arg(value_name = "MEMBER")]
    member: String,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Kicked {
    group: String,
    member: String,
    dry_run: bool,
}

impl Report for Kicked {
    const SCHEMA: &'static str = "tidemark/group.kick/1";

    fn page(&self, page: &mut Page) {
        let verb = if self.dry_run { "would be put" } else { "was put" };
        page.line(&format!("{} {verb} out of {}", self.member, self.group), Tone::Plain);
    }

    fn names(&self) -> Vec<String> {
        vec![self.member.clone()]
    }
}

pub(super) async fn run(session: &Session, args: KickArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let group = admin.describe_group(&args.group).await?;
    let is_it = |id: &str, instance: Option<&str>| {
        id == args.member || instance == Some(args.member.as_str())
    };
    let found =
        group.members.iter().find(|member| is_it(&member.member, member.instance.as_deref()));
    let found = found.ok_or_else(|| {
        let message = format!("{} has no member {}", args.group, args.member);
        let hint = format!("`tidemark group describe {}` shows its members", args.group);
        CliError::new(Exit::NotFound, message).with_hint(hint)
    })?;
    if !args.consent.dry_run {
        args.consent.obtain(&format!("Put {} out of {}?", args.member, args.group))?;
        match admin.remove_member(&args.group, &found.member, false).await {
            Ok(()) => {}
            // It has left by itself meanwhile.
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let report = Kicked {
        group: args.group.clone(),
        member: args.member.clone(),
        dry_run: args.consent.dry_run,
    };
    session.output.print(&report)?;
    Ok(Exit::Success)
}

fn gone(error: &AdminError) -> bool {
    error.code() == Some(ErrorCode::UnknownMember)
}

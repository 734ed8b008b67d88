//! `tidemark group delete`: forget groups and their offsets.

use clap::Args;
use serde::Serialize;

use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows},
    session::Session,
};

/// Forget consumer groups and their committed offsets, for good
///
/// A group with members is not deleted: stop them first.
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_help = "\
Examples:
  tidemark group delete billing
  tidemark group delete old-1 old-2 --yes"
)]
pub(crate) struct DeleteArgs {
    /// Names of the groups
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,

    /// A group that does not exist is fine
    #[arg(long)]
    if_exists: bool,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Deleted {
    dry_run: bool,
    groups: Vec<Victim>,
}

#[derive(Serialize)]
struct Victim {
    name: String,
    offsets: usize,
    deleted: bool,
}

impl Report for Deleted {
    const SCHEMA: &'static str = "tidemark/group.delete/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["GROUP", ">OFFSETS", "STATUS"]);
        for group in &self.groups {
            let status = match (group.deleted, self.dry_run) {
                (true, _) => "deleted",
                (false, true) => "would be deleted",
                (false, false) => "not deleted",
            };
            rows.push(vec![group.name.clone(), group.offsets.to_string(), status.to_owned()]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.groups.iter().filter(|group| group.deleted).map(|group| group.name.clone()).collect()
    }
}

pub(super) async fn run(session: &Session, args: DeleteArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut errors: Vec<CliError> = Vec::new();
    let mut report = Deleted { dry_run: args.consent.dry_run, groups: Vec::new() };
    for name in &args.groups {
        match admin.describe_group(name).await.map_err(CliError::from) {
            Ok(_) => {
                let offsets = admin.fetch_offsets(name, None).await?.len();
                report.groups.push(Victim { name: name.clone(), offsets, deleted: false });
            }
            Err(error) if args.if_exists && error.exit == Exit::NotFound => {}
            Err(error) => errors.push(error),
        }
    }
    if report.groups.is_empty() {
        return crate::topic::conclude(0, &errors);
    }
    if !args.consent.dry_run {
        if !args.consent.yes {
            output::note("This deletes for good:");
            for group in &report.groups {
                output::note(format_args!("  {}: {} offsets", group.name, group.offsets));
            }
        }
        args.consent.obtain("Delete?")?;
        for group in &mut report.groups {
            match admin.delete_group(&group.name).await {
                Ok(()) => group.deleted = true,
                Err(error) => errors.push(error.into()),
            }
        }
    }
    session.output.print(&report)?;
    let done = report.groups.iter().filter(|group| group.deleted || report.dry_run).count();
    crate::topic::conclude(done, &errors)
}

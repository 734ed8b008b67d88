//! `tidemark group list`: every group on a line.

use clap::Args;
use serde::Serialize;

use crate::{
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    session::Session,
};

/// List consumer groups
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  tidemark group list
  tidemark group list -o name"
)]
pub(crate) struct ListArgs {}

#[derive(Serialize)]
struct Groups {
    groups: Vec<ListedGroup>,
    /// Whether some coordinator could not say which groups it has.
    complete: bool,
}

#[derive(Serialize)]
struct ListedGroup {
    name: String,
    state: &'static str,
    members: u32,
    protocol: &'static str,
}

impl Report for Groups {
    const SCHEMA: &'static str = "tidemark/group.list/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["GROUP", "STATE", ">MEMBERS", "PROTOCOL"]);
        for group in &self.groups {
            let tone = if group.state == "stable" { Tone::Good } else { Tone::Plain };
            rows.push_toned(
                vec![
                    group.name.clone(),
                    group.state.to_owned(),
                    group.members.to_string(),
                    group.protocol.to_owned(),
                ],
                tone,
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.name.clone()).collect()
    }
}

pub(super) async fn run(session: &Session, _: &ListArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let list = admin.list_groups().await?;
    let groups = list.groups.into_iter().map(|group| ListedGroup {
        name: group.group,
        state: super::state(group.state),
        members: group.members,
        protocol: if group.is_classic { "classic" } else { "consumer" },
    });
    let complete = list.unavailable.is_empty() && list.unreachable.is_empty();
    session.output.print(&Groups { groups: groups.collect(), complete })?;
    for missing in &list.unavailable {
        output::note(format_args!("missing: groups of {}: {}", missing.partition, missing.failure));
    }
    for (broker, error) in &list.unreachable {
        output::note(format_args!("missing: groups of broker {broker}: {error}"));
    }
    Ok(if complete { Exit::Success } else { Exit::Partial })
}

//! `tidemark topic alter`: change settings, all of them or none.

use clap::Args;
use serde::Serialize;
use tidemark_client::TopicChanges;
use tidemark_protocol::messages::SettingValue;

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows},
    session::Session,
};

/// Change settings of a topic
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark topic alter orders --set retention_ms=7d
  tidemark topic alter orders --unset retention_ms --dry-run

`tidemark topic describe TOPIC --all` lists every setting with its default and meaning.")]
pub(crate) struct AlterArgs {
    /// Name of the topic
    #[arg(value_name = "TOPIC")]
    name: String,

    /// A setting to change, name=value; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = super::parse_setting)]
    #[arg(required_unless_present = "unset")]
    set: Vec<(String, String)>,

    /// A setting that goes back to its default; may be repeated
    #[arg(short, long, value_name = "NAME")]
    unset: Vec<String>,

    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Altered {
    topic: String,
    dry_run: bool,
    changes: Vec<Change>,
}

#[derive(Serialize)]
struct Change {
    setting: String,
    before: String,
    after: String,
}

impl Report for Altered {
    const SCHEMA: &'static str = "tidemark/topic.alter/1";

    fn page(&self, page: &mut Page) {
        let mut rows =
            Rows::new(&["SETTING", "BEFORE", if self.dry_run { "WOULD BE" } else { "NOW" }]);
        for change in &self.changes {
            rows.push(vec![change.setting.clone(), change.before.clone(), change.after.clone()]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        vec![self.topic.clone()]
    }
}

pub(super) async fn run(session: &Session, args: AlterArgs) -> Result<Exit, CliError> {
    let set = super::settings(args.set)?;
    if let Some(both) = args.unset.iter().find(|name| set.contains_key(*name)) {
        return Err(CliError::usage(format!("setting `{both}` is both set and unset")));
    }
    let admin = session.admin().await?;
    let before = super::described(&admin, &args.name).await?.description.settings;
    let named: Vec<String> = set.keys().chain(&args.unset).cloned().collect();
    let changes = TopicChanges { set, unset: args.unset, validate_only: args.dry_run };
    let after = admin.alter_topic(&args.name, changes).await?.settings;
    let changes = named.into_iter().map(|setting| {
        let old = before.iter().find(|it| it.name == setting);
        let default = old.map_or("", |it| it.default.as_str());
        Change {
            before: old.map_or(String::new(), |it: &SettingValue| it.value.clone()),
            after: after.get(&setting).map_or(default, String::as_str).to_owned(),
            setting,
        }
    });
    let report = Altered { topic: args.name, dry_run: args.dry_run, changes: changes.collect() };
    session.output.print(&report)?;
    Ok(Exit::Success)
}

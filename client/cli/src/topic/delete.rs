//! `tidemark topic delete`: topics and all their records, for good.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::TopicId;

use super::Described;
use crate::{
    confirm::Consent,
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows},
    quantity,
    session::Session,
};

/// Delete topics and all their records, for good
///
/// Shows what will be lost and asks first. Without a terminal to ask on, --yes is required.
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_help = "\
Examples:
  tidemark topic delete orders
  tidemark topic delete orders payments --dry-run
  tidemark topic delete scratch --if-exists --yes"
)]
pub(crate) struct DeleteArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC")]
    names: Vec<String>,

    /// A topic that does not exist is fine
    #[arg(long)]
    if_exists: bool,

    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize)]
struct Deleted {
    dry_run: bool,
    topics: Vec<Victim>,
}

#[derive(Serialize)]
struct Victim {
    name: String,
    #[serde(serialize_with = "as_text")]
    id: TopicId,
    partitions: usize,
    records: u64,
    size_bytes: u64,
    deleted: bool,
}

fn as_text<S: serde::Serializer>(id: &TopicId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl Report for Deleted {
    const SCHEMA: &'static str = "tidemark/topic.delete/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["TOPIC", ">PARTITIONS", ">RECORDS", ">SIZE", "STATUS"]);
        for topic in &self.topics {
            let status = match (topic.deleted, self.dry_run) {
                (true, _) => "deleted",
                (false, true) => "would be deleted",
                (false, false) => "not deleted",
            };
            rows.push(vec![
                topic.name.clone(),
                topic.partitions.to_string(),
                quantity::count(topic.records),
                quantity::bytes(topic.size_bytes),
                status.to_owned(),
            ]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.topics.iter().filter(|topic| topic.deleted).map(|topic| topic.name.clone()).collect()
    }
}

impl Victim {
    fn new(topic: &Described) -> Self {
        Self {
            name: topic.description.topic.name.clone(),
            id: topic.description.topic.id,
            partitions: topic.partitions.len(),
            records: topic.record_count(),
            size_bytes: topic.size_bytes(),
            deleted: false,
        }
    }

    fn loss(&self) -> String {
        format!(
            "{}: {} in {}, {}",
            self.name,
            quantity::counted(self.records, "record"),
            quantity::counted(self.partitions as u64, "partition"),
            quantity::bytes(self.size_bytes),
        )
    }
}

pub(super) async fn run(session: &Session, args: DeleteArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut errors = Vec::new();
    let mut report = Deleted { dry_run: args.consent.dry_run, topics: Vec::new() };
    for name in &args.names {
        match super::described(&admin, name).await {
            Ok(topic) => report.topics.push(Victim::new(&topic)),
            Err(error) if args.if_exists && error.exit == Exit::NotFound => {}
            Err(error) => errors.push(error),
        }
    }
    if report.topics.is_empty() {
        return super::conclude(0, &errors);
    }
    if !args.consent.dry_run {
        if !args.consent.yes {
            output::note("This deletes for good:");
            report.topics.iter().for_each(|topic| output::note(format_args!("  {}", topic.loss())));
        }
        args.consent.obtain("Delete?")?;
        for topic in &mut report.topics {
            match admin.delete_topic(&topic.name, Some(topic.id)).await {
                Ok(_) => topic.deleted = true,
                Err(error) => errors.push(error.into()),
            }
        }
    }
    session.output.print(&report)?;
    let done = report.topics.iter().filter(|topic| topic.deleted || report.dry_run).count();
    super::conclude(done, &errors)
}

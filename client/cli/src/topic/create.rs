//! `tidemark topic create`: one or more topics with the same shape.

use clap::Args;
use serde::Serialize;
use tidemark_client::{Admin, NewTopic};
use tidemark_protocol::{
    ErrorCode, TopicId,
    messages::{CreateTopicResponse, TopicSettings},
};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows},
    session::Session,
};

/// Create topics
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark topic create orders
  tidemark topic create orders payments --partitions 8 --set retention_ms=7d
  tidemark topic create users --set cleanup_policy=compact --if-not-exists")]
pub(crate) struct CreateArgs {
    /// Names of the topics: letters, digits, dot, underscore and dash
    #[arg(required = true, value_name = "TOPIC")]
    names: Vec<String>,

    /// How many partitions each gets [default: what the broker is configured to]
    #[arg(short, long, value_name = "COUNT")]
    partitions: Option<u32>,

    /// How many copies of each partition [default: what the broker is configured to]
    #[arg(short, long, value_name = "COUNT")]
    replication_factor: Option<u16>,

    /// A setting that differs from its default, name=value; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = super::parse_setting)]
    set: Vec<(String, String)>,

    /// A topic that exists already is fine, whatever its shape
    #[arg(long)]
    if_not_exists: bool,

    /// Check everything and create nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Created {
    dry_run: bool,
    topics: Vec<CreatedTopic>,
}

#[derive(Serialize)]
struct CreatedTopic {
    name: String,
    /// `null` when only checked, or when it existed.
    id: Option<String>,
    partitions: u32,
    replication_factor: u16,
    settings: TopicSettings,
    existed: bool,
}

impl Report for Created {
    const SCHEMA: &'static str = "tidemark/topic.create/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["TOPIC", ">PARTITIONS", ">REPLICAS", "STATUS"]);
        for topic in &self.topics {
            let status = match (topic.existed, self.dry_run) {
                (true, _) => "exists",
                (false, true) => "would be created",
                (false, false) => "created",
            };
            rows.push(vec![
                topic.name.clone(),
                topic.partitions.to_string(),
                topic.replication_factor.to_string(),
                status.to_owned(),
            ]);
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }
}

pub(super) async fn run(session: &Session, args: CreateArgs) -> Result<Exit, CliError> {
    let settings = super::settings(args.set)?;
    let admin = session.admin().await?;
    let mut created = Created { dry_run: args.dry_run, topics: Vec::new() };
    let mut errors = Vec::new();
    for name in args.names {
        let topic = NewTopic {
            name,
            partitions: args.partitions,
            replication_factor: args.replication_factor,
            settings: settings.clone(),
            validate_only: args.dry_run,
        };
        match create(&admin, topic, args.if_not_exists).await {
            Ok(topic) => created.topics.push(topic),
            Err(error) => errors.push(error),
        }
    }
    if !created.topics.is_empty() {
        session.output.print(&created)?;
    }
    super::conclude(created.topics.len(), &errors)
}

async fn create(
    admin: &Admin,
    topic: NewTopic,
    if_not_exists: bool,
) -> Result<CreatedTopic, CliError> {
    let name = topic.name.clone();
    match admin.create_topic(topic).await {
        Ok(answer) => Ok(new_topic(name, answer)),
        Err(error) if if_not_exists && error.code() == Some(ErrorCode::TopicExists) => {
            existing_topic(admin, name).await
        }
        Err(error) => Err(error.into()),
    }
}

fn new_topic(name: String, answer: CreateTopicResponse) -> CreatedTopic {
    CreatedTopic {
        name,
        id: (answer.id != TopicId::ZERO).then(|| answer.id.to_string()),
        partitions: answer.partitions,
        replication_factor: answer.replication_factor,
        settings: answer.settings,
        existed: false,
    }
}

async fn existing_topic(admin: &Admin, name: String) -> Result<CreatedTopic, CliError> {
    let topic = super::described(admin, &name).await?.description.topic;
    let replicas = topic.partitions.first().map_or(0, |partition| partition.replicas.len());
    Ok(CreatedTopic {
        name,
        id: Some(topic.id.to_string()),
        partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
        replication_factor: u16::try_from(replicas).unwrap_or(u16::MAX),
        settings: topic.settings,
        existed: true,
    })
}

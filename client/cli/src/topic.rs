//! `tidemark topic`: one file per verb, and what they share.

mod add_partitions;
mod alter;
mod create;
mod delete;
mod describe;
mod list;
mod trim;

use std::{collections::BTreeSet, time::Duration};

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use tidemark_client::Admin;
use tidemark_protocol::{
    BrokerId, ErrorCode, Offset, PartitionIndex,
    messages::{DescribeTopicResponse, PartitionReplicas, TopicMetadata, TopicSettings},
};

use crate::{
    exit::{CliError, Exit},
    placement::{self, Partition},
    session::{self, Session},
};

/// How long a broker may take to say how its logs are: one that is silent is told of elsewhere.
const LOGS_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct TopicArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::CreateArgs),
    List(list::ListArgs),
    Describe(describe::DescribeArgs),
    Alter(alter::AlterArgs),
    AddPartitions(add_partitions::AddPartitionsArgs),
    Trim(trim::TrimArgs),
    Delete(delete::DeleteArgs),
}

pub(crate) async fn run(session: &Session, args: TopicArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::Create(args) => create::run(session, args).await,
        Verb::List(args) => list::run(session, args).await,
        Verb::Describe(args) => describe::run(session, args).await,
        Verb::Alter(args) => alter::run(session, args).await,
        Verb::AddPartitions(args) => add_partitions::run(session, args).await,
        Verb::Trim(args) => trim::run(session, args).await,
        Verb::Delete(args) => delete::run(session, args).await,
    }
}

/// A topic as one broker describes it, and its partitions as their leaders see them.
#[derive(Debug)]
struct Described {
    description: DescribeTopicResponse,
    partitions: Vec<Partition>,
    /// One for each partition; `None` when its leader does not say.
    seen: Vec<Option<PartitionReplicas>>,
    /// What brokers say is wrong with their copies.
    troubles: Vec<String>,
}

/// What there is of one partition, one copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    partition: PartitionIndex,
    log_start_offset: Offset,
    high_watermark: Offset,
    log_end_offset: Offset,
    size_bytes: u64,
}

/// Describes one topic; a name that is not there is answered with those that are near.
async fn described(admin: &Admin, name: &str) -> Result<Described, CliError> {
    let description = match admin.describe_topic(name).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
            return Err(session::unknown_topic(name, &admin.metadata(None).await?));
        }
        answer => answer?,
    };
    let partitions = placement::partitions_of(&description.topic);
    let alone = partitions.iter().all(|it| it.metadata.replicas.len() == 1);
    // One copy, and the broker that answered has it: nobody knows more.
    if alone && description.logs.len() == partitions.len() {
        return Ok(Described::new(description, partitions, Vec::new()));
    }
    let named: Vec<_> = partitions.iter().map(|it| (name, it.index)).collect();
    let seen = admin.describe_replicas(&named).await?;
    let troubles = troubles(admin, &description.topic).await;
    let seen = seen.into_iter().map(Result::ok).collect();
    Ok(Described { troubles, ..Described::new(description, partitions, seen) })
}

/// What the brokers that hold copies of a topic say is wrong with them: damage in one shows nowhere else.
pub(crate) async fn troubles(admin: &Admin, topic: &TopicMetadata) -> Vec<String> {
    let admin = &admin.clone().with_timeout(LOGS_TIMEOUT);
    let holders = topic.partitions.iter().flat_map(|it| &it.replicas);
    let holders: BTreeSet<BrokerId> = holders.copied().collect();
    let asked = holders.into_iter().map(|broker| async move {
        let described = admin.describe_topic_on(broker, &topic.name).await;
        described.map_or_else(|_silent| Vec::new(), |it| log_problems(&it, Some(broker)))
    });
    join_all(asked).await.concat()
}

/// What a broker says is wrong with its logs.
fn log_problems(topic: &DescribeTopicResponse, broker: Option<BrokerId>) -> Vec<String> {
    let name = &topic.topic.name;
    let on = broker.map_or(String::new(), |broker| format!(" on broker {broker}"));
    let troubled = topic.logs.iter().filter_map(|log| Some((log.partition, log.trouble.as_ref()?)));
    troubled.map(|(partition, trouble)| format!("{name}/{partition}{on}: {trouble}")).collect()
}

impl Described {
    fn new(
        description: DescribeTopicResponse,
        partitions: Vec<Partition>,
        mut seen: Vec<Option<PartitionReplicas>>,
    ) -> Self {
        seen.resize(partitions.len(), None);
        let troubles = log_problems(&description, None);
        Self { description, partitions, seen, troubles }
    }

    /// What its leader says of a partition, or else the broker that answered, if it has a copy.
    fn extent(&self, partition: PartitionIndex) -> Option<Extent> {
        if let Some(Some(seen)) = self.seen.get(partition as usize) {
            return Some(Extent {
                partition,
                log_start_offset: seen.log_start_offset,
                high_watermark: seen.high_watermark,
                log_end_offset: seen.log_end_offset,
                size_bytes: seen.size_bytes,
            });
        }
        let log = self.description.logs.iter().find(|log| log.partition == partition)?;
        Some(Extent {
            partition,
            log_start_offset: log.log_start_offset,
            high_watermark: log.high_watermark,
            log_end_offset: log.log_end_offset,
            size_bytes: log.size_bytes,
        })
    }

    fn extents(&self) -> impl Iterator<Item = Extent> {
        self.partitions.iter().filter_map(|it| self.extent(it.index))
    }

    /// Readable records over all partitions, by offsets; compaction may have removed some of them.
    fn record_count(&self) -> u64 {
        self.extents().map(|it| it.high_watermark.saturating_sub(it.log_start_offset)).sum()
    }

    /// Bytes on disk over all partitions, one copy of each.
    fn size_bytes(&self) -> u64 {
        self.extents().map(|it| it.size_bytes).sum()
    }
}

/// Reads `name=value`.
pub(crate) fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a setting; write it like retention_ms=7d")),
    }
}

/// The settings named on the command line; one named twice is a mistake.
fn settings(pairs: Vec<(String, String)>) -> Result<TopicSettings, CliError> {
    let mut settings = TopicSettings::new();
    for (name, value) in pairs {
        if settings.insert(name.clone(), value).is_some() {
            return Err(CliError::usage(format!("setting `{name}` is given twice")));
        }
    }
    Ok(settings)
}

/// How a verb over several topics ends: a single error speaks for itself if nothing was done.
pub(crate) fn conclude(done: usize, errors: &[CliError]) -> Result<Exit, CliError> {
    let Some(first) = errors.first().cloned() else { return Ok(Exit::Success) };
    if done == 0 && errors.len() == 1 {
        return Err(first);
    }
    let exit = if done == 0 { first.exit } else { Exit::Partial };
    let mut message = format!("{} of {} failed", errors.len(), errors.len() + done);
    for error in errors {
        message += "\n  ";
        message += &error.message;
    }
    Err(CliError { exit, message, hint: first.hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_name_and_a_value_that_may_contain_anything() {
        assert_eq!(parse_setting("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(parse_setting("a="), Ok(("a".to_owned(), String::new())));
        assert!(parse_setting("a").is_err());
        assert!(parse_setting("=b").is_err());
        let twice = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert_eq!(settings(twice).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn work_done_in_part_has_its_own_exit_code() {
        let missing = || CliError::new(Exit::NotFound, "no topic `x`");
        assert_eq!(conclude(2, &[]), Ok(Exit::Success));
        assert_eq!(conclude(0, &[missing()]).unwrap_err(), missing());
        let partial = conclude(1, &[missing()]).unwrap_err();
        assert_eq!(partial.exit, Exit::Partial);
        assert_eq!(partial.message, "1 of 2 failed\n  no topic `x`");
        assert_eq!(conclude(0, &[missing(), missing()]).unwrap_err().exit, Exit::NotFound);
    }
}

//! `tidemark topic list`: every topic on a line.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{is_internal_topic, messages::TopicMetadata};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    placement, quantity,
    session::Session,
};

/// List topics
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  tidemark topic list
  tidemark topic list 'bench-*' -o name
  tidemark topic list -o json"
)]
pub(crate) struct ListArgs {
    /// Only topics whose name matches; `*` stands for anything
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,

    /// Also the cluster's own topics, whose names begin with two underscores
    #[arg(long)]
    internal: bool,
}

#[derive(Serialize)]
struct Topics {
    topics: Vec<ListedTopic>,
}

#[derive(Serialize)]
struct ListedTopic {
    name: String,
    id: String,
    partitions: usize,
    replication_factor: usize,
    /// Partitions that have no leader and cannot be read or written.
    leaderless_partitions: usize,
    under_replicated_partitions: usize,
    /// Of all copies on all brokers that answer.
    size_bytes: u64,
}

impl Report for Topics {
    const SCHEMA: &'static str = "tidemark/topic.list/1";

    fn page(&self, page: &mut Page) {
        let mut rows = Rows::new(&["TOPIC", ">PARTITIONS", ">REPLICAS", ">SIZE", "HEALTH"]);
        for topic in &self.topics {
            let (health, tone) = if topic.leaderless_partitions > 0 {
                (format!("{} without leader", topic.leaderless_partitions), Tone::Bad)
            } else if topic.under_replicated_partitions > 0 {
                (format!("{} under-replicated", topic.under_replicated_partitions), Tone::Bad)
            } else {
                ("ok".to_owned(), Tone::Plain)
            };
            rows.push_toned(
                vec![
                    topic.name.clone(),
                    topic.partitions.to_string(),
                    topic.replication_factor.to_string(),
                    quantity::bytes(topic.size_bytes),
                    health,
                ],
                tone,
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }
}

pub(super) async fn run(session: &Session, args: ListArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let metadata = admin.metadata(None).await?;
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for broker in metadata.brokers.iter().filter(|broker| !broker.fenced) {
        // What a broker that does not answer holds is missing in the sizes; the list is worth having all the same.
        let Ok(answer) = admin.describe_log_dirs(Some(broker.id)).await else { continue };
        for topic in answer.dirs.into_iter().flat_map(|dir| dir.topics) {
            *sizes.entry(topic.name).or_default() += topic.size_bytes;
        }
    }
    let wanted = |topic: &TopicMetadata| {
        let is_shown = args.internal || !is_internal_topic(&topic.name);
        let is_named = args.patterns.iter().any(|pattern| matches(pattern, &topic.name));
        is_shown && (args.patterns.is_empty() || is_named)
    };
    let topics = metadata.topics.into_iter().filter(wanted).map(|topic| {
        let size_bytes = sizes.get(&topic.name).copied().unwrap_or(0);
        listed(topic, size_bytes)
    });
    session.output.print(&Topics { topics: topics.collect() })?;
    Ok(Exit::Success)
}

fn listed(topic: TopicMetadata, size_bytes: u64) -> ListedTopic {
    let partitions = &topic.partitions;
    ListedTopic {
        id: topic.id.to_string(),
        replication_factor: partitions.first().map_or(0, |partition| partition.replicas.len()),
        leaderless_partitions: partitions.iter().filter(|it| it.leader.is_none()).count(),
        under_replicated_partitions: placement::partitions_of(&topic)
            .iter()
            .filter(|it| it.is_under_replicated())
            .count(),
        partitions: partitions.len(),
        name: topic.name,
        size_bytes,
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_all_else_for_itself() {
        for (pattern, name) in [
            ("orders", "orders"),
            ("*", "orders"),
            ("ord*", "orders"),
            ("*ers", "orders"),
            ("o*d*s", "orders"),
            ("orders*", "orders"),
        ] {
            assert!(matches(pattern, name), "{pattern} does not match {name}");
        }
        for (pattern, name) in
            [("order", "orders"), ("rders", "orders"), ("a*a", "a"), ("o*x*s", "orders"), ("", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} matches {name}");
        }
    }
}

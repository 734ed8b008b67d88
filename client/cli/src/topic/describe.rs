//! `tidemark topic describe`: health first, then partitions, then the settings that were changed.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{
    BrokerId, LeaderEpoch, Offset, PartitionIndex, TimestampMs,
    messages::{DescribeTopicResponse, LogDescription, PartitionMetadata},
};

use crate::{
    broker::Setting,
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::{self, Session},
};

/// Describe topics: health, partitions, offsets, sizes, settings
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark topic describe orders
  tidemark topic describe orders --all
  tidemark topic describe orders -o json")]
pub(crate) struct DescribeArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC")]
    names: Vec<String>,

    /// Show every setting with its meaning, not only those that differ from their default
    #[arg(short, long)]
    all: bool,
}

#[derive(Serialize)]
struct Described {
    topics: Vec<DescribedTopic>,
    #[serde(skip)]
    all: bool,
    #[serde(skip)]
    now_ms: TimestampMs,
}

#[derive(Serialize)]
struct DescribedTopic {
    name: String,
    id: String,
    healthy: bool,
    problems: Vec<String>,
    records: u64,
    size_bytes: u64,
    partitions: Vec<DescribedPartition>,
    settings: Vec<Setting>,
}

#[derive(Serialize)]
struct DescribedPartition {
    partition: PartitionIndex,
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    replicas: Vec<BrokerId>,
    isr: Vec<BrokerId>,
    /// `null` when the broker that answers holds no copy.
    log: Option<Log>,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the JSON form")]
struct Log {
    log_start_offset: Offset,
    high_watermark: Offset,
    log_end_offset: Offset,
    flushed_offset: Offset,
    size_bytes: u64,
    segments: u32,
    /// `null` when the log is empty.
    max_timestamp_ms: Option<TimestampMs>,
    trouble: Option<String>,
}

impl Report for Described {
    const SCHEMA: &'static str = "tidemark/topic.describe/1";

    fn page(&self, page: &mut Page) {
        for topic in &self.topics {
            topic.page(page, self.all, self.now_ms);
        }
    }

    fn names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }
}

pub(super) async fn run(session: &Session, args: DescribeArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let mut report = Described { topics: Vec::new(), all: args.all, now_ms: session::now_ms() };
    let mut errors = Vec::new();
    for name in &args.names {
        match super::described(&admin, name).await {
            Ok(topic) => report.topics.push(DescribedTopic::new(topic, args.all)),
            Err(error) => errors.push(error),
        }
    }
    if !report.topics.is_empty() {
        session.output.print(&report)?;
    }
    super::conclude(report.topics.len(), &errors)
}

impl DescribedTopic {
    fn new(topic: DescribeTopicResponse, all: bool) -> Self {
        let problems = problems(&topic);
        let (records, size_bytes) = (super::record_count(&topic), super::size_bytes(&topic));
        let settings = topic
            .settings
            .into_iter()
            .filter(|setting| all || setting.value != setting.default)
            .map(Setting::from);
        let logs = topic.logs;
        let partitions = topic.topic.partitions.into_iter().zip(0..).map(|(partition, index)| {
            DescribedPartition::new(
                partition,
                index,
                logs.iter().find(|log| log.partition == index),
            )
        });
        Self {
            healthy: problems.is_empty(),
            problems,
            records,
            size_bytes,
            partitions: partitions.collect(),
            settings: settings.collect(),
            name: topic.topic.name,
            id: topic.topic.id.to_string(),
        }
    }

    fn page(&self, page: &mut Page, all: bool, now_ms: TimestampMs) {
        page.title(&self.name);
        if self.healthy {
            page.line("  healthy", Tone::Good);
        }
        for problem in &self.problems {
            page.line(&format!("  {problem}"), Tone::Bad);
        }
        let newest =
            self.partitions.iter().filter_map(|it| it.log.as_ref()?.max_timestamp_ms).max();
        let replicas = self.partitions.first().map_or(0, |partition| partition.replicas.len());
        page.fields(&[
            ("id", self.id.clone()),
            ("partitions", format!("{}, replicas of each {replicas}", self.partitions.len())),
            ("records", quantity::count(self.records)),
            ("size", quantity::bytes(self.size_bytes)),
            ("newest", newest.map_or("no records".to_owned(), |it| when(it, now_ms))),
        ]);
        page.title("Partitions");
        page.table(&self.partition_rows());
        page.title(if all { "Settings" } else { "Settings that differ from their default" });
        if self.settings.is_empty() {
            page.line("none; --all shows every setting", Tone::Plain);
        } else if all {
            let mut rows = Rows::new(&["SETTING", "VALUE", "DEFAULT", "MEANING"]);
            for it in &self.settings {
                let row = [&it.name, &it.value, &it.default, &it.doc];
                rows.push(row.map(String::clone).to_vec());
            }
            page.table(&rows);
        } else {
            let mut rows = Rows::new(&["SETTING", "VALUE", "DEFAULT"]);
            for it in &self.settings {
                rows.push([&it.name, &it.value, &it.default].map(String::clone).to_vec());
            }
            page.table(&rows);
        }
    }

    fn partition_rows(&self) -> Rows {
        let mut rows = Rows::new(&[
            ">PARTITION",
            ">LEADER",
            ">EPOCH",
            "IN SYNC",
            "REPLICAS",
            ">START",
            ">HIGH WATERMARK",
            ">END",
            ">FLUSHED",
            ">SIZE",
            ">SEGMENTS",
        ]);
        for it in &self.partitions {
            let log = |text: &dyn Fn(&Log) -> String| {
                it.log.as_ref().map_or_else(|| "-".to_owned(), text)
            };
            let troubled = it.leader.is_none()
                || it.isr.len() < it.replicas.len()
                || it.log.as_ref().is_some_and(|log| log.trouble.is_some());
            rows.push_toned(
                vec![
                    it.partition.to_string(),
                    it.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                    it.leader_epoch.to_string(),
                    ids(&it.isr),
                    ids(&it.replicas),
                    log(&|log| log.log_start_offset.to_string()),
                    log(&|log| log.high_watermark.to_string()),
                    log(&|log| log.log_end_offset.to_string()),
                    log(&|log| log.flushed_offset.to_string()),
                    log(&|log| quantity::bytes(log.size_bytes)),
                    log(&|log| log.segments.to_string()),
                ],
                if troubled { Tone::Bad } else { Tone::Plain },
            );
        }
        rows
    }
}

impl DescribedPartition {
    fn new(
        partition: PartitionMetadata,
        index: PartitionIndex,
        log: Option<&LogDescription>,
    ) -> Self {
        Self {
            partition: index,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            replicas: partition.replicas,
            isr: partition.isr,
            log: log.map(|log| Log {
                log_start_offset: log.log_start_offset,
                high_watermark: log.high_watermark,
                log_end_offset: log.log_end_offset,
                flushed_offset: log.flushed_offset,
                size_bytes: log.size_bytes,
                segments: log.segments,
                max_timestamp_ms: Some(log.max_timestamp_ms).filter(|it| *it >= 0),
                trouble: log.trouble.clone(),
            }),
        }
    }
}

/// What is wrong with a topic, worst first; empty when it is healthy.
fn problems(topic: &DescribeTopicResponse) -> Vec<String> {
    let mut problems = Vec::new();
    let name = &topic.topic.name;
    for (index, partition) in topic.topic.partitions.iter().enumerate() {
        if partition.leader.is_none() {
            problems.push(format!("{name}/{index} has no leader: it cannot be read or written"));
        } else if partition.isr.len() < partition.replicas.len() {
            problems.push(format!(
                "{name}/{index} is under-replicated: {} of {} replicas in sync",
                partition.isr.len(),
                partition.replicas.len()
            ));
        }
    }
    problems.extend(log_problems(topic));
    problems
}

/// What the broker that answered says is wrong with its logs.
pub(crate) fn log_problems(topic: &DescribeTopicResponse) -> Vec<String> {
    let name = &topic.topic.name;
    let troubled = topic.logs.iter().filter_map(|log| Some((log.partition, log.trouble.as_ref()?)));
    troubled.map(|(partition, trouble)| format!("{name}/{partition}: {trouble}")).collect()
}

fn ids(ids: &[BrokerId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn when(timestamp_ms: TimestampMs, now_ms: TimestampMs) -> String {
    format!("{} ({})", quantity::timestamp(timestamp_ms), quantity::ago(timestamp_ms, now_ms))
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{TopicId, messages::TopicMetadata};

    use super::*;

    fn topic(
        isr: Vec<BrokerId>,
        leader: Option<BrokerId>,
        trouble: Option<&str>,
    ) -> DescribeTopicResponse {
        DescribeTopicResponse {
            topic: TopicMetadata {
                name: "orders".to_owned(),
                id: TopicId::ZERO,
                partitions: vec![PartitionMetadata {
                    leader,
                    leader_epoch: 1,
                    partition_epoch: 1,
                    replicas: vec![1, 2],
                    isr,
                    ..PartitionMetadata::default()
                }],
                settings: std::collections::BTreeMap::new(),
            },
            settings: Vec::new(),
            logs: vec![LogDescription {
                partition: 0,
                log_start_offset: 5,
                high_watermark: 15,
                log_end_offset: 16,
                flushed_offset: 15,
                size_bytes: 100,
                segments: 1,
                max_timestamp_ms: -1,
                trouble: trouble.map(str::to_owned),
            }],
        }
    }

    #[test]
    fn a_topic_in_order_has_no_problems() {
        let described = DescribedTopic::new(topic(vec![1, 2], Some(1), None), false);
        assert!(described.healthy);
        assert_eq!((described.records, described.size_bytes), (10, 100));
        assert_eq!(described.partitions[0].log.as_ref().unwrap().max_timestamp_ms, None);
    }

    #[test]
    fn every_kind_of_trouble_is_named_with_its_partition() {
        for (broken, says) in [
            (topic(vec![], None, None), "orders/0 has no leader"),
            (topic(vec![1], Some(1), None), "1 of 2 replicas in sync"),
            (topic(vec![1, 2], Some(1), Some("offsets 3 to 7 are damaged")), "offsets 3 to 7"),
        ] {
            let described = DescribedTopic::new(broken, false);
            assert!(!described.healthy);
            assert!(described.problems[0].contains(says), "{:?}", described.problems);
        }
    }
}

//! `tidemark topic describe`: health first, then partitions, then the settings that were changed.

use clap::Args;
use serde::Serialize;
use tidemark_protocol::{
    BrokerId, LeaderEpoch, Offset, PartitionIndex, TimestampMs,
    messages::{LogDescription, PartitionReplicas},
};

use super::Extent;
use crate::{
    broker::Setting,
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    partition::Replica,
    placement::{self, Partition},
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
    elr: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    min_isr: usize,
    /// As the leader sees it; without its word, as the broker sees it that answers, and `null` if that has no copy.
    log: Option<Log>,
    /// Empty when the leader does not say.
    replica_progress: Vec<Replica>,
    #[serde(skip)]
    troubled: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the JSON form")]
struct Log {
    log_start_offset: Offset,
    high_watermark: Offset,
    log_end_offset: Offset,
    /// `null`, as the fields below, when the broker that answers holds no copy.
    flushed_offset: Option<Offset>,
    size_bytes: u64,
    segments: Option<u32>,
    /// `null` also when the log is empty.
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
    fn new(topic: super::Described, all: bool) -> Self {
        let problems = problems(&topic);
        let (records, size_bytes) = (topic.record_count(), topic.size_bytes());
        let partitions = topic.partitions.iter().zip(&topic.seen).map(|(partition, seen)| {
            let log = topic.description.logs.iter().find(|log| log.partition == partition.index);
            let extent = topic.extent(partition.index);
            DescribedPartition::new(partition, extent, log, seen.as_ref())
        });
        let partitions = partitions.collect();
        let settings = topic
            .description
            .settings
            .into_iter()
            .filter(|setting| all || setting.value != setting.default)
            .map(Setting::from);
        Self {
            healthy: problems.is_empty(),
            problems,
            records,
            size_bytes,
            partitions,
            settings: settings.collect(),
            name: topic.description.topic.name,
            id: topic.description.topic.id.to_string(),
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
        let min_isr = self.partitions.iter().map(|partition| partition.min_isr).max();
        page.fields(&[
            ("id", self.id.clone()),
            (
                "partitions",
                format!(
                    "{}, replicas of each {replicas}, at least {} in sync",
                    self.partitions.len(),
                    min_isr.unwrap_or(0)
                ),
            ),
            ("records", quantity::count(self.records)),
            ("size", quantity::bytes(self.size_bytes)),
            ("newest", newest.map_or("no records".to_owned(), |it| when(it, now_ms))),
        ]);
        page.title("Partitions");
        page.table(&self.partition_rows());
        if self.partitions.iter().any(|it| it.replica_progress.len() > 1) {
            page.title("Replicas");
            page.table(&self.replica_rows());
        }
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
            "ELIGIBLE",
            ">START",
            ">HIGH WATERMARK",
            ">END",
            ">FLUSHED",
            ">SIZE",
            ">SEGMENTS",
        ]);
        for it in &self.partitions {
            let log = |text: &dyn Fn(&Log) -> Option<String>| {
                it.log.as_ref().and_then(text).unwrap_or_else(|| "-".to_owned())
            };
            rows.push_toned(
                vec![
                    it.partition.to_string(),
                    it.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                    it.leader_epoch.to_string(),
                    placement::ids(&it.isr),
                    placement::ids(&it.replicas),
                    placement::ids_or_dash(&it.elr),
                    log(&|log| Some(log.log_start_offset.to_string())),
                    log(&|log| Some(log.high_watermark.to_string())),
                    log(&|log| Some(log.log_end_offset.to_string())),
                    log(&|log| Some(log.flushed_offset?.to_string())),
                    log(&|log| Some(quantity::bytes(log.size_bytes))),
                    log(&|log| Some(log.segments?.to_string())),
                ],
                if it.troubled { Tone::Bad } else { Tone::Plain },
            );
        }
        rows
    }

    fn replica_rows(&self) -> Rows {
        let mut columns = vec![">PARTITION"];
        columns.extend(Replica::COLUMNS);
        let mut rows = Rows::new(&columns);
        for it in &self.partitions {
            for replica in &it.replica_progress {
                let mut cells = vec![it.partition.to_string()];
                cells.extend(replica.cells());
                rows.push_toned(cells, replica.tone());
            }
        }
        rows
    }
}

impl DescribedPartition {
    fn new(
        partition: &Partition,
        extent: Option<Extent>,
        log: Option<&LogDescription>,
        seen: Option<&PartitionReplicas>,
    ) -> Self {
        let metadata = partition.metadata.clone();
        let leader = metadata.leader;
        let of_leader = seen.and_then(|seen| {
            seen.replicas.iter().find(|it| Some(it.broker) == leader)?.flushed_offset
        });
        Self {
            partition: partition.index,
            min_isr: partition.min_isr(),
            troubled: partition.is_in_trouble() || log.is_some_and(|log| log.trouble.is_some()),
            replica_progress: seen
                .map_or_else(Vec::new, |seen| Replica::all(partition, Some(seen))),
            log: extent.map(|extent| Log {
                log_start_offset: extent.log_start_offset,
                high_watermark: extent.high_watermark,
                log_end_offset: extent.log_end_offset,
                flushed_offset: of_leader.or_else(|| log.map(|log| log.flushed_offset)),
                size_bytes: extent.size_bytes,
                segments: log.map(|log| log.segments),
                max_timestamp_ms: log.map(|log| log.max_timestamp_ms).filter(|it| *it >= 0),
                trouble: log.and_then(|log| log.trouble.clone()),
            }),
            leader,
            leader_epoch: metadata.leader_epoch,
            replicas: metadata.replicas,
            isr: metadata.isr,
            elr: metadata.elr,
            adding: metadata.adding,
            removing: metadata.removing,
        }
    }
}

/// What is wrong with a topic, worst first; empty when it is healthy.
fn problems(topic: &super::Described) -> Vec<String> {
    let mut problems = Vec::new();
    for it in &topic.partitions {
        let (isr, replicas) = (it.metadata.isr.len(), it.origin().len());
        if it.is_leaderless() {
            let eligible = match &it.metadata.elr[..] {
                [] => String::new(),
                elr => format!("; broker {} may lead when it is back", placement::ids(elr)),
            };
            problems.push(format!("{it} has no leader: it cannot be read or written{eligible}"));
        } else if it.is_below_min_isr() {
            problems.push(format!(
                "{it} refuses records with acks=all: {isr} in sync, min_insync_replicas asks for {}",
                it.min_isr()
            ));
        } else if it.is_under_replicated() {
            problems
                .push(format!("{it} is under-replicated: {isr} of {replicas} replicas in sync"));
        }
    }
    problems.extend_from_slice(&topic.troubles);
    problems
}

fn when(timestamp_ms: TimestampMs, now_ms: TimestampMs) -> String {
    format!("{} ({})", quantity::timestamp(timestamp_ms), quantity::ago(timestamp_ms, now_ms))
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{
        TopicId,
        messages::{DescribeTopicResponse, PartitionMetadata, ReplicaProgress, TopicMetadata},
    };

    use super::*;

    fn topic(
        isr: Vec<BrokerId>,
        leader: Option<BrokerId>,
        trouble: Option<&str>,
    ) -> super::super::Described {
        let topic = DescribeTopicResponse {
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
        };
        let partitions = placement::partitions_of(&topic.topic);
        super::super::Described::new(topic, partitions, Vec::new())
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
        let mut short = topic(vec![1], Some(1), None).description;
        short.topic.settings.insert("min_insync_replicas".to_owned(), "2".to_owned());
        let partitions = placement::partitions_of(&short.topic);
        let short = super::super::Described::new(short, partitions, Vec::new());
        let problems = DescribedTopic::new(short, false).problems;
        assert!(problems[0].contains("min_insync_replicas asks for 2"), "{problems:?}");
    }

    #[test]
    fn with_the_word_of_the_leader_its_offsets_count_and_every_replica_has_its_lag() {
        let mut described = topic(vec![1, 2], Some(1), None);
        let replica = |broker, end| ReplicaProgress {
            broker,
            log_end_offset: Some(end),
            flushed_offset: Some(end),
            lag_bytes: (40 - end) * 100,
            lag_ms: 0,
            in_sync: true,
        };
        described.seen = vec![Some(PartitionReplicas {
            leader_epoch: 1,
            log_start_offset: 10,
            high_watermark: 30,
            log_end_offset: 40,
            size_bytes: 4000,
            replicas: vec![replica(1, 40), replica(2, 30)],
        })];
        let topic = DescribedTopic::new(described, false);
        assert_eq!((topic.records, topic.size_bytes), (20, 4000));
        let log = topic.partitions[0].log.as_ref().unwrap();
        assert_eq!((log.log_end_offset, log.flushed_offset, log.segments), (40, Some(40), Some(1)));
        let lags: Vec<_> =
            topic.partitions[0].replica_progress.iter().map(|it| it.lag_records).collect();
        assert_eq!(lags, [Some(0), Some(10)]);
    }
}

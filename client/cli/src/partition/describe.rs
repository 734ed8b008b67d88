//! `tidemark partition describe`: one partition in full, with how far each of its replicas is.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidemark_client::AdminError;
use tidemark_protocol::{
    BrokerId, Offset, PartitionIndex,
    messages::{PartitionReplicas, ReplicaProgress},
};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    placement::{self, Partition, Selection},
    quantity,
    session::Session,
};

/// Describe partitions: leader, in-sync replicas, and how far each replica is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark partition describe orders/0
  tidemark partition describe orders -o json")]
pub(crate) struct DescribeArgs {
    /// Which, as TOPIC, TOPIC/2, TOPIC/0,3 or TOPIC/0-5
    #[arg(required = true, value_name = "PARTITION")]
    partitions: Vec<Selection>,
}

#[derive(Serialize)]
struct Described {
    partitions: Vec<DescribedPartition>,
}

#[derive(Serialize)]
struct DescribedPartition {
    topic: String,
    partition: PartitionIndex,
    health: &'static str,
    leader: Option<BrokerId>,
    leader_epoch: u32,
    partition_epoch: u32,
    preferred_leader: Option<BrokerId>,
    isr: Vec<BrokerId>,
    elr: Vec<BrokerId>,
    min_isr: usize,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
    /// `null` when the leader did not answer.
    log: Option<Log>,
    replicas: Vec<Replica>,
    /// Why the leader did not answer.
    error: Option<String>,
    #[serde(skip)]
    troubled: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the JSON form")]
struct Log {
    log_start_offset: Offset,
    high_watermark: Offset,
    log_end_offset: Offset,
    size_bytes: u64,
}

/// How far one replica is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Replica {
    pub(crate) broker: BrokerId,
    pub(crate) leads: bool,
    pub(crate) in_sync: bool,
    pub(crate) log_end_offset: Option<Offset>,
    pub(crate) flushed_offset: Option<Offset>,
    /// Between its end and the leader's; `null` when nothing is known of it.
    pub(crate) lag_records: Option<u64>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) lag_ms: Option<u64>,
}

impl Replica {
    /// One for each replica that the metadata has, in its order, whether or not the leader knows it.
    pub(crate) fn all(partition: &Partition, seen: Option<&PartitionReplicas>) -> Vec<Self> {
        let replicas = partition.metadata.replicas.iter();
        let of = |broker: &BrokerId| {
            let progress = seen.and_then(|seen| {
                seen.replicas.iter().find(|it| it.broker == *broker).map(|it| (it, seen))
            });
            Self::new(partition, *broker, progress)
        };
        replicas.map(of).collect()
    }

    fn new(
        partition: &Partition,
        broker: BrokerId,
        progress: Option<(&ReplicaProgress, &PartitionReplicas)>,
    ) -> Self {
        let end = progress.and_then(|(it, _)| it.log_end_offset);
        let known = progress.filter(|_| end.is_some());
        Self {
            broker,
            leads: partition.metadata.leader == Some(broker),
            in_sync: partition.metadata.isr.contains(&broker),
            log_end_offset: end,
            flushed_offset: progress.and_then(|(it, _)| it.flushed_offset),
            lag_records: end.and_then(|end| Some(progress?.1.log_end_offset.saturating_sub(end))),
            lag_bytes: known.map(|(it, _)| it.lag_bytes),
            lag_ms: known.map(|(it, _)| it.lag_ms),
        }
    }

    pub(crate) const COLUMNS: [&str; 8] =
        [">BROKER", "ROLE", "IN SYNC", ">END", ">FLUSHED", ">LAG", ">LAG SIZE", ">BEHIND FOR"];

    pub(crate) fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.broker.to_string(),
            if self.leads { "leader" } else { "follower" }.to_owned(),
            if self.in_sync { "yes" } else { "no" }.to_owned(),
            or_dash(self.log_end_offset.map(|it| it.to_string())),
            or_dash(self.flushed_offset.map(|it| it.to_string())),
            or_dash(self.lag_records.map(quantity::count)),
            or_dash(self.lag_bytes.map(quantity::bytes)),
            or_dash(self.lag_ms.map(|ms| quantity::duration(Duration::from_millis(ms)))),
        ]
    }

    pub(crate) fn tone(&self) -> Tone {
        if self.in_sync { Tone::Plain } else { Tone::Bad }
    }
}

impl DescribedPartition {
    fn new(partition: &Partition, seen: Result<PartitionReplicas, AdminError>) -> Self {
        let (seen, error) = match seen {
            Ok(seen) => (Some(seen), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let metadata = partition.metadata.clone();
        Self {
            topic: partition.topic.clone(),
            partition: partition.index,
            health: partition.health(),
            troubled: partition.is_in_trouble(),
            preferred_leader: partition.preferred(),
            min_isr: partition.min_isr(),
            replicas: Replica::all(partition, seen.as_ref()),
            log: seen.map(|seen| Log {
                log_start_offset: seen.log_start_offset,
                high_watermark: seen.high_watermark,
                log_end_offset: seen.log_end_offset,
                size_bytes: seen.size_bytes,
            }),
            error,
            leader: metadata.leader,
            leader_epoch: metadata.leader_epoch,
            partition_epoch: metadata.partition_epoch,
            isr: metadata.isr,
            elr: metadata.elr,
            adding: metadata.adding,
            removing: metadata.removing,
        }
    }

    fn page(&self, page: &mut Page) {
        page.title(&format!("{}/{}", self.topic, self.partition));
        let tone = if self.troubled { Tone::Bad } else { Tone::Good };
        page.line(&format!("  {}", self.health), tone);
        if let Some(error) = &self.error {
            page.line(&format!("  {error}"), Tone::Bad);
        }
        let leader = |id: Option<BrokerId>| id.map_or("none".to_owned(), |id| id.to_string());
        let mut fields = vec![
            ("leader", format!("{} in epoch {}", leader(self.leader), self.leader_epoch)),
            ("preferred", leader(self.preferred_leader)),
            (
                "in sync",
                format!("{} (at least {})", placement::ids_or_dash(&self.isr), self.min_isr),
            ),
            ("eligible", placement::ids_or_dash(&self.elr)),
        ];
        if !self.adding.is_empty() || !self.removing.is_empty() {
            let (to, from) = (&self.adding, &self.removing);
            fields.push(("moving to", placement::ids_or_dash(to)));
            fields.push(("moving from", placement::ids_or_dash(from)));
        }
        if let Some(log) = &self.log {
            let records = log.high_watermark.saturating_sub(log.log_start_offset);
            let readable = format!(
                "{} to {} ({})",
                log.log_start_offset,
                log.high_watermark,
                quantity::counted(records, "record")
            );
            fields.push(("readable", readable));
            fields.push(("end", log.log_end_offset.to_string()));
            fields.push(("size", quantity::bytes(log.size_bytes)));
        }
        page.fields(&fields);
        let mut rows = Rows::new(&Replica::COLUMNS);
        for replica in &self.replicas {
            rows.push_toned(replica.cells(), replica.tone());
        }
        page.table(&rows);
    }
}

impl Report for Described {
    const SCHEMA: &'static str = "tidemark/partition.describe/1";

    fn page(&self, page: &mut Page) {
        self.partitions.iter().for_each(|it| it.page(page));
    }

    fn names(&self) -> Vec<String> {
        self.partitions.iter().map(|it| format!("{}/{}", it.topic, it.partition)).collect()
    }
}

pub(super) async fn run(session: &Session, args: &DescribeArgs) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let partitions = super::selected(&admin, &args.partitions).await?;
    let named: Vec<_> = partitions.iter().map(|it| (it.topic.as_str(), it.index)).collect();
    let seen = admin.describe_replicas(&named).await?;
    let described = partitions.iter().zip(seen);
    let described = described.map(|(it, seen)| DescribedPartition::new(it, seen));
    session.output.print(&Described { partitions: described.collect() })?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::TopicId;

    use super::*;
    use crate::{
        output::{Color, Format, Output},
        placement::{partitions_of, tests::topic},
    };

    fn seen() -> PartitionReplicas {
        let replica = |broker, end, lag_bytes, lag_ms| ReplicaProgress {
            broker,
            log_end_offset: end,
            flushed_offset: end,
            lag_bytes,
            lag_ms,
            in_sync: lag_ms == 0,
        };
        PartitionReplicas {
            leader_epoch: 4,
            log_start_offset: 5,
            high_watermark: 90,
            log_end_offset: 100,
            size_bytes: 1 << 20,
            replicas: vec![
                replica(1, Some(100), 0, 0),
                replica(2, Some(88), 3 << 10, 2500),
                replica(3, None, 0, 0),
            ],
        }
    }

    #[test]
    fn lag_is_told_for_each_replica_and_not_for_those_nothing_is_known_of() {
        let partition = &partitions_of(&topic(&[(Some(1), &[1, 2, 3, 4], &[1])], "2"))[0];
        let replicas = Replica::all(partition, Some(&seen()));
        let cells: Vec<_> = replicas.iter().map(|it| it.cells().join(" ")).collect();
        assert_eq!(
            cells,
            [
                "1 leader yes 100 100 0 0 B 0s",
                "2 follower no 88 88 12 3.00 KiB 2.50s",
                "3 follower no - - - - -",
                "4 follower no - - - - -",
            ]
        );
    }

    #[test]
    fn a_partition_in_trouble_says_so_first_and_one_without_leader_says_why_nothing_is_known() {
        let topic = topic(&[(Some(1), &[1, 2, 3], &[1]), (None, &[1, 2], &[])], "2");
        let partitions = partitions_of(&topic);
        let no_leader = AdminError::NoLeader { topic: "orders".into(), partition: 1 };
        let described = Described {
            partitions: vec![
                DescribedPartition::new(&partitions[0], Ok(seen())),
                DescribedPartition::new(&partitions[1], Err(no_leader)),
            ],
        };
        let output = Output::new(Format::Table, true, Color::Never);
        let text = String::from_utf8(output.render(&described).unwrap()).unwrap();
        for says in [
            "orders/0\n  below min ISR\n",
            "in sync    1 (at least 2)",
            "readable   5 to 90 (85 records)",
            "orders/1\n  no leader\n  orders/1 has no leader at the moment",
        ] {
            assert!(text.contains(says), "{says:?} is missing in\n{text}");
        }
        let json: serde_json::Value =
            serde_json::from_slice(&crate::output::json(&described).unwrap()).unwrap();
        assert_eq!(json["schema"], "tidemark/partition.describe/1");
        assert_eq!(json["partitions"][0]["replicas"][1]["lag_records"], 12);
        assert_eq!(json["partitions"][0]["replicas"][2]["lag_records"], serde_json::Value::Null);
        assert_eq!(json["partitions"][1]["log"], serde_json::Value::Null);
        assert_eq!(topic.id, TopicId([1; 16]));
    }
}

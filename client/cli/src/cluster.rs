//! `tidemark cluster`: what the cluster is, and whether it is well.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{
    BrokerId,
    messages::{DescribeBrokerResponse, LogDirDescription, MetadataResponse},
};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Rows, Tone},
    quantity,
    session::Session,
    topic,
};

/// How often `--wait` looks again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Topics described at once by `--deep`.
const TOPICS_IN_FLIGHT: usize = 16;
/// A disk with less of it free is worth a warning, in percent.
const DISK_FREE_PERCENT_MIN: u64 = 5;

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Info(InfoArgs),
    Health(HealthArgs),
}

/// Show brokers, controller, and how much there is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster info
  tidemark cluster info -o json")]
struct InfoArgs {}

/// Say whether the cluster is healthy, and if not, why
///
/// Exits with 0 when healthy and with 6 when degraded.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster health
  tidemark cluster health --wait 30s
  tidemark cluster health --deep -o json")]
struct HealthArgs {
    /// Look again until it is healthy, for at most this long; also waits for a broker to start
    #[arg(long, value_name = "DURATION", value_parser = quantity::parse_duration)]
    wait: Option<Duration>,

    /// Ask for the state of every log too, not only of brokers, disks and leaders
    #[arg(long)]
    deep: bool,
}

pub(crate) async fn run(session: &Session, args: ClusterArgs) -> Result<Exit, CliError> {
    match args.verb {
        Verb::Info(InfoArgs {}) => info(session).await,
        Verb::Health(args) => health(session, &args).await,
    }
}

#[derive(Serialize)]
struct Info {
    cluster_id: String,
    controller_id: Option<BrokerId>,
    version: String,
    topics: usize,
    partitions: usize,
    brokers: Vec<Broker>,
}

#[derive(Serialize)]
struct Broker {
    id: BrokerId,
    host: String,
    port: u16,
    rack: Option<String>,
    controller: bool,
    fenced: bool,
}

impl Report for Info {
    const SCHEMA: &'static str = "tidemark/cluster.info/1";

    fn page(&self, page: &mut Page) {
        page.title(&format!("Cluster {}", self.cluster_id));
        let controller = self.controller_id.map_or("none".to_owned(), |id| id.to_string());
        page.fields(&[
            ("version", self.version.clone()),
            ("controller", controller),
            ("topics", quantity::count(self.topics as u64)),
            ("partitions", quantity::count(self.partitions as u64)),
        ]);
        page.title("Brokers");
        let mut rows = Rows::new(&[">ID", "ADDRESS", "RACK", "ROLE", "STATE"]);
        for broker in &self.brokers {
            rows.push_toned(
                vec![
                    broker.id.to_string(),
                    format!("{}:{}", broker.host, broker.port),
                    broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
                    if broker.controller { "controller" } else { "broker" }.to_owned(),
                    if broker.fenced { "fenced" } else { "active" }.to_owned(),
                ],
                if broker.fenced { Tone::Bad } else { Tone::Plain },
            );
        }
        page.table(&rows);
    }

    fn names(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.id.to_string()).collect()
    }
}

async fn info(session: &Session) -> Result<Exit, CliError> {
    let admin = session.admin().await?;
    let metadata = admin.metadata(None).await?;
    let version = admin.describe_broker(None, false).await?.version;
    let controller_id = metadata.controller_id;
    let brokers = metadata.brokers.into_iter().map(|broker| Broker {
        controller: Some(broker.id) == controller_id,
        id: broker.id,
        host: broker.host,
        port: broker.port,
        rack: broker.rack,
        fenced: broker.fenced,
    });
    session.output.print(&Info {
        cluster_id: metadata.cluster_id,
        controller_id,
        version,
        topics: metadata.topics.len(),
        partitions: metadata.topics.iter().map(|topic| topic.partitions.len()).sum(),
        brokers: brokers.collect(),
    })?;
    Ok(Exit::Success)
}

#[derive(Debug, Serialize)]
struct Health {
    healthy: bool,
    problems: Vec<String>,
    brokers: usize,
    topics: usize,
    partitions: usize,
}

impl Report for Health {
    const SCHEMA: &'static str = "tidemark/cluster.health/1";

    fn page(&self, page: &mut Page) {
        if self.healthy {
            page.line("healthy", Tone::Good);
        } else {
            page.line("degraded", Tone::Bad);
        }
        for problem in &self.problems {
            page.line(&format!("  {problem}"), Tone::Bad);
        }
        page.fields(&[
            ("brokers", self.brokers.to_string()),
            ("topics", quantity::count(self.topics as u64)),
            ("partitions", quantity::count(self.partitions as u64)),
        ]);
    }

    fn names(&self) -> Vec<String> {
        vec![if self.healthy { "healthy" } else { "degraded" }.to_owned()]
    }
}

async fn health(session: &Session, args: &HealthArgs) -> Result<Exit, CliError> {
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    loop {
        let outcome = check(session, args.deep).await;
        let well = matches!(&outcome, Ok(health) if health.healthy);
        let waiting = deadline.is_some_and(|deadline| Instant::now() < deadline);
        let hopeless = matches!(&outcome, Err(error) if error.exit == Exit::Usage);
        if well || hopeless || !waiting {
            let health = outcome?;
            session.output.print(&health)?;
            return Ok(if well { Exit::Success } else { Exit::Degraded });
        }
        // Another process has to change; there is nothing here to be woken by.
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

async fn check(session: &Session, deep: bool) -> Result<Health, CliError> {
    let admin = session.admin().await?;
    let metadata = admin.metadata(None).await?;
    let mut problems = cluster_problems(&metadata);
    for broker in metadata.brokers.iter().filter(|broker| !broker.fenced) {
        match broker_state(&admin, broker.id).await {
            Ok((state, dirs)) => problems.extend(broker_problems(&state, &dirs)),
            Err(error) => problems.push(format!("broker {} does not answer: {error}", broker.id)),
        }
    }
    if deep {
        problems.extend(log_problems(&admin, &metadata).await);
    }
    Ok(Health {
        healthy: problems.is_empty(),
        problems,
        brokers: metadata.brokers.len(),
        topics: metadata.topics.len(),
        partitions: metadata.topics.iter().map(|topic| topic.partitions.len()).sum(),
    })
}

async fn broker_state(
    admin: &Admin,
    id: BrokerId,
) -> Result<(DescribeBrokerResponse, Vec<LogDirDescription>), CliError> {
    let state = admin.describe_broker(Some(id), false).await?;
    Ok((state, admin.describe_log_dirs(Some(id)).await?.dirs))
}

fn cluster_problems(metadata: &MetadataResponse) -> Vec<String> {
    let mut problems = Vec::new();
    if metadata.controller_id.is_none() {
        problems.push("no controller: topics cannot be created or changed".to_owned());
    }
    for broker in metadata.brokers.iter().filter(|broker| broker.fenced) {
        problems.push(format!("broker {} is fenced and serves nothing", broker.id));
    }
    let partitions = || metadata.topics.iter().flat_map(|topic| &topic.partitions);
    let leaderless = partitions().filter(|it| it.leader.is_none()).count() as u64;
    let thin = partitions().filter(|it| it.isr.len() < it.replicas.len()).count() as u64;
    if leaderless > 0 {
        problems.push(format!("{} without leader", quantity::counted(leaderless, "partition")));
    }
    if thin > 0 {
        problems.push(format!("{} under-replicated", quantity::counted(thin, "partition")));
    }
    problems
}

fn broker_problems(broker: &DescribeBrokerResponse, dirs: &[LogDirDescription]) -> Vec<String> {
    let id = broker.id;
    let mut problems: Vec<String> = broker
        .not_ready_reasons
        .iter()
        .map(|reason| format!("broker {id} is not ready: {reason}"))
        .collect();
    for dir in dirs {
        let free = quantity::bytes(dir.disk_free_bytes);
        if dir.state != "ok" {
            problems.push(format!(
                "broker {id}: data directory {} is {} ({free} free)",
                dir.path, dir.state
            ));
        } else if dir.disk_free_bytes < dir.disk_total_bytes / 100 * DISK_FREE_PERCENT_MIN {
            problems.push(format!("broker {id}: only {free} free in {}", dir.path));
        }
    }
    problems
}

async fn log_problems(admin: &Admin, metadata: &MetadataResponse) -> Vec<String> {
    let names: Vec<String> = metadata.topics.iter().map(|topic| topic.name.clone()).collect();
    let found: Vec<Vec<String>> = stream::iter(names)
        .map(|name| async move {
            match admin.describe_topic(&name).await {
                Ok(topic) => topic::log_problems(&topic),
                Err(error) => vec![format!("topic {name} cannot be described: {error}")],
            }
        })
        .buffered(TOPICS_IN_FLIGHT)
        .collect()
        .await;
    found.concat()
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{
        TopicId,
        messages::{BrokerMetadata, PartitionMetadata, TopicMetadata, TopicSettings},
    };

    use super::*;

    fn metadata(isr: Vec<BrokerId>, leader: Option<BrokerId>) -> MetadataResponse {
        let broker = |id, fenced| BrokerMetadata {
            id,
            host: "h".to_owned(),
            port: 1,
            rack: None,
            fenced,
            ..BrokerMetadata::default()
        };
        MetadataResponse {
            cluster_id: "c".to_owned(),
            controller_id: leader,
            broker_id: 1,
            metadata_index: 1,
            brokers: vec![broker(1, false), broker(2, leader.is_none())],
            topics: vec![TopicMetadata {
                name: "t".to_owned(),
                id: TopicId::ZERO,
                partitions: vec![PartitionMetadata {
                    leader,
                    leader_epoch: 0,
                    partition_epoch: 0,
                    replicas: vec![1, 2],
                    isr,
                    ..PartitionMetadata::default()
                }],
                settings: TopicSettings::new(),
            }],
        }
    }

    fn directory(state: &str, free: u64) -> LogDirDescription {
        LogDirDescription {
            path: "/data".to_owned(),
            state: state.to_owned(),
            disk_total_bytes: 100 << 30,
            disk_free_bytes: free << 30,
            topics: Vec::new(),
        }
    }

    fn broker(reasons: &[&str]) -> DescribeBrokerResponse {
        DescribeBrokerResponse {
            id: 1,
            cluster_id: "c".to_owned(),
            version: "0".to_owned(),
            uptime_ms: 0,
            not_ready_reasons: reasons.iter().map(ToString::to_string).collect(),
            topics: 0,
            partitions: 0,
            connections: 0,
            settings: Vec::new(),
        }
    }

    #[test]
    fn a_cluster_in_order_has_no_problems() {
        assert!(cluster_problems(&metadata(vec![1, 2], Some(1))).is_empty());
        assert!(broker_problems(&broker(&[]), &[directory("ok", 50)]).is_empty());
    }

    #[test]
    fn missing_controller_leaders_replicas_and_brokers_are_named() {
        let problems = cluster_problems(&metadata(vec![], None)).join("\n");
        for says in [
            "no controller",
            "broker 2 is fenced",
            "1 partition without leader",
            "under-replicated",
        ] {
            assert!(problems.contains(says), "{says} is missing in\n{problems}");
        }
    }

    #[test]
    fn a_broker_that_is_not_ready_and_a_disk_in_trouble_are_named() {
        let problems = broker_problems(
            &broker(&["recovering"]),
            &[directory("full", 50), directory("failed", 50), directory("ok", 1)],
        );
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[0].contains("recovering"));
        assert!(problems[3].contains("only 1.00 GiB free"));
    }
}

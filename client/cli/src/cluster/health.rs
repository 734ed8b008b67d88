//! `tidemark cluster health`: whether the cluster is well, and if not, what is wrong.

use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tidemark_client::Admin;
use tidemark_protocol::{
    BrokerId, ErrorCode,
    messages::{
        DescribeBrokerResponse, DescribeQuorumResponse, LogDirDescription, MetadataResponse,
    },
};

use crate::{
    exit::{CliError, Exit},
    output::{Page, Report, Tone},
    placement::{self, Partition},
    quantity,
    session::Session,
    topic,
};

/// How often `--wait` looks again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How long the quorum may take to say how it is: without a majority nobody answers for it.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(3);
/// Topics described at once by `--deep`.
const TOPICS_IN_FLIGHT: usize = 16;
/// A disk with less of it free is worth a warning, in percent.
const DISK_FREE_PERCENT_MIN: u64 = 5;

/// Say whether the cluster is healthy, and if not, why
///
/// Exits with 0 when healthy and with 6 when degraded: brokers fenced or not ready, disks full or failed, partitions
/// under-replicated, below their minimum of in-sync replicas or without leader, controllers not heard from. Moves under way
/// and brokers being drained are told and are no fault.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark cluster health
  tidemark cluster health --wait 30s
  tidemark cluster health --deep -o json")]
pub(crate) struct HealthArgs {
    /// Look again until it is healthy, for at most this long; also waits for a broker to start
    #[arg(long, value_name = "DURATION", value_parser = quantity::parse_duration)]
    wait: Option<Duration>,

    /// Ask for the state of every log too, not only of brokers, disks and leaders
    #[arg(long)]
    deep: bool,
}

#[derive(Debug, Serialize)]
struct Health {
    healthy: bool,
    problems: Vec<String>,
    /// What goes on and is no fault.
    notes: Vec<String>,
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
        for note in &self.notes {
            page.line(&format!("  {note}"), Tone::Plain);
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

pub(super) async fn run(session: &Session, args: &HealthArgs) -> Result<Exit, CliError> {
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
    problems.extend(quorum_state(&admin, &metadata).await);
    if deep {
        problems.extend(log_problems(&admin, &metadata).await);
    }
    Ok(Health {
        healthy: problems.is_empty(),
        problems,
        notes: notes(&metadata),
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
    let partitions = placement::partitions(&metadata.topics);
    let mut tell = |is: &dyn Fn(&Partition) -> bool, says: &str| {
        let such: Vec<&Partition> = partitions.iter().filter(|it| is(it)).collect();
        if !such.is_empty() {
            let counted = quantity::counted(such.len() as u64, "partition");
            problems.push(format!("{counted} {says}: {}", placement::named(&such)));
        }
    };
    // Each of them under the worst that can be said.
    let below = |it: &Partition| !it.is_leaderless() && it.is_below_min_isr();
    tell(&Partition::is_leaderless, "without leader, cannot be read or written");
    tell(&below, "below min ISR, refuse records with acks=all");
    tell(
        &|it| !it.is_leaderless() && !it.is_below_min_isr() && it.is_under_replicated(),
        "under-replicated",
    );
    problems
}

/// What goes on in the cluster and is nothing to worry about.
fn notes(metadata: &MetadataResponse) -> Vec<String> {
    let mut notes = Vec::new();
    let partitions = placement::partitions(&metadata.topics);
    let moving = partitions.iter().filter(|it| it.is_moving()).count() as u64;
    if moving > 0 {
        let counted = quantity::counted(moving, "partition");
        notes.push(format!("{counted} being moved; `tidemark partition move` shows how far"));
    }
    for broker in &metadata.brokers {
        let held = partitions.iter().filter(|it| it.metadata.replicas.contains(&broker.id));
        if broker.draining && !broker.fenced {
            let held = quantity::counted(held.count() as u64, "replica");
            notes.push(format!("broker {} is being drained, {held} left", broker.id));
        }
        if broker.shutting_down && !broker.fenced {
            notes.push(format!("broker {} is stopping", broker.id));
        }
    }
    let astray = partitions.iter().filter(|it| it.is_led_by_another()).count() as u64;
    if astray > 0 {
        let counted = quantity::counted(astray, "partition");
        notes.push(format!(
            "{counted} not led by the preferred replica; `tidemark partition elect`"
        ));
    }
    notes
}

async fn quorum_state(admin: &Admin, metadata: &MetadataResponse) -> Vec<String> {
    match admin.clone().with_timeout(QUORUM_TIMEOUT).describe_quorum().await {
        Ok(quorum) => quorum_problems(&quorum),
        // A build before there were quorums: its one controller is what answers.
        Err(error) if error.code() == Some(ErrorCode::UnsupportedApi) => Vec::new(),
        // That there is no controller has been said already.
        Err(_) if metadata.controller_id.is_none() => Vec::new(),
        Err(error) => vec![format!("the quorum of controllers does not answer: {error}")],
    }
}

fn quorum_problems(quorum: &DescribeQuorumResponse) -> Vec<String> {
    let voters = || quorum.members.iter().filter(|it| it.is_voter);
    let (all, alive) = (voters().count(), voters().filter(|it| it.is_alive).count());
    let mut problems = Vec::new();
    if 2 * alive <= all {
        problems.push(format!(
            "no majority of controllers: {alive} of {all} alive; nothing can be changed and no leader elected"
        ));
    }
    for member in voters().filter(|it| !it.is_alive) {
        problems.push(format!(
            "controller {} ({}) has not been heard from",
            member.id.node, member.address
        ));
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
    let found: Vec<Vec<String>> = stream::iter(&metadata.topics)
        .map(|it| topic::troubles(admin, it))
        .buffered(TOPICS_IN_FLIGHT)
        .collect()
        .await;
    found.concat()
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::{
        DirectoryId, TopicId,
        messages::{
            BrokerMetadata, PartitionMetadata, QuorumMember, TopicMetadata, TopicSettings, VoterId,
        },
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
            "1 partition without leader, cannot be read or written: t/0",
        ] {
            assert!(problems.contains(says), "{says} is missing in\n{problems}");
        }
        let thin = cluster_problems(&metadata(vec![1], Some(1)));
        assert_eq!(thin, ["1 partition under-replicated: t/0"]);
        let mut short = metadata(vec![1], Some(1));
        short.topics[0].settings.insert("min_insync_replicas".to_owned(), "2".to_owned());
        let short = cluster_problems(&short);
        assert_eq!(short, ["1 partition below min ISR, refuse records with acks=all: t/0"]);
    }

    #[test]
    fn moves_and_drained_brokers_are_told_and_are_no_problem() {
        let mut metadata = metadata(vec![1, 2], Some(2));
        metadata.brokers[0].draining = true;
        let partition = &mut metadata.topics[0].partitions[0];
        partition.replicas.push(3);
        partition.adding = vec![3];
        partition.removing = vec![1];
        assert!(cluster_problems(&metadata).is_empty());
        let notes = notes(&metadata).join("\n");
        for says in ["1 partition being moved", "broker 1 is being drained, 1 replica left"] {
            assert!(notes.contains(says), "{says} is missing in\n{notes}");
        }
    }

    #[test]
    fn controllers_that_are_silent_are_named_and_a_lost_majority_comes_first() {
        let member = |node, is_alive| QuorumMember {
            id: VoterId { node, directory: DirectoryId([0; 16]) },
            is_voter: true,
            address: format!("h{node}:1"),
            log_end_index: 1,
            is_alive,
        };
        let quorum = |alive: [bool; 3]| DescribeQuorumResponse {
            leader: 1,
            term: 1,
            committed_index: 1,
            log_end_index: 1,
            members: (1..).zip(alive).map(|(node, alive)| member(node, alive)).collect(),
        };
        assert!(quorum_problems(&quorum([true, true, true])).is_empty());
        let one = quorum_problems(&quorum([true, true, false]));
        assert_eq!(one, ["controller 3 (h3:1) has not been heard from"]);
        let two = quorum_problems(&quorum([true, false, false]));
        assert!(two[0].starts_with("no majority of controllers: 1 of 3 alive"), "{two:?}");
        assert_eq!(two.len(), 3);
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

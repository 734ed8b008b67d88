//! The tools of the suites themselves, as far as one broker can show that they work.

use std::time::Duration;

use anyhow::Result;
use tidemark_client::NewTopic;
use tidemark_tests::{
    cluster::{self, ClusterConfig, Disk},
    effort,
    faults::Faults,
    network::{End, Kind},
    workload::{Workload, WorkloadConfig, replicas, verdict},
};

/// Faults of each kind of network.
const FAULTS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_node_is_killed_paused_cut_off_wiped_and_is_back_each_time() -> Result<()> {
    for network in [Kind::Best, Kind::Proxies] {
        cluster::with(ClusterConfig::nodes(1).network(network), |cluster| {
            cluster.create_topic(NewTopic::new("kept").partitions(2))?;
            assert_eq!(cluster.await_leader("kept", 1, None)?, 1);
            cluster.kill(1)?;
            assert!(cluster.metadata().is_err(), "nobody is there");
            cluster.heal()?;
            cluster.await_in_sync("kept")?;
            cluster.pause(1)?;
            assert!(cluster.metadata_of(1).is_err(), "it says nothing");
            cluster.heal()?;
            cluster.network().cut(End::Clients, End::Node(1))?;
            let listed = cluster.cli().run(&["topic", "list", "--timeout", "300ms"]);
            listed.exits(5);
            cluster.heal()?;
            assert!(cluster.cli().done(&["topic", "list"]).text().contains("kept"));
            cluster.terminate(1)?;
            cluster.wipe(1)?;
            cluster.heal()?;
            assert!(cluster.metadata()?.topics.is_empty(), "a new disk");
            cluster.check_processes()
        })?;
    }
    Ok(())
}

#[test]
fn a_disk_fills_and_empties() -> Result<()> {
    let small = ClusterConfig::nodes(1).disk(Disk::Memory("size=48m".to_owned()));
    cluster::with(small.flag("disk-reserve-bytes", "8MiB"), |cluster| {
        cluster.fill_disk(1)?;
        let created = cluster.cli().run(&["topic", "create", "none", "--timeout", "2s"]);
        assert!(!created.text().contains("created"));
        cluster.empty_disk(1)?;
        cluster.cli().done(&["topic", "create", "some"]);
        Ok(())
    })
}

#[test]
fn clients_work_through_kills_pauses_and_cuts_and_the_history_is_clean() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("ledger").partitions(2))?;
        let workload = Workload::start(cluster.client_config(), WorkloadConfig::new("ledger", 2))?;
        workload.await_progress(PATIENCE)?;
        cluster.kill(1)?;
        cluster.heal()?;
        workload.await_progress(PATIENCE)?;
        cluster.pause(1)?;
        cluster.heal()?;
        workload.await_progress(PATIENCE)?;
        cluster.network().cut(End::Node(1), End::Clients)?;
        cluster.heal()?;
        workload.await_progress(PATIENCE)?;
        let mut history = workload.finish(cluster.client_config(), PATIENCE)?;
        history.replicas = replicas::collect(cluster, "ledger")?;
        let report = verdict::demand_clean(&history)?;
        assert!(report.counts.values_acknowledged > 0 && report.lag.polls > 0, "{report}");
        assert_eq!(report.counts.replica_logs, 2);
        Ok(())
    })
}

#[test]
fn a_single_node_loses_nothing_to_random_faults() -> Result<()> {
    let wanted = effort::faults(FAULTS)?;
    for (network, seed) in [(Kind::Best, 1), (Kind::Proxies, 2)] {
        cluster::with(ClusterConfig::nodes(1).network(network), |cluster| {
            cluster.create_topic(NewTopic::new("ledger").partitions(2))?;
            let config = WorkloadConfig::new("ledger", 2);
            let workload = Workload::start(cluster.client_config(), config)?;
            let mut faults = Faults::new(effort::seed(seed)?, "ledger");
            while faults.total() < wanted {
                faults.strike(cluster, |fault| workload.note(fault))?;
                workload.note("healed");
                cluster.heal()?;
                workload.await_progress(PATIENCE)?;
            }
            let mut history = workload.finish(cluster.client_config(), PATIENCE)?;
            history.replicas = replicas::collect(cluster, "ledger")?;
            let report = verdict::demand_clean(&history)?;
            println!("{:?}\n{report}", faults.injected);
            Ok(())
        })?;
    }
    Ok(())
}

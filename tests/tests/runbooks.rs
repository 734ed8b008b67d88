//! What docs/operations.md tells an operator to do, done on clusters of real processes: a lost disk, a damaged replica, an
//! upgrade of one node after the other.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tidemark_client::NewTopic;
use tidemark_tests::{
    cli::Cli,
    cluster::{self, Cluster, ClusterConfig, PATIENCE},
    workload::{Workload, WorkloadConfig, verdict::judge},
};

const TOPIC: &str = "ledger";
/// Well below `shutdown_timeout`, after which a node ends what has not ended by itself.
const STOPS_WITHIN: Duration = Duration::from_secs(4);
/// Where in its first segment a replica is damaged: in the middle of a batch.
const DAMAGE_AT: u64 = 30_000;

#[test]
fn a_lost_disk_costs_a_controller_and_its_node_becomes_one_again() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, 3)?;
        let lost = cluster.await_controller(None)?;
        cluster.kill(lost)?;
        cluster.wipe(lost)?;
        cluster.await_controller(Some(lost))?;
        let (id, address) = (lost.to_string(), cluster.place(lost)?.advertised.to_string());
        cluster.cli().done(&["cluster", "remove-controller", &id, "--yes"]);
        cluster.start_all()?;
        cluster.await_in_sync(TOPIC)?;
        cluster.cli().done(&["cluster", "add-controller", &id, &address]);
        ensure!(cluster.voters()? == cluster.ids(), "only {:?} vote", cluster.voters()?);
        // It counts: with it, another can be done without.
        let other = cluster.await_controller(Some(lost))?;
        cluster.kill(other)?;
        cluster.await_controller(Some(other))?;
        workload.await_progress(PATIENCE)?;
        judge(cluster, workload, TOPIC).map(drop)
    })
}

#[test]
fn nodes_are_restarted_one_after_the_other_under_load() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, 3)?;
        let active = cluster.await_controller(None)?;
        let mut ids = cluster.ids();
        ids.sort_by_key(|id| *id == active);
        for id in ids {
            let began = Instant::now();
            cluster.terminate(id)?;
            let took = began.elapsed();
            ensure!(took < STOPS_WITHIN, "node {id} took {took:?} to stop");
            cluster.start_all()?;
            cluster.await_in_sync(TOPIC)?;
            workload.await_progress(PATIENCE)?;
        }
        judge(cluster, workload, TOPIC).map(drop)
    })
}

#[test]
fn a_damaged_replica_is_told_of_and_copied_anew_from_the_others() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        cluster.create_topic(NewTopic::new(TOPIC).partitions(1).replication_factor(3))?;
        let numbers: Vec<_> = (0..20_000).map(|number| number.to_string()).collect();
        let sent = numbers.join("\n") + "\n";
        cluster.cli().pipe(&["produce", TOPIC, "--quiet"], sent.as_bytes()).exits(0);
        cluster.await_in_sync(TOPIC)?;
        let damaged = cluster.await_leader(TOPIC, 0, None)?;
        cluster.terminate(damaged)?;
        let log = format!("topics/{TOPIC}/0/00000000000000000000.log");
        damage(&cluster.files(damaged)?.join(log))?;
        cluster.start_all()?;
        cluster.await_in_sync(TOPIC)?;

        let cli = cluster.cli();
        let lead = |id: u32| {
            let to = id.to_string();
            cli.done(&["partition", "transfer-leader", &format!("{TOPIC}/0"), "--to", &to]);
        };
        lead(damaged);
        cli.run(&["consume", TOPIC, "-e"]).exits(1).says(&["damaged on disk", "ledger/0"]);
        let says = format!("{TOPIC}/0 on broker {damaged}: offsets");
        for node in cluster.ids() {
            // Whoever is asked.
            let here = Cli::at(cluster.place(node)?.advertised.to_string());
            let described = here.done(&["topic", "describe", TOPIC]);
            ensure!(described.text().contains(&says), "{}", described.text());
        }
        let health = cli.run(&["cluster", "health", "--deep", "-o", "json"]);
        ensure!(health.exits(6).json()["problems"].to_string().contains(&says), "not in health");

        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != damaged).collect();
        lead(others[0]);
        let to = format!("{},{}", others[0], others[1]);
        let partition = format!("{TOPIC}/0");
        cli.done(&["partition", "move", &partition, "--to", &to, "--yes"]);
        cli.done(&["partition", "move", &partition, "--to", &format!("{to},{damaged}"), "--yes"]);
        cluster.await_in_sync(TOPIC)?;
        lead(damaged);
        ensure!(cli.done(&["consume", TOPIC, "-e"]).text() == sent, "other records than sent");
        Ok(())
    })
}

/// Turns over a byte.
fn damage(file: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(file).context("the log")?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, DAMAGE_AT)?;
    Ok(file.write_all_at(&[byte[0] ^ 0xff], DAMAGE_AT)?)
}

/// A topic with three replicas and clients at work on it.
fn begin(cluster: &Cluster, partitions: u32) -> Result<Workload> {
    let topic = NewTopic::new(TOPIC).partitions(partitions).replication_factor(3);
    cluster.create_topic(topic)?;
    let config = WorkloadConfig::new(TOPIC, partitions);
    let workload = Workload::start(cluster.client_config(), config)?;
    workload.await_progress(PATIENCE)?;
    cluster.await_in_sync(TOPIC)?;
    Ok(workload)
}

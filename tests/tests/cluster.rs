//! Clusters of real processes under load: killed, paused, cut apart, grown and shrunk, and nothing is lost, twice or out of
//! order.
#![expect(clippy::print_stdout, reason = "figures for whoever asks with --nocapture")]

use std::{cell::RefCell, time::Duration};

use anyhow::{Context, Result, ensure};
use tidemark_client::NewTopic;
use tidemark_protocol::NodeId;
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, Disk, PATIENCE, view},
    effort,
    faults::Faults,
    network::{End, Kind},
    workload::{Workload, WorkloadConfig, verdict::judge},
};

/// Strikes in the ordinary run; `TIDEMARK_TEST_FAULTS` asks for more.
const FAULTS: u64 = 6;
/// Kills in the ordinary run; `TIDEMARK_TEST_KILLS` asks for more.
const KILLS: u64 = 3;
/// Faults between two verdicts: what bounds a history.
const CHAPTER_FAULTS: u64 = 25;
const PARTITIONS: u32 = 3;
/// Topics created one after the other, for what happens to one in a few.
const TOPICS: u32 = 15;
/// When a new topic has acknowledged something on all partitions: well before a silent replica is given up.
const FIRST_ACKNOWLEDGED: Duration = Duration::from_secs(7);
/// How long nothing has to be acknowledged for it to count as stopped: longer than any failover.
const STALL: Duration = Duration::from_secs(8);

#[test]
fn a_killed_leader_is_replaced_and_comes_back_in_sync() -> Result<()> {
    let kills = effort::kills(KILLS)?;
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        for kill in 0..kills {
            let index = u32::try_from(kill)? % PARTITIONS;
            let leader = cluster.await_leader("ledger", index, None)?;
            cluster.kill(leader)?;
            cluster.await_leader("ledger", index, Some(leader))?;
            workload.await_progress(PATIENCE).with_context(|| format!("kill {kill}"))?;
            cluster.heal()?;
            cluster.await_in_sync("ledger")?;
        }
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_killed_controller_is_replaced_and_topics_can_be_created() -> Result<()> {
    let kills = effort::kills(KILLS)?;
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        for kill in 0..kills {
            let controller = cluster.await_controller(None)?;
            cluster.kill(controller)?;
            cluster.await_controller(Some(controller))?;
            cluster.create_topic(replicated(&format!("after-kill-{kill}"), 2))?;
            workload.await_progress(PATIENCE).with_context(|| format!("kill {kill}"))?;
            cluster.heal()?;
        }
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn all_nodes_killed_at_once_come_back_with_everything() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        for id in cluster.ids() {
            cluster.kill(id)?;
        }
        cluster.heal()?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn the_replicas_of_new_topics_follow_at_once() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        for number in 0..TOPICS {
            let topic = format!("new-{number}");
            cluster.create_topic(replicated(&topic, 3))?;
            // The first acknowledgement waits for all replicas: one that does not follow is waited for until it has
            // fallen out of sync, ten seconds by default.
            let workload =
                Workload::start(cluster.client_config(), WorkloadConfig::new(&topic, PARTITIONS))?;
            let waited = workload.await_progress(PATIENCE)?;
            ensure!(waited < FIRST_ACKNOWLEDGED, "{topic}: acknowledged only after {waited:?}");
        }
        Ok(())
    })
}

/// A registration that a dead process had sent arrives when the next one runs and is silent for a moment: the one that runs
/// has to register again, and nothing it said before that counts any more.
#[test]
fn a_broker_that_was_registered_over_follows_again() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let controller = cluster.await_controller(None)?;
        let node = cluster.ids().into_iter().find(|id| *id != controller).context("three nodes")?;
        cluster.pause(node)?;
        cluster.register_over(node)?;
        cluster.resume(node)?;
        cluster.await_in_sync("ledger")?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_lost_majority_stops_writes_and_its_return_resumes_them() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let survivor = cluster.await_leader("ledger", 0, None)?;
        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != survivor).collect();
        for id in &others {
            cluster.kill(*id)?;
        }
        let acknowledged = workload.await_progress(STALL);
        ensure!(acknowledged.is_err(), "acknowledged by one node of three: {acknowledged:?}");
        cluster.heal()?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_follower_with_a_full_disk_does_not_stop_the_others() -> Result<()> {
    fill_a_disk(|cluster, leader| {
        cluster.ids().into_iter().find(|id| *id != leader).context("three nodes")
    })
}

#[test]
fn a_leader_with_a_full_disk_has_others_lead() -> Result<()> {
    fill_a_disk(|_, leader| Ok(leader))
}

/// Fills the disk of a node that `whose` chooses, when it knows the leader.
fn fill_a_disk(whose: impl FnOnce(&Cluster, NodeId) -> Result<NodeId>) -> Result<()> {
    let disk = Disk::Memory("size=200m".to_owned());
    let config = ClusterConfig::nodes(3).disk(disk).flag("disk-reserve-bytes", "8MiB");
    cluster::with(config, |cluster| {
        // Of a single partition all but one are followers and nothing else.
        cluster.create_topic(replicated("ledger", 3).partitions(1))?;
        let workload = work(cluster, "ledger", 1)?;
        cluster.await_in_sync("ledger")?;
        let leader = cluster.await_leader("ledger", 0, None)?;
        let full = whose(cluster, leader)?;
        cluster.fill_disk(full)?;
        cluster.await_leader("ledger", 0, Some(full))?;
        workload.await_progress(PATIENCE).context("with a full disk")?;
        cluster.empty_disk(full)?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn the_active_controller_is_removed_and_added_again() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let removed = cluster.await_controller(None)?;
        let id = removed.to_string();
        cluster.cli().done(&["cluster", "remove-controller", &id, "--yes"]);
        ensure!(!cluster.voters()?.contains(&removed), "still among {:?}", cluster.voters()?);
        cluster.await_controller(Some(removed))?;
        // It is a broker as before.
        cluster.create_topic(replicated("without-a-vote", 3))?;
        cluster.await_in_sync("without-a-vote")?;
        workload.await_progress(PATIENCE).context("with two controllers")?;

        let address = cluster.place(removed)?.advertised.to_string();
        cluster.cli().done(&["cluster", "add-controller", &id, &address]);
        ensure!(cluster.voters()? == cluster.ids(), "only {:?}", cluster.voters()?);
        // Now either of the others can be done without.
        let other = cluster.await_controller(Some(removed))?;
        cluster.kill(other)?;
        cluster.await_controller(Some(other))?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_controller_that_was_removed_while_it_was_down_comes_back_as_a_broker() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let active = cluster.await_controller(None)?;
        let removed = cluster.ids().into_iter().find(|id| *id != active).context("three nodes")?;
        cluster.kill(removed)?;
        let id = removed.to_string();
        cluster.cli().done(&["cluster", "remove-controller", &id, "--yes"]);
        // Nobody of the quorum talks to it any more.
        cluster.heal()?;
        cluster.await_in_sync("ledger")?;
        ensure!(!cluster.voters()?.contains(&removed), "still among {:?}", cluster.voters()?);
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_replica_that_was_cut_off_for_a_while_is_in_sync_again() -> Result<()> {
    // Later than connections are given up over which nothing arrives: it is about the next ones.
    let config = ClusterConfig::nodes(3).flag("replica-lag-timeout", "3s");
    cluster::with(config.flag("broker-session-timeout", "4s"), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let leader = cluster.await_leader("ledger", 0, None)?;
        let other = cluster.ids().into_iter().find(|id| *id != leader).context("three nodes")?;
        let (here, there) = (End::Node(leader), End::Node(other));
        for (from, to) in [(here, there), (there, here)] {
            cluster.network().cut(from, to)?;
            cluster.await_metadata("somebody out of sync", |metadata| {
                let partition = view::partition(metadata, "ledger", 0);
                partition.is_some_and(|partition| partition.isr.len() < 3)
            })?;
            // Nothing else happens that would make them talk to each other.
            cluster.heal()?;
            cluster.await_in_sync("ledger").with_context(|| format!("{from:?} to {to:?}"))?;
        }
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn random_faults_between_nodes_lose_nothing() -> Result<()> {
    survive_faults(Kind::Best, 1)
}

#[test]
fn random_faults_of_connections_lose_nothing() -> Result<()> {
    survive_faults(Kind::Proxies, 2)
}

#[test]
fn a_fourth_broker_takes_partitions_under_load_and_gives_them_back() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        let workload = begin(cluster, "ledger")?;
        let fourth = cluster.add_node()?;
        for index in 0..PARTITIONS {
            move_partition(
                cluster,
                "ledger",
                index,
                &[fourth, 1 + index % 3, 1 + (index + 1) % 3],
            )?;
            cluster.await_in_sync("ledger")?;
            workload.await_progress(PATIENCE).context("while partitions move")?;
        }
        ensure!(replicas_on(cluster, fourth)? == PARTITIONS as usize, "not moved");
        drain(cluster, fourth)?;
        ensure!(replicas_on(cluster, fourth)? == 0, "not drained");
        cluster.terminate(fourth)?;
        workload.await_progress(PATIENCE).context("after one has left")?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

#[test]
fn a_broker_that_lost_its_disk_catches_up() -> Result<()> {
    cluster::with(ClusterConfig::nodes(3), |cluster| {
        // No controller: whose disk a quorum can do without, but which it does not let vote again.
        let fourth = cluster.add_node()?;
        cluster.create_topic(replicated("ledger", 4))?;
        let workload = work(cluster, "ledger", PARTITIONS)?;
        cluster.await_in_sync("ledger")?;
        cluster.kill(fourth)?;
        cluster.wipe(fourth)?;
        workload.await_progress(PATIENCE)?;
        judge(cluster, workload, "ledger").map(drop)
    })
}

/// Strikes until there were enough, with a verdict and a new topic now and then.
fn survive_faults(network: Kind, seed: u64) -> Result<()> {
    let wanted = effort::faults(FAULTS)?;
    let seed = effort::seed(seed)?;
    let config = ClusterConfig::nodes(3).network(network);
    let survived = cluster::with(config, |cluster| {
        let (mut done, mut chapter) = (0, 0);
        while done < wanted {
            let topic = format!("chapter-{chapter}");
            let faults = (wanted - done).min(CHAPTER_FAULTS);
            done += survive_chapter(cluster, &topic, (seed + chapter, faults))?;
            // The processes were ended to read their files.
            cluster.heal()?;
            cluster.cli().done(&["topic", "delete", &topic, "--yes"]);
            chapter += 1;
        }
        Ok(())
    });
    survived.with_context(|| format!("TIDEMARK_TEST_SEED={seed}"))
}

fn survive_chapter(cluster: &mut Cluster, topic: &str, (seed, wanted): (u64, u64)) -> Result<u64> {
    let workload = begin(cluster, topic)?;
    let mut faults = Faults::new(seed, topic);
    let struck = RefCell::default();
    let survived = survive(cluster, workload, (&mut faults, wanted), &struck);
    survived.with_context(|| format!("{topic}, seed {seed}, after {:?}", struck.take()))?;
    Ok(faults.total())
}

fn survive(
    cluster: &mut Cluster,
    workload: Workload,
    (faults, wanted): (&mut Faults, u64),
    struck: &RefCell<Vec<String>>,
) -> Result<()> {
    let topic = faults.topic().to_owned();
    while faults.total() < wanted {
        faults.strike(cluster, |fault| {
            workload.note(&fault);
            struck.borrow_mut().push(fault);
        })?;
        cluster.check_processes()?;
        workload.note("mended");
        cluster.mend()?;
        if faults.grants_recovery() {
            cluster.heal()?;
            cluster.await_in_sync(&topic)?;
            workload.await_progress(PATIENCE)?;
        }
    }
    let report = judge(cluster, workload, &topic)?;
    println!("{topic}: {:?}\n{report}", faults.injected);
    Ok(())
}

/// A topic with three replicas and clients at work on it.
fn begin(cluster: &Cluster, topic: &str) -> Result<Workload> {
    cluster.create_topic(replicated(topic, 3))?;
    let workload = work(cluster, topic, PARTITIONS)?;
    cluster.await_in_sync(topic)?;
    Ok(workload)
}

fn replicated(topic: &str, replicas: u16) -> NewTopic {
    let topic = NewTopic::new(topic).partitions(PARTITIONS).replication_factor(replicas);
    // Small segments, so that faults meet rolls.
    topic.setting("min_insync_replicas", "2").setting("segment_bytes", "1MiB")
}

fn work(cluster: &Cluster, topic: &str, partitions: u32) -> Result<Workload> {
    let config = WorkloadConfig::new(topic, partitions);
    let workload = Workload::start(cluster.client_config(), config)?;
    workload.await_progress(PATIENCE)?;
    Ok(workload)
}

fn move_partition(cluster: &Cluster, topic: &str, index: u32, to: &[NodeId]) -> Result<()> {
    let to: Vec<_> = to.iter().map(ToString::to_string).collect();
    let partition = format!("{topic}/{index}");
    cluster.cli().done(&["partition", "move", &partition, "--to", &to.join(","), "--yes"]);
    cluster
        .await_metadata("the partition moved", |metadata| {
            view::partition(metadata, topic, index).is_some_and(|partition| {
                let replicas: Vec<_> = partition.replicas.iter().map(ToString::to_string).collect();
                replicas == to
            })
        })
        .map(drop)
}

fn drain(cluster: &Cluster, id: NodeId) -> Result<()> {
    cluster.cli().done(&["broker", "drain", &id.to_string(), "--yes"]);
    let drained = cluster.await_metadata("the broker drained", |metadata| {
        let mut partitions = metadata.topics.iter().flat_map(|topic| &topic.partitions);
        !partitions.any(|partition| partition.replicas.contains(&id))
    });
    drained.map(drop)
}

fn replicas_on(cluster: &Cluster, id: NodeId) -> Result<usize> {
    let metadata = cluster.metadata()?;
    let partitions = metadata.topics.iter().flat_map(|topic| &topic.partitions);
    Ok(partitions.filter(|partition| partition.replicas.contains(&id)).count())
}

//! `power_loss`: takes the power from brokers in the middle of durable produces, again and again, and looks for what was
//! acknowledged.
//!
//! Not part of `cargo test`: it wants root, loop devices and minutes. Every node's data lies on an ext4 file system in an
//! image; see [`tidemark_tests::image`] for what losing power means. The history checker is the judge.
#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use tidemark_client::NewTopic;
use tidemark_protocol::NodeId;
use tidemark_tests::{
    cluster::{self, Cluster, ClusterConfig, Disk, PATIENCE},
    image,
    random::Random,
    workload::{Workload, WorkloadConfig, replicas, verdict},
};

const PARTITIONS: u32 = 3;

/// Takes the power from brokers and demands that nothing acknowledged is gone.
#[derive(Parser)]
struct Arguments {
    /// How often the power goes away.
    #[arg(long, default_value_t = 20)]
    losses: u32,
    /// Nodes of the cluster; each loss hits some of them, or all, at once.
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// Losses between two verdicts.
    #[arg(long, default_value_t = 10)]
    chapter: u32,
    /// Size of each node's disk.
    #[arg(long, default_value_t = 512)]
    image_mib: u64,
    /// The longest time between two losses.
    #[arg(long, default_value_t = 1500)]
    gap_ms: u64,
    /// Of the topics. With `memory`, things are lost, and this program fails: a way to see that it can.
    #[arg(long, default_value = "disk")]
    durability: String,
    /// Of the choices made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    image::prove().context("this machine cannot lose power")?;
    let config = ClusterConfig::nodes(arguments.nodes).disk(Disk::Image(arguments.image_mib));
    let config = config.flag("disk-reserve-bytes", "32MiB");
    let mut random = Random::new(arguments.seed);
    let mut recoveries = Vec::new();
    cluster::with(config, |cluster| {
        let mut left = arguments.losses;
        for number in 0.. {
            let losses = left.min(arguments.chapter);
            if losses == 0 {
                break;
            }
            let topic = format!("chapter-{number}");
            recoveries.extend(chapter(cluster, &topic, losses, (&arguments, &mut random))?);
            left -= losses;
        }
        Ok(())
    })
    .with_context(|| format!("--seed {}", arguments.seed))?;
    recoveries.sort_unstable();
    let (median, max) = (recoveries[recoveries.len() / 2], recoveries[recoveries.len() - 1]);
    println!("{} losses of power, nothing lost", arguments.losses);
    println!("until all was acknowledged again: median {median:?}, max {max:?}");
    Ok(())
}

/// One topic, some losses of power, and the verdict. How long each took until produce went on everywhere.
fn chapter(
    cluster: &mut Cluster,
    topic: &str,
    losses: u32,
    (arguments, random): (&Arguments, &mut Random),
) -> Result<Vec<Duration>> {
    let (replicas, min) =
        if arguments.nodes < 2 { (1, "1") } else { (3.min(arguments.nodes), "2") };
    let created = NewTopic::new(topic).partitions(PARTITIONS);
    let created = created
        .replication_factor(u16::try_from(replicas)?)
        .setting("durability", &arguments.durability);
    // Small segments, so that losses meet rolls.
    let created = created.setting("segment_bytes", "1MiB").setting("min_insync_replicas", min);
    cluster.create_topic(created)?;
    let load =
        WorkloadConfig { records_per_second: 1000, ..WorkloadConfig::new(topic, PARTITIONS) };
    let workload = Workload::start(cluster.client_config(), load)?;
    workload.await_progress(PATIENCE)?;
    let mut recoveries = Vec::new();
    for _ in 0..losses {
        // Somewhere in the middle of things.
        thread::sleep(Duration::from_millis(random.between(1, arguments.gap_ms.max(2))));
        cluster.lose_power(&victims(cluster, random))?;
        let began = Instant::now();
        cluster.heal()?;
        workload.await_progress(PATIENCE)?;
        recoveries.push(began.elapsed());
        cluster.await_in_sync(topic)?;
    }
    let mut history = workload.finish(cluster.client_config(), PATIENCE)?;
    history.replicas = replicas::collect(cluster, topic)?;
    let report = verdict::demand_clean(&history)?;
    println!("{topic}: {losses} losses\n{report}");
    cluster.heal()?;
    cluster.cli().done(&["topic", "delete", topic, "--yes"]);
    Ok(recoveries)
}

/// Some of the nodes, or all.
fn victims(cluster: &Cluster, random: &mut Random) -> Vec<NodeId> {
    let mut victims = cluster.ids();
    let count = random.between(1, victims.len() as u64 + 1);
    while victims.len() as u64 > count {
        let at = random.between(0, victims.len() as u64);
        victims.remove(usize::try_from(at).expect("below a length"));
    }
    victims
}

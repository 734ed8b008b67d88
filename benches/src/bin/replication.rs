//! `replication`: what three replicas cost: one partition with acks=all on three brokers, against one broker, in one run.
//!
//! Each round runs both on the same load, one right after the other, in alternating order; a ratio pairs the two of a
//! round. All brokers and the load share the machine: three replicas do three times the work on the same processors.
#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use tidemark_benches::{
    broker::Connection,
    cluster::Cluster,
    load::{self, Load},
    report::{Comparison, table_of},
};

/// Measures the throughput of one replicated partition against one that is not.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the median is quoted, the extremes stand beside it.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// MiB stored per round.
    #[arg(long, default_value_t = 256)]
    round_mib: u64,
    /// Brokers of the cluster; a partition has a replica on each, three at most.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Bytes in a batch, at most.
    #[arg(long, default_value_t = 64 << 10)]
    batch_bytes: usize,
    /// Bytes in a record.
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// Batches sent and not acknowledged.
    #[arg(long, default_value_t = 32)]
    window: u64,
    /// Where brokers keep their files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let program = programs.join("tidemarkd");
    let start = |name: &str, nodes| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir)?;
        Cluster::start(&program, &dir, nodes)
            .context("start `tidemarkd`; build it with `cargo build --release --workspace`")
    };
    let clusters = [start("one", 1)?, start("cluster", arguments.nodes)?];
    let batch = load::batch(arguments.record_bytes, arguments.batch_bytes);
    let batches = (arguments.round_mib << 20).div_ceil(batch.len() as u64);
    let load = Load { batch, batches, window: arguments.window };
    let mut rows = Vec::new();
    for (durable, name) in [(true, "durability=disk"), (false, "durability=memory")] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..arguments.rounds {
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let time = store(&clusters[side], &load, durable)?;
                rates[side].push(megabytes_per_second(&load, time));
            }
        }
        let name = format!("produce, acks=all, {name}");
        rows.push(Comparison::of(name, "MB/s", &rates[0], &rates[1]));
    }
    let several = format!("{} brokers", arguments.nodes);
    print!("{}", table_of(&rows, ["1 broker", &several]));
    if let Some(path) = arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// Stores the load in a new topic of one partition, which is gone afterwards.
fn store(cluster: &Cluster, load: &Load, durable: bool) -> Result<Duration> {
    let topic = cluster.create_topic("replication", 1, durable)?;
    let (leader, partition) = cluster.leader(&topic, 0)?;
    let lane = Connection::open(leader)?.store_lane(partition, load.batch.len());
    let time = load::store(vec![lane], load)?;
    cluster.delete_topic("replication")?;
    Ok(time)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn megabytes_per_second(load: &Load, time: Duration) -> f64 {
    (load.batches * load.batch.len() as u64) as f64 / 1e6 / time.as_secs_f64()
}

//! `versus`: the broker against the floor in one run, and the ratios with their spread.
//!
//! Each round runs both on the same load, one right after the other, in alternating order; a ratio pairs the two of a
//! round, so that a machine that drifts moves both.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports to a person"
)]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use tidemark_benches::{
    broker::{Connection, Server},
    floor, latency,
    load::{self, Load, ReadLane, StoreLane},
    report::{Comparison, table},
};

/// Runs the broker and the floor program side by side on one machine.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the median is quoted, the extremes stand beside it.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes stored per round without flushing, over all partitions, in MiB.
    #[arg(long, default_value_t = 512)]
    round_mib: u64,
    /// The same with flushing, where the disk sets the pace.
    #[arg(long, default_value_t = 128)]
    flush_round_mib: u64,
    /// Bytes in a batch, at most. A record larger than this is a batch by itself.
    #[arg(long, default_value_t = 64 << 10)]
    batch_bytes: usize,
    /// Batches sent and not acknowledged, per partition.
    #[arg(long, default_value_t = 32)]
    window: u64,
    /// Record sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1024, 16_384])]
    record_bytes: Vec<usize>,
    /// Partition counts; one connection each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    partitions: Vec<u32>,
    /// Where both keep their files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Rate of the latency run, in MB/s (10^6 bytes).
    #[arg(long, default_value_t = 10)]
    latency_mb_per_second: u64,
    /// Seconds of one latency run.
    #[arg(long, default_value_t = 5)]
    latency_seconds: u64,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Both programs, running.
struct Pair {
    floor: Server,
    broker: Server,
}

/// One cell of the comparison.
#[derive(Clone, Copy)]
struct Shape {
    record_bytes: usize,
    partitions: u32,
    flush: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let pair = start(dir.path())?;
    let mut rows = Vec::new();
    for &record_bytes in &arguments.record_bytes {
        for &partitions in &arguments.partitions {
            for flush in [false, true] {
                let shape = Shape { record_bytes, partitions, flush };
                rows.extend(throughput(&pair, &arguments, shape).with_context(|| {
                    format!("{record_bytes} B, {partitions} partitions, flush {flush}")
                })?);
            }
        }
    }
    for flush in [false, true] {
        rows.extend(latencies(&pair, &arguments, flush)?);
    }
    println!("{}", table(&rows));
    println!("broker peak resident memory: {} MiB", pair.broker.peak_memory_bytes()? >> 20);
    if let Some(path) = arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

fn start(dir: &Path) -> Result<Pair> {
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let floor_dir = dir.join("floor");
    std::fs::create_dir(&floor_dir)?;
    let floor =
        Server::start(Command::new(programs.join("floor")).arg("--dir").arg(&floor_dir), |line| {
            line.parse().ok()
        })
        .context("start `floor`; build it with `cargo build --release --workspace`")?;
    let broker = Server::tidemarkd(&programs.join("tidemarkd"), &dir.join("broker"))
        .context("start `tidemarkd`; build it with `cargo build --release --workspace`")?;
    Ok(Pair { floor, broker })
}

fn throughput(pair: &Pair, arguments: &Arguments, shape: Shape) -> Result<Vec<Comparison>> {
    let batch = load::batch(shape.record_bytes, arguments.batch_bytes);
    let mib = if shape.flush { arguments.flush_round_mib } else { arguments.round_mib };
    let batches = ((mib << 20) / u64::from(shape.partitions)).div_ceil(batch.len() as u64);
    let load = Load { batch, batches, window: arguments.window };
    let (mut stored, mut read) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..arguments.rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (store_time, read_time) = if side == 0 {
                floor_round(pair.floor.address, &load, shape)?
            } else {
                broker_round(pair.broker.address, &load, shape, &format!("versus-{round}"))?
            };
            let bytes = load.batches * load.batch.len() as u64 * u64::from(shape.partitions);
            stored[side].push(megabytes_per_second(bytes, store_time));
            read[side].push(megabytes_per_second(bytes, read_time));
        }
    }
    let Shape { record_bytes, partitions, flush } = shape;
    for round in (0..arguments.rounds).filter(|_| flush) {
        Connection::open(pair.broker.address)?.delete_topic(&format!("versus-{round}"))?;
    }
    let flushed = if flush { ", flushed" } else { "" };
    let name = |verb| format!("{verb} {record_bytes} B x {partitions} partitions{flushed}");
    let mut rows = vec![Comparison::of(name("produce"), "MB/s", &stored[0], &stored[1])];
    if !flush {
        rows.push(Comparison::of(name("consume"), "MB/s", &read[0], &read[1]));
    }
    for row in &rows {
        eprintln!("{}: {} of floor", row.name, row.ratio);
    }
    Ok(rows)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn floor_round(address: SocketAddr, load: &Load, shape: Shape) -> Result<(Duration, Duration)> {
    let partitions = 0..u64::from(shape.partitions);
    let bytes = load.batches * load.batch.len() as u64;
    let lanes = partitions.clone().map(|p| floor::store_lane(address, p, load, shape.flush));
    let stored = load::store(lanes.collect::<Result<_, _>>()?, load)?;
    let lanes = partitions.map(|p| floor::read_lane(address, p, bytes, false));
    let read = load::read(lanes.collect::<Result<_, _>>()?, bytes)?;
    Ok((stored, read))
}

fn broker_round(
    address: SocketAddr,
    load: &Load,
    shape: Shape,
    topic: &str,
) -> Result<(Duration, Duration)> {
    let mut admin = Connection::open(address)?;
    let partitions = admin.create_topic(topic, shape.partitions, shape.flush)?;
    let bytes = load.batches * load.batch.len() as u64;
    let lanes =
        partitions.iter().map(|p| Ok(Connection::open(address)?.store_lane(*p, load.batch.len())));
    let stored = load::store(lanes.collect::<Result<_>>()?, load)?;
    let lanes = partitions.iter().map(|p| Connection::open(address)?.read_lane(*p));
    let read = load::read(lanes.collect::<Result<_, _>>()?, bytes)?;
    // What was flushed stays until the shape is done, as the floor's files do.
    if !shape.flush {
        admin.delete_topic(topic)?;
    }
    Ok((stored, read))
}

fn latencies(pair: &Pair, arguments: &Arguments, flush: bool) -> Result<Vec<Comparison>> {
    let batch = load::batch(1024, 10 << 10);
    let rate = arguments.latency_mb_per_second * 1_000_000;
    let batches = rate * arguments.latency_seconds / batch.len() as u64;
    let load = Load { batch, batches, window: batches };
    let quantiles = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
    let mut runs = vec![[Vec::new(), Vec::new()]; quantiles.len()];
    for round in 0..arguments.rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (store, read) = if side == 0 {
                floor_pair(pair.floor.address, &load, flush)?
            } else {
                broker_pair(pair.broker.address, &load, flush)?
            };
            let latencies = latency::end_to_end(store, read, &load, rate)?;
            for (runs, (_, quantile)) in runs.iter_mut().zip(quantiles) {
                let nanos = u32::try_from(latencies.value_at_quantile(quantile) / 1000)?;
                runs[side].push(f64::from(nanos));
            }
            if side == 1 {
                Connection::open(pair.broker.address)?.delete_topic("versus-latency")?;
            }
        }
    }
    let flushed = if flush { ", flushed" } else { "" };
    let rows = quantiles.iter().zip(&runs).map(|((quantile, _), [floor, broker])| {
        let mb = arguments.latency_mb_per_second;
        Comparison::of(format!("end to end {quantile} at {mb} MB/s{flushed}"), "us", floor, broker)
    });
    Ok(rows.collect())
}

fn floor_pair(address: SocketAddr, load: &Load, flush: bool) -> Result<(StoreLane, ReadLane)> {
    let store = floor::store_lane(address, 0, load, flush)?;
    let bytes = load.batches * load.batch.len() as u64;
    Ok((store, floor::read_lane(address, 0, bytes, true)?))
}

fn broker_pair(address: SocketAddr, load: &Load, flush: bool) -> Result<(StoreLane, ReadLane)> {
    let mut admin = Connection::open(address)?;
    let partition = admin.create_topic("versus-latency", 1, flush)?[0];
    let store = Connection::open(address)?.store_lane(partition, load.batch.len());
    Ok((store, Connection::open(address)?.read_lane(partition)?))
}

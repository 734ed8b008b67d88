//! `scale`: what many partitions cost one broker, in time, memory and open files.
//!
//! Walks one broker through the life of N partitions, and prints after each step what it took: created, listed, produced to,
//! consumed, left alone, stopped, killed, started again. It compares nothing and passes no judgement.
#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::{
    fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use tidemark_benches::{
    broker::{Connection, Server, produce_head},
    load::{self, Head, Load, StoreLane},
};
use tidemark_protocol::{
    TopicPartition, limits::REQUEST_PARTITIONS_MAX, messages::MetadataRequest,
};

const TOPIC: &str = "scale";
/// Of the records produced, in bytes.
const RECORD_BYTES: usize = 100;
/// Longest silence of a broker that owes an answer.
const PATIENCE: Duration = Duration::from_mins(2);

/// Measures what many partitions cost one broker.
#[derive(Parser, Serialize)]
struct Arguments {
    /// Partitions in all.
    #[arg(long, default_value = "10000")]
    partitions: NonZeroU32,
    /// As many topics with one partition each, instead of one topic with all of them.
    #[arg(long)]
    topics: bool,
    /// Bytes in the one batch that is produced to a partition at a time, at most.
    #[arg(long, default_value_t = 1024)]
    batch_bytes: usize,
    /// Produce requests sent and not answered.
    #[arg(long, default_value_t = 256)]
    window: u64,
    /// Topics with `durability=memory`, where nobody waits for the disk.
    #[arg(long)]
    memory: bool,
    /// How long to look at the broker while nobody uses it.
    #[arg(long, default_value_t = 5)]
    idle_seconds: u64,
    /// Where the broker keeps its files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    #[serde(skip)]
    json: Option<PathBuf>,
}

/// What a process has, and has used.
#[derive(Clone, Copy, Debug, Serialize)]
struct Usage {
    /// Of all its threads since it began, in seconds; the kernel counts in hundredths.
    cpu_seconds: f64,
    /// Memory of its own, `RssAnon`.
    anonymous_bytes: u64,
    /// That and the pages of files it has mapped, `VmRSS`.
    resident_bytes: u64,
    open_files: usize,
}

/// One step: how long it took, and the broker after it, unless there was none. The CPU time is that of the step.
#[derive(Debug, Serialize)]
struct Row {
    step: String,
    seconds: f64,
    broker: Option<Usage>,
}

#[derive(Serialize)]
struct Report<'a> {
    arguments: &'a Arguments,
    rows: &'a [Row],
}

/// The broker under measurement and what was found so far.
struct Walk<'a> {
    arguments: &'a Arguments,
    program: PathBuf,
    data_dir: PathBuf,
    batch: Bytes,
    partitions: Vec<TopicPartition>,
    rows: Vec<Row>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let mut walk = Walk {
        arguments: &arguments,
        program: programs.join("tidemarkd"),
        data_dir: dir.path().join("broker"),
        batch: load::batch(RECORD_BYTES, arguments.batch_bytes),
        partitions: Vec::new(),
        rows: Vec::new(),
    };
    print_head();
    walk.all()?;
    println!("\nmemory of its own per partition: {}", walk.memory_per_partition());
    if let Some(path) = &arguments.json {
        let report = Report { arguments: &arguments, rows: &walk.rows };
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

impl Walk<'_> {
    fn all(&mut self) -> Result<()> {
        let broker = self.start("start, nothing there")?;
        self.idle(&broker, "idle, nothing there")?;
        self.step("create", &broker, Self::create)?;
        self.step("list", &broker, Self::list)?;
        self.idle(&broker, "idle, nothing written")?;
        self.step("produce to each", &broker, Self::produce)?;
        self.step("produce to each again", &broker, Self::produce)?;
        self.step("consume each", &broker, |walk, broker| walk.consume(broker, 2))?;
        self.idle(&broker, "idle, all written")?;
        self.stop(broker)?;

        let broker = self.start("start after a clean stop")?;
        self.idle(&broker, "idle after a start")?;
        self.step("consume each, cold", &broker, |walk, broker| walk.consume(broker, 2))?;
        self.step("produce to each, third", &broker, Self::produce)?;
        // Killed.
        drop(broker);

        let broker = self.start("start after kill -9")?;
        self.step("list", &broker, Self::list)?;
        self.step("consume each, cold", &broker, |walk, broker| walk.consume(broker, 3))?;
        self.stop(broker)
    }

    fn start(&mut self, step: &str) -> Result<Server> {
        let began = Instant::now();
        let broker = Server::tidemarkd(&self.program, &self.data_dir)
            .context("start `tidemarkd`; build it with `cargo build --release --workspace`")?;
        let took = began.elapsed();
        self.note(step, took, Some(Usage::of(broker.pid())?));
        Ok(broker)
    }

    fn stop(&mut self, broker: Server) -> Result<()> {
        let began = Instant::now();
        broker.terminate()?;
        self.note("clean stop", began.elapsed(), None);
        Ok(())
    }

    fn idle(&mut self, broker: &Server, step: &str) -> Result<()> {
        let time = Duration::from_secs(self.arguments.idle_seconds);
        self.step(step, broker, |_, _| {
            thread::sleep(time);
            Ok(())
        })
    }

    fn step(
        &mut self,
        step: &str,
        broker: &Server,
        run: impl FnOnce(&mut Self, &Server) -> Result<()>,
    ) -> Result<()> {
        let before = Usage::of(broker.pid())?;
        let began = Instant::now();
        run(self, broker).with_context(|| step.to_owned())?;
        let took = began.elapsed();
        let after = Usage::of(broker.pid())?;
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        self.note(step, took, Some(Usage { cpu_seconds, ..after }));
        Ok(())
    }

    /// Prints a row as soon as it is known.
    fn note(&mut self, step: &str, took: Duration, broker: Option<Usage>) {
        let row = Row { step: step.to_owned(), seconds: took.as_secs_f64(), broker };
        print_row(&row);
        self.rows.push(row);
    }

    fn create(&mut self, broker: &Server) -> Result<()> {
        let (count, durable) = (self.arguments.partitions.get(), !self.arguments.memory);
        let mut admin = Connection::open(broker.address)?;
        if !self.arguments.topics {
            self.partitions = admin.create_topic(TOPIC, count, durable)?;
            return Ok(());
        }
        for index in 0..count {
            self.partitions.extend(admin.create_topic(&format!("{TOPIC}-{index}"), 1, durable)?);
        }
        Ok(())
    }

    fn list(&mut self, broker: &Server) -> Result<()> {
        let metadata = Connection::open(broker.address)?.call(&MetadataRequest::default())?;
        let listed: usize = metadata.topics.iter().map(|topic| topic.partitions.len()).sum();
        ensure!(listed == self.partitions.len(), "{listed} partitions are listed");
        Ok(())
    }

    /// One batch to each, through one connection, many requests at a time.
    fn produce(&mut self, broker: &Server) -> Result<()> {
        let batch_bytes = self.batch.len();
        let (partitions, batches) = (self.partitions.clone(), self.partitions.len() as u64);
        let lane = Connection::open(broker.address)?.store_lane(partitions[0], batch_bytes);
        lane.stream.set_read_timeout(Some(PATIENCE))?;
        let head: Head = Box::new(move |number| {
            let index = usize::try_from(number).expect("counts partitions");
            produce_head(partitions[index], index as u64, batch_bytes)
        });
        let window = self.arguments.window;
        let load = Load { batch: self.batch.clone(), batches, window };
        load::store(vec![StoreLane { head, ..lane }], &load)?;
        Ok(())
    }

    /// Everything, of which each partition has `batches` batches, through as few subscriptions as may be.
    fn consume(&mut self, broker: &Server, batches: usize) -> Result<()> {
        for partitions in self.partitions.chunks(REQUEST_PARTITIONS_MAX) {
            let lane = Connection::open(broker.address)?.shared_read_lane(partitions)?;
            lane.stream.set_read_timeout(Some(PATIENCE))?;
            load::read(vec![lane], (partitions.len() * batches * self.batch.len()) as u64)?;
        }
        Ok(())
    }

    /// Against the broker when it was empty, in bytes.
    fn memory_per_partition(&self) -> String {
        let at = |step: &str| {
            let row = self.rows.iter().find(|row| row.step == step);
            row.and_then(|row| row.broker).map_or(0, |usage| usage.anonymous_bytes)
        };
        let empty = at("idle, nothing there");
        let each =
            |step| at(step).saturating_sub(empty) / u64::from(self.arguments.partitions.get());
        let (created, written, started) =
            (each("idle, nothing written"), each("idle, all written"), each("idle after a start"));
        format!("{created} B created, {written} B written, {started} B after a restart")
    }
}

impl Usage {
    fn of(pid: u32) -> io::Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(proc.join("status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("no {name} in /proc")))
        };
        Ok(Self {
            cpu_seconds: cpu_seconds(&fs::read_to_string(proc.join("stat"))?)
                .ok_or_else(|| io::Error::other("no CPU times in /proc"))?,
            anonymous_bytes: bytes("RssAnon:")?,
            resident_bytes: bytes("VmRSS:")?,
            open_files: fs::read_dir(proc.join("fd"))?.count(),
        })
    }
}

/// User and system time from `/proc/PID/stat`: its fields 14 and 15, in clock ticks. The second field is the program's name,
/// in parentheses, with whatever it likes inside.
#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut times = behind_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn print_head() {
    println!(
        "{:<26} {:>9} {:>9} {:>11} {:>11} {:>10}",
        "step", "time", "CPU", "own memory", "resident", "open files"
    );
}

fn print_row(row: &Row) {
    let time = format!("{:.3} s", row.seconds);
    let Some(usage) = row.broker else {
        println!("{:<26} {time:>9}", row.step);
        return;
    };
    let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20);
    println!(
        "{:<26} {time:>9} {:>9} {:>11} {:>11} {:>10}",
        row.step,
        format!("{:.2} s", usage.cpu_seconds),
        mib(usage.anonymous_bytes),
        mib(usage.resident_bytes),
        usage.open_files,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_program_name() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 {} {ticks} 0 0", 2 * ticks);
        assert_eq!(cpu_seconds(&stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (cut"), None);
    }
}

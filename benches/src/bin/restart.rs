//! `restart`: how long a broker with much data takes to be back after `kill -9`, and whether everything acknowledged is.
//!
//! Fills a durable topic, then kills the broker again and again in the middle of durable produces. A lost batch ends it with an
//! error; times are reported, not judged.
#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use tidemark_benches::{
    broker::{Connection, Server},
    load::{self, Load, StoreLane},
    report::Spread,
};
use tidemark_protocol::{
    Offset, TopicPartition,
    batch::Batch,
    messages::{ListOffsetsPartition, ListOffsetsRequest, OffsetQuery},
};

const TOPIC: &str = "restart";
/// Longest silence of a broker that owes an answer.
const PATIENCE: Duration = Duration::from_mins(2);

/// Measures how long a broker with much data takes to start after it was killed.
#[derive(Parser, Serialize)]
struct Arguments {
    /// MiB in the topic before the first kill.
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// Partitions of the topic, one producing connection each.
    #[arg(long, default_value = "4")]
    partitions: NonZeroU32,
    /// How often to kill.
    #[arg(long, default_value = "20")]
    kills: NonZeroU32,
    /// A kill comes after at most so many MiB were acknowledged since the start; kills are spread evenly up to it.
    #[arg(long, default_value_t = 128)]
    kill_mib: u64,
    /// Bytes in a record.
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// Bytes in a batch, at most.
    #[arg(long, default_value_t = 64 << 10)]
    batch_bytes: usize,
    /// Batches sent and not acknowledged, per partition.
    #[arg(long, default_value_t = 32)]
    window: u64,
    /// Drop the data from the page cache before each start, as a restart of the machine would.
    #[arg(long)]
    evict: bool,
    /// Where the broker keeps its files.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Also write the figures to this file as JSON.
    #[arg(long)]
    #[serde(skip)]
    json: Option<PathBuf>,
}

/// One kill and the start after it.
#[derive(Debug, Serialize)]
struct Restart {
    /// Acknowledged since the start before.
    acknowledged_bytes: u64,
    /// From the start of the process to its word that it is ready.
    ready_seconds: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    arguments: &'a Arguments,
    restarts: &'a [Restart],
    ready_seconds: Spread,
}

/// The topic under test and what is known of it.
struct Trial<'a> {
    arguments: &'a Arguments,
    program: PathBuf,
    data_dir: PathBuf,
    batch: Bytes,
    batch_records: u64,
    partitions: Vec<TopicPartition>,
    /// The log end of each partition when it was last looked at.
    ends: Vec<Offset>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let programs = std::env::current_exe()?.parent().context("a program has a folder")?.to_owned();
    let batch = load::batch(arguments.record_bytes, arguments.batch_bytes);
    let batch_records = Batch::parse(&mut batch.clone())?.header.record_count.into();
    let mut trial = Trial {
        arguments: &arguments,
        program: programs.join("tidemarkd"),
        data_dir: dir.path().join("broker"),
        batch,
        batch_records,
        partitions: Vec::new(),
        ends: Vec::new(),
    };
    let (mut broker, _) = trial.start()?;
    trial.fill(&broker)?;
    let mut restarts = Vec::new();
    for kill in 1..=arguments.kills.get() {
        progress(&format!("kill {kill} of {}", arguments.kills));
        let (acknowledged_bytes, (after, ready)) = trial.kill_and_start(broker, kill)?;
        broker = after;
        restarts.push(Restart { acknowledged_bytes, ready_seconds: ready.as_secs_f64() });
    }
    progress("reading everything back");
    let read = trial.read_back(&broker)?;
    progress("");
    let times: Vec<f64> = restarts.iter().map(|restart| restart.ready_seconds).collect();
    let ready_seconds = Spread::of(&times).context("at least one kill")?;
    let Spread { median, min, max } = ready_seconds;
    println!("{} kills, no acknowledged batch lost", arguments.kills);
    println!("start to ready: median {median:.3} s, min {min:.3} s, max {max:.3} s");
    println!("read back after the last: {read}");
    if let Some(path) = &arguments.json {
        let report = Report { arguments: &arguments, restarts: &restarts, ready_seconds };
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

impl Trial<'_> {
    fn start(&self) -> Result<(Server, Duration)> {
        let began = Instant::now();
        let broker = Server::tidemarkd(&self.program, &self.data_dir)
            .context("start `tidemarkd`; build it with `cargo build --release --workspace`")?;
        Ok((broker, began.elapsed()))
    }

    fn fill(&mut self, broker: &Server) -> Result<()> {
        let count = self.arguments.partitions.get();
        self.partitions = Connection::open(broker.address)?.create_topic(TOPIC, count, true)?;
        let batches =
            (self.arguments.mib << 20).div_ceil(u64::from(count) * self.batch.len() as u64);
        let load = Load { batch: self.batch.clone(), batches, window: self.arguments.window };
        let mut writing = Writing::begin(self.lanes(broker)?, load);
        let (mut acknowledged, all) = (0, batches * u64::from(count));
        for () in &writing.acknowledgements {
            acknowledged += 1;
            if acknowledged % 256 == 0 || acknowledged == all {
                let mib = (acknowledged * self.batch.len() as u64) >> 20;
                progress(&format!("{mib} of {} MiB written", self.arguments.mib));
            }
        }
        let counts = writing.end()?;
        self.ends = vec![0; self.partitions.len()];
        self.check(broker, &counts)
    }

    /// Kills the broker while it is produced to. Bytes acknowledged before, the next broker, and when it was ready.
    fn kill_and_start(&mut self, broker: Server, kill: u32) -> Result<(u64, (Server, Duration))> {
        let Arguments { kills, kill_mib, window, .. } = *self.arguments;
        let bytes = (kill_mib << 20) * u64::from(kill) / u64::from(kills.get());
        let load = Load { batch: self.batch.clone(), batches: u64::MAX, window };
        let mut writing = Writing::begin(self.lanes(&broker)?, load);
        let wanted = usize::try_from(bytes.div_ceil(self.batch.len() as u64))?.max(1);
        let seen = writing.acknowledgements.iter().take(wanted).count();
        // Killed.
        drop(broker);
        let cut_off = writing.end();
        ensure!(seen == wanted, "produces failed before the kill: {cut_off:?}");
        let counts = writing.counts();
        if self.arguments.evict {
            evict(&self.data_dir)?;
        }
        let started = self.start()?;
        self.check(&started.0, &counts).with_context(|| format!("after kill {kill}"))?;
        Ok((counts.iter().sum::<u64>() * self.batch.len() as u64, started))
    }

    fn lanes(&self, broker: &Server) -> Result<Vec<StoreLane>> {
        let open = |partition: &TopicPartition| {
            let lane = Connection::open(broker.address)?.store_lane(*partition, self.batch.len());
            lane.stream.set_read_timeout(Some(PATIENCE))?;
            Ok(lane)
        };
        self.partitions.iter().map(open).collect()
    }

    /// Every batch acknowledged is there; of those sent and not answered, any whole number; and nothing else.
    fn check(&mut self, broker: &Server, acknowledged: &[u64]) -> Result<()> {
        let question = |&partition| ListOffsetsPartition {
            partition,
            leader_epoch: None,
            query: OffsetQuery::Latest,
            timestamp_ms: 0,
        };
        let request =
            ListOffsetsRequest { partitions: self.partitions.iter().map(question).collect() };
        let answers = Connection::open(broker.address)?.call(&request)?.partitions;
        ensure!(answers.len() == self.partitions.len(), "an answer for each partition");
        for ((answer, end), acknowledged) in
            answers.into_iter().zip(&mut self.ends).zip(acknowledged)
        {
            let found = answer.map_err(io::Error::other)?.offset;
            let least = *end + acknowledged * self.batch_records;
            let most = least + self.arguments.window * self.batch_records;
            if found < least {
                bail!("lost: acknowledged up to offset {least}, there up to {found}");
            }
            ensure!(found <= most, "more than was sent: up to {found}, sent up to {most}");
            ensure!(found % self.batch_records == 0, "a part of a batch, up to {found}");
            *end = found;
        }
        Ok(())
    }

    /// Reads every byte of every partition; fails if there are fewer than the offsets say.
    fn read_back(&self, broker: &Server) -> Result<String> {
        let (mut bytes, began) = (0, Instant::now());
        for (partition, end) in self.partitions.iter().zip(&self.ends) {
            let lane = Connection::open(broker.address)?.read_lane(*partition)?;
            lane.stream.set_read_timeout(Some(PATIENCE))?;
            let wanted = end / self.batch_records * self.batch.len() as u64;
            load::read(vec![lane], wanted)?;
            bytes += wanted;
        }
        let took = began.elapsed();
        let rate = u128::from(bytes) / took.as_micros().max(1);
        Ok(format!("{} MiB in {:.1} s, {rate} MB/s", bytes >> 20, took.as_secs_f64()))
    }
}

/// Lanes being written to by a thread of their own.
struct Writing {
    thread: Option<thread::JoinHandle<io::Result<Duration>>>,
    counts: Vec<Arc<AtomicU64>>,
    /// One for each batch acknowledged; ends with the writing.
    acknowledgements: mpsc::Receiver<()>,
}

impl Writing {
    fn begin(lanes: Vec<StoreLane>, load: Load) -> Self {
        let (sender, acknowledgements) = mpsc::channel();
        let counts: Vec<_> = lanes.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
        let counted = lanes.into_iter().zip(counts.iter().cloned());
        let lanes = counted.map(|(lane, count)| counting(lane, count, sender.clone())).collect();
        drop(sender);
        let thread = Some(thread::spawn(move || load::store(lanes, &load)));
        Self { thread, counts, acknowledgements }
    }

    /// Waits for the end of the writing, be it for good or for bad. Batches acknowledged, by lane.
    fn end(&mut self) -> io::Result<Vec<u64>> {
        // Until the last lane is done: the thread ends with the first that fails.
        self.acknowledgements.iter().for_each(drop);
        let thread = self.thread.take().expect("ended once");
        thread.join().expect("lanes do not panic")?;
        Ok(self.counts())
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Acquire)).collect()
    }
}

/// The same lane, with a count of what is acknowledged that others see.
fn counting(lane: StoreLane, count: Arc<AtomicU64>, each: mpsc::Sender<()>) -> StoreLane {
    let StoreLane { stream, head, mut acknowledged } = lane;
    let acknowledged = Box::new(move |stream: &mut std::net::TcpStream| {
        let now = acknowledged(stream)?;
        for _ in count.swap(now, Ordering::AcqRel)..now {
            // Nobody counts any more after the kill.
            each.send(()).ok();
        }
        Ok(now)
    });
    StoreLane { stream, head, acknowledged }
}

/// Writes back and drops from the page cache every file below `dir`.
fn evict(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            evict(&entry.path())?;
        } else {
            let file = File::open(entry.path())?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// On one line of a terminal; an empty text clears it.
fn progress(text: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        // Losing sight of the progress is no reason to stop.
        write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush()).ok();
    }
}

//! `cargo sim`: simulated clusters, one seed after the other, until there are no more or one fails.

use std::{
    io::Write,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use tidemark_protocol::bug;
use tidemark_tests::sim::{
    bugs,
    figures::Figures,
    run::{Options, Outcome, explain, keep_panics, replay, run},
    trace::Verbosity,
};

/// How often the progress line is renewed.
const PROGRESS: Duration = Duration::from_secs(1);

/// Runs whole clusters in one thread each, from seeds, while everything that can go wrong does.
#[derive(Debug, Parser)]
#[command(name = "cargo sim --")]
struct Args {
    /// Run one seed.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run seeds from A to B (exclusive).
    #[arg(long, value_parser = parse_range, value_name = "A..B")]
    seeds: Option<(u64, u64)>,
    /// Run seeds for so long, from a random one on unless --seeds says where to begin.
    #[arg(long)]
    minutes: Option<f64>,
    /// Simulated seconds with faults in each run, before everything is healed.
    #[arg(long, default_value_t = 60)]
    sim_seconds: u64,
    /// Print everything that happens. With --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run seeds until one fails, and say how many that took: for builds with a bug put back.
    #[arg(long)]
    hunt: bool,
    /// Hunt every known bug, one after the other, or those named: for builds with `TIDEMARK_BUG=any`.
    #[arg(long, value_name = "NAME", num_args = 0.., conflicts_with_all = ["seed", "hunt"])]
    bugs: Option<Vec<String>>,
    /// Go on after a failure, and list all seeds that fail.
    #[arg(long)]
    keep_going: bool,
    /// Seeds run at the same time; by default, one per processor.
    #[arg(long)]
    threads: Option<usize>,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range is written A..B")?;
    let number = |part: &str| part.parse::<u64>().map_err(|error| error.to_string());
    let (from, to) = (number(from)?, number(to)?);
    if from >= to {
        return Err("the range is empty".to_owned());
    }
    Ok((from, to))
}

/// What all seeds together have come to.
#[derive(Default)]
struct Total {
    seeds: u64,
    simulated_us: u64,
    figures: Figures,
    steps: Vec<u64>,
    failed: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_us += outcome.simulated_us;
        self.figures.add(&outcome.figures);
        self.steps.push(outcome.figures.events);
        if let Some(failed) = &outcome.failed {
            self.failed.push((outcome.seed, failed.to_string()));
        }
    }
}

/// Which seed is next, and whether there is one.
struct Seeds {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    is_over: AtomicBool,
}

impl Seeds {
    fn take(&self) -> Option<u64> {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        if is_late || self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(named) = &args.bugs {
        return hunt_bugs(&args, named);
    }
    let verbosity = if args.trace { Verbosity::Print } else { Verbosity::Hash };
    let options = Options { seconds: args.sim_seconds, verbosity };
    keep_panics();
    if args.trace {
        // What the cluster itself has to say, between the lines of the trace.
        let level = tracing_subscriber::filter::LevelFilter::DEBUG;
        tracing_subscriber::fmt().with_max_level(level).without_time().with_ansi(false).init();
    }
    let (from, end) = match (args.seed, args.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(range)) if args.minutes.is_none() => range,
        (None, Some((from, _))) => (from, u64::MAX),
        (None, None) => (first_seed(), u64::MAX),
    };
    let is_endless = end == u64::MAX && args.minutes.is_none() && !args.hunt;
    let minutes = if is_endless { Some(1.0) } else { args.minutes };
    let seeds = Seeds {
        next: AtomicU64::new(from),
        end,
        until: minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
        is_over: AtomicBool::new(false),
    };
    let total = Mutex::new(Total::default());
    let began = Instant::now();
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&seeds, &options, &total, args.keep_going && !args.hunt));
        }
        scope.spawn(|| progress(&seeds, &total, began));
    });
    let total = total.into_inner().expect("nobody panics while holding it");
    conclude(&args, &options, &total, began.elapsed())
}

fn work(seeds: &Seeds, options: &Options, total: &Mutex<Total>, keep_going: bool) {
    while let Some(seed) = seeds.take() {
        let outcome = run(seed, options);
        total.lock().expect("nobody panics while holding it").add(&outcome);
        if outcome.failed.is_some() && !keep_going {
            break;
        }
    }
    seeds.is_over.store(true, Ordering::Relaxed);
}

fn progress(seeds: &Seeds, total: &Mutex<Total>, began: Instant) {
    let mut shown = Instant::now();
    while !seeds.is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            let total = total.lock().expect("nobody panics while holding it");
            let hours = hours(total.simulated_us);
            let (count, failed) = (total.seeds, total.failed.len());
            drop(total);
            let elapsed = began.elapsed().as_secs();
            say_over(&format!(
                "{count} seeds, {hours:.2} simulated hours in {elapsed} s, {failed} failed"
            ));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a progress line is for people")]
fn say_over(line: &str) {
    eprint!("\r{line}\x1b[K");
    std::io::stderr().flush().ok();
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn hours(us: u64) -> f64 {
    us as f64 / 3.6e9
}

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn conclude(args: &Args, options: &Options, total: &Total, took: Duration) -> ExitCode {
    say_over("");
    if args.hunt {
        let Some((seed, failed)) = total.failed.first() else {
            println!("not found in {} seeds", total.seeds);
            return ExitCode::FAILURE;
        };
        println!("found after {} seeds, at seed {seed}: {failed}", total.seeds);
        println!("{}", replay(*seed, options));
        return ExitCode::SUCCESS;
    }
    if let Some((seed, _)) = total.failed.first()
        && !args.trace
    {
        println!("{}\n", explain(*seed, options));
    }
    println!("{}", summary(total, took));
    for (seed, failed) in &total.failed {
        println!("seed {seed}: {failed}\n  {}", replay(*seed, options));
    }
    if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(total: &Total, took: Duration) -> String {
    let simulated = hours(total.simulated_us);
    let ratio = simulated * 3600.0 / took.as_secs_f64().max(0.001);
    let mut steps = total.steps.clone();
    steps.sort_unstable();
    let at = |per_cent: usize| {
        steps.get(steps.len().saturating_sub(1) * per_cent / 100).copied().unwrap_or(0)
    };
    let mut text = format!(
        "{} seeds, {simulated:.2} simulated hours in {:.0} s ({ratio:.0} times as fast as real time); \
         steps per seed: median {}, 95 % {}\n",
        total.seeds,
        took.as_secs_f64(),
        at(50),
        at(95)
    );
    let Figures { faults, happened, operations, checks, messages, .. } = &total.figures;
    let all = [
        ("faults", faults),
        ("happened", happened),
        ("operations", operations),
        ("checks", checks),
    ];
    for (name, counts) in all {
        let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        text.extend([name, ": ", &counts.join(", "), "\n"]);
    }
    let count = |what| operations.get(what).copied().unwrap_or(0);
    let produced = count("produce ok") + count("produce failed") + count("produce unknown");
    let unknown = count("produce unknown") * 1000 / produced.max(1);
    format!("{text}{messages} messages; {unknown} of 1000 produce requests with an unknown outcome")
}

/// Every bug in a process of its own, from the same seeds.
#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn hunt_bugs(args: &Args, named: &[String]) -> ExitCode {
    if !bug::is_chosen_at_start() {
        println!("this build has no bugs to choose from: build it with TIDEMARK_BUG=any");
        return ExitCode::FAILURE;
    }
    let (from, end) = args.seeds.unwrap_or((0, u64::MAX));
    let minutes = args.minutes.unwrap_or(1.0);
    let mut arguments = vec![
        format!("--seeds={from}..{end}"),
        format!("--sim-seconds={}", args.sim_seconds),
        format!("--minutes={minutes}"),
    ];
    arguments.extend(args.threads.map(|threads| format!("--threads={threads}")));
    let mut found = 0;
    let hunted =
        bugs::ALL.iter().filter(|name| named.is_empty() || named.iter().any(|it| it == *name));
    let mut all = 0;
    for name in hunted {
        all += 1;
        match bugs::hunt(name, &arguments) {
            Ok(hunted) => {
                found += u32::from(hunted.outcome.starts_with("found"));
                println!("{name}: {} ({:.0} s)", hunted.outcome, hunted.took.as_secs_f64());
            }
            Err(error) => println!("{name}: {error}"),
        }
    }
    println!("{found} of {all} found");
    ExitCode::SUCCESS
}

/// Where an endless run begins: somewhere else every time.
fn first_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 16
}

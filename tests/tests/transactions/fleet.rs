//! The workers of the pipeline: processes of `copier`, one to a place, which are killed, stopped, replaced and begun anew.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tidemark_tests::{cluster::PATIENCE, random::Random};

/// What the workers have said so far.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) commits: AtomicU64,
    /// Transactions that were aborted by the worker itself, on purpose.
    pub(crate) aborts: AtomicU64,
    pub(crate) fenced: AtomicU64,
    /// Why a worker began anew, by the number of times.
    pub(crate) errors: Mutex<Vec<String>>,
}

/// Where the workers read and write, and how they find it.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) brokers: String,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) group: &'static str,
    /// Commits offsets after the transaction: broken on purpose.
    pub(crate) offsets_apart: bool,
}

/// So many places, each with a worker under a transactional id of its own.
#[derive(Debug)]
pub(crate) struct Fleet {
    task: Task,
    said: Arc<Said>,
    random: Random,
    places: Vec<Worker>,
}

/// A process; killed when dropped.
#[derive(Debug)]
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Worker {
    fn signal(&self, name: &str) -> Result<()> {
        let id = self.0.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status()?;
        ensure!(status.success(), "kill -{name} {id}");
        Ok(())
    }
}

impl Fleet {
    pub(crate) fn start(task: Task, count: usize, random: Random) -> Result<Self> {
        let mut fleet = Self { task, said: Arc::default(), random, places: Vec::new() };
        for place in 0..count {
            let worker = fleet.spawn(place)?;
            fleet.places.push(worker);
        }
        Ok(fleet)
    }

    pub(crate) fn said(&self) -> &Said {
        &self.said
    }

    pub(crate) fn transactional_id(place: usize) -> String {
        format!("copier-{place}")
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    fn spawn(&mut self, place: usize) -> Result<Worker> {
        let Task { brokers, from, to, group, offsets_apart } = &self.task;
        let mut command = Command::new(env!("CARGO_BIN_EXE_copier"));
        command.args(["--brokers", brokers, "--from", from, "--to", to, "--group", group]);
        command.args(["--transactional-id", &Self::transactional_id(place)]);
        command.args(["--seed", &self.random.next_u64().to_string()]);
        if *offsets_apart {
            command.arg("--offsets-apart");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("start copier")?;
        let lines = BufReader::new(child.stdout.take().context("piped")?);
        let said = Arc::clone(&self.said);
        thread::Builder::new().name("copier".to_owned()).spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|line| said.hear(&line));
        })?;
        Ok(Worker(child))
    }

    /// `kill -9`; another process takes the place at once.
    pub(crate) fn kill(&mut self, place: usize) -> Result<()> {
        self.places[place].0.kill()?;
        self.places[place] = self.spawn(place)?;
        Ok(())
    }

    /// Stops a worker for so long, and lets it run again.
    pub(crate) fn pause(&self, place: usize, time: Duration) -> Result<()> {
        self.places[place].signal("STOP")?;
        thread::sleep(time);
        self.places[place].signal("CONT")
    }

    /// Stops a worker, gives its place to another, and lets it run again when the others go on: one of the two must find itself
    /// shut out, and that is the first, unless it was about to begin anew itself.
    pub(crate) fn replace(&mut self, place: usize) -> Result<()> {
        self.places[place].signal("STOP")?;
        let new = self.spawn(place)?;
        let mut old = std::mem::replace(&mut self.places[place], new);
        self.await_commits(5).context("while a worker is stopped that was replaced")?;
        old.signal("CONT")?;
        let deadline = Instant::now() + PATIENCE;
        while old.0.try_wait()?.is_none() {
            if self.places[place].0.try_wait()?.is_some() {
                self.places[place] = old;
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "of two workers under one id neither ends");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn await_commits(&self, count: u64) -> Result<()> {
        let wanted = self.said.commits.load(Ordering::Acquire) + count;
        let deadline = Instant::now() + PATIENCE;
        while self.said.commits.load(Ordering::Acquire) < wanted {
            ensure!(Instant::now() < deadline, "nothing is committed any more");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Has all of them leave; says so if one has ended before.
    pub(crate) fn finish(mut self) -> Result<Arc<Said>> {
        for worker in &mut self.places {
            ensure!(worker.0.try_wait()?.is_none(), "a worker has ended by itself");
            drop(worker.0.stdin.take());
        }
        Ok(Arc::clone(&self.said))
    }
}

impl Said {
    fn hear(&self, line: &str) {
        match line.split_once(' ').map_or(line, |(word, _)| word) {
            "commit" => drop(self.commits.fetch_add(1, Ordering::AcqRel)),
            "abort" => drop(self.aborts.fetch_add(1, Ordering::AcqRel)),
            "fenced" => drop(self.fenced.fetch_add(1, Ordering::AcqRel)),
            "anew" => {
                let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
                errors.push(line.to_owned());
            }
            _ => {}
        }
    }
}

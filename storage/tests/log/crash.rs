//! Stops a workload at every disk operation it makes, loses the process or the power there, and
//! checks that what reopens is a prefix of what was appended and holds everything that was flushed.

use std::path::Path;

use tidemark_protocol::{
    Offset,
    batch::{Batch, Compression},
};
use tidemark_storage::{Checkpoint, Log, LogConfig, StorageError, testing::SimDisk};

use crate::model::{Model, Place, batch, flush, small_config};

/// Losses of power tried at each operation, each with choices of its own.
const SEEDS: u64 = 4;

/// What was promised when the disk stopped.
#[derive(Clone, Default)]
struct Promise {
    model: Model,
    /// Nothing below may be missing.
    flushed: Offset,
    /// The log starts here or above.
    durable_start: Offset,
    checkpoint: Option<Checkpoint>,
    /// The log was to start over here: it has, or is as before.
    restarting: Option<Offset>,
}

#[derive(Debug)]
struct Stopped;

impl<E: std::error::Error> From<E> for Stopped {
    fn from(_: E) -> Self {
        Self
    }
}

/// The workload: every kind of change, several of them twice.
struct Workload {
    log: Log<SimDisk>,
    promise: Promise,
    now_ms: u64,
}

impl Workload {
    fn append(&mut self, count: usize, value_bytes: usize) -> Result<(), Stopped> {
        let batches: Vec<Batch> = (0..count)
            .map(|index| {
                let fill = (self.promise.model.log_end + index as u64).to_le_bytes()[0];
                batch(Compression::None, 1000, &[vec![fill; value_bytes], vec![fill; 20]])
            })
            .collect();
        let epoch = self.promise.model.latest_epoch();
        // First into the model: an append that is interrupted may be there or not.
        for batch in &batches {
            self.promise.model.append(batch, epoch);
        }
        let appended = self.log.append(&batches, epoch, self.now_ms)?;
        assert_eq!(appended.next_offset, self.promise.model.log_end);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        let flushed = flush(&mut self.log);
        self.promise.flushed = self.log.flushed_offset();
        flushed?;
        assert_eq!(self.promise.flushed, self.promise.model.log_end);
        Ok(())
    }

    fn checkpoint(&mut self) {
        self.promise.checkpoint = Some(self.log.checkpoint());
    }

    fn new_epoch(&mut self) {
        let (epoch, end) = (self.promise.model.latest_epoch() + 1, self.log.log_end_offset());
        self.log.assign_epoch(epoch, end);
        self.promise.model.assign_epoch(epoch, end);
    }

    fn roll(&mut self) {
        self.now_ms += 20_000;
        self.log.roll_if_due(self.now_ms);
    }

    fn truncate(&mut self, offset: Offset) -> Result<(), Stopped> {
        let boundary = self.promise.model.boundary(offset);
        // From the first step on, both what is cut and what is left may be found.
        self.promise.flushed = self.promise.flushed.min(boundary);
        self.log.truncate(offset)?;
        self.promise.model.truncate(offset);
        // "Durable when it returns", and with it what is left.
        self.promise.flushed = self.log.flushed_offset();
        Ok(())
    }

    fn trim(&mut self, offset: Offset) -> Result<(), Stopped> {
        let trimmed = self.log.trim(offset);
        self.promise.model.log_start = self.promise.model.log_start.max(offset);
        trimmed?;
        self.promise.durable_start = offset;
        self.promise.flushed = self.promise.flushed.max(offset);
        Ok(())
    }

    fn restart(&mut self, offset: Offset) -> Result<(), Stopped> {
        self.promise.restarting = Some(offset);
        self.log.restart_at(offset)?;
        let checkpoint = self.promise.checkpoint.take();
        let (flushed, durable_start) = (offset, offset);
        self.promise = Promise { flushed, durable_start, checkpoint, ..Promise::default() };
        self.promise.model.restart(offset);
        Ok(())
    }

    fn run(&mut self) -> Result<(), Stopped> {
        self.start_over()?;
        self.append(1, 100)?;
        self.append(2, 700)?;
        self.flush()?;
        self.append(3, 600)?;
        self.checkpoint();
        self.append(1, 3000)?;
        self.flush()?;
        self.new_epoch();
        self.append(2, 900)?;
        self.flush()?;
        self.checkpoint();
        self.append(4, 300)?;
        self.roll();
        self.append(1, 50)?;
        self.flush()?;
        self.append(2, 1500)?;
        let end = self.promise.model.log_end;
        self.truncate(end - 3)?;
        self.new_epoch();
        self.append(2, 200)?;
        self.flush()?;
        self.checkpoint();
        self.truncate(self.promise.model.log_end / 2)?;
        self.append(5, 400)?;
        self.flush()?;
        self.trim(6)?;
        self.append(6, 800)?;
        self.flush()?;
        self.checkpoint();
        self.roll();
        let end = self.log.log_end_offset();
        self.trim(end)?;
        self.append(1, 10)?;
        self.flush()?;
        self.append(1, 20)
    }

    /// Drops everything: ahead of what a checkpoint knows, then back, to where segments had the same names.
    fn start_over(&mut self) -> Result<(), Stopped> {
        self.restart(70)?;
        self.append(3, 900)?;
        self.flush()?;
        self.checkpoint();
        self.append(1, 30)?;
        self.restart(200)?;
        self.append(1, 30)?;
        self.flush()?;
        self.checkpoint();
        self.append(1, 30)?;
        self.restart(0)?;
        self.new_epoch();
        Ok(())
    }
}

fn disk_with_place(seed: u64) -> (SimDisk, Place<SimDisk>) {
    let disk = SimDisk::new(seed);
    let place = Place::prepare(disk.clone(), Path::new("/"));
    (disk, place)
}

/// Runs the workload until it ends or the disk stops.
fn play(place: &Place<SimDisk>, config: &LogConfig) -> (Promise, bool) {
    let log = place.create(config);
    let mut workload = Workload { log, promise: Promise::default(), now_ms: 1000 };
    let completed = workload.run().is_ok();
    (workload.promise, completed)
}

/// Reopens and compares with what was promised. Returns the log and the model of what it holds.
fn reopen(
    place: &Place<SimDisk>,
    promise: &Promise,
    with_checkpoint: bool,
) -> (Log<SimDisk>, Model) {
    let checkpoint = promise.checkpoint.clone().filter(|_| with_checkpoint);
    let (log, recovery) = place.open(&small_config(), checkpoint).expect("it opens");
    assert_eq!(recovery.corrupt, [], "a crash is not corruption");
    let mut promise = promise.clone();
    if let Some(offset) = promise.restarting
        && (log.log_start_offset(), log.log_end_offset()) == (offset, offset)
    {
        promise.model.restart(offset);
        (promise.flushed, promise.durable_start) = (offset, offset);
    }
    let mut model = promise.model.clone();
    let start = log.log_start_offset();
    assert!(start >= promise.durable_start && start <= model.log_start.max(promise.durable_start));
    model.log_start = start;
    model.accept_end(log.log_end_offset(), promise.flushed.max(start));
    model.check(&log);
    (log, model)
}

/// Everything that must hold after a crash that left `disk`.
fn check_after_crash(disk: &SimDisk, promise: &Promise, seed: u64) {
    let with_checkpoint = seed.is_multiple_of(2);
    let place = Place { disk: disk.clone(), dir: Path::new("/data/topics/orders/3").into() };
    let (log, model) = reopen(&place, promise, with_checkpoint);
    drop(log);

    // Recovery is the same the second time.
    disk.crash();
    let (mut log, again) = reopen(&place, promise, with_checkpoint);
    assert_eq!(again.log_end, model.log_end, "a second recovery finds the same end");
    assert_eq!(again.log_start, model.log_start, "a second recovery finds the same start");

    // The log works, and what is flushed now survives the next loss of power.
    let mut model = again;
    let epoch = model.latest_epoch() + 1;
    let more = batch(Compression::None, 5000, &[b"after the crash".to_vec()]);
    log.append(std::slice::from_ref(&more), epoch, 90_000).expect("it takes appends");
    model.append(&more, epoch);
    flush(&mut log).expect("it flushes");
    drop(log);
    disk.power_loss();
    let promise = Promise {
        flushed: model.log_end,
        durable_start: model.log_start,
        model,
        ..Promise::default()
    };
    let (_, last) = reopen(&place, &promise, false);
    assert_eq!(last.log_end, promise.model.log_end);
}

fn describe(disk: &SimDisk, stop_at: u64, seed: u64) -> String {
    let stopped = disk.stopped().unwrap_or_default();
    format!("stopped at operation {stop_at} ({stopped}), seed {seed}\n{:#?}", disk.trace())
}

/// Runs a check; a panic in it is reported with the operation and the seed.
fn at(disk: &SimDisk, stop_at: u64, seed: u64, check: impl FnOnce()) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    assert!(outcome.is_ok(), "{}", describe(disk, stop_at, seed));
}

fn operations_of_the_workload() -> u64 {
    let (disk, place) = disk_with_place(0);
    let before = disk.operations();
    let (promise, completed) = play(&place, &small_config());
    assert!(completed && promise.model.batches.len() > 20, "the workload runs to its end");
    assert!(disk.operations() - before > 100, "{} operations", disk.operations());
    disk.operations()
}

#[test]
fn after_a_loss_of_power_at_any_operation_the_log_is_a_prefix_with_everything_flushed() {
    for stop_at in 4..=operations_of_the_workload() {
        let (disk, place) = disk_with_place(stop_at);
        disk.stop_at(stop_at);
        let (promise, _) = play(&place, &small_config());
        for seed in 0..SEEDS {
            let fork = disk.fork(stop_at << 8 | seed);
            fork.power_loss();
            at(&disk, stop_at, seed, || check_after_crash(&fork, &promise, seed));
        }
    }
}

#[test]
fn after_a_kill_at_any_operation_the_log_is_a_prefix_with_everything_flushed() {
    for stop_at in 4..=operations_of_the_workload() {
        let (disk, place) = disk_with_place(stop_at);
        disk.stop_at(stop_at);
        let (promise, _) = play(&place, &small_config());
        for seed in 0..2 {
            let fork = disk.fork(stop_at << 8 | seed);
            fork.crash();
            at(&disk, stop_at, seed, || check_after_crash(&fork, &promise, seed));
        }
    }
}

#[test]
fn recovery_may_be_interrupted_anywhere_and_run_again() {
    for stop_at in (4..=operations_of_the_workload()).step_by(3) {
        let (disk, place) = disk_with_place(stop_at);
        disk.stop_at(stop_at);
        let (promise, _) = play(&place, &small_config());
        let crashed = disk.fork(stop_at);
        crashed.power_loss();
        for nested in 0.. {
            let fork = crashed.fork(stop_at << 8 | nested);
            fork.crash();
            fork.stop_at(fork.operations() + nested);
            let place = Place { disk: fork.clone(), ..place.clone() };
            let checkpoint = promise.checkpoint.clone().filter(|_| nested % 2 == 0);
            let opened = place.open(&small_config(), checkpoint);
            let interrupted = fork.stopped().is_some();
            drop(opened);
            fork.power_loss();
            at(&disk, stop_at, nested, || check_after_crash(&fork, &promise, nested));
            if !interrupted {
                break;
            }
        }
    }
}

#[test]
fn a_log_that_was_fenced_by_a_failed_sync_claims_nothing_more() {
    use tidemark_storage::{AppendError, FlushError, testing::Faults};
    for seed in 0..20 {
        let (disk, place) = disk_with_place(seed);
        let mut workload = Workload {
            log: place.create(&small_config()),
            promise: Promise::default(),
            now_ms: 1000,
        };
        workload.append(2, 700).unwrap();
        workload.flush().unwrap();
        let flushed = workload.promise.flushed;
        workload.append(3, 1200).unwrap();
        disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
        let job = workload.log.flush_job().expect("there is something to flush");
        assert!(matches!(job.run(), Err(FlushError::Failed(_))), "seed {seed}");
        let log = &mut workload.log;
        assert!(log.is_fenced() && log.flush_job().is_none());
        assert_eq!(log.flushed_offset(), flushed, "nothing above what was flushed is claimed");
        assert_eq!(log.checkpoint().flushed_offset, flushed);
        let more = batch(Compression::None, 1, &[b"x".to_vec()]);
        assert!(matches!(log.append(&[more], 1, 1), Err(AppendError::Fenced)));
        assert!(matches!(log.truncate(0), Err(StorageError::Fenced)));
        // What was appended before can still be read; nobody was told that it is durable.
        let end = log.log_end_offset();
        assert_eq!(workload.promise.model.log_end, end);

        let mut promise = workload.promise.clone();
        promise.flushed = flushed;
        drop(workload);
        disk.set_faults(Faults::default());
        disk.power_loss();
        at(&disk, 0, seed, || check_after_crash(&disk, &promise, seed));
    }
}

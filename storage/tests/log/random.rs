//! Random operations on a log and on the model, on both disks.

use std::path::Path;

use proptest::prelude::*;
use tidemark_protocol::{Offset, batch::Compression};
use tidemark_storage::{
    Checkpoint, Disk, Log, LogConfig, ReadError, Residency, StorageError, disk::RealDisk,
    testing::SimDisk,
};

use crate::model::{Model, Place, batch, flush, small_config};

/// Offsets and times in operations are per mille of what there is at that moment.
#[derive(Clone, Debug)]
enum Operation {
    Append { batches: Vec<Vec<usize>>, codec: usize, epoch_step: u32, time_step: i64 },
    AssignEpoch,
    Flush,
    Roll,
    Read { at: u64, below: u64, max_bytes: usize },
    ReadOutside,
    Timestamp { at: u64, below: u64 },
    Truncate { at: u64 },
    Trim { at: u64 },
    Retention { by_size: bool },
    Checkpoint,
    ReopenClean,
    ReopenAfterProcessCrash { with_checkpoint: bool },
    ReopenAfterPowerLoss { with_checkpoint: bool },
}

fn operation() -> impl Strategy<Value = Operation> {
    let batch = proptest::collection::vec(0_usize..400, 1..6);
    let batches = proptest::collection::vec(batch, 1..4);
    let append = (batches, 0_usize..5, 0_u32..6, -20_i64..100).prop_map(
        |(batches, codec, epoch_step, time_step)| Operation::Append {
            batches,
            codec,
            epoch_step: epoch_step.saturating_sub(4),
            time_step,
        },
    );
    let at = 0_u64..=1000;
    prop_oneof![
        12 => append,
        1 => Just(Operation::AssignEpoch),
        4 => Just(Operation::Flush),
        2 => Just(Operation::Roll),
        6 => (at.clone(), at.clone(), 1_usize..6000)
            .prop_map(|(at, below, max_bytes)| Operation::Read { at, below, max_bytes }),
        1 => Just(Operation::ReadOutside),
        3 => (at.clone(), at.clone()).prop_map(|(at, below)| Operation::Timestamp { at, below }),
        2 => (600_u64..=1000).prop_map(|at| Operation::Truncate { at }),
        2 => (0_u64..=400).prop_map(|at| Operation::Trim { at }),
        1 => any::<bool>().prop_map(|by_size| Operation::Retention { by_size }),
        2 => Just(Operation::Checkpoint),
        1 => Just(Operation::ReopenClean),
        1 => any::<bool>().prop_map(|with_checkpoint| Operation::ReopenAfterProcessCrash { with_checkpoint }),
        1 => any::<bool>().prop_map(|with_checkpoint| Operation::ReopenAfterPowerLoss { with_checkpoint }),
    ]
}

/// How a disk dies in this test.
trait Mortal: Disk {
    fn process_crash(&self);
    fn power_loss(&self);
}

impl Mortal for SimDisk {
    fn process_crash(&self) {
        self.crash();
    }

    fn power_loss(&self) {
        SimDisk::power_loss(self);
    }
}

/// Nobody cuts the power of the machine that runs the tests: it is a process crash again.
impl Mortal for RealDisk {
    fn process_crash(&self) {}
    fn power_loss(&self) {}
}

struct Run<D: Mortal> {
    place: Place<D>,
    config: LogConfig,
    log: Option<Log<D>>,
    model: Model,
    now_ms: u64,
    timestamp: i64,
    checkpoint: Option<Checkpoint>,
    /// Where the log certainly starts after any crash.
    durable_start: Offset,
}

impl<D: Mortal> Run<D> {
    fn new(disk: D, root: &Path) -> Self {
        let place = Place::prepare(disk, root);
        let config = small_config();
        let log = Some(place.create(&config));
        Self {
            place,
            config,
            log,
            model: Model::default(),
            now_ms: 1000,
            timestamp: 1000,
            checkpoint: None,
            durable_start: 0,
        }
    }

    fn log(&mut self) -> &mut Log<D> {
        self.log.as_mut().unwrap()
    }

    fn offset_at(&self, per_mille: u64) -> Offset {
        let (start, end) = (self.model.log_start, self.model.log_end);
        start + (end - start) * per_mille / 1000
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Append { batches, codec, epoch_step, time_step } => {
                self.append(batches, Compression::ALL[*codec], *epoch_step, *time_step);
            }
            Operation::AssignEpoch => {
                let (epoch, end) = (self.model.latest_epoch() + 1, self.model.log_end);
                self.log().assign_epoch(epoch, end);
                self.model.assign_epoch(epoch, end);
            }
            Operation::Flush => {
                flush(self.log()).unwrap();
                let end = self.model.log_end;
                assert_eq!(self.log().flushed_offset(), end);
            }
            Operation::Roll => {
                self.now_ms += 20_000;
                let now_ms = self.now_ms;
                self.log().roll_if_due(now_ms);
            }
            Operation::Read { at, below, max_bytes } => {
                let (at, below) = (self.offset_at(*at), self.offset_at(*below));
                let reader = self.log().reader();
                self.model.check_read(&reader, at, below, *max_bytes);
            }
            Operation::ReadOutside => self.read_outside(),
            Operation::Timestamp { at, below } => self.look_up_timestamp(*at, *below),
            Operation::Truncate { at } => self.truncate(*at),
            Operation::Trim { at } => self.trim(*at),
            Operation::Retention { by_size } => self.retention(*by_size),
            Operation::Checkpoint => self.checkpoint = Some(self.log().checkpoint()),
            Operation::ReopenClean => self.reopen_clean(),
            Operation::ReopenAfterProcessCrash { with_checkpoint } => {
                self.log = None;
                self.place.disk.process_crash();
                self.reopen(*with_checkpoint);
                let end = self.model.log_end;
                assert_eq!(self.log().log_end_offset(), end, "the page cache survived");
                self.model.check(self.log.as_ref().unwrap());
            }
            Operation::ReopenAfterPowerLoss { with_checkpoint } => {
                self.lose_power(*with_checkpoint);
            }
        }
    }

    fn append(&mut self, batches: &[Vec<usize>], codec: Compression, epochs: u32, time: i64) {
        self.timestamp += time;
        self.now_ms += time.unsigned_abs();
        let epoch = self.model.latest_epoch() + epochs;
        let batches: Vec<_> = batches
            .iter()
            .map(|sizes| {
                let values: Vec<_> = sizes
                    .iter()
                    .map(|size| (0..*size).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect())
                    .collect();
                batch(codec, self.timestamp, &values)
            })
            .collect();
        let now_ms = self.now_ms;
        let appended = self.log().append(&batches, epoch, now_ms).unwrap();
        assert_eq!(appended.base_offset, self.model.log_end);
        for batch in &batches {
            self.model.append(batch, epoch);
        }
        assert_eq!(appended.next_offset, self.model.log_end);
    }

    fn read_outside(&mut self) {
        let reader = self.log().reader();
        let (start, end) = (self.model.log_start, self.model.log_end);
        for offset in [start.checked_sub(1), Some(end + 1)].into_iter().flatten() {
            let outcome = reader.read(offset, end, 100, Residency::Any);
            assert!(matches!(outcome, Err(ReadError::OutOfRange { .. })), "{offset}: {outcome:?}");
        }
    }

    fn look_up_timestamp(&mut self, at: u64, below: u64) {
        let timestamp = 900 + (self.timestamp - 800) * i64::try_from(at).unwrap() / 1000;
        let below = self.offset_at(below);
        let found = self.log().reader().offset_for_timestamp(timestamp, below).unwrap();
        assert_eq!(found, self.model.first_at_or_after(timestamp, below), "time {timestamp}");
    }

    fn truncate(&mut self, at: u64) {
        let offset = self.offset_at(at);
        self.log().truncate(offset).unwrap();
        self.model.truncate(offset);
    }

    fn trim(&mut self, at: u64) {
        let offset = self.offset_at(at);
        assert_eq!(self.log().trim(offset).unwrap(), offset);
        self.model.log_start = offset;
        self.durable_start = offset;
        let beyond = self.model.log_end + 1;
        let refused = self.log().trim(beyond);
        assert!(matches!(refused, Err(StorageError::OutOfRange { .. })));
    }

    fn retention(&mut self, by_size: bool) {
        let mut config = self.config.clone();
        if by_size {
            config.retention_bytes = Some(5000);
        } else {
            self.now_ms += 30_000;
        }
        let (end, now_ms) = (self.model.log_end, self.now_ms);
        self.log().set_config(config);
        let deleted = self.log().apply_retention(end, now_ms).unwrap();
        let start = self.log().log_start_offset();
        assert_eq!(deleted.log_start, start);
        assert!(start >= self.model.log_start && start <= end);
        let newest_gone = self
            .model
            .visible()
            .filter(|batch| batch.next <= start)
            .flat_map(|batch| &batch.records)
            .map(|record| record.1)
            .max();
        if let (false, Some(newest)) = (by_size, newest_gone) {
            let age = now_ms.cast_signed() - newest;
            assert!(age > 50_000, "deleted a record that is {age} ms old");
        }
        self.model.log_start = start;
        let config = self.config.clone();
        self.log().set_config(config);
    }

    fn reopen_clean(&mut self) {
        let mut checkpoint = self.log.take().unwrap().close().unwrap();
        checkpoint.clean = true;
        self.checkpoint = Some(checkpoint.clone());
        let (log, recovery) = self.place.open(&self.config, Some(checkpoint)).unwrap();
        // An empty one has no end to continue from, and may find leftovers of its front.
        if self.model.log_start < self.model.log_end {
            assert_eq!(recovery.scanned_bytes, 0, "a clean log is not scanned");
        }
        self.model.check(&log);
        self.log = Some(log);
    }

    fn reopen(&mut self, with_checkpoint: bool) {
        let mut checkpoint = self.checkpoint.clone().filter(|_| with_checkpoint);
        if let Some(checkpoint) = &mut checkpoint {
            checkpoint.clean = false;
        }
        let (log, recovery) = self.place.open(&self.config, checkpoint).unwrap();
        assert_eq!(recovery.corrupt, [], "a crash is not corruption");
        self.log = Some(log);
    }

    fn lose_power(&mut self, with_checkpoint: bool) {
        let flushed = self.log().flushed_offset();
        self.log = None;
        self.place.disk.power_loss();
        self.reopen(with_checkpoint);
        let log = self.log.as_ref().unwrap();
        // Retention may be undone, what was asked for may not.
        let start = log.log_start_offset();
        assert!(
            (self.durable_start..=self.model.log_start.max(self.durable_start)).contains(&start)
        );
        self.model.log_start = start;
        self.model.accept_end(log.log_end_offset(), flushed);
        self.model.check(log);
    }
}

fn run<D: Mortal>(disk: D, root: &Path, operations: &[Operation]) {
    let mut run = Run::new(disk, root);
    for operation in operations {
        run.apply(operation);
        let (start, end) = (run.model.log_start, run.model.log_end);
        assert_eq!(run.log().log_start_offset(), start, "after {operation:?}");
        assert_eq!(run.log().log_end_offset(), end, "after {operation:?}");
    }
    run.model.check(run.log.as_ref().unwrap());
    run.reopen_clean();
    run.log.take().unwrap().delete().unwrap();
    assert!(!run.place.disk.exists(&run.place.dir).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn a_log_on_the_simulated_disk_is_like_the_model(
        seed: u64,
        operations in proptest::collection::vec(operation(), 1..60),
    ) {
        run(SimDisk::new(seed), Path::new("/"), &operations);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn a_log_on_the_real_disk_is_like_the_model(
        operations in proptest::collection::vec(operation(), 1..60),
    ) {
        let root = tempfile::tempdir().unwrap();
        run(RealDisk::new(), root.path(), &operations);
    }
}

/// Found at random, too rarely to rely on it.
#[test]
fn a_segment_emptied_by_a_truncation_is_found_again_after_a_clean_close() {
    let append = |batches: Vec<Vec<usize>>| Operation::Append {
        batches,
        codec: 0,
        epoch_step: 0,
        time_step: 0,
    };
    let operations = [
        append(vec![vec![0; 5], vec![0; 5]]),
        append(vec![vec![0; 3]]),
        Operation::Roll,
        Operation::Flush,
        append(vec![vec![0; 3], vec![0; 5]]),
        Operation::Truncate { at: 620 },
        Operation::ReopenClean,
        append(vec![vec![0]]),
    ];
    run(SimDisk::new(0), Path::new("/"), &operations);
}

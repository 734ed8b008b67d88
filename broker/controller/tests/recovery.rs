//! A quorum of one on a disk that loses power at every operation, rots, fills up and fails to flush.

#![expect(clippy::unwrap_used, reason = "in tests")]

use std::path::{Path, PathBuf};

use tidemark_controller::{
    AlterTopic, Command, CommitError, CreateTopic, DeleteTopic, Image, IncarnationId, Quorum,
    QuorumError, QuorumOfOne, RegisterBroker,
};
use tidemark_protocol::{TopicId, messages::TopicSettings};
use tidemark_storage::{
    Disk,
    testing::{Faults, SimDisk},
};

const DIR: &str = "/metadata";

/// A quorum, what it has committed, and what was proposed last.
struct Node {
    quorum: QuorumOfOne<SimDisk>,
    image: Image,
}

impl Node {
    fn open(disk: &SimDisk) -> Result<Self, QuorumError> {
        let (quorum, image) = QuorumOfOne::open(disk.clone(), Path::new(DIR), 1_000)?;
        Ok(Self { quorum, image })
    }

    /// Commits the command; the image is advanced by what was proposed, committed or not.
    fn run(&mut self, command: &Command) -> Result<(), CommitError> {
        let (records, _) = self.image.decide(command).unwrap();
        self.quorum.propose(&records, 1_000).unwrap();
        for record in &records {
            self.image.apply(self.image.metadata_index(), record).unwrap();
        }
        self.quorum.commit()
    }
}

fn register(run: u8) -> Command {
    Command::RegisterBroker(RegisterBroker {
        broker_id: 1,
        incarnation: IncarnationId([run; 16]),
        host: "localhost".to_owned(),
        port: 9092,
        rack: None,
    })
}

fn create(number: u8, partitions: u32) -> Command {
    Command::CreateTopic(CreateTopic {
        name: format!("topic-{number}"),
        id: TopicId([number; 16]),
        partitions,
        replication_factor: 1,
        settings: TopicSettings::new(),
        seed: 0,
        validate_only: false,
    })
}

fn delete(number: u8) -> Command {
    Command::DeleteTopic(DeleteTopic { name: format!("topic-{number}"), id: None })
}

fn alter(number: u8, value: &str) -> Command {
    Command::AlterTopic(AlterTopic {
        name: format!("topic-{number}"),
        set: TopicSettings::from([("retention_ms".to_owned(), value.to_owned())]),
        unset: Vec::new(),
        validate_only: false,
    })
}

/// The workload: commands, with a snapshot after some.
fn workload() -> Vec<(Command, bool)> {
    vec![
        (register(1), false),
        (create(1, 2), false),
        (create(2, 3), true),
        (alter(1, "1d"), false),
        (register(2), true),
        (create(3, 1), false),
        (alter(2, "2d"), true),
        (create(4, 1), false),
    ]
}

/// The images after each commit of the workload, the empty one first.
fn history() -> Vec<Image> {
    let mut image = Image::default();
    let mut history = vec![image.clone()];
    for (command, _) in workload() {
        for record in image.decide(&command).unwrap().0 {
            image.apply(image.metadata_index(), &record).unwrap();
        }
        history.push(image.clone());
    }
    history
}

/// Runs the workload until the disk stops it. Returns how many commits were confirmed.
fn run_workload(disk: &SimDisk) -> usize {
    let Ok(mut node) = Node::open(disk) else { return 0 };
    for (confirmed, (command, snapshot)) in workload().into_iter().enumerate() {
        if node.run(&command).is_err() {
            return confirmed;
        }
        if snapshot && node.quorum.snapshot(&node.image).is_err() {
            return confirmed + 1;
        }
    }
    workload().len()
}

fn files(disk: &SimDisk, dir: &str, suffix: &str) -> Vec<PathBuf> {
    let entries = disk.list(Path::new(dir)).unwrap();
    let names = entries.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(suffix));
    names.map(|name| Path::new(dir).join(name)).collect()
}

/// A disk with the whole workload on it, closed.
fn finished() -> SimDisk {
    let disk = SimDisk::new(7);
    assert_eq!(run_workload(&disk), workload().len());
    disk.crash();
    disk
}

#[test]
fn what_is_committed_survives_the_process_and_the_power() {
    for end in [SimDisk::crash, SimDisk::power_loss] {
        let disk = SimDisk::new(1);
        run_workload(&disk);
        end(&disk);
        let node = Node::open(&disk).unwrap();
        assert_eq!(Some(&node.image), history().last());
    }
}

#[test]
fn power_lost_at_any_operation_loses_nothing_that_was_confirmed() {
    let history = history();
    let whole = SimDisk::new(0);
    run_workload(&whole);
    for operation in 0..whole.operations() {
        for seed in 0..4 {
            let disk = SimDisk::new(seed);
            disk.stop_at(operation);
            let confirmed = run_workload(&disk);
            let at = disk.stopped();
            disk.power_loss();
            let mut node = Node::open(&disk)
                .unwrap_or_else(|error| panic!("stopped at {operation}, {at:?}: {error}"));
            let found = history.iter().position(|image| *image == node.image);
            let found = found.unwrap_or_else(|| panic!("{operation}, {at:?}: no whole commit"));
            assert!(found >= confirmed && found <= confirmed + 1, "{operation}, {at:?}");
            // And life goes on.
            node.run(&register(9)).unwrap();
            disk.power_loss();
            assert_eq!(Node::open(&disk).unwrap().image, node.image, "{operation}, {at:?}");
        }
    }
}

#[test]
fn what_a_start_has_shown_is_there_after_the_next_one() {
    let whole = SimDisk::new(0);
    run_workload(&whole);
    for (operation, seed) in (0..whole.operations()).flat_map(|at| [(at, 1), (at, 2), (at, 3)]) {
        let disk = SimDisk::new(seed);
        disk.stop_at(operation);
        run_workload(&disk);
        let at = disk.stopped();
        // The process is killed, with what it wrote last in the page cache only.
        disk.crash();
        let shown = Node::open(&disk).unwrap().image;
        disk.power_loss();
        assert_eq!(Node::open(&disk).unwrap().image, shown, "{operation}, {at:?}");
    }
}

#[test]
fn a_rotten_bit_in_the_log_is_reported_or_harmless_unless_a_crash_could_have_done_it() {
    let disk = SimDisk::new(3);
    let mut node = Node::open(&disk).unwrap();
    let mut images = Vec::new();
    let mut sizes = Vec::new();
    for command in [register(1), create(1, 2), create(2, 1), alter(1, "1d")] {
        node.run(&command).unwrap();
        images.push(node.image.clone());
        sizes.push(node.quorum.size_bytes());
    }
    disk.crash();
    let log = files(&disk, "/metadata/log", ".log").remove(0);
    let last = images.len() - 1;
    for place in 0..sizes[last] {
        let rotten = disk.fork(place);
        rotten.bit_rot(&log, place, u8::try_from(place % 8).unwrap());
        match Node::open(&rotten) {
            Err(_) => {}
            Ok(node) if node.image == images[last] => {}
            // Nothing in the log says whether its last batch was ever flushed.
            Ok(node) => {
                assert!(place >= sizes[last - 1], "byte {place}: silently lost commits, {sizes:?}");
                assert_eq!(node.image, images[last - 1], "byte {place}");
            }
        }
    }
}

#[test]
fn a_damaged_snapshot_is_replaced_by_an_older_one_and_the_log() {
    let disk = finished();
    let snapshots = files(&disk, DIR, ".snapshot");
    assert_eq!(snapshots.len(), 2, "two are kept");
    disk.bit_rot(&snapshots[1], 40, 3);
    let node = Node::open(&disk).unwrap();
    assert_eq!(Some(&node.image), history().last());
}

#[test]
fn when_no_snapshot_reaches_the_log_opening_fails_and_says_so() {
    let disk = finished();
    for snapshot in files(&disk, DIR, ".snapshot") {
        disk.bit_rot(&snapshot, 40, 3);
    }
    let error = Node::open(&disk).err().expect("nothing to recover from").to_string();
    assert!(error.contains("the log begins at") && error.contains(DIR), "{error}");
}

#[test]
fn a_log_that_lost_commits_is_not_taken_for_a_whole_one() {
    let disk = finished();
    for file in files(&disk, "/metadata/log", "") {
        if disk.unlink(&file).is_err() {
            disk.remove_dir(&file).unwrap();
        }
    }
    let error = Node::open(&disk).err().expect("the log is gone").to_string();
    assert!(error.contains("before a snapshot"), "{error}");
}

#[test]
fn a_full_disk_refuses_and_forgets_until_there_is_space() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(1)).unwrap();
    let kept = node.image.clone();
    disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
    let refused = (1..=u8::MAX).find(|number| {
        let before = node.image.clone();
        match node.run(&create(*number, 1_000)) {
            Ok(()) => return false,
            Err(CommitError::Full) => node.image = before,
            Err(error) => panic!("{error}"),
        }
        true
    });
    let refused = refused.expect("the log cannot grow for ever on a full disk");
    disk.set_faults(Faults::default());
    node.run(&create(refused, 1_000)).unwrap();
    disk.power_loss();
    assert_eq!(Node::open(&disk).unwrap().image, node.image);
    assert!(node.image.metadata_index() > kept.metadata_index());
}

/// Leaves not a byte: only what is deleted from now on can be used again.
fn fill(disk: &SimDisk) {
    const PLENTY_BYTES: u64 = 1 << 40;
    disk.set_faults(Faults { capacity_bytes: Some(PLENTY_BYTES), ..Faults::default() });
    let used = PLENTY_BYTES - disk.space(Path::new(DIR)).unwrap().free_bytes;
    disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
}

#[test]
fn a_full_disk_refuses_neither_a_deletion_nor_a_start() {
    let disk = SimDisk::new(7);
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(1)).unwrap();
    for number in 1..=200 {
        node.run(&create(number, 1)).unwrap();
    }
    fill(&disk);
    let before = (201..u8::MAX).find_map(|number| {
        let before = node.image.clone();
        node.run(&create(number, 1_000)).is_err().then_some(before)
    });
    node.image = before.expect("a full disk refuses what is new");
    for number in 1..=200 {
        node.run(&delete(number)).unwrap();
    }
    disk.crash();
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(2)).unwrap();

    disk.set_faults(Faults::default());
    Node::open(&disk).unwrap();
    let kept = disk.list(Path::new(DIR)).unwrap().into_iter().find(|entry| entry.name == "reserve");
    assert_eq!(kept.unwrap().bytes, 4 << 20, "kept again for the next time");
}

#[test]
fn a_full_disk_is_no_hindrance_to_the_start_after_a_crash() {
    let disk = SimDisk::new(8);
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(0)).unwrap();
    for number in 1..=20 {
        node.run(&create(number, 1)).unwrap();
    }
    for number in 1..=20 {
        fill(&disk);
        disk.crash();
        node = Node::open(&disk).unwrap();
        node.run(&register(number)).unwrap();
        node.run(&delete(number)).unwrap();
    }
    assert_eq!(node.image.topic_count(), 0);
}

#[test]
fn a_failed_flush_is_final_until_the_next_start() {
    let disk = SimDisk::new(6);
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(1)).unwrap();
    let kept = node.image.clone();
    disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    let failed = node.run(&create(1, 1));
    assert!(matches!(failed, Err(CommitError::Failed(_))), "{failed:?}");
    let attempted = node.image.clone();
    disk.power_loss();
    let image = Node::open(&disk).unwrap().image;
    assert!(image == kept || image == attempted, "one or the other, whole");
}

#[test]
fn what_is_replayed_is_bounded_by_snapshots() {
    let disk = SimDisk::new(8);
    let mut node = Node::open(&disk).unwrap();
    node.run(&register(0)).unwrap();
    node.run(&create(1, 20_000)).unwrap();
    let mut snapshots = 0;
    // Each registration changes every partition: about a megabyte of records.
    for run in 1..16 {
        node.run(&register(run)).unwrap();
        if node.quorum.wants_snapshot() {
            node.quorum.snapshot(&node.image).unwrap();
            assert!(!node.quorum.wants_snapshot());
            snapshots += 1;
        }
    }
    assert!(snapshots >= 3, "{snapshots}");
    let written = 15 << 20;
    assert!(node.quorum.size_bytes() < written, "the log was never trimmed");
    disk.crash();
    let reopened = Node::open(&disk).unwrap();
    assert_eq!(reopened.image, node.image);
    assert!(!reopened.quorum.wants_snapshot(), "replayed more than a snapshot's worth");
}

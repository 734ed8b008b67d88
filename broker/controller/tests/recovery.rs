//! A quorum of one voter on a disk that loses power at every operation, rots, fills up and fails to flush.

#![expect(clippy::unwrap_used, reason = "in tests")]

use std::path::{Path, PathBuf};

use tidemark_controller::{
    Image, MetadataRecord, ProposeError, Quorum, QuorumAction, QuorumConfig, QuorumError,
    QuorumEvent, RaftQuorum, Topic,
};
use tidemark_protocol::{
    DirectoryId, TopicId,
    messages::{TopicSettings, VoterId},
};
use tidemark_storage::{
    Disk,
    testing::{Faults, SimDisk},
};

const DIR: &str = "/metadata";
const ME: VoterId = VoterId { node: 1, directory: DirectoryId([7; 16]) };

/// A quorum, and what it has committed.
struct Node {
    quorum: RaftQuorum<SimDisk>,
    image: Image,
}

/// Why a decision was not committed.
#[derive(Debug)]
enum Refused {
    Full,
    Failed,
}

impl Node {
    /// A node that has begun its cluster if need be, and leads it.
    fn open(disk: &SimDisk) -> Result<Self, QuorumError> {
        let mut node = Self::open_idle(disk)?;
        node.step(QuorumEvent::Tick)?;
        assert!(node.quorum.status().is_leader, "a single voter leads at once");
        Ok(node)
    }

    fn open_idle(disk: &SimDisk) -> Result<Self, QuorumError> {
        let dir = Path::new(DIR);
        if !RaftQuorum::is_bootstrapped(disk, dir)? {
            RaftQuorum::bootstrap(disk.clone(), dir, ME, &[ME])?;
        }
        let (quorum, image) = RaftQuorum::open(disk.clone(), dir, ME, QuorumConfig::default())?;
        Ok(Self { quorum, image })
    }

    /// Takes a step and applies what it commits; how many entries that was.
    fn step(&mut self, event: QuorumEvent) -> Result<usize, QuorumError> {
        let mut actions = Vec::new();
        self.quorum.step(1_000, event, &mut actions);
        let mut committed = 0;
        for action in actions {
            match action {
                QuorumAction::Committed(entry) => {
                    self.image.apply(entry.index, &entry.records).unwrap();
                    committed += 1;
                }
                QuorumAction::Failed { error } => return Err(error),
                QuorumAction::Role { .. } => {}
                other => panic!("alone in the world: {other:?}"),
            }
        }
        Ok(committed)
    }

    fn run(&mut self, decision: &[MetadataRecord]) -> Result<(), Refused> {
        let id = match self.quorum.propose(decision) {
            Ok(id) => id,
            Err(ProposeError::Full) => return Err(Refused::Full),
            Err(ProposeError::Failed(_)) => return Err(Refused::Failed),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(self.image.metadata_index(), id.index, "nothing else is under way");
        match self.step(QuorumEvent::Flush) {
            Ok(1) => Ok(()),
            Ok(committed) => panic!("{committed} entries committed"),
            Err(_) => Err(Refused::Failed),
        }
    }

    fn topics(&self) -> Vec<Topic> {
        topics(&self.image)
    }
}

/// What matters of an image; every start adds an entry without records.
fn topics(image: &Image) -> Vec<Topic> {
    image.topics().map(|topic| (**topic).clone()).collect()
}

fn id(number: u32, part: u32) -> TopicId {
    let mut id = [9; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    id[4..8].copy_from_slice(&part.to_be_bytes());
    TopicId(id)
}

/// A decision that creates topics, each a hundred bytes or so.
fn create(number: u32, count: u32) -> Vec<MetadataRecord> {
    let topic = |part| MetadataRecord::TopicCreated {
        id: id(number, part),
        name: format!("topic-{number}-{part}-{}", "x".repeat(50)),
        settings: TopicSettings::new(),
    };
    (0..count).map(topic).collect()
}

fn delete(number: u32) -> Vec<MetadataRecord> {
    vec![MetadataRecord::TopicDeleted { topic_id: id(number, 0) }]
}

fn alter(number: u32, value: &str) -> Vec<MetadataRecord> {
    let settings = TopicSettings::from([("retention_ms".to_owned(), value.to_owned())]);
    vec![MetadataRecord::TopicSettingsChanged { topic_id: id(number, 0), settings }]
}

/// The workload: decisions, with a snapshot after some.
fn workload() -> Vec<(Vec<MetadataRecord>, bool)> {
    vec![
        (create(1, 2), false),
        (create(2, 3), true),
        (alter(1, "86400000"), false),
        (delete(2), true),
        (create(3, 1), false),
        (alter(3, "3600000"), true),
        (create(4, 1), false),
    ]
}

/// The topics after each decision of the workload, none first.
fn history() -> Vec<Vec<Topic>> {
    let mut image = Image::default();
    let mut history = vec![topics(&image)];
    for (decision, _) in workload() {
        image.apply(image.metadata_index(), &decision).unwrap();
        history.push(topics(&image));
    }
    history
}

/// Runs the workload until the disk stops it. Returns how many decisions were confirmed.
fn run_workload(disk: &SimDisk) -> usize {
    let Ok(mut node) = Node::open(disk) else { return 0 };
    for (confirmed, (decision, snapshot)) in workload().into_iter().enumerate() {
        if node.run(&decision).is_err() {
            return confirmed;
        }
        if snapshot && node.quorum.snapshot(&node.image).is_err() {
            return confirmed + 1;
        }
    }
    workload().len()
}

/// Files below a directory, by the end of their names.
fn files(disk: &SimDisk, dir: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in disk.list(Path::new(dir)).unwrap() {
        let path = Path::new(dir).join(&entry.name);
        if entry.is_dir {
            found.extend(files(disk, path.to_str().unwrap(), suffix));
        } else if entry.name.ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

/// A disk with the whole workload on it, closed.
fn finished() -> SimDisk {
    let disk = SimDisk::new(7);
    assert_eq!(run_workload(&disk), workload().len());
    disk.crash();
    disk
}

fn refusal(disk: &SimDisk) -> String {
    Node::open(disk).err().expect("opening should fail").to_string()
}

#[test]
fn what_is_committed_survives_the_process_and_the_power() {
    for end in [SimDisk::crash, SimDisk::power_loss] {
        let disk = SimDisk::new(1);
        run_workload(&disk);
        end(&disk);
        let node = Node::open(&disk).unwrap();
        assert_eq!(Some(&node.topics()), history().last());
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
            let found = history.iter().position(|topics| *topics == node.topics());
            let found = found.unwrap_or_else(|| panic!("{operation}, {at:?}: no whole decision"));
            assert!(found >= confirmed && found <= confirmed + 1, "{operation}, {at:?}");
            // And life goes on.
            node.run(&create(9, 1)).unwrap();
            disk.power_loss();
            assert_eq!(Node::open(&disk).unwrap().topics(), node.topics(), "{operation}, {at:?}");
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
        let shown = Node::open_idle(&disk).unwrap().topics();
        disk.power_loss();
        let found = Node::open_idle(&disk).unwrap().topics();
        assert_eq!(found, shown, "{operation}, {at:?}");
    }
}

#[test]
fn a_rotten_bit_in_the_log_is_reported_or_harmless() {
    let disk = SimDisk::new(3);
    let mut node = Node::open(&disk).unwrap();
    for decision in [create(1, 2), create(2, 1), alter(1, "3600000"), delete(2)] {
        node.run(&decision).unwrap();
    }
    let (topics, size) = (node.topics(), node.quorum.size_bytes());
    disk.crash();
    let log = files(&disk, "/metadata/log", ".log").remove(0);
    for place in 0..size {
        let rotten = disk.fork(place);
        rotten.bit_rot(&log, place, u8::try_from(place % 8).unwrap());
        match Node::open(&rotten) {
            Err(error) => assert!(error.to_string().contains("entr"), "{error}"),
            Ok(node) => assert_eq!(node.topics(), topics, "byte {place}: silently lost"),
        }
    }
}

#[test]
fn a_rotten_page_of_the_votes_is_harmless_and_two_are_reported() {
    let disk = finished();
    let votes = &files(&disk, DIR, "vote")[0];
    for page in 0..5 {
        let rotten = disk.fork(page);
        rotten.bit_rot(votes, page * 4096 + 20, 3);
        let (before, after) = (Node::open_idle(&disk.fork(9)), Node::open_idle(&rotten));
        let (before, after) = (before.unwrap().quorum.status(), after.unwrap().quorum.status());
        assert_eq!(before.term, after.term);
        // The last page alone says that the last entry was committed; the next leader says it again.
        assert!(before.committed_index - after.committed_index <= u64::from(page == 4));
    }
    for page in 0..4 {
        disk.bit_rot(votes, page * 4096 + 20, 3);
    }
    assert!(refusal(&disk).contains("no copy of this node's last vote"), "{}", refusal(&disk));
}

#[test]
fn the_file_of_votes_is_not_made_up_when_it_is_missing() {
    let disk = finished();
    disk.unlink(&files(&disk, DIR, "vote")[0]).unwrap();
    let error = refusal(&disk);
    assert!(error.contains("not the file `vote`"), "{error}");
}

#[test]
fn a_directory_is_not_taken_over_by_another_node() {
    let disk = finished();
    let other = VoterId { directory: DirectoryId([8; 16]), ..ME };
    let opened = RaftQuorum::open(disk.clone(), Path::new(DIR), other, QuorumConfig::default());
    let error = opened.expect_err("it is somebody else's").to_string();
    assert!(error.contains("belongs to node 1"), "{error}");
    let begun = RaftQuorum::bootstrap(disk.clone(), Path::new(DIR), ME, &[ME]);
    assert!(begun.err().unwrap().to_string().contains("belongs to a cluster already"));
}

#[test]
fn a_damaged_snapshot_is_replaced_by_an_older_one_and_the_log() {
    let disk = finished();
    let snapshots = files(&disk, DIR, ".snapshot");
    assert_eq!(snapshots.len(), 2, "two are kept");
    disk.bit_rot(&snapshots[1], 40, 3);
    let node = Node::open(&disk).unwrap();
    assert_eq!(Some(&node.topics()), history().last());
}

#[test]
fn when_no_snapshot_reaches_the_log_opening_fails_and_says_so() {
    let disk = finished();
    for snapshot in files(&disk, DIR, ".snapshot") {
        disk.bit_rot(&snapshot, 40, 3);
    }
    let error = refusal(&disk);
    assert!(error.contains("the log begins at") && error.contains(DIR), "{error}");
}

#[test]
fn a_log_that_lost_entries_is_not_taken_for_a_whole_one() {
    let disk = finished();
    for file in files(&disk, "/metadata/log", "") {
        disk.unlink(&file).unwrap();
    }
    let error = refusal(&disk);
    assert!(error.contains("before the snapshot"), "{error}");
}

#[test]
fn the_end_of_the_log_is_missed_though_no_snapshot_reaches_it() {
    let disk = SimDisk::new(4);
    let mut node = Node::open(&disk).unwrap();
    node.run(&create(1, 1)).unwrap();
    disk.crash();
    for file in files(&disk, "/metadata/log", ".log") {
        disk.unlink(&file).unwrap();
    }
    let error = refusal(&disk);
    assert!(error.contains("were committed"), "{error}");
}

#[test]
fn a_full_disk_refuses_and_forgets_until_there_is_space() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk).unwrap();
    node.run(&create(0, 1)).unwrap();
    disk.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
    let refused = (1..=u32::from(u8::MAX)).find(|number| {
        let before = node.topics();
        match node.run(&create(*number, 1_000)) {
            Ok(()) => false,
            Err(Refused::Full) => node.topics() == before,
            Err(Refused::Failed) => panic!("a full disk is no failure"),
        }
    });
    let refused = refused.expect("the log cannot grow for ever on a full disk");
    assert!(node.quorum.status().is_leader, "it goes on leading");
    disk.set_faults(Faults::default());
    node.run(&create(refused, 1_000)).unwrap();
    disk.power_loss();
    assert_eq!(Node::open(&disk).unwrap().topics(), node.topics());
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
    for number in 1..=200 {
        node.run(&create(number, 1)).unwrap();
    }
    fill(&disk);
    let refused = (201..300).find(|number| node.run(&create(*number, 1_000)).is_err());
    assert!(refused.is_some(), "a full disk refuses what is new");
    for number in 1..=200 {
        node.run(&delete(number)).unwrap();
    }
    disk.crash();
    Node::open(&disk).unwrap();

    disk.set_faults(Faults::default());
    Node::open(&disk).unwrap();
    let kept = disk.list(Path::new(DIR)).unwrap().into_iter().find(|entry| entry.name == "reserve");
    assert_eq!(kept.unwrap().bytes, 4 << 20, "kept again for the next time");
}

#[test]
fn a_full_disk_is_no_hindrance_to_the_start_after_a_crash() {
    let disk = SimDisk::new(8);
    let mut node = Node::open(&disk).unwrap();
    for number in 1..=20 {
        node.run(&create(number, 1)).unwrap();
    }
    for number in 1..=20 {
        fill(&disk);
        disk.crash();
        node = Node::open(&disk).unwrap();
        node.run(&delete(number)).unwrap();
    }
    assert_eq!(node.image.topic_count(), 0);
}

#[test]
fn a_failed_flush_is_final_until_the_next_start() {
    let disk = SimDisk::new(6);
    let mut node = Node::open(&disk).unwrap();
    node.run(&create(1, 1)).unwrap();
    let kept = node.topics();
    disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    assert!(matches!(node.run(&create(2, 1)), Err(Refused::Failed)));
    assert!(matches!(node.run(&create(3, 1)), Err(Refused::Failed)), "and stays so");
    for _ in 0..200 {
        assert_eq!(node.step(QuorumEvent::Tick).unwrap(), 0, "it is told once");
        assert!(matches!(node.run(&create(3, 1)), Err(Refused::Failed)), "and stays so");
    }
    assert_eq!(node.topics(), kept, "nothing is committed that may not be there");
    node.image.apply(node.image.metadata_index(), &create(2, 1)).unwrap();
    let attempted = node.topics();
    disk.power_loss();
    let found = Node::open(&disk).unwrap().topics();
    assert!(found == kept || found == attempted, "one or the other, whole");
}

#[test]
fn an_entry_of_the_only_voter_counts_only_when_it_is_durable() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let mut node = Node::open(&disk).unwrap();
        node.run(&create(1, 1)).unwrap();
        let topics = node.topics();
        disk.power_loss();
        assert_eq!(Node::open(&disk).unwrap().topics(), topics, "seed {seed}");
    }
}

#[test]
fn what_is_replayed_is_bounded_by_snapshots() {
    let disk = SimDisk::new(8);
    let mut node = Node::open(&disk).unwrap();
    let mut snapshots = 0;
    // Each about a megabyte of records.
    for number in 1..20 {
        node.run(&create(number, 10_000)).unwrap();
        if node.quorum.wants_snapshot() {
            node.quorum.snapshot(&node.image).unwrap();
            assert!(!node.quorum.wants_snapshot());
            snapshots += 1;
        }
    }
    assert!(snapshots >= 3, "{snapshots}");
    let written = 19 << 20;
    assert!(node.quorum.size_bytes() < written, "the log was never trimmed");
    disk.crash();
    let reopened = Node::open(&disk).unwrap();
    assert_eq!(reopened.topics(), node.topics());
    assert!(!reopened.quorum.wants_snapshot(), "replayed more than a snapshot's worth");
}

#[test]
fn what_is_committed_can_be_followed_from_anywhere_the_log_reaches() {
    let disk = SimDisk::new(2);
    run_workload(&disk);
    disk.crash();
    let node = Node::open(&disk).unwrap();
    let snapshot = node.quorum.latest_snapshot().unwrap();
    let mut image = Image::from_snapshot(&snapshot.bytes).unwrap();
    assert_eq!(image.metadata_index(), snapshot.index);
    let mut term = snapshot.term;
    loop {
        let entries =
            node.quorum.committed_entries(image.metadata_index(), term, 1).expect("continues");
        let Some(entry) = entries.first() else { break };
        assert_eq!(entries.len(), 1, "no more than was asked for");
        image.apply(entry.index, &entry.records).unwrap();
        term = entry.term;
    }
    assert_eq!(image, node.image);
    let end = node.image.metadata_index();
    assert_eq!(node.quorum.committed_entries(0, 0, 1 << 20), None, "gone behind a snapshot");
    assert_eq!(node.quorum.committed_entries(end + 1, term, 1 << 20), None, "beyond the end");
    assert_eq!(node.quorum.committed_entries(end, term + 1, 1 << 20), None, "another history");
}

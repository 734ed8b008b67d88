//! The controller's loop over a quorum that does what the test says: groups, order, failures, closing.

#![expect(clippy::unwrap_used, reason = "in tests")]

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use tidemark_controller::{
    Command, CommitError, Controller, ControllerHandle, CreateTopic, DeleteTopic, Image,
    IncarnationId, MetadataRecord, Outcome, Quorum, QuorumError, RegisterBroker, Room, TooLarge,
    controller::PROPOSALS_QUEUED_MAX,
};
use tidemark_protocol::{ErrorCode, TimestampMs, TopicId, messages::TopicSettings};

/// Decisions that the quorum takes before it wants to commit.
const PROPOSALS_WITH_ROOM: usize = 500;

/// What a commit is to come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Ok,
    Full,
    Fail,
}

/// What the quorum did, shared with the test.
#[derive(Debug, Default)]
struct Journal {
    /// Decisions in each commit.
    commits: Vec<usize>,
    records: Vec<MetadataRecord>,
    snapshots: Vec<Image>,
}

/// Waits for the test's word before each commit, when told to.
#[derive(Debug)]
struct Scripted {
    journal: Arc<Mutex<Journal>>,
    proposed: Vec<Vec<MetadataRecord>>,
    /// One word per commit, after `entered` was told; without these every commit succeeds.
    gate: Option<(Sender<()>, Receiver<Verdict>)>,
    snapshot_every: usize,
}

impl Quorum for Scripted {
    fn propose(&mut self, records: &[MetadataRecord], _: TimestampMs) -> Result<Room, TooLarge> {
        if records.len() > 2 {
            return Err(TooLarge { bytes: records.len(), bytes_max: 2 });
        }
        self.proposed.push(records.to_vec());
        Ok(if self.proposed.len() < PROPOSALS_WITH_ROOM { Room::More } else { Room::Enough })
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        if let Some((entered, gate)) = &self.gate {
            entered.send(()).unwrap();
            match gate.recv().unwrap() {
                Verdict::Ok => {}
                Verdict::Full => {
                    self.proposed.clear();
                    return Err(CommitError::Full);
                }
                Verdict::Fail => return Err(QuorumError::new("committing", "as told").into()),
            }
        }
        let mut journal = self.journal.lock().unwrap();
        journal.commits.push(self.proposed.len());
        journal.records.extend(self.proposed.drain(..).flatten());
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        self.journal.lock().unwrap().commits.len().is_multiple_of(self.snapshot_every)
    }

    fn snapshot(&mut self, image: &Image) -> Result<(), QuorumError> {
        self.journal.lock().unwrap().snapshots.push(image.clone());
        Ok(())
    }
}

type Told = Vec<(u64, Vec<MetadataRecord>)>;

/// A controller on its thread, with one broker registered.
struct Rig {
    handle: ControllerHandle,
    journal: Arc<Mutex<Journal>>,
    /// Everything subscribers were told: first index and records.
    told: Arc<Mutex<Told>>,
    thread: JoinHandle<()>,
}

/// The test's end of the gate: a commit has begun; let it end so.
struct Gate {
    entered: Receiver<()>,
    verdict: Sender<Verdict>,
}

fn start(gated: bool) -> (Rig, Option<Gate>) {
    let journal = Arc::new(Mutex::new(Journal::default()));
    let (entered_sender, entered) = channel();
    let (verdict, gate) = channel();
    let quorum = Scripted {
        journal: journal.clone(),
        proposed: Vec::new(),
        gate: gated.then_some((entered_sender, gate)),
        snapshot_every: 3,
    };
    let mut image = Image::default();
    for record in image.decide(&register(1)).unwrap().0 {
        image.apply(image.metadata_index(), &record).unwrap();
    }
    let (mut controller, handle) = Controller::new(quorum, image);
    let told = Arc::new(Mutex::new(Vec::new()));
    controller.subscribe({
        let (told, handle) = (told.clone(), handle.clone());
        Box::new(move |applied| {
            let end = applied.first_index + applied.records.len() as u64;
            assert!(handle.image().metadata_index() >= end, "shown before it is told");
            assert!(applied.image.metadata_index() >= end);
            told.lock().unwrap().push((applied.first_index, applied.records.to_vec()));
        })
    });
    let thread = thread::spawn(move || controller.run());
    let rig = Rig { handle, journal, told, thread };
    (rig, gated.then_some(Gate { entered, verdict }))
}

impl Rig {
    fn propose(&self, command: Command) -> Receiver<Outcome> {
        let (sender, receiver) = channel();
        self.handle.propose(command, 0, Box::new(move |outcome| sender.send(outcome).unwrap()));
        receiver
    }

    fn create(&self, number: u32) -> Receiver<Outcome> {
        self.propose(Command::CreateTopic(topic(number)))
    }

    fn close(self) {
        self.handle.close();
        self.thread.join().unwrap();
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

fn topic(number: u32) -> CreateTopic {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    CreateTopic {
        name: format!("topic-{number}"),
        id: TopicId(id),
        partitions: 1,
        replication_factor: 1,
        settings: TopicSettings::new(),
        seed: 0,
        validate_only: false,
    }
}

fn code(outcome: &Receiver<Outcome>) -> ErrorCode {
    outcome.recv().unwrap().expect_err("should have failed").code
}

#[test]
fn what_queues_up_during_a_commit_is_committed_together() {
    let (rig, gate) = start(true);
    let gate = gate.unwrap();
    let first = rig.create(0);
    gate.entered.recv().unwrap();
    let count = 2 * u32::try_from(PROPOSALS_WITH_ROOM).unwrap() + 10;
    let rest: Vec<_> = (1..=count).map(|number| rig.create(number)).collect();
    assert!(first.try_recv().is_err(), "answered before the commit");
    assert_eq!(rig.handle.image().topic_count(), 0, "shown before the commit");
    for _ in 0..4 {
        gate.verdict.send(Verdict::Ok).unwrap();
    }
    first.recv().unwrap().unwrap();
    let indexes: Vec<_> =
        rest.iter().map(|outcome| outcome.recv().unwrap().unwrap().metadata_index).collect();
    assert!(indexes.is_sorted(), "in the order they came");
    assert_eq!(
        rig.journal.lock().unwrap().commits,
        [1, PROPOSALS_WITH_ROOM, PROPOSALS_WITH_ROOM, 10]
    );
    rig.close();
}

#[test]
fn followers_are_told_every_record_once_and_in_order_before_the_answer() {
    let (rig, _) = start(false);
    let before = (*rig.handle.image()).clone();
    let created: Vec<_> = (0..100).map(|number| rig.create(number)).collect();
    let refused = rig.create(5);
    let delete = DeleteTopic { name: "topic-7".to_owned(), id: None };
    let deleted = rig.propose(Command::DeleteTopic(delete));
    let committed = deleted.recv().unwrap().unwrap();
    assert!(rig.handle.image().topic("topic-7").is_none(), "answered before it is shown");

    let mut replayed = before;
    for (first_index, records) in rig.told.lock().unwrap().iter() {
        assert_eq!(*first_index, replayed.metadata_index());
        for record in records {
            replayed.apply(replayed.metadata_index(), record).unwrap();
        }
    }
    assert_eq!(replayed.metadata_index(), committed.metadata_index);
    assert_eq!(replayed, *rig.handle.image());
    assert!(created.iter().all(|outcome| outcome.recv().unwrap().is_ok()));
    assert_eq!(code(&refused), ErrorCode::TopicExists);
    rig.close();
}

#[test]
fn when_a_commit_fails_nothing_of_it_is_shown_and_nothing_is_decided_any_more() {
    let (rig, gate) = start(true);
    let gate = gate.unwrap();
    let kept = rig.create(0);
    gate.entered.recv().unwrap();
    let lost = rig.create(1);
    // Refused because of a topic that was never committed: that is no ground to stand on.
    let refused = rig.create(1);
    gate.verdict.send(Verdict::Ok).unwrap();
    kept.recv().unwrap().unwrap();
    gate.entered.recv().unwrap();
    gate.verdict.send(Verdict::Fail).unwrap();
    assert_eq!(code(&lost), ErrorCode::StorageFailed);
    assert_eq!(code(&refused), ErrorCode::StorageFailed);
    assert_eq!(code(&rig.create(2)), ErrorCode::StorageFailed);
    assert_eq!(rig.handle.image().topic_count(), 1, "what was committed can be read");
    assert_eq!(rig.told.lock().unwrap().len(), 1);
    rig.close();
}

#[test]
fn a_full_disk_takes_its_whole_group_back_and_nothing_else() {
    let (rig, gate) = start(true);
    let gate = gate.unwrap();
    let kept = rig.create(0);
    gate.entered.recv().unwrap();
    let group = [rig.create(1), rig.create(1), rig.create(2)];
    gate.verdict.send(Verdict::Ok).unwrap();
    kept.recv().unwrap().unwrap();
    gate.verdict.send(Verdict::Full).unwrap();
    assert!(group.iter().all(|outcome| code(outcome) == ErrorCode::DiskFull));
    gate.verdict.send(Verdict::Ok).unwrap();
    rig.create(1).recv().unwrap().unwrap();
    assert_eq!(rig.handle.image().topic_count(), 2);
    assert_eq!(rig.told.lock().unwrap().len(), 2);
    rig.close();
}

#[test]
fn a_decision_too_large_for_the_log_is_refused_alone() {
    let (rig, _) = start(false);
    rig.propose(Command::CreateTopic(CreateTopic { partitions: 5, ..topic(0) }))
        .recv()
        .unwrap()
        .unwrap();
    // A broker that starts anew changes each of its five partitions.
    assert_eq!(code(&rig.propose(register(2))), ErrorCode::TooLarge);
    rig.create(1).recv().unwrap().unwrap();
    rig.close();
}

#[test]
fn the_queue_is_bounded() {
    let (rig, gate) = start(true);
    let gate = gate.unwrap();
    let first = rig.create(0);
    gate.entered.recv().unwrap();
    let count = u32::try_from(PROPOSALS_QUEUED_MAX).unwrap();
    let queued: Vec<_> = (1..=count).map(|number| rig.create(number)).collect();
    assert_eq!(code(&rig.create(count + 1)), ErrorCode::Overloaded);
    for _ in 0..=PROPOSALS_QUEUED_MAX.div_ceil(PROPOSALS_WITH_ROOM) {
        gate.verdict.send(Verdict::Ok).unwrap();
    }
    first.recv().unwrap().unwrap();
    assert!(queued.iter().all(|outcome| outcome.recv().unwrap().is_ok()));
    rig.close();
}

#[test]
fn closing_finishes_what_was_asked_before_and_refuses_what_comes_after() {
    let (rig, gate) = start(true);
    let gate = gate.unwrap();
    let first = rig.create(0);
    gate.entered.recv().unwrap();
    let second = rig.create(1);
    rig.handle.close();
    let late = rig.create(2);
    gate.verdict.send(Verdict::Ok).unwrap();
    gate.verdict.send(Verdict::Ok).unwrap();
    first.recv().unwrap().unwrap();
    second.recv().unwrap().unwrap();
    assert_eq!(code(&late), ErrorCode::NotReady);
    let handle = rig.handle.clone();
    rig.close();
    let (sender, receiver) = channel();
    let command = Command::CreateTopic(topic(3));
    handle.propose(command, 0, Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert_eq!(code(&receiver), ErrorCode::NotReady);
    assert_eq!(handle.image().topic_count(), 2);
}

#[test]
fn a_snapshot_is_of_what_is_committed() {
    let (rig, _) = start(false);
    for number in 0..7 {
        rig.create(number).recv().unwrap().unwrap();
    }
    let (handle, journal) = (rig.handle.clone(), rig.journal.clone());
    rig.close();
    let journal = journal.lock().unwrap();
    let counts: Vec<_> = journal.snapshots.iter().map(Image::topic_count).collect();
    assert_eq!(counts, [3, 6]);
    assert_eq!(handle.image().metadata_index(), 1 + journal.records.len() as u64);
}

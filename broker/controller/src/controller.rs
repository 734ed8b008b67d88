//! The component: one thread that takes commands in order, decides each on everything decided before it, has
//! the quorum commit them, and only then shows and answers anything.
//!
//! Commands that queue up while the quorum commits are committed together next time, so that the cost of a
//! flush is shared by as many as there are. A decision may rest on one that is not committed yet; both are
//! answered after the commit that covers both, and if that commit fails neither is.

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use arc_swap::ArcSwap;
use tidemark_protocol::{ErrorCode, Failure, TimestampMs};

use crate::{
    command::{Answer, Command},
    image::Image,
    quorum::{CommitError, Quorum, QuorumError, Room},
    record::MetadataRecord,
};

/// Most commands that wait to be decided; beyond it they are refused as overloaded.
pub const PROPOSALS_QUEUED_MAX: usize = 4_096;
/// Most commands committed together.
pub const PROPOSALS_PER_COMMIT_MAX: usize = 1_024;

/// How a command ended, once that is certain.
pub type Outcome = Result<Committed, Failure>;
/// Called once with the outcome, on the thread of the controller or of the caller; it must not block. Dropped
/// without a call when the controller closes in the same moment: then the outcome is unknown.
pub type Completion = Box<dyn FnOnce(Outcome) + Send>;
/// Called after every commit for each decision, in order, before the commands are answered; it must not block.
pub type Subscriber = Box<dyn FnMut(&Applied<'_>) + Send>;

/// A command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub answer: Answer,
    /// Whoever has applied the log up to this index (exclusive) sees what the command did.
    pub metadata_index: u64,
}

/// One committed decision, for those who follow the metadata.
#[derive(Clone, Debug)]
pub struct Applied<'a> {
    /// Index of the first of `records`.
    pub first_index: u64,
    /// Never empty.
    pub records: &'a [MetadataRecord],
    /// An image that has applied `records`, and perhaps decisions committed together with them that follow.
    pub image: Arc<Image>,
}

/// What a controller's clients hold: it proposes commands and reads the image. Cheap to clone.
#[derive(Clone)]
pub struct ControllerHandle {
    inbox: SyncSender<Message>,
    image: Arc<ArcSwap<Image>>,
}

/// Owns the image and the quorum. [`Controller::run`] is its loop.
pub struct Controller<Q> {
    quorum: Q,
    /// Everything decided, committed or not.
    image: Image,
    /// Everything committed.
    committed: Arc<ArcSwap<Image>>,
    inbox: Receiver<Message>,
    subscribers: Vec<Subscriber>,
    /// Why nothing is decided any more. Final.
    failure: Option<Failure>,
}

enum Message {
    Propose(Proposal),
    Close,
}

struct Proposal {
    command: Command,
    now_ms: TimestampMs,
    done: Completion,
}

/// A proposal between its decision and its commit.
struct Decided {
    outcome: Outcome,
    first_index: u64,
    records: Vec<MetadataRecord>,
    done: Completion,
}

impl ControllerHandle {
    /// Hands a command over and returns at once. `done` gets the answer after the commit, a refusal, or
    /// `Overloaded`, `NotReady`, `DiskFull` or `StorageFailed`; with the last it is unknown whether the command
    /// took effect.
    pub fn propose(&self, command: Command, now_ms: TimestampMs, done: Completion) {
        let sent = self.inbox.try_send(Message::Propose(Proposal { command, now_ms, done }));
        let (message, failure) = match sent {
            Ok(()) => return,
            Err(TrySendError::Full(message)) => {
                let text =
                    format!("{PROPOSALS_QUEUED_MAX} commands wait for the controller already");
                (message, Failure::new(ErrorCode::Overloaded, text))
            }
            Err(TrySendError::Disconnected(message)) => (message, closed()),
        };
        if let Message::Propose(proposal) = message {
            (proposal.done)(Err(failure));
        }
    }

    /// Everything committed so far.
    pub fn image(&self) -> Arc<Image> {
        self.image.load_full()
    }

    /// Ends [`Controller::run`] once it has dealt with what was proposed before. Waits for room in the queue,
    /// for as long as a commit takes.
    pub fn close(&self) {
        // A loop that has ended already needs no telling.
        drop(self.inbox.send(Message::Close));
    }
}

impl<Q: Quorum> Controller<Q> {
    /// A controller over what the quorum has committed: `image` is the state it recovered to.
    pub fn new(quorum: Q, image: Image) -> (Self, ControllerHandle) {
        let (sender, inbox) = sync_channel(PROPOSALS_QUEUED_MAX);
        let committed = Arc::new(ArcSwap::from_pointee(image.clone()));
        let handle = ControllerHandle { inbox: sender, image: committed.clone() };
        let controller =
            Self { quorum, image, committed, inbox, subscribers: Vec::new(), failure: None };
        (controller, handle)
    }

    /// Adds a follower of everything committed from now on. What was committed before is in the image.
    pub fn subscribe(&mut self, subscriber: Subscriber) {
        self.subscribers.push(subscriber);
    }

    /// Serves until [`ControllerHandle::close`], or until every handle is gone. Blocks on the quorum: give it
    /// a thread of its own. When the quorum fails it goes on, refusing every command: the image can still be
    /// read.
    pub fn run(mut self) {
        let mut open = true;
        while open {
            let mut group = Vec::new();
            let mut room = Room::More;
            let mut next = self.inbox.recv().ok();
            open = next.is_some();
            while let Some(message) = next.take() {
                let Message::Propose(proposal) = message else {
                    open = false;
                    break;
                };
                group.push(self.decide(proposal, &mut room));
                if room == Room::More && group.len() < PROPOSALS_PER_COMMIT_MAX {
                    next = self.inbox.try_recv().ok();
                }
            }
            self.commit(group);
        }
        for message in self.inbox.try_iter() {
            if let Message::Propose(proposal) = message {
                (proposal.done)(Err(closed()));
            }
        }
    }

    fn decide(&mut self, proposal: Proposal, room: &mut Room) -> Decided {
        let Proposal { command, now_ms, done } = proposal;
        let first_index = self.image.metadata_index();
        match self.decide_and_propose(&command, now_ms, room) {
            Ok((records, answer)) => {
                let committed = Committed { answer, metadata_index: self.image.metadata_index() };
                Decided { outcome: Ok(committed), first_index, records, done }
            }
            Err(failure) => {
                Decided { outcome: Err(failure), first_index, records: Vec::new(), done }
            }
        }
    }

    fn decide_and_propose(
        &mut self,
        command: &Command,
        now_ms: TimestampMs,
        room: &mut Room,
    ) -> Result<(Vec<MetadataRecord>, Answer), Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let (records, answer) = self.image.decide(command)?;
        if records.is_empty() {
            return Ok((records, answer));
        }
        *room = self
            .quorum
            .propose(&records, now_ms)
            .map_err(|error| Failure::new(ErrorCode::TooLarge, error.to_string()))?;
        for record in &records {
            let index = self.image.metadata_index();
            self.image
                .apply(index, record)
                .expect("a decision applies to the image it was made on");
        }
        Ok((records, answer))
    }

    /// Commits what was decided, shows it, tells the subscribers, answers; in this order, so that whoever has
    /// an answer can see what it is about.
    fn commit(&mut self, group: Vec<Decided>) {
        let changed = group.iter().any(|decided| !decided.records.is_empty());
        let failure = if changed { self.commit_records().err() } else { None };
        if changed && failure.is_none() {
            self.publish(&group);
        }
        for decided in group {
            // Even a refusal may rest on a decision that was not committed.
            (decided.done)(failure.clone().map_or(decided.outcome, Err));
        }
        let due = changed && failure.is_none() && self.quorum.wants_snapshot();
        if due && let Err(error) = self.quorum.snapshot(&self.image) {
            tracing::warn!(%error, "no metadata snapshot was taken; the log keeps growing");
        }
    }

    fn commit_records(&mut self) -> Result<(), Failure> {
        self.quorum.commit().map_err(|error| match error {
            CommitError::Full => {
                self.image = (**self.committed.load()).clone();
                let message = "the disk of the metadata log is full; nothing was changed";
                Failure::new(ErrorCode::DiskFull, message)
            }
            CommitError::Failed(error) => self.fail(&error),
        })
    }

    fn publish(&mut self, group: &[Decided]) {
        let image = Arc::new(self.image.clone());
        self.committed.store(image.clone());
        for decided in group.iter().filter(|decided| !decided.records.is_empty()) {
            let applied = Applied {
                first_index: decided.first_index,
                records: &decided.records,
                image: image.clone(),
            };
            for subscriber in &mut self.subscribers {
                subscriber(&applied);
            }
        }
    }

    fn fail(&mut self, error: &QuorumError) -> Failure {
        tracing::error!(%error, "the metadata log failed; metadata can be read but not changed");
        let message = format!("metadata cannot be changed until the broker is restarted: {error}");
        let failure = Failure::new(ErrorCode::StorageFailed, message);
        self.failure = Some(failure.clone());
        failure
    }
}

fn closed() -> Failure {
    Failure::new(ErrorCode::NotReady, "the controller is closed: the broker is stopping")
}

impl fmt::Debug for ControllerHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.image.load().metadata_index();
        out.debug_struct("ControllerHandle").field("metadata_index", &index).finish_non_exhaustive()
    }
}

impl<Q: fmt::Debug> fmt::Debug for Controller<Q> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Controller")
            .field("quorum", &self.quorum)
            .field("metadata_index", &self.image.metadata_index())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

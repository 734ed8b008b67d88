//! Being a member: heartbeats in a task of their own, whatever the program does with its records.
//!
//! The task tells the consumer what it may read, and hears from it what it reads. It counts the session itself, from when
//! the last heartbeat that was answered was *sent*: when that runs out the member has nothing any more, whether or not
//! anybody could tell it. It never drops a partition by itself and never commits.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tidemark_protocol::{
    ErrorCode, TopicPartition,
    messages::{GroupHeartbeatRequest, GroupHeartbeatResponse, GroupSubscription},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::config::GroupConfig;
use crate::{coordinator::Coordinator, error::RequestError, tasks::Backoff};

/// Epochs with a meaning.
const JOIN: i32 = 0;
const LEAVE: i32 = -1;
const LEAVE_FOR_A_WHILE: i32 = -2;
/// How long an answer may be held back while there is nothing new.
const HOLD: Duration = Duration::from_secs(2);
/// How long an answer may take beyond that, until there is a session timeout to go by.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether the program has left a poll.
const POLLING_CHECK: Duration = Duration::from_secs(1);

/// Where the member stands, for the consumer.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    /// Grows with every loss: everything from before is gone.
    pub(super) incarnation: u64,
    pub(super) epoch: i32,
    pub(super) assigned: Arc<BTreeSet<TopicPartition>>,
    pub(super) standing: Standing,
    /// What it is told while another member has the place of its instance.
    pub(super) waits: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// On its way in, or in.
    In,
    /// Out, and back as soon as the consumer has dropped everything.
    Lost(Loss),
    /// Out for good.
    Failed(RequestError),
}

/// Why everything is lost.
#[derive(Clone, Debug)]
pub(super) enum Loss {
    /// The program took longer than `max_poll_interval`.
    MissedProcessingDeadline,
    /// Nothing was heard of the coordinator for a session timeout.
    SessionEnded,
    /// The coordinator knows nothing of this member: it was removed, or took too long to give up partitions.
    Removed(String),
}

impl fmt::Display for Loss {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissedProcessingDeadline => out.write_str("the program did not poll in time"),
            Self::SessionEnded => out.write_str("nothing was heard of the coordinator"),
            Self::Removed(why) => out.write_str(why),
        }
    }
}

/// What the consumer reads, in answer to a [`Membership`].
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) incarnation: u64,
    pub(super) partitions: BTreeSet<TopicPartition>,
}

/// Since when the program has been working on its records; `None` while it polls.
#[derive(Debug)]
pub(super) struct Processing(Mutex<Option<Instant>>);

impl Processing {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }

    pub(super) fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task.
pub(super) struct Member {
    pub(super) id: Arc<str>,
    pub(super) config: Arc<GroupConfig>,
    pub(super) coordinator: Coordinator,
    pub(super) membership: watch::Sender<Membership>,
    pub(super) reading: watch::Receiver<Reading>,
    pub(super) processing: Arc<Processing>,
    pub(super) closing: CancellationToken,
    pub(super) sequence: u64,
}

/// How a time in the group ended.
enum End {
    Closed,
    Lost(Loss),
    Failed(RequestError),
}

/// One time in the group.
struct Life {
    epoch: i32,
    /// What the last answer told. It may be read from then on.
    told: BTreeSet<TopicPartition>,
    /// When it ends by itself; `None` before the first answer.
    ends_at: Option<Instant>,
    patience: Duration,
    backoff: Backoff,
}

impl Member {
    /// Joins, stays, and joins again after a loss, until closed or until that cannot help.
    pub(super) async fn run(mut self) {
        loop {
            let mut life = Life {
                epoch: JOIN,
                told: BTreeSet::new(),
                ends_at: None,
                patience: PATIENCE,
                backoff: self.coordinator.cluster().backoff(),
            };
            match self.live(&mut life).await {
                End::Closed => return self.leave(&life, false).await,
                End::Failed(error) => {
                    tracing::warn!(group = self.config.group, %error, "out of the group for good");
                    self.publish(|membership| membership.standing = Standing::Failed(error));
                    return;
                }
                End::Lost(loss) => {
                    tracing::warn!(group = self.config.group, %loss, "everything assigned is lost");
                    let missed = matches!(loss, Loss::MissedProcessingDeadline);
                    self.publish(|membership| {
                        membership.incarnation += 1;
                        membership.standing = Standing::Lost(loss);
                        membership.assigned = Arc::default();
                    });
                    if missed {
                        self.leave(&life, true).await;
                    }
                    // Who joins says that it reads nothing: that has to be true first.
                    let incarnation = self.membership.borrow().incarnation;
                    let dropped = self.reading.wait_for(|read| read.incarnation == incarnation);
                    tokio::select! {
                        dropped = dropped => if dropped.is_err() { return },
                        () = self.closing.cancelled() => return,
                    }
                    self.publish(|membership| membership.standing = Standing::In);
                }
            }
        }
    }

    async fn live(&mut self, life: &mut Life) -> End {
        loop {
            let request = self.heartbeat(life);
            let sent_at = Instant::now();
            let hold = Duration::from_millis(request.wait_ms.into());
            let asked = self.coordinator.try_ask(&request, hold, sent_at + hold + life.patience);
            let answer = tokio::select! {
                answer = asked => answer,
                end = must_end(&self.closing, &self.processing, &self.config, life.ends_at) => return end,
                // What is read has changed: the coordinator is to know at once, and gives up the answer it holds back.
                changed = self.reading.changed() => {
                    if changed.is_err() {
                        return End::Closed;
                    }
                    continue;
                }
            };
            let pause = match answer {
                Ok(answer) => self.answered(life, sent_at, answer),
                Err(error) => {
                    self.note_waiting(&error);
                    match verdict(life, error) {
                        Ok(pause) => pause,
                        Err(end) => return end,
                    }
                }
            };
            tokio::select! {
                () = sleep_until(Instant::now() + pause) => {}
                end = must_end(&self.closing, &self.processing, &self.config, life.ends_at) => return end,
                changed = self.reading.changed() => if changed.is_err() { return End::Closed },
            }
        }
    }

    /// Takes in an answer; says how long to wait until the next heartbeat.
    fn answered(
        &self,
        life: &mut Life,
        sent_at: Instant,
        answer: GroupHeartbeatResponse,
    ) -> Duration {
        let session = Duration::from_millis(answer.session_timeout_ms.into());
        life.ends_at = Some(sent_at + session);
        life.patience = (session / 3).max(Duration::from_millis(200));
        life.backoff.reset();
        life.epoch = answer.epoch;
        if self.membership.borrow().waits.is_some() {
            self.publish(|membership| membership.waits = None);
        }
        let is_new = answer.assignment.is_some();
        if let Some(assignment) = answer.assignment {
            life.told = assignment.into_iter().collect();
        }
        if is_new || self.membership.borrow().epoch != life.epoch {
            let (epoch, told) = (life.epoch, &life.told);
            self.publish(|membership| {
                membership.epoch = epoch;
                if *membership.assigned != *told {
                    membership.assigned = Arc::new(told.clone());
                }
            });
        }
        Duration::from_millis(answer.heartbeat_interval_ms.into())
    }

    /// Says once that another member has this one's place, and for how long: that may be for good.
    fn note_waiting(&self, error: &RequestError) {
        let RequestError::Refused(failure) = error else { return };
        if failure.code == ErrorCode::UnreleasedInstance && self.membership.borrow().waits.is_none()
        {
            tracing::warn!(group = self.config.group, %failure, "waiting for a place in the group");
            self.publish(|membership| membership.waits = Some(failure.message.as_str().into()));
        }
    }

    fn heartbeat(&mut self, life: &Life) -> GroupHeartbeatRequest {
        self.sequence += 1;
        let is_joining = life.epoch == JOIN;
        let read = self.reading.borrow_and_update();
        // What is read, and what may be any moment.
        let owned = read.partitions.union(&life.told).copied().collect::<Vec<_>>();
        drop(read);
        let config = &self.config;
        let max_poll_ms = u32::try_from(config.max_poll_interval.as_millis()).unwrap_or(u32::MAX);
        let subscription =
            GroupSubscription { topics: config.topics.clone(), regex: config.pattern.clone() };
        GroupHeartbeatRequest {
            group: config.group.clone(),
            member: self.id.to_string(),
            epoch: life.epoch,
            sequence: self.sequence,
            instance: config.instance.clone(),
            rack: config.rack.clone(),
            client_id: self.coordinator.cluster().config().client_id.clone(),
            subscription: is_joining.then_some(subscription),
            // Partitions are given up at a poll.
            rebalance_timeout_ms: is_joining.then_some(max_poll_ms.max(1)),
            assignor: config.assignor.clone(),
            owned: (!is_joining).then_some(owned),
            missed_processing_deadline: false,
            wait_ms: if is_joining { 0 } else { millis(HOLD) },
        }
    }

    /// Says goodbye, so that others need not wait for the session to end. Tried once: it would end anyway.
    async fn leave(&mut self, life: &Life, missed_processing_deadline: bool) {
        if life.epoch == JOIN && life.ends_at.is_none() {
            return;
        }
        let is_static = self.config.instance.is_some() && !missed_processing_deadline;
        let request = GroupHeartbeatRequest {
            epoch: if is_static { LEAVE_FOR_A_WHILE } else { LEAVE },
            subscription: None,
            owned: None,
            missed_processing_deadline,
            wait_ms: 0,
            ..self.heartbeat(life)
        };
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        if let Err(error) = self.coordinator.try_ask(&request, Duration::ZERO, deadline).await {
            tracing::debug!(group = self.config.group, %error, "could not say goodbye");
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Membership)) {
        self.membership.send_modify(change);
    }
}

/// What an error means for a life: a pause and another try, or its end.
fn verdict(life: &mut Life, error: RequestError) -> Result<Duration, End> {
    match error.code() {
        Some(ErrorCode::UnknownMember | ErrorCode::FencedMemberEpoch) if life.epoch != JOIN => {
            Err(End::Lost(Loss::Removed(error.to_string())))
        }
        // A later request of this very member was quicker: the next one is later still.
        Some(ErrorCode::StaleRequest) => Ok(life.backoff.after_failure()),
        _ if error.is_retriable() => {
            tracing::debug!(%error, "a heartbeat was not answered");
            Ok(life.backoff.after_failure())
        }
        _ => Err(End::Failed(error)),
    }
}

/// Completes when the member must not go on as it is.
async fn must_end(
    closing: &CancellationToken,
    processing: &Processing,
    config: &GroupConfig,
    ends_at: Option<Instant>,
) -> End {
    let session = async {
        match ends_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = closing.cancelled() => End::Closed,
        () = session => End::Lost(Loss::SessionEnded),
        () = overdue(processing, config.max_poll_interval) => {
            End::Lost(Loss::MissedProcessingDeadline)
        }
    }
}

/// Completes when the program has been away from polling for too long.
async fn overdue(processing: &Processing, max_poll_interval: Duration) {
    loop {
        match processing.since() {
            Some(since) if since + max_poll_interval <= Instant::now() => return,
            Some(since) => sleep_until(since + max_poll_interval).await,
            // It cannot be overdue before so much time has passed.
            None => sleep_until(Instant::now() + max_poll_interval.min(POLLING_CHECK)).await,
        }
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

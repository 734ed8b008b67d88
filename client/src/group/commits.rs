//! Commits of a member, one request at a time, in a task of their own. What is asked for while one is under way goes
//! together into the next, the later offset of a partition in place of the earlier.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    messages::{CommitOffsetsRequest, CommitOffsetsResponse, GroupMember, OffsetToCommit},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    coordinator::{ATTEMPT_TIMEOUT, Coordinator},
    member::Membership,
};
use crate::error::GroupError;

/// Commits that may wait. Beyond it whoever commits waits for room.
pub(super) const COMMITS_QUEUED_MAX: usize = 256;
/// Offsets in one request.
const OFFSETS_PER_REQUEST_MAX: usize = 5_000;

/// Offsets to be committed, and who wants to know.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) offsets: BTreeMap<TopicPartition, OffsetToCommit>,
    pub(super) reply: Option<oneshot::Sender<Result<(), GroupError>>>,
}

/// The task.
pub(super) struct Committer {
    pub(super) group: String,
    pub(super) member: Arc<str>,
    pub(super) instance: Option<String>,
    pub(super) coordinator: Coordinator,
    pub(super) membership: watch::Receiver<Membership>,
    pub(super) queue: mpsc::Receiver<Commit>,
    /// Set when a commit has failed that nobody waits for.
    pub(super) failed: Arc<AtomicBool>,
    pub(super) timeout: Duration,
}

type Outcomes = BTreeMap<TopicPartition, Result<(), Failure>>;

impl Committer {
    /// Commits until nobody can ask any more.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut offsets = first.offsets.clone();
            let mut commits = vec![first];
            while offsets.len() < OFFSETS_PER_REQUEST_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                offsets.extend(next.offsets.clone());
                commits.push(next);
            }
            let outcome = self.commit(offsets).await;
            for commit in commits {
                let told = match &outcome {
                    Ok(outcomes) => verdict(&commit, outcomes),
                    Err(error) => Err(error.clone()),
                };
                match (commit.reply, told) {
                    // Whoever asked may have stopped.
                    (Some(reply), told) => drop(reply.send(told)),
                    (None, Err(error)) => {
                        self.failed.store(true, Ordering::Relaxed);
                        tracing::warn!(group = self.group, %error, "offsets were not committed");
                    }
                    (None, Ok(())) => {}
                }
            }
        }
    }

    async fn commit(
        &self,
        offsets: BTreeMap<TopicPartition, OffsetToCommit>,
    ) -> Result<Outcomes, GroupError> {
        let partitions: Vec<_> = offsets.keys().copied().collect();
        let offsets: Vec<_> = offsets.into_values().collect();
        let deadline = Instant::now() + self.timeout;
        let mut backoff = self.coordinator.cluster().backoff();
        loop {
            let epoch = self.membership.borrow().epoch;
            let request = CommitOffsetsRequest {
                group: self.group.clone(),
                member: Some(GroupMember {
                    member: self.member.to_string(),
                    epoch,
                    instance: self.instance.clone(),
                }),
                offsets: offsets.clone(),
                timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
            };
            let attempt = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let asked = self.coordinator.try_ask(&request, Duration::ZERO, attempt).await;
            let error = match asked {
                Ok(CommitOffsetsResponse { partitions: outcomes }) => {
                    return Ok(partitions.into_iter().zip(outcomes).collect());
                }
                Err(error) => error,
            };
            // The same offsets again are the same: only this task commits for this member. And a heartbeat may bring a
            // newer epoch meanwhile.
            let pause = backoff.after_failure();
            if !error.is_retriable() || Instant::now() + pause >= deadline {
                return Err(error.into());
            }
            tracing::debug!(group = self.group, %error, ?pause, "committing again");
            sleep(pause).await;
        }
    }
}

/// Whether everything of a commit was taken; else what was wrong with the first that was not.
fn verdict(commit: &Commit, outcomes: &Outcomes) -> Result<(), GroupError> {
    for partition in commit.offsets.keys() {
        match outcomes.get(partition) {
            Some(Ok(())) => {}
            Some(Err(failure)) => {
                return Err(GroupError::CommitRefused { failure: failure.clone() });
            }
            None => {
                let failure =
                    Failure::new(ErrorCode::Internal, "the answer leaves a partition out");
                return Err(GroupError::CommitRefused { failure });
            }
        }
    }
    Ok(())
}

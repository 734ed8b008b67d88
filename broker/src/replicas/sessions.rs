//! The leader's side of replication: one session per follower, which sends what the leaders among our partitions have
//! for it. What that is, the partitions' machines decide; here it waits, is read from the logs and pushed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, Offset, TopicPartition,
    messages::{ReplicaPosition, ReplicaPush, ReplicaPushHeader, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, ReplicaId};
use tokio::sync::Notify;

use super::{Moved, outbox::Outbox};
use crate::{
    broker::Broker,
    partitions::PartitionView,
    reads,
    shard::{Command, FollowerPosition},
    tasks::Shutdown,
};

/// Most bytes of batches in one push; a batch is never split, so that one may exceed it.
const PUSH_BYTES_MAX: usize = 4 << 20;
/// Most bytes of one partition in one push, so that a busy partition does not starve the others.
const PARTITION_BYTES_MAX: usize = 1 << 20;
/// Most partitions looked at before what was found is sent.
const PARTITIONS_PER_LOOK_MAX: usize = 1024;

/// What is due to a follower in one partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// Batches from `offset` on.
    Batches { offset: Offset },
    /// No batches, and why.
    Refusal(ReplicaRefusal),
    /// Only these have moved; the question stays open.
    Moved(Moved),
}

/// All followers of the partitions led here.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_follower: Mutex<HashMap<BrokerId, Arc<Session>>>,
}

/// One follower's stream.
#[derive(Debug)]
pub(crate) struct Session {
    follower: ReplicaId,
    due: Outbox<(AnswerTo, Due)>,
    /// Partitions it has asked for.
    partitions: Mutex<BTreeSet<TopicPartition>>,
    /// The follower wants a sign of life.
    pinged: Notify,
    ended: Shutdown,
}

/// Where a session's pushes go.
pub(crate) trait ReplicaPushes: Send + Sync + 'static {
    /// Waits for room on the connection; `false`: the connection is gone.
    fn push(
        &self,
        header: ReplicaPushHeader,
        payload: Vec<Bytes>,
    ) -> impl Future<Output = bool> + Send;
}

impl Sessions {
    /// Notes what is due to a follower. Without a session it is dropped: a new one begins with new positions.
    pub(super) fn due(&self, partition: TopicPartition, to: AnswerTo, due: Due) {
        let session = self.lock().get(&to.follower.broker_id).cloned();
        if let Some(session) = session.filter(|session| session.follower == to.follower) {
            session.put(partition, to, due);
        }
    }

    /// Begins a session, in place of an older one of the same broker.
    pub(crate) fn begin(&self, follower: ReplicaId, ended: Shutdown) -> Arc<Session> {
        let session = Arc::new(Session {
            follower,
            due: Outbox::default(),
            partitions: Mutex::default(),
            pinged: Notify::new(),
            ended,
        });
        if let Some(older) = self.lock().insert(follower.broker_id, Arc::clone(&session)) {
            older.ended.start();
        }
        session
    }

    fn end(&self, session: &Arc<Session>) {
        let mut sessions = self.lock();
        if sessions
            .get(&session.follower.broker_id)
            .is_some_and(|known| Arc::ptr_eq(known, session))
        {
            sessions.remove(&session.follower.broker_id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BrokerId, Arc<Session>>> {
        self.by_follower.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The connection is gone.
    pub(crate) fn close(&self) {
        self.ended.start();
    }

    fn put(&self, partition: TopicPartition, to: AnswerTo, due: Due) {
        self.due.put(partition, (to, due), stays);
    }

    /// Takes in the follower's new positions; none at all asks for a sign of life.
    pub(crate) async fn positions(&self, broker: &Broker, positions: Vec<ReplicaPosition>) {
        if positions.is_empty() {
            self.pinged.notify_one();
        }
        for ReplicaPosition { partition, position } in positions {
            self.lock_partitions().insert(partition);
            let Some(view) = broker.partitions.get(partition) else {
                // Deleted, or not opened yet: the follower asks again, or hears from the controller.
                let code = ErrorCode::UnknownTopicOrPartition;
                let to = AnswerTo::position(self.follower, &position);
                self.put(partition, to, Due::Refusal(ReplicaRefusal::Error { code }));
                continue;
            };
            let position = FollowerPosition { partition, follower: self.follower, position };
            if view.shard.send(Command::FollowerPosition(position)).await.is_err() {
                return;
            }
        }
    }

    /// Sends what is due until the connection is gone or another session of the follower begins.
    pub(crate) async fn run(self: Arc<Self>, broker: Arc<Broker>, pushes: impl ReplicaPushes) {
        let ended = self.ended.clone();
        ended.or_stop(self.push_all(&broker, &pushes)).await;
        broker.sessions.end(&self);
        let partitions: Vec<_> = self.lock_partitions().iter().copied().collect();
        for partition in partitions {
            let Some(view) = broker.partitions.get(partition) else { continue };
            let lost = Command::FollowerLost { partition, follower: self.follower };
            if view.shard.send(lost).await.is_err() {
                return;
            }
        }
    }

    async fn push_all(&self, broker: &Broker, pushes: &impl ReplicaPushes) {
        loop {
            let due = tokio::select! {
                due = self.due.take(PARTITIONS_PER_LOOK_MAX) => due,
                () = self.pinged.notified() => Vec::new(),
            };
            let mut push = Push::default();
            let is_ping = due.is_empty();
            for (partition, (to, due)) in due {
                let (answer, bytes) = answer(broker, partition, to, due).await;
                push.add(answer, bytes);
                if push.bytes >= PUSH_BYTES_MAX && !push.send(pushes).await {
                    return;
                }
            }
            if (is_ping || !push.header.partitions.is_empty()) && !push.send(pushes).await {
                return;
            }
        }
    }

    fn lock_partitions(&self) -> MutexGuard<'_, BTreeSet<TopicPartition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what is due already stays, and `newer` is dropped. What has moved goes along with an answer to the same question.
/// And a leader that has refused a question, because it has not heard of its epoch yet, may still have batches for the one
/// before: whoever asked waits for the refusal, and would do so for ever.
fn stays(older: &(AnswerTo, Due), newer: &(AnswerTo, Due)) -> bool {
    let question = |to: &AnswerTo| (to.leader_epoch, to.round);
    let (before, now) = (question(&older.0), question(&newer.0));
    let is_moved = |due: &Due| matches!(due, Due::Moved(_));
    before > now || before == now && is_moved(&newer.1) && !is_moved(&older.1)
}

/// What to send for a partition.
async fn answer(
    broker: &Broker,
    partition: TopicPartition,
    to: AnswerTo,
    due: Due,
) -> (ReplicaPush, Bytes) {
    let mut push = ReplicaPush {
        partition,
        leader_epoch: to.leader_epoch,
        round: to.round,
        high_watermark: 0,
        log_start_offset: 0,
        removals_end: 0,
        batch_bytes: 0,
        refusal: None,
    };
    let mut bytes = Bytes::new();
    match due {
        Due::Moved(moved) => {
            push.high_watermark = moved.high_watermark;
            push.log_start_offset = moved.log_start_offset;
        }
        Due::Refusal(refusal) => push.refusal = Some(refusal),
        Due::Batches { offset } => {
            let Some(view) = broker.partitions.get(partition) else {
                let code = ErrorCode::UnknownTopicOrPartition;
                push.refusal = Some(ReplicaRefusal::Error { code });
                return (push, bytes);
            };
            let read = reads::read_for_replica(
                &broker.cold_reads,
                &view,
                to.leader_epoch,
                offset,
                PARTITION_BYTES_MAX,
                &broker.metrics,
            );
            match read.await {
                Ok(read) => {
                    push.high_watermark = read.high_watermark;
                    push.log_start_offset = read.log_start_offset;
                    push.removals_end = view.reader.removals_end();
                    bytes = read.bytes;
                    broker.metrics.cluster().sent(bytes.len() as u64);
                }
                Err(failure) => push.refusal = Some(refusal(&view, &failure)),
            }
        }
    }
    push.batch_bytes = u32::try_from(bytes.len()).expect("a segment is shorter than 4 GiB");
    (push, bytes)
}

fn refusal(view: &PartitionView, failure: &Failure) -> ReplicaRefusal {
    match failure.code {
        ErrorCode::OffsetOutOfRange => ReplicaRefusal::OutOfRange {
            log_start_offset: view.reader.log_start_offset(),
            log_end_offset: view.reader.log_end_offset(),
        },
        code => ReplicaRefusal::Error { code },
    }
}

/// A push in the making.
#[derive(Default)]
struct Push {
    header: ReplicaPushHeader,
    payload: Vec<Bytes>,
    bytes: usize,
}

impl Push {
    fn add(&mut self, answer: ReplicaPush, bytes: Bytes) {
        self.header.partitions.push(answer);
        self.bytes += bytes.len();
        self.payload.push(bytes);
    }

    async fn send(&mut self, pushes: &impl ReplicaPushes) -> bool {
        let Self { header, payload, .. } = std::mem::take(self);
        pushes.push(header, payload).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLLOWER: ReplicaId = ReplicaId { broker_id: 2, broker_epoch: 7 };

    fn to(leader_epoch: u32, round: u64) -> AnswerTo {
        AnswerTo { follower: FOLLOWER, leader_epoch, round }
    }

    fn refusal() -> Due {
        Due::Refusal(ReplicaRefusal::Error { code: ErrorCode::UnknownLeaderEpoch })
    }

    fn moved() -> Due {
        Due::Moved(Moved { high_watermark: 1, log_start_offset: 0 })
    }

    #[test]
    fn the_answer_to_a_later_question_is_not_replaced() {
        let (late, soon) = ((to(4, 8), Due::Batches { offset: 3 }), (to(5, 9), refusal()));
        assert!(stays(&soon, &late), "the follower waits for an answer in epoch 5");
        assert!(!stays(&late, &soon));
        assert!(stays(&soon, &(to(4, 8), moved())));
    }

    #[test]
    fn what_has_moved_goes_along_with_the_answer_to_the_same_question() {
        let batches = (to(4, 8), Due::Batches { offset: 3 });
        assert!(stays(&batches, &(to(4, 8), moved())));
        assert!(!stays(&(to(4, 8), moved()), &batches));
        assert!(!stays(&(to(4, 8), moved()), &(to(4, 8), moved())), "the newest counts");
        assert!(!stays(&batches, &(to(4, 9), moved())));
    }
}

//! The leader's side of replication: one session per follower, which sends what the leaders among our partitions have
//! for it. What that is, the partitions' machines decide; here it waits, is read from the logs and pushed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{ReplicaPosition, ReplicaPush, ReplicaPushHeader, ReplicaRefusal},
};
use tokio::sync::Notify;

use super::outbox::Outbox;
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
pub(crate) enum Due {
    /// Batches from `offset` on, in answer to this round.
    Batches { leader_epoch: LeaderEpoch, round: u64, offset: Offset },
    /// No batches, in answer to this round.
    Refusal { leader_epoch: LeaderEpoch, round: u64, refusal: ReplicaRefusal },
    /// Only the watermark or the log start has moved; the round stays open.
    Watermark { leader_epoch: LeaderEpoch, round: u64 },
}

/// All followers of the partitions led here.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_follower: Mutex<HashMap<BrokerId, Arc<Session>>>,
}

/// One follower's stream.
#[derive(Debug)]
pub(crate) struct Session {
    follower: BrokerId,
    broker_epoch: BrokerEpoch,
    due: Outbox<Due>,
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
    pub(crate) fn due(&self, follower: BrokerId, partition: TopicPartition, due: Due) {
        let session = self.lock().get(&follower).cloned();
        if let Some(session) = session {
            // A watermark goes along with whatever answer is due already.
            let is_watermark = matches!(due, Due::Watermark { .. });
            session.due.put(partition, due, |_, _| is_watermark);
        }
    }

    /// Begins a session, in place of an older one of the same follower.
    pub(crate) fn begin(
        &self,
        follower: BrokerId,
        broker_epoch: BrokerEpoch,
        ended: Shutdown,
    ) -> Arc<Session> {
        let session = Arc::new(Session {
            follower,
            broker_epoch,
            due: Outbox::default(),
            partitions: Mutex::default(),
            pinged: Notify::new(),
            ended,
        });
        if let Some(older) = self.lock().insert(follower, Arc::clone(&session)) {
            older.ended.start();
        }
        session
    }

    fn end(&self, session: &Arc<Session>) {
        let mut sessions = self.lock();
        if sessions.get(&session.follower).is_some_and(|known| Arc::ptr_eq(known, session)) {
            sessions.remove(&session.follower);
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

    /// Takes in the follower's new positions; none at all asks for a sign of life.
    pub(crate) async fn positions(&self, broker: &Broker, positions: Vec<ReplicaPosition>) {
        if positions.is_empty() {
            self.pinged.notify_one();
        }
        for ReplicaPosition { partition, position } in positions {
            self.lock_partitions().insert(partition);
            let Some(view) = broker.partitions.get(partition) else {
                let (leader_epoch, round) = (position.leader_epoch, position.round);
                // Deleted, or not opened yet: the follower asks again, or hears from the controller.
                let code = ErrorCode::UnknownTopicOrPartition;
                let refusal = ReplicaRefusal::Error { code };
                self.due.put(partition, Due::Refusal { leader_epoch, round, refusal }, |_, _| false);
                continue;
            };
            let position = FollowerPosition {
                partition,
                follower: self.follower,
                broker_epoch: self.broker_epoch,
                position,
            };
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
            let lost = Command::FollowerLost {
                partition,
                follower: self.follower,
                broker_epoch: self.broker_epoch,
            };
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
            for (partition, due) in due {
                let (answer, bytes) = self.answer(broker, partition, due).await;
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

    /// What to send for a partition.
    async fn answer(
        &self,
        broker: &Broker,
        partition: TopicPartition,
        due: Due,
    ) -> (ReplicaPush, Bytes) {
        let view = broker.partitions.get(partition);
        let (Due::Batches { leader_epoch, round, .. }
        | Due::Refusal { leader_epoch, round, .. }
        | Due::Watermark { leader_epoch, round }) = due;
        let mut push = ReplicaPush {
            partition,
            leader_epoch,
            round,
            // Before the read.
            high_watermark: view.as_ref().map_or(0, |view| view.high_watermark()),
            log_start_offset: view.as_ref().map_or(0, |view| view.reader.log_start_offset()),
            batch_bytes: 0,
            refusal: None,
        };
        let mut bytes = Bytes::new();
        match (due, view) {
            (Due::Refusal { refusal, .. }, _) => push.refusal = Some(refusal),
            (Due::Batches { offset, .. }, Some(view)) => {
                match read(broker, &view, leader_epoch, offset).await {
                    Ok(read) => bytes = read,
                    Err(failure) => push.refusal = Some(refusal(&view, &failure)),
                }
            }
            (Due::Batches { .. }, None) => {
                let code = ErrorCode::UnknownTopicOrPartition;
                push.refusal = Some(ReplicaRefusal::Error { code });
            }
            (Due::Watermark { .. }, _) => {}
        }
        push.batch_bytes = u32::try_from(bytes.len()).expect("a segment is shorter than 4 GiB");
        (push, bytes)
    }

    fn lock_partitions(&self) -> MutexGuard<'_, BTreeSet<TopicPartition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(
    broker: &Broker,
    view: &Arc<PartitionView>,
    leader_epoch: LeaderEpoch,
    offset: Offset,
) -> Result<Bytes, Failure> {
    let read = reads::read_for_replica(
        &broker.cold_reads,
        view,
        leader_epoch,
        offset,
        PARTITION_BYTES_MAX,
        &broker.metrics,
    );
    Ok(read.await?.bytes)
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

//! Where replicas speak to the other nodes: the port that shards act through, and what is behind it on a network.
//!
//! The port carries positions to leaders, answers to followers, and wishes about the in-sync set to the controller; what
//! comes back is sent to the shards as commands. Nothing here decides about a partition: what is lost is asked for again,
//! because a broken stream begins new rounds, and an unanswered wish is repeated.

mod isr;
mod outbox;
mod sessions;
mod streams;
mod throttle;

use std::{fmt, sync::Arc};

use tidemark_protocol::{
    BrokerId, Offset, TopicPartition,
    messages::{Position, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, IsrChange};

pub(crate) use self::{
    isr::IsrChanges,
    sessions::{ReplicaPushes, Session, Sessions},
    streams::Streams,
};
use self::{outbox::Outbox, sessions::Due};

/// The way out of a shard. Called on the shard's thread: no method may block, and none fails.
///
/// Per partition and receiver only the newest call of a kind counts, so a queue needs one place for each. An answer
/// goes to the run of the follower that it names (`to.follower`), or to nobody.
pub(crate) trait ReplicaPort: Send + Sync + fmt::Debug {
    /// Send this follower what there is from `offset` on, as [`crate::reads::read_for_replica`] finds it.
    fn serve(&self, partition: TopicPartition, to: AnswerTo, offset: Offset);

    /// Tell this follower that only these have moved. Takes nothing away from a [`Self::serve`] before it.
    fn share_watermark(&self, partition: TopicPartition, to: AnswerTo, moved: Moved);

    /// Tell this follower why there is nothing for it.
    fn refuse(&self, partition: TopicPartition, to: AnswerTo, refusal: ReplicaRefusal);

    /// Tell the leader where this broker's replica is.
    fn position(&self, leader: BrokerId, partition: TopicPartition, position: Position);

    /// Ask the controller to change the in-sync replicas, and send the answer as
    /// [`crate::shard::Command::IsrAnswered`].
    fn alter_isr(&self, partition: TopicPartition, change: IsrChange);
}

/// What moves in a log besides its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) high_watermark: Offset,
    pub(crate) log_start_offset: Offset,
}

/// The port of a broker on a network.
#[derive(Debug)]
pub(crate) struct ReplicaNetwork {
    sessions: Arc<Sessions>,
    streams: Arc<Streams>,
    isr_changes: Arc<Outbox<IsrChange>>,
}

impl ReplicaNetwork {
    /// The port, and the task behind it that takes changes of in-sync sets to the controller.
    pub(crate) fn new(sessions: Arc<Sessions>, streams: Arc<Streams>) -> (Self, IsrChanges) {
        let isr_changes = Arc::<Outbox<IsrChange>>::default();
        let task = IsrChanges { outbox: Arc::clone(&isr_changes) };
        (Self { sessions, streams, isr_changes }, task)
    }
}

impl ReplicaPort for ReplicaNetwork {
    fn serve(&self, partition: TopicPartition, to: AnswerTo, offset: Offset) {
        self.sessions.due(partition, to, Due::Batches { offset });
    }

    fn share_watermark(&self, partition: TopicPartition, to: AnswerTo, moved: Moved) {
        self.sessions.due(partition, to, Due::Moved(moved));
    }

    fn refuse(&self, partition: TopicPartition, to: AnswerTo, refusal: ReplicaRefusal) {
        self.sessions.due(partition, to, Due::Refusal(refusal));
    }

    fn position(&self, leader: BrokerId, partition: TopicPartition, position: Position) {
        self.streams.position(leader, partition, position);
    }

    fn alter_isr(&self, partition: TopicPartition, change: IsrChange) {
        self.isr_changes.put(partition, change, |_, _| false);
    }
}

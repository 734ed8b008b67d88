//! Where replicas speak to the other nodes: the port that shards act through.
//!
//! Whoever implements it carries positions to leaders, answers to followers, and wishes about the in-sync set to the
//! controller; what comes back it sends to the shards as commands. It decides nothing: what it loses is asked for
//! again, because a broken stream begins new rounds, and an unanswered wish is repeated.

use std::fmt;

use tidemark_protocol::{
    BrokerId, Offset, TopicPartition,
    messages::{Position, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, IsrChange};

/// The way out of a shard. Called on the shard's thread: no method may block, and none fails.
///
/// Per partition and receiver only the newest call of a kind counts, so a queue needs one place for each. An answer
/// goes to the run of the follower that it names (`to.follower`), or to nobody.
pub(crate) trait ReplicaPort: Send + Sync + fmt::Debug {
    /// Send this follower what there is from `offset` on, as [`crate::reads::read_for_follower`] finds it.
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

/// The port of a node that is its cluster: there is nobody to speak to.
#[derive(Debug)]
pub(crate) struct Alone;

impl ReplicaPort for Alone {
    fn serve(&self, _: TopicPartition, _: AnswerTo, _: Offset) {}
    fn share_watermark(&self, _: TopicPartition, _: AnswerTo, _: Moved) {}
    fn refuse(&self, _: TopicPartition, _: AnswerTo, _: ReplicaRefusal) {}
    fn position(&self, _: BrokerId, _: TopicPartition, _: Position) {}
    fn alter_isr(&self, _: TopicPartition, _: IsrChange) {}
}

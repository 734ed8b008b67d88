//! Replication of a steered broker: what its replicas have for others is kept until it is taken, and what others have
//! for them is handed in. What happens to it in between is whoever steers' business.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, PartitionEpoch, TopicPartition,
    messages::{Position, ReplicaPush, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, FollowerStatus, IsrChange, ReplicaId};

use super::Steered;
use crate::{
    partitions::unknown_partition,
    reads,
    replicas::{Moved, ReplicaPort},
    shard::{Command, FollowerPosition, LeaderAnswer},
};

/// What a replica has for another node.
#[derive(Clone, Debug)]
pub enum PortEffect {
    Serve {
        partition: TopicPartition,
        to: AnswerTo,
        offset: Offset,
    },
    ShareWatermark {
        partition: TopicPartition,
        to: AnswerTo,
        high_watermark: Offset,
        log_start_offset: Offset,
    },
    Refuse {
        partition: TopicPartition,
        to: AnswerTo,
        refusal: ReplicaRefusal,
    },
    Position {
        leader: BrokerId,
        partition: TopicPartition,
        position: Position,
    },
    AlterIsr {
        partition: TopicPartition,
        change: IsrChange,
    },
}

/// Where the offsets of a log are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnds {
    pub log_start_offset: Offset,
    /// Behind every tombstone that compaction has dropped.
    pub removals_end: Offset,
    pub high_watermark: Offset,
    pub flushed_offset: Offset,
    pub log_end_offset: Offset,
    /// The epoch that is led in here, if it is.
    pub leader_epoch: Option<LeaderEpoch>,
}

/// A port that keeps everything, in order.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    effects: Mutex<Vec<PortEffect>>,
}

impl Kept {
    /// What was kept since the last call.
    pub(crate) fn take(&self) -> Vec<PortEffect> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PortEffect>> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplicaPort for Kept {
    fn serve(&self, partition: TopicPartition, to: AnswerTo, offset: Offset) {
        self.lock().push(PortEffect::Serve { partition, to, offset });
    }

    fn share_watermark(&self, partition: TopicPartition, to: AnswerTo, moved: Moved) {
        let Moved { high_watermark, log_start_offset } = moved;
        let share = PortEffect::ShareWatermark { partition, to, high_watermark, log_start_offset };
        self.lock().push(share);
    }

    fn refuse(&self, partition: TopicPartition, to: AnswerTo, refusal: ReplicaRefusal) {
        self.lock().push(PortEffect::Refuse { partition, to, refusal });
    }

    fn position(&self, leader: BrokerId, partition: TopicPartition, position: Position) {
        self.lock().push(PortEffect::Position { leader, partition, position });
    }

    fn alter_isr(&self, partition: TopicPartition, change: IsrChange) {
        self.lock().push(PortEffect::AlterIsr { partition, change });
    }
}

impl Steered {
    /// What the replicas have for other nodes since the last call, in order.
    pub fn take_port_effects(&mut self) -> Vec<PortEffect> {
        self.port.take()
    }

    /// The controller knows this run of the broker under this epoch. Before the image followed says so, too, nothing is
    /// led or followed: what it says is about an earlier run.
    pub fn registered(&mut self, broker_epoch: BrokerEpoch) {
        self.broker_epoch = Some(broker_epoch);
        self.assign_all();
    }

    /// Hands in a follower's position. `false`: there is no such partition here.
    pub fn follower_position(
        &mut self,
        partition: TopicPartition,
        follower: ReplicaId,
        position: Position,
    ) -> bool {
        let position = FollowerPosition { partition, follower, position };
        self.tell_owner(partition, Command::FollowerPosition(position))
    }

    pub fn follower_lost(&mut self, partition: TopicPartition, follower: ReplicaId) {
        self.tell_owner(partition, Command::FollowerLost { partition, follower });
    }

    /// A stream to this leader stands.
    pub fn leader_connected(&mut self, leader: BrokerId) {
        for index in 0..self.shards.len() {
            self.tell(index, Command::LeaderConnected { leader });
        }
    }

    pub fn leader_answer(&mut self, leader: BrokerId, push: ReplicaPush, batches: Bytes) {
        let answer = Box::new(LeaderAnswer::new(leader, push, batches));
        self.tell_owner(push.partition, Command::LeaderAnswer(answer));
    }

    pub fn isr_answered(
        &mut self,
        partition: TopicPartition,
        partition_epoch: PartitionEpoch,
        answer: Result<(), ErrorCode>,
    ) {
        self.tell_owner(partition, Command::IsrAnswered { partition, partition_epoch, answer });
    }

    /// Reads for a follower, committed or not.
    pub fn read_for_replica(
        &self,
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<super::SteeredRead, Failure> {
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        let (pool, metrics) = (&self.cold_reads, &self.metrics);
        let read = reads::read_for_replica(pool, &view, leader_epoch, offset, max_bytes, metrics);
        let read = read.now_or_never().expect("an inline read waits for nobody")?;
        Ok(super::SteeredRead {
            bytes: read.bytes,
            high_watermark: read.high_watermark,
            log_start_offset: read.log_start_offset,
            leader_epoch: read.leader_epoch,
            next_offset: read.next_offset,
            stable: None,
        })
    }

    /// The offset that consumers are told is the latest, if it is known.
    pub fn latest_offset(&self, id: TopicPartition) -> Result<Offset, Failure> {
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        view.leader_epoch(None)?;
        view.latest_offset()
    }

    /// What the leader here knows of its followers.
    pub fn followers(&self, id: TopicPartition) -> Vec<FollowerStatus> {
        self.partitions.get(id).map_or(Vec::new(), |view| view.followers())
    }

    pub fn log_ends(&self, id: TopicPartition) -> Option<LogEnds> {
        let view = self.partitions.get(id)?;
        Some(LogEnds {
            log_start_offset: view.reader.log_start_offset(),
            removals_end: view.reader.removals_end(),
            high_watermark: view.high_watermark(),
            flushed_offset: view.reader.flushed_offset(),
            log_end_offset: view.reader.log_end_offset(),
            leader_epoch: view.leader_epoch(None).ok(),
        })
    }

    fn tell_owner(&mut self, partition: TopicPartition, command: Command) -> bool {
        let Some(view) = self.partitions.get(partition) else { return false };
        self.tell(view.shard.index, command);
        true
    }
}

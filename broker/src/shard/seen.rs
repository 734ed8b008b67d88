//! The partitions of a shard as they are, for whoever watches from outside between two wakes. It changes nothing.

use tidemark_protocol::{BrokerId, LeaderEpoch, Offset, TopicPartition};
use tidemark_replication::FollowerStatus;

use super::{Shard, partition::Partition};

/// A replica, its log and its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenReplica {
    pub partition: TopicPartition,
    pub log_start_offset: Offset,
    pub log_end_offset: Offset,
    pub flushed_offset: Offset,
    pub removals_end: Offset,
    /// As the replica knows it, and as readers are shown it.
    pub high_watermark: Offset,
    pub shown_watermark: Offset,
    /// The epoch it leads in.
    pub led: Option<LeaderEpoch>,
    pub followed: Option<(BrokerId, LeaderEpoch)>,
    pub is_watermark_known: bool,
    pub min_insync_replicas: u16,
}

/// What tells whether anything of a replica has changed. Cheap to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    offsets: [Offset; 6],
    led: Option<LeaderEpoch>,
    followed: Option<(BrokerId, LeaderEpoch)>,
    members: u64,
}

impl Shard {
    /// Every partition, at a glance.
    pub(crate) fn glances(&self) -> impl Iterator<Item = (TopicPartition, Glance)> {
        self.partitions.iter().map(|(id, partition)| (*id, partition.glance()))
    }

    /// One partition, as it is.
    pub(crate) fn look_at(&self, id: TopicPartition) -> Option<(SeenReplica, Vec<FollowerStatus>)> {
        let partition = self.partitions.get(&id)?;
        Some((partition.seen(), partition.replica.followers().collect()))
    }
}

impl Partition {
    fn glance(&self) -> Glance {
        let mut members = u64::from(self.replica.config().min_insync_replicas);
        for follower in self.replica.followers() {
            let standing = u64::from(follower.is_in_sync) << 1 | u64::from(follower.is_proposed);
            members = members.wrapping_mul(31).wrapping_add(u64::from(follower.id) << 2 | standing);
        }
        Glance {
            offsets: [
                self.log.log_start_offset(),
                self.log.log_end_offset(),
                self.log.flushed_offset(),
                self.log.removals_end(),
                self.replica.high_watermark(),
                self.view.high_watermark(),
            ],
            led: self.replica.leader_epoch(),
            followed: self.replica.following(),
            members,
        }
    }

    fn seen(&self) -> SeenReplica {
        SeenReplica {
            partition: self.view.id,
            log_start_offset: self.log.log_start_offset(),
            log_end_offset: self.log.log_end_offset(),
            flushed_offset: self.log.flushed_offset(),
            removals_end: self.log.removals_end(),
            high_watermark: self.replica.high_watermark(),
            shown_watermark: self.view.high_watermark(),
            led: self.replica.leader_epoch(),
            followed: self.replica.following(),
            is_watermark_known: self.replica.is_watermark_known(),
            min_insync_replicas: self.replica.config().min_insync_replicas,
        }
    }
}

//! Looks at a steered broker from outside: what has changed of its replicas, and what their logs hold.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{Failure, LeaderEpoch, Offset, TopicPartition};
use tidemark_replication::FollowerStatus;
use tidemark_storage::{ReadError, ReadOutcome, Residency};

use super::Steered;
pub use crate::shard::SeenReplica;
use crate::{partitions::unknown_partition, shard::Glance};

/// Most bytes read at once.
const READ_BYTES_MAX: usize = 16 << 20;

/// What was seen last of every replica.
pub(super) type Glances = BTreeMap<TopicPartition, Glance>;

impl Steered {
    /// Replicas of which something has changed since the last call, with what their leaders know of followers.
    pub fn observe(&mut self) -> Vec<(SeenReplica, Vec<FollowerStatus>)> {
        let mut changed = Vec::new();
        for one in &self.shards {
            for (id, glance) in one.shard.glances() {
                if self.glances.insert(id, glance) != Some(glance) {
                    changed.extend(one.shard.look_at(id));
                }
            }
        }
        changed
    }

    /// Whether the log of a partition is here, open or not.
    pub fn holds(&self, id: TopicPartition) -> bool {
        self.partitions.get(id).is_some() || self.partitions.is_unopened(id)
    }

    /// What the log holds from one offset to another, committed or not: as much of it as can be read. Damage is left out.
    pub fn read_log(&self, id: TopicPartition, from: Offset, to: Offset) -> Bytes {
        let Some(view) = self.partitions.get(id) else { return Bytes::new() };
        let mut all = BytesMut::new();
        let (mut offset, mut end) = (from, to);
        while offset < to {
            match view.reader.read(offset, end, READ_BYTES_MAX, Residency::Any) {
                Ok(ReadOutcome::Batches { bytes, next_offset }) if next_offset > offset => {
                    all.extend_from_slice(&bytes);
                    offset = next_offset;
                    if offset >= end {
                        end = to;
                    }
                }
                // Found just now: what comes before it can be read.
                Err(ReadError::Corrupt { range }) if range.start > offset && range.start < end => {
                    end = range.start;
                }
                Err(ReadError::Corrupt { range }) if range.end > offset => {
                    (offset, end) = (range.end, to);
                }
                _ => break,
            }
        }
        all.freeze()
    }

    /// What a client is told of where a partition begins or ends, and by the leader of which epoch.
    pub fn list_offsets(
        &self,
        id: TopicPartition,
        earliest: bool,
    ) -> Result<(Offset, LeaderEpoch), Failure> {
        let view = self.partitions.get(id).ok_or_else(|| unknown_partition(id))?;
        let leader_epoch = view.leader_epoch(None)?;
        let offset = if earliest { view.reader.log_start_offset() } else { view.latest_offset()? };
        Ok((offset, leader_epoch))
    }
}

//! S8, epochs monotone: leader epochs never decrease along a log, and no observer sees an epoch of a partition, of a broker
//! or of the quorum go back.

use std::collections::{BTreeMap, VecDeque};

use tidemark_controller::Image;
use tidemark_protocol::{LeaderEpoch, NodeId, PartitionEpoch, TopicPartition};

use super::{Ghost, Mark, ReplicaKey, Verdict, ghost::Shadow, require};

/// What each process has seen.
#[derive(Debug, Default)]
pub(super) struct Observers {
    partitions: BTreeMap<(NodeId, TopicPartition), (u64, LeaderEpoch, PartitionEpoch)>,
    indexes: BTreeMap<NodeId, (u64, u64)>,
}

pub(super) fn check_appended(
    (node, partition): ReplicaKey,
    shadow: &Shadow,
    marks: &VecDeque<Option<Mark>>,
) -> Verdict {
    let mut last = shadow.marks.back().copied().flatten().map(|mark| mark.epoch);
    for mark in marks.iter().flatten() {
        require(last.is_none_or(|last| last <= mark.epoch), "S8", || {
            format!("node {node} appends epoch {} to {partition} after {last:?}", mark.epoch)
        })?;
        last = Some(mark.epoch);
    }
    Ok(())
}

impl Ghost {
    /// A broker follows the metadata to this image.
    pub fn followed(&mut self, node: NodeId, life: u64, image: &Image) -> Verdict {
        let index = image.metadata_index();
        let known = self.observers.indexes.insert(node, (life, index));
        let is_forward = known.is_none_or(|(of, known)| of != life || known <= index);
        require(is_forward, "S8", || {
            format!("node {node} goes back to metadata {index} from {known:?}")
        })?;
        for topic in image.topics() {
            for (assigned, at) in topic.partitions.iter().zip(0..) {
                let id = TopicPartition { topic_id: topic.id, partition: at };
                let now = (life, assigned.leader_epoch, assigned.partition_epoch);
                let before = self.observers.partitions.insert((node, id), now);
                let is_forward = before.is_none_or(|before| {
                    before.0 != life || (before.1 <= now.1 && before.2 <= now.2)
                });
                require(is_forward, "S8", || {
                    format!("node {node} sees the epochs of {id} go from {before:?} to {now:?}")
                })?;
            }
        }
        self.metadata.check_followed(node, image)
    }
}

//! S7, one leader per epoch: at most one broker ever appends on its own in an epoch of a partition, and what has an offset
//! and an epoch is the same wherever it is.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use tidemark_protocol::{LeaderEpoch, NodeId, Offset, TopicPartition};

use super::{Mark, Observed, ReplicaKey, Verdict, require, violation};

/// Who has appended in each epoch, and what.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    appended_by: BTreeMap<(TopicPartition, LeaderEpoch), NodeId>,
    content: BTreeMap<(TopicPartition, Offset, LeaderEpoch), u64>,
}

impl Leaders {
    /// Whether somebody has appended this record, as far as anybody has seen.
    pub(super) fn knows(
        &self,
        partition: TopicPartition,
        offset: Offset,
        mark: Mark,
    ) -> Option<bool> {
        let known = self.content.get(&(partition, offset, mark.epoch))?;
        Some(*known == mark.hash)
    }
}

pub(super) fn check(
    leaders: &mut Leaders,
    (node, partition): ReplicaKey,
    seen: &Observed,
    from: Offset,
    marks: &VecDeque<Option<Mark>>,
) -> Verdict {
    for (mark, offset) in marks.iter().zip(from..) {
        let Some(mark) = mark else { continue };
        if seen.led.as_ref().map(|led| led.epoch) == Some(mark.epoch) {
            let by = *leaders.appended_by.entry((partition, mark.epoch)).or_insert(node);
            require(by == node, "S7", || {
                format!("nodes {by} and {node} both lead {partition} in epoch {}", mark.epoch)
            })?;
        }
        match leaders.content.entry((partition, offset, mark.epoch)) {
            Entry::Vacant(entry) => {
                entry.insert(mark.hash);
            }
            Entry::Occupied(entry) if *entry.get() == mark.hash => {}
            Entry::Occupied(_) => {
                let text = format!(
                    "node {node} has something else at {offset} of {partition} in epoch {} than another",
                    mark.epoch
                );
                return Err(violation("S7", text));
            }
        }
    }
    Ok(())
}

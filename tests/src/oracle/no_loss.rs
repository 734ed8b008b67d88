//! S6, no loss: whatever was acknowledged by all is on at least one replica. Always in a topic that is durable on disk; in
//! one that is durable in memory, as long as fewer replicas than its minimum have lost what they had not flushed.
//!
//! And its sharper form at the moment of the acknowledgement: every replica that the controller may elect has it.

use std::collections::BTreeMap;

use tidemark_controller::Image;
use tidemark_protocol::{NodeId, Offset, TopicPartition};

use super::{Ghost, ReplicaKey, Verdict, require};
use crate::sim::figures::Figures;

/// How far each partition was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    ends: BTreeMap<TopicPartition, Offset>,
}

impl Ghost {
    /// A produce with acks from all was answered: everything below `end` is acknowledged.
    pub fn acknowledged(&mut self, partition: TopicPartition, end: Offset) -> Verdict {
        if self.metadata.partition(partition).is_none() {
            // Deleted while the answer was on its way, and what was committed is forgotten with it.
            return Ok(());
        }
        let known = self.acknowledged.ends.entry(partition).or_insert(0);
        *known = (*known).max(end);
        if self.lossy.contains(&partition) {
            return Ok(());
        }
        let committed = self.true_end(partition);
        require(committed >= end, "S6", || {
            format!("{partition} is acknowledged up to {end} and committed up to {committed}")
        })
    }

    /// An in-sync set was decided on all of whose members have lost what they had, or have rotted, which the controller has not
    /// heard of yet: a partition with one replica is moved, and the disk of the newcomer is replaced in the moment that its
    /// leader proposes it. It might as well have been replaced a moment later. To lose the disks of all in-sync replicas is
    /// more than anybody promises to survive.
    pub(super) fn judge_in_sync(
        &mut self,
        image: &Image,
        changed: &[TopicPartition],
        figures: &mut Figures,
    ) {
        for partition in changed {
            let isr = image.partition(*partition).map_or(&[][..], |assigned| &assigned.isr);
            let has_lost = |id: &NodeId| {
                self.damaged.contains(&(*id, *partition))
                    || self.loss.is_unheard(*id) && self.loss.is_flagged(*id, *partition)
            };
            if !isr.is_empty() && isr.iter().all(has_lost) && self.lost.insert(*partition) {
                figures.happened("partitions whose last replica was wiped");
            }
        }
    }

    /// Looks at all partitions: is everything acknowledged somewhere?
    pub fn check_no_loss(&mut self) -> Verdict {
        let ends: Vec<_> = self.acknowledged.ends.iter().map(|(id, end)| (*id, *end)).collect();
        for (partition, end) in ends {
            let is_excused = self.lossy.contains(&partition) || self.lost.contains(&partition);
            if is_excused || self.metadata.partition(partition).is_none() {
                continue;
            }
            let holders: Vec<_> =
                self.replicas.keys().filter(|(_, id)| *id == partition).copied().collect();
            let mut best = 0;
            for key in &holders {
                self.agree(*key);
                let shadow = &self.replicas[key];
                // A replica with holes is looked at record by record.
                if shadow.damaged == 0 {
                    best = best.max(shadow.agrees_to);
                }
            }
            let end = end.min(self.true_end(partition));
            let lost = (best..end).find(|offset| !self.is_held(*offset, partition, &holders));
            require(lost.is_none(), "S6", || {
                format!("{partition} is acknowledged up to {end}, and nobody has {lost:?} any more")
            })?;
        }
        Ok(())
    }

    /// Whether one of these replicas has a record that was committed, or had it trimmed away.
    fn is_held(&self, offset: Offset, partition: TopicPartition, holders: &[ReplicaKey]) -> bool {
        let committed = self.truths.get(&partition).and_then(|truth| truth.mark(offset));
        holders.iter().map(|key| &self.replicas[key]).any(|shadow| {
            offset < shadow.start
                || shadow.mark(offset).is_some()
                    && (committed.is_none() || shadow.mark(offset) == committed)
        })
    }
}

//! S6, no loss: whatever was acknowledged by all is on at least one replica. Always in a topic that is durable on disk; in
//! one that is durable in memory, as long as fewer replicas than its minimum have lost what they had not flushed.
//!
//! And its sharper form at the moment of the acknowledgement: every replica that the controller may elect has it.

use std::collections::BTreeMap;

use tidemark_protocol::{Offset, TopicPartition};

use super::{Ghost, ReplicaKey, Verdict, require};

/// How far each partition was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    ends: BTreeMap<TopicPartition, Offset>,
}

impl Ghost {
    /// A produce with acks from all was answered: everything below `end` is acknowledged.
    pub fn acknowledged(&mut self, partition: TopicPartition, end: Offset) -> Verdict {
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

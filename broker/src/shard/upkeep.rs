//! What time asks of logs: rolling by age and retention.

use tidemark_protocol::TopicPartition;

use super::{Hands, Shard, partition::Partition};
use crate::metrics::disk::Deletion;

impl Shard {
    pub(super) fn upkeep(&mut self, ids: &[TopicPartition]) {
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.upkeep(&mut self.hands);
            }
        }
    }
}

impl Partition {
    fn upkeep(&mut self, hands: &mut Hands) {
        if self.log.is_fenced() {
            return;
        }
        self.log.roll_if_due(hands.wall_ms);
        match self.log.apply_retention(self.replica.high_watermark(), hands.wall_ms) {
            Ok(deleted) if deleted.segments > 0 => {
                tracing::info!(
                    topic = %self.view.topic, partition = self.view.id.partition,
                    segments = deleted.segments, bytes = deleted.bytes, log_start = deleted.log_start,
                    "retention deleted"
                );
                hands.metrics.disk().deleted(Deletion::Time, deleted.bytes);
            }
            Ok(_nothing) => {}
            Err(error) => drop(self.storage_failure("retention", &error, hands)),
        }
    }
}

//! What time asks of logs: rolling by age, retention, and the two ends of a compaction.

use tidemark_protocol::TopicPartition;
use tidemark_replication::Event;
use tidemark_storage::{AbortedRange, CompactionBounds};

use super::{Hands, Shard, partition::Partition};
use crate::{
    disk::{CompactionDone, CompactionJob},
    disk_watch::DiskState,
    metrics::disk::Deletion,
};

impl Shard {
    pub(super) fn upkeep(&mut self, ids: &[TopicPartition]) {
        if self.hands.disk_watch.state() == DiskState::Failed {
            return;
        }
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.upkeep(&mut self.hands);
            }
        }
    }
}

impl Shard {
    pub(super) fn begin_compaction(&mut self, id: TopicPartition) -> Option<CompactionJob> {
        let partition = self.partitions.get_mut(&id)?;
        let bounds = CompactionBounds {
            decided: partition.view.last_stable_offset(),
            removals_max: partition.replica.removals_max(),
        };
        let job = partition.log.compaction_job(bounds, self.hands.wall_ms)?;
        let aborted = partition.producers.aborted().iter().map(|one| AbortedRange {
            producer_id: one.producer_id,
            offsets: one.first_offset..one.last_offset + 1,
        });
        Some(job.without(aborted.collect()))
    }

    pub(super) fn install_compaction(&mut self, id: TopicPartition, done: CompactionDone) {
        // Deleted meanwhile, if it is not here: then nothing is to be replaced.
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.install_compaction(done, &mut self.hands);
        }
    }
}

impl Partition {
    fn install_compaction(&mut self, done: CompactionDone, hands: &mut Hands) {
        let size_before = self.log.size_bytes();
        match self.log.install_compaction(done) {
            Ok(compacted) if compacted.segments > 0 => {
                tracing::info!(
                    topic = %self.view.topic, partition = self.view.id.partition,
                    segments = compacted.segments, bytes = compacted.bytes, "compacted"
                );
                hands.metrics.disk().compacted(size_before, self.log.size_bytes());
            }
            Ok(_nothing) => {}
            Err(error) => drop(self.storage_failure("compaction", &error, hands)),
        }
    }

    fn upkeep(&mut self, hands: &mut Hands) {
        self.log.roll_if_due(hands.wall_ms);
        let aborted = self.producers.aborted().len();
        self.producers.upkeep(hands.wall_ms, &self.log);
        if self.producers.aborted().len() != aborted {
            self.view.set_aborted(self.producers.aborted());
        }
        if self.replica.leader_epoch().is_none() {
            // A follower gives up what its leader has given up, and nothing by itself.
            return;
        }
        // What is not decided has not been read by whoever reads only what is (S24): it is at most the watermark.
        match self.log.apply_retention(self.view.last_stable_offset(), hands.wall_ms) {
            Ok(deleted) if deleted.segments > 0 => {
                tracing::info!(
                    topic = %self.view.topic, partition = self.view.id.partition,
                    segments = deleted.segments, bytes = deleted.bytes, log_start = deleted.log_start,
                    "retention deleted"
                );
                let metrics = hands.metrics.disk();
                metrics.deleted(Deletion::Size, deleted.oversize_bytes);
                metrics.deleted(Deletion::Time, deleted.bytes - deleted.oversize_bytes);
                self.step(Event::LogStartMoved { offset: deleted.log_start }, hands);
            }
            Ok(_nothing) => {}
            Err(error) => drop(self.storage_failure("retention", &error, hands)),
        }
    }
}

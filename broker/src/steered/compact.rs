//! Compaction of a steered broker's logs, a step at a time: what the task of `compactor.rs` does, with time between the steps.

use tidemark_protocol::{Offset, TopicPartition};

use super::Steered;
use crate::{
    disk::{CompactionDone, CompactionJob},
    disk_watch::DiskState,
    shard::Command,
};

/// A compaction on its way.
#[derive(Debug)]
pub(super) enum Compaction {
    Begun(TopicPartition, CompactionJob),
    Run(TopicPartition, CompactionDone),
}

/// What a step of compaction has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compacted {
    Nothing,
    /// What is below this is about to be replaced.
    Rewritten(TopicPartition, Offset),
    Installed(TopicPartition),
}

impl Steered {
    /// Takes the next step of the compaction that is under way, or begins the next one that is due.
    pub fn step_compaction(&mut self) -> Compacted {
        match self.compaction.take() {
            None => {
                self.begin_compaction();
                Compacted::Nothing
            }
            Some(Compaction::Begun(partition, job)) => {
                // A failure leaves the log as it was.
                let Ok(done) = job.run() else { return Compacted::Nothing };
                let end = done.cleaned_end();
                self.compaction = Some(Compaction::Run(partition, done));
                Compacted::Rewritten(partition, end)
            }
            Some(Compaction::Run(partition, done)) => {
                let Some(view) = self.partitions.get(partition) else { return Compacted::Nothing };
                self.tell(view.shard.index, Command::InstallCompaction { partition, done });
                self.wake();
                Compacted::Installed(partition)
            }
        }
    }

    fn begin_compaction(&mut self) {
        if self.disk_watch.state() != DiskState::Ok {
            return;
        }
        for index in 0..self.shards.len() {
            for partition in self.held_by(index) {
                let topic = self.followed.topic_by_id(partition.topic_id);
                if topic.is_none_or(|topic| !topic.config.cleanup_policy.compact) {
                    continue;
                }
                let job = self.ask(index, |reply| Command::BeginCompaction { partition, reply });
                if let Some(job) = job {
                    self.compaction = Some(Compaction::Begun(partition, job));
                    return;
                }
            }
        }
    }
}

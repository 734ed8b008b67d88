//! One partition in the hands of its owner: the log, the replica that decides about it, and the view that
//! everybody else reads.

use std::sync::Arc;

use tidemark_controller::{TopicConfig, TopicDurability};
use tidemark_protocol::{ErrorCode, Failure, Offset};
use tidemark_replication::{Event, Replica, Settings, StorageDurability};
use tidemark_storage::{Checkpoint, Cleanup, FlushDone, FlushError, LogConfig, StorageError};

use super::{Hands, effects, produce::storage_failed};
use crate::{
    disk::{Log, SummaryJob},
    disk_watch::DiskState,
    flusher::{Flush, LogToken},
    metrics::disk::Deletion,
    partitions::{PartitionView, check_epoch},
    producers::Producers,
};

/// About one index entry for this many bytes of batches.
const INDEX_INTERVAL_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) log: Log,
    pub(super) producers: Producers,
    pub(super) replica: Replica,
    pub(super) view: Arc<PartitionView>,
    /// Of this log; its flushes carry it.
    pub(super) token: LogToken,
    flushing: bool,
    /// Whether somebody waits for the flush under way.
    flushing_urgently: bool,
    /// Somebody waits for everything below this to be flushed.
    pub(super) flush_wanted: Offset,
    /// Whether it is among the shard's `flush_later`.
    flush_later: bool,
}

impl Partition {
    pub(super) fn new(
        (log, producers): (Log, Producers),
        view: Arc<PartitionView>,
        replica: tidemark_replication::Config,
    ) -> Self {
        let replica = Replica::new(replica);
        view.set_aborted(producers.aborted());
        Self {
            log,
            producers,
            replica,
            view,
            token: LogToken::default(),
            flushing: false,
            flushing_urgently: false,
            flush_wanted: 0,
            flush_later: false,
        }
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.replica.next_deadline_ms()
    }

    /// Tells the replica what happened, and does what it asks for.
    pub(super) fn step(&mut self, event: Event, hands: &mut Hands) {
        let mut next = Some(event);
        while let Some(event) = next {
            self.replica.step(hands.now_ms, event, &mut hands.effects);
            next = effects::run(self, hands);
        }
        // After the watermark: whoever is told that it is known may believe what it finds.
        self.view.set_watermark_known(self.replica.is_watermark_known());
        if let Some(deadline_ms) = self.replica.next_deadline_ms() {
            hands.next_expiry_ms = hands.next_expiry_ms.min(deadline_ms);
        }
    }

    /// Takes note of what was just appended, before any of it is committed.
    pub(super) fn producers_wrote(&mut self, note: impl FnOnce(&mut Producers)) {
        let before = self.producers.aborted().len();
        note(&mut self.producers);
        for one in self.producers.aborted().iter().skip(before) {
            self.view.add_aborted(*one);
        }
    }

    /// What is durable of the log. `is_last`: it is about to be closed.
    pub(super) fn checkpoint(&self, is_last: bool) -> Checkpoint {
        let mut checkpoint = self.log.checkpoint();
        checkpoint.summary = self.producers.checkpoint_summary(&self.log, is_last);
        checkpoint
    }

    /// See [`Producers::summary_job`].
    pub(super) fn summary_job(&mut self, may_be_early: bool) -> Option<SummaryJob> {
        let committed = self.replica.high_watermark().min(self.log.flushed_offset());
        self.producers.summary_job(&self.log, committed, may_be_early)
    }

    /// Notes that data was appended that no flush has covered.
    pub(super) fn dirtied(&mut self, hands: &mut Hands) {
        if !self.flush_later {
            self.flush_later = true;
            hands.flush_later.push(self.view.id);
        }
    }

    pub(super) fn flush_in_background(&mut self, hands: &mut Hands) {
        self.flush_later = false;
        if self.flushing {
            // What is under way may have begun before the last append.
            self.dirtied(hands);
        } else {
            self.begin_flush(false, hands);
        }
    }

    /// Hands whatever is dirty to the flusher, unless a flush is under way: then its end begins the next.
    pub(super) fn begin_flush(&mut self, urgent: bool, hands: &mut Hands) {
        if self.flushing {
            if urgent && !std::mem::replace(&mut self.flushing_urgently, true) {
                hands.flusher.hurry(self.view.id);
            }
            return;
        }
        if let Some(job) = self.log.flush_job() {
            (self.flushing, self.flushing_urgently) = (true, urgent);
            let (partition, log) = (self.view.id, self.token.clone());
            let done = hands.flushed.clone();
            hands.flusher.submit(Flush { partition, log, job, urgent, done });
        }
    }

    /// Sees to it that a flush is under way if anything is not durable. Says whether one is.
    pub(super) fn flush_rest(&mut self, hands: &mut Hands) -> bool {
        if !self.is_flushed() {
            self.begin_flush(true, hands);
        }
        self.flushing
    }

    /// Whether every record is durable. What else a flush writes, the history of epochs, a checkpoint holds.
    pub(super) fn is_flushed(&self) -> bool {
        self.log.flushed_offset() == self.log.log_end_offset()
    }

    pub(super) fn flushed(&mut self, outcome: Result<FlushDone, FlushError>, hands: &mut Hands) {
        self.flushing = false;
        match outcome {
            Ok(done) => {
                self.log.flushed(done);
                let end_offset = self.log.flushed_offset();
                self.step(Event::Flushed { end_offset }, hands);
                if self.flush_wanted > end_offset {
                    hands.flush_soon.push(self.view.id);
                }
            }
            Err(FlushError::Full(error)) => {
                // Said once for the directory, by `fill`.
                tracing::debug!(partition = %self.view.id, topic = %self.view.topic, %error, "no space to flush");
                hands.disk_watch.fill();
                hands.flush_again.push(self.view.id);
            }
            Err(error @ (FlushError::Failed(_) | FlushError::Fenced)) => {
                self.failed(&format!("flush of {}: {error}", self.view.topic), hands);
            }
            // The last flush of a log that is being deleted.
            Err(FlushError::Deleted) => {}
        }
    }

    /// The log takes no more writes: everybody who waits learns it, and the directory is fenced. Reads go on.
    pub(super) fn failed(&mut self, cause: &str, hands: &mut Hands) {
        hands.disk_watch.fail(cause);
        self.step(Event::StorageFailed, hands);
    }

    pub(super) fn trim(
        &mut self,
        before: Option<Offset>,
        hands: &mut Hands,
    ) -> Result<Offset, Failure> {
        if hands.disk_watch.state() == DiskState::Failed {
            return Err(storage_failed(hands));
        }
        let name = self.view.name().to_string();
        // It may have been demoted since the service looked.
        check_epoch(&name, self.replica.leader_epoch(), None)?;
        let high_watermark = self.replica.high_watermark();
        let before = before.unwrap_or(high_watermark);
        if before > high_watermark {
            let message = format!(
                "records of {name} can be deleted up to the high watermark {high_watermark}, not to {before}"
            );
            return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let size_before = self.log.size_bytes();
        match self.log.trim(before) {
            Ok(log_start) => {
                let deleted = size_before.saturating_sub(self.log.size_bytes());
                hands.metrics.disk().deleted(Deletion::Trim, deleted);
                self.step(Event::LogStartMoved { offset: log_start }, hands);
                Ok(log_start)
            }
            Err(error) => Err(self.storage_failure("deleting records", &error, hands)),
        }
    }

    /// Puts a failure of the log into words, and draws the consequences.
    pub(super) fn storage_failure(
        &mut self,
        attempt: &str,
        error: &StorageError,
        hands: &mut Hands,
    ) -> Failure {
        let attempt = format!("{attempt} of {}", self.view.name());
        let is_full = match error {
            StorageError::Disk(error) => error.is_full(),
            StorageError::Flush(error) => matches!(error, FlushError::Full(_)),
            _ => false,
        };
        if is_full {
            hands.disk_watch.fill();
            return Failure::new(ErrorCode::DiskFull, format!("{attempt}: {error}"));
        }
        if let StorageError::OutOfRange { .. } = error {
            return Failure::new(ErrorCode::OffsetOutOfRange, format!("{attempt}: {error}"));
        }
        tracing::error!(%error, "{attempt} failed");
        if self.log.is_fenced() {
            self.failed(&format!("{attempt}: {error}"), hands);
        }
        Failure::new(ErrorCode::StorageFailed, format!("{attempt}: {error}"))
    }
}

/// A topic's settings as its logs take them.
pub(crate) fn log_config(config: &TopicConfig) -> LogConfig {
    LogConfig {
        segment_bytes: config.segment_bytes,
        segment_ms: config.segment_ms,
        retention_bytes: config.retention_bytes,
        retention_ms: config.retention_ms,
        cleanup: Cleanup {
            delete: config.cleanup_policy.delete,
            compact: config.cleanup_policy.compact,
        },
        delete_retention_ms: config.delete_retention_ms,
        min_compaction_lag_ms: config.min_compaction_lag_ms,
        index_interval_bytes: INDEX_INTERVAL_BYTES,
        max_batch_bytes: config.max_batch_bytes.into(),
    }
}

/// A topic's settings as its replicas take them.
pub(super) fn replica_settings(config: &TopicConfig) -> Settings {
    Settings {
        durability: storage_durability(config.durability),
        min_insync_replicas: config.min_insync_replicas,
    }
}

/// A topic's durability as its replicas take it.
pub(crate) fn storage_durability(durability: TopicDurability) -> StorageDurability {
    match durability {
        TopicDurability::Disk => StorageDurability::Disk,
        TopicDurability::Memory => StorageDurability::Memory,
    }
}

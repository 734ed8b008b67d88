//! What has to be done from time to time: rolling, retention, checkpoints.
//!
//! It goes round the partitions a few at a time and waits for each few, so that a shard with ten thousand
//! partitions serves its producers in between. It has no timer and no task per partition.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tidemark_protocol::TopicPartition;
use tidemark_storage::DataDir;
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    broker::Broker,
    disk::{Disk, SummaryJob},
    flusher::Flusher,
    left_behind::LeftBehind,
    shard::{Command, Noted},
    tasks::Shutdown,
};

/// Partitions handled by one command to a shard.
const PARTITIONS_PER_COMMAND: usize = 64;

pub(crate) struct Janitor {
    pub(crate) broker: Arc<Broker>,
    pub(crate) flusher: Flusher,
    pub(crate) data_dir: Arc<DataDir<Disk>>,
    pub(crate) left_behind: LeftBehind,
}

impl Janitor {
    /// Works until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let config = &self.broker.config;
        let mut checkpoints = interval(config.checkpoint_interval);
        let mut upkeep = interval(config.retention_interval);
        // Recovery has flushed what a crash left. Without this, a broker that keeps being killed before its first
        // checkpoint is due would read more at every start.
        self.write_checkpoint().await;
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                _ = checkpoints.tick() => self.checkpoint().await,
                () = self.flusher.checkpoint_due() => {
                    self.checkpoint().await;
                    checkpoints.reset();
                }
                _ = upkeep.tick() => {
                    let ask = |partitions, reply| Command::Upkeep { partitions, reply };
                    self.ask_in_turn(ask, |()| {}).await;
                    self.delete_left_behind().await;
                }
            }
        }
    }

    /// Writes down what is durable, if anything has become so since the last time.
    async fn checkpoint(&self) {
        if self.flusher.take_flushed_bytes() > 0 {
            self.write_checkpoint().await;
        }
    }

    async fn write_checkpoint(&self) {
        let mut summaries = Vec::new();
        self.data_dir.begin_checkpoints();
        let mut logs = self.broker.partitions.not_open_checkpoints();
        let ask = |partitions, reply| Command::Checkpoints { partitions, reply };
        let note = |some: Noted| {
            logs.extend(some.checkpoints);
            summaries.extend(some.summaries);
        };
        self.ask_in_turn(ask, note).await;
        let data_dir = Arc::clone(&self.data_dir);
        let write = move || {
            store_summaries(summaries);
            data_dir.write_checkpoints(&logs.into_iter().collect::<Vec<_>>())
        };
        let written = tokio::task::spawn_blocking(write).await;
        if let Ok(Err(error)) = written {
            // Not a loss: the next start reads more.
            tracing::warn!(%error, "the checkpoint file was not written");
        }
    }

    async fn delete_left_behind(&self) {
        let (left_behind, now_ms) = (self.left_behind.clone(), self.broker.clock.wall_ms());
        let now_ms = u64::try_from(now_ms).unwrap_or(0);
        let deleted = tokio::task::spawn_blocking(move || left_behind.delete_old(now_ms)).await;
        if let Ok(Err(error)) = deleted {
            tracing::warn!(%error, "what was left behind is not deleted");
        }
    }

    /// Asks every shard about its partitions, a few at a time.
    async fn ask_in_turn<T>(
        &self,
        command: impl Fn(Vec<TopicPartition>, oneshot::Sender<T>) -> Command,
        mut answer: impl FnMut(T),
    ) {
        let mut by_shard: BTreeMap<usize, Vec<TopicPartition>> = BTreeMap::new();
        for view in self.broker.partitions.all() {
            by_shard.entry(view.shard.index).or_default().push(view.id);
        }
        for (index, partitions) in by_shard {
            for some in partitions.chunks(PARTITIONS_PER_COMMAND) {
                let asked =
                    self.broker.shards[index].ask(|reply| command(some.to_vec(), reply)).await;
                if let Ok(answered) = asked {
                    answer(answered);
                }
            }
        }
    }
}

/// Makes summaries of logs durable. Blocks on the disk.
pub(crate) fn store_summaries(summaries: Vec<SummaryJob>) {
    for summary in summaries {
        if let Err(error) = summary.run() {
            // As with checkpoints: the next start reads more.
            tracing::warn!(%error, "a summary was not written");
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// What the disk watch asks for: the space left for the data directory.
pub(crate) fn space(data_dir: &DataDir<Disk>) -> io::Result<crate::disk_watch::DiskSpace> {
    let space = data_dir.space().map_err(io::Error::other)?;
    Ok(crate::disk_watch::DiskSpace {
        free_bytes: space.free_bytes,
        total_bytes: space.total_bytes,
    })
}

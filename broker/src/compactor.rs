//! Compaction by key, in the background: one log at a time, so that it takes one core and one disk stream at
//! most. When and what is storage's to decide; the shard is visited only to begin and to install.

use std::sync::Arc;

use tidemark_protocol::TopicPartition;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{broker::Broker, disk_watch::DiskState, shard::Command, tasks::Shutdown};

/// Compacts what is due every `retention_interval`, until shutdown.
pub(crate) async fn run(broker: Arc<Broker>, shutdown: Shutdown) {
    let period = broker.config.retention_interval;
    let mut rounds = tokio::time::interval_at(Instant::now() + period, period);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.or_stop(rounds.tick()).await.is_some() {
        for partition in compacted(&broker) {
            // It needs space for what it writes before it frees what it replaces.
            if shutdown.has_started() || broker.disk_watch.state() != DiskState::Ok {
                break;
            }
            compact(&broker, partition).await;
        }
    }
}

/// The partitions here whose topics ask for compaction.
fn compacted(broker: &Broker) -> Vec<TopicPartition> {
    let image = broker.image();
    let topics = image.topics().filter(|topic| topic.config.cleanup_policy.compact);
    let ids = topics.flat_map(|topic| {
        let topic_id = topic.id;
        (0..topic.partition_count()).map(move |partition| TopicPartition { topic_id, partition })
    });
    ids.collect()
}

async fn compact(broker: &Broker, partition: TopicPartition) {
    let Some(view) = broker.partitions.get(partition) else { return };
    let begun = view.shard.ask(|reply| Command::BeginCompaction { partition, reply }).await;
    let Ok(Some(job)) = begun else { return };
    match tokio::task::spawn_blocking(move || job.run()).await {
        Ok(Ok(done)) => {
            // An error: the broker is stopping, and the log is as it was.
            drop(view.shard.send(Command::InstallCompaction { partition, done }).await);
        }
        Ok(Err(error)) => {
            tracing::warn!(topic = %view.topic, %partition, %error, "compaction failed; the log is as it was");
        }
        Err(_runtime_is_stopping) => {}
    }
}

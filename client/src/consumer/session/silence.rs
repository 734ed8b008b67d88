//! A leader that says nothing: there may be nothing to say, or it may be cut off, stand still, and lead no more.
//!
//! The broker of a session cannot be asked whether it lives without waiting for it; others know who leads. So this asks for
//! the metadata while a session is silent, less and less often, and ends the session when another leads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, TopicPartition};
use tokio::time::{Instant, sleep};

use super::Worker;
use crate::{cluster::Cluster, error::RequestError};

/// After so much silence it is asked who leads.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// While it stays silent it is asked again after growing pauses, up to this.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// A leader that was deposed and lives says so itself; it has this long for it.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Watches one session from the side.
pub(super) struct Watch {
    cluster: Arc<Cluster>,
    heard: Arc<AtomicBool>,
    partitions: Vec<(TopicPartition, LeaderEpoch)>,
}

impl Watch {
    pub(super) fn new(worker: &Worker) -> Self {
        let partitions = worker.readings.iter().map(|it| (it.partition, it.epoch)).collect();
        Self { cluster: worker.cluster.clone(), heard: worker.heard.clone(), partitions }
    }

    /// Returns when the session is silent and others lead what it reads.
    pub(super) async fn led_by_others(self) -> RequestError {
        let mut pause = ASK_AFTER;
        loop {
            self.silence(&mut pause).await;
            self.ask().await;
            if !self.has_moved() {
                continue;
            }
            sleep(LAST_WORD).await;
            if !self.heard.swap(false, Ordering::Relaxed) {
                let message = "it is silent, and another broker leads what it was asked for";
                return RequestError::Refused(Failure::new(ErrorCode::NotLeader, message));
            }
        }
    }

    /// Returns when nothing was heard for the pause, which starts anew with everything that is.
    async fn silence(&self, pause: &mut Duration) {
        loop {
            sleep(*pause).await;
            if !self.heard.swap(false, Ordering::Relaxed) {
                *pause = (*pause * 2).min(ASK_AGAIN_AFTER);
                return;
            }
            *pause = ASK_AFTER;
        }
    }

    async fn ask(&self) {
        let metadata = self.cluster.metadata();
        let mut topics: Vec<Arc<str>> = self
            .partitions
            .iter()
            .filter_map(|(partition, _)| metadata.name_of(partition.topic_id).cloned())
            .collect();
        topics.sort();
        topics.dedup();
        let deadline = Instant::now() + self.cluster.config().request_timeout;
        // Nobody can say now; there will be another time.
        drop(self.cluster.refresh(&topics, deadline).await);
    }

    fn has_moved(&self) -> bool {
        let metadata = self.cluster.metadata();
        self.partitions.iter().any(|(partition, epoch)| {
            metadata
                .name_of(partition.topic_id)
                .is_some_and(|topic| metadata.has_later_leader(topic, partition.partition, *epoch))
        })
    }
}

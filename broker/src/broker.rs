//! What the doors' handlers share: who we are, what we hold, and whom to ask. Values and handles, no logic.

use std::net::SocketAddr;

use tidemark_controller::ControllerHandle;
use tidemark_protocol::{BrokerId, TopicId, TopicPartition};
use tokio::sync::watch;

use crate::{
    clock::Clock, config::Config, disk_watch::DiskWatch, health::Health, metrics::Metrics,
    partitions::Partitions, reads::ColdReads, tasks::Tasks,
};

/// One running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) id: BrokerId,
    pub(crate) cluster_id: String,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) tasks: Tasks,
    pub(crate) controller: ControllerHandle,
    pub(crate) partitions: Partitions,
    pub(crate) cold_reads: ColdReads,
    pub(crate) disk_watch: DiskWatch,
    /// Metadata index up to which (exclusive) the partitions here are as the metadata says.
    pub(crate) assigned: watch::Receiver<u64>,
}

/// Who asks, as far as an answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The address at which the client reached this broker.
    pub(crate) local_address: SocketAddr,
}

impl Broker {
    /// Whether a topic has partitions assigned to this broker whose logs are not open.
    pub(crate) fn partitions_missing(&self, topic_id: TopicId) -> bool {
        let image = self.controller.image();
        let Some(topic) = image.topic_by_id(topic_id) else { return false };
        topic.partitions.iter().zip(0..).any(|(assigned, partition)| {
            assigned.replicas.contains(&self.id)
                && self.partitions.get(TopicPartition { topic_id, partition }).is_none()
        })
    }
}

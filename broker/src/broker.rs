//! What the doors' handlers share: who we are, what we hold, and whom to ask. Values and handles, no logic.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidemark_controller::{Image, IncarnationId};
use tidemark_coordinator::{GroupCoordinator, TransactionCoordinator};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, DirectoryId, ErrorCode, Failure, NodeId, TopicId, TopicPartition,
    frame::Frame, messages::WantedState,
};
use tokio::sync::{mpsc, watch};

use crate::{
    clock::Clock,
    config::Config,
    control::Control,
    coordinators::{Handle, Nudges},
    disk_watch::DiskWatch,
    health::Health,
    lag::LagWatch,
    member::Standing,
    metrics::Metrics,
    partitions::Partitions,
    peer::Peer,
    producer_ids::ProducerIdBlocks,
    reads::ColdReads,
    replicas::{Sessions, Streams},
    shard::ShardHandle,
    tasks::Tasks,
};

/// One running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) id: BrokerId,
    pub(crate) cluster_id: String,
    pub(crate) directory: DirectoryId,
    /// Of this run of the process.
    pub(crate) incarnation: IncarnationId,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) tasks: Tasks,
    pub(crate) control: Control,
    pub(crate) images: watch::Receiver<Arc<Image>>,
    pub(crate) shards: Vec<ShardHandle>,
    pub(crate) partitions: Partitions,
    pub(crate) cold_reads: ColdReads,
    pub(crate) disk_watch: DiskWatch,
    /// Metadata index up to which (exclusive) the partitions here are as the metadata says.
    pub(crate) assigned: watch::Receiver<u64>,
    /// Since when newer metadata is being followed, while it is.
    pub(crate) behind_since: watch::Sender<Option<Instant>>,
    /// What the controller thinks of this broker.
    pub(crate) standing: watch::Receiver<Standing>,
    /// What this broker wants to be.
    pub(crate) wanted: watch::Sender<WantedState>,
    /// Followers of what is led here.
    pub(crate) sessions: Arc<Sessions>,
    /// Streams from the leaders of what is followed here.
    pub(crate) streams: Arc<Streams>,
    pub(crate) connections: AtomicU64,
    /// Coordinators of the groups that belong here.
    pub(crate) groups: Handle<GroupCoordinator>,
    /// And of the transactional ids.
    pub(crate) transactions: Handle<TransactionCoordinator>,
    /// Members that wait to be asked for a heartbeat.
    pub(crate) nudges: Nudges,
    /// How far groups are behind.
    pub(crate) lag: LagWatch,
    pub(crate) producer_ids: ProducerIdBlocks,
}

/// Who asks, as far as an answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The address at which the client reached this broker.
    pub(crate) local_address: SocketAddr,
    /// Where it connects from, for people.
    pub(crate) peer_ip: IpAddr,
}

impl Broker {
    /// Who owns a partition, if it is here at all. Never another while this process lives.
    pub(crate) fn shard_of(&self, id: TopicPartition) -> &ShardHandle {
        let seed: u32 = id.topic_id.0.iter().map(|byte| u32::from(*byte)).sum();
        &self.shards[seed.wrapping_add(id.partition) as usize % self.shards.len()]
    }

    /// Everything committed, as far as this node knows.
    pub(crate) fn image(&self) -> Arc<Image> {
        self.images.borrow().clone()
    }

    /// How long there has been metadata that the partitions here do not follow yet.
    pub(crate) fn metadata_lag(&self) -> Duration {
        let is_behind = *self.assigned.borrow() < self.image().metadata_index();
        let since = is_behind.then(|| *self.behind_since.borrow()).flatten();
        since.map_or(Duration::ZERO, |since| self.clock.since(since))
    }

    /// A number that no connection had before; never that of the broker's own.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The epoch this broker is registered with, once it is.
    pub(crate) async fn registered_epoch(&self) -> Result<BrokerEpoch, Failure> {
        let mut standing = self.standing.clone();
        let registered = standing.wait_for(|standing| standing.epoch.is_some()).await;
        registered
            .ok()
            .and_then(|standing| standing.epoch)
            .ok_or_else(|| Failure::new(ErrorCode::NotReady, "the broker is stopping"))
    }

    /// Waits until the broker is registered with another epoch than this, or with none.
    pub(crate) async fn registration_ended(&self, epoch: BrokerEpoch) {
        let mut standing = self.standing.clone();
        // An error: the broker is stopping.
        drop(standing.wait_for(|standing| standing.epoch != Some(epoch)).await);
    }

    /// A new connection to another node, and the pushes that come over it.
    pub(crate) async fn connect_to(
        &self,
        node: NodeId,
    ) -> Result<(Peer, mpsc::Receiver<Frame>), Failure> {
        let unreachable = |why: String| {
            Failure::new(ErrorCode::NotReady, format!("node {node} cannot be reached: {why}"))
        };
        let address = self.control.peers().addresses().of(node);
        let address = address.ok_or_else(|| unreachable("nobody knows where it is".to_owned()))?;
        let connected = Peer::connect(&self.tasks, &address).await;
        connected.map_err(|error| unreachable(format!("{address}: {error}")))
    }

    /// Whether a topic has partitions assigned to this broker whose logs are not open.
    pub(crate) fn partitions_missing(&self, topic_id: TopicId) -> bool {
        let image = self.image();
        let Some(topic) = image.topic_by_id(topic_id) else { return false };
        topic.partitions.iter().zip(0..).any(|(assigned, partition)| {
            assigned.replicas.contains(&self.id)
                && self.partitions.get(TopicPartition { topic_id, partition }).is_none()
        })
    }
}

#[cfg(test)]
pub(crate) mod testing;

//! A broker without a server around it, for tests of what belongs to one.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use tidemark_controller::{Image, IncarnationId};
use tidemark_protocol::{DirectoryId, NodeId, messages::WantedState};
use tokio::sync::watch;

use super::Broker;
use crate::{
    clock::Clock,
    config::Config,
    control::Control,
    coordinators::{self, Nudges},
    disk_watch::DiskWatch,
    health::Health,
    lag::LagWatch,
    member::Standing,
    metrics::Metrics,
    partitions::Partitions,
    peers::{Addresses, Peers},
    producer_ids::ProducerIdBlocks,
    reads::ColdReads,
    replicas::{Sessions, Streams},
    shard::ShardHandle,
    tasks::Tasks,
};

/// What the broker is told through: metadata, how far it is followed, its standing.
pub(crate) type Senders = (watch::Sender<Arc<Image>>, watch::Sender<u64>, watch::Sender<Standing>);

/// Broker 1, which knows this metadata and these partitions, with one shard.
pub(crate) fn broker(
    tasks: Tasks,
    shard: ShardHandle,
    (image, partitions): (Image, Partitions),
    (clock, metrics, health, disk_watch): (Clock, Metrics, Health, DiskWatch),
) -> (Arc<Broker>, Senders) {
    let (images_in, images) = watch::channel(Arc::new(image));
    let (leader, assigned, standing) =
        (watch::channel(None), watch::channel(0), watch::channel(Standing::default()));
    let addresses = Addresses::new(BTreeMap::<NodeId, String>::new(), images.clone());
    let (peers, _losses) = Peers::new(tasks.clone(), addresses);
    let broker = Broker {
        id: 1,
        cluster_id: "c".to_owned(),
        directory: DirectoryId([1; 16]),
        incarnation: IncarnationId([1; 16]),
        config: Config::with(&[("data_dir", "/data")]).unwrap(),
        clock,
        metrics,
        health,
        tasks,
        control: Control::new(1, None, peers, leader.1),
        images,
        shards: vec![shard],
        partitions,
        cold_reads: ColdReads::inline(),
        disk_watch,
        assigned: assigned.1,
        behind_since: watch::Sender::new(None),
        standing: standing.1,
        wanted: watch::Sender::new(WantedState::Active),
        sessions: Arc::<Sessions>::default(),
        streams: Arc::<Streams>::default(),
        connections: AtomicU64::default(),
        groups: coordinators::channel().0,
        transactions: coordinators::channel().0,
        nudges: Nudges::default(),
        lag: LagWatch::default(),
        producer_ids: ProducerIdBlocks::default(),
    };
    (Arc::new(broker), (images_in, assigned.0, standing.0))
}

//! From metadata to roles: what an image says about one replica, and which replicas a newer image concerns. Values in,
//! values out; who tells the shards is somebody else's business.

use std::collections::BTreeSet;

use tidemark_controller::{Image, Partition, Topic};
use tidemark_protocol::{BrokerId, PartitionIndex};
use tidemark_replication::{Assignment, Config, Member};

use crate::shard::storage_durability;

/// What `image` says about a partition.
pub(crate) fn assignment(image: &Image, partition: &Partition) -> Assignment {
    let member = |id: &BrokerId| {
        let broker = image.broker(*id);
        Member {
            id: *id,
            // A broker that nobody knows is not eligible, whatever its epoch.
            broker_epoch: broker.map_or(0, |broker| broker.epoch),
            eligible: broker.is_some_and(|broker| !broker.fenced),
        }
    };
    Assignment {
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch,
        replicas: partition.replicas.iter().map(member).collect(),
        isr: partition.isr.clone(),
    }
}

/// What a replica on `broker_id` is configured to.
pub(crate) fn config(broker_id: BrokerId, topic: &Topic, replica_lag_ms: u64) -> Config {
    Config {
        broker_id,
        durability: storage_durability(topic.config.durability),
        min_insync_replicas: topic.config.min_insync_replicas,
        replica_lag_ms,
    }
}

/// Brokers that a newer image knows otherwise: replicas are told of them, although their partitions are as before.
#[derive(Debug, Default)]
pub(crate) struct ChangedBrokers(BTreeSet<BrokerId>);

impl ChangedBrokers {
    pub(crate) fn between(before: &Image, after: &Image) -> Self {
        let standing =
            |image: &Image, id| image.broker(id).map(|broker| (broker.epoch, broker.fenced));
        let ids = before.brokers().chain(after.brokers()).map(|broker| broker.id);
        Self(ids.filter(|id| standing(before, *id) != standing(after, *id)).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the replicas of a partition have to be told what `after` says of it.
    pub(crate) fn concern(
        &self,
        before: Option<&Topic>,
        after: &Topic,
        index: PartitionIndex,
    ) -> bool {
        let partition = after.partition(index);
        before.and_then(|before| before.partition(index)) != partition
            || partition.is_some_and(|it| it.replicas.iter().any(|id| self.0.contains(id)))
    }
}

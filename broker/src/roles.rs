//! From metadata to roles: what an image says about one replica. Values in, values out; who tells the shards is
//! somebody else's business.

use tidemark_controller::{Image, Partition, Topic, plan};
use tidemark_protocol::BrokerId;
use tidemark_replication::{Assignment, Config, Member};

use crate::shard::storage_durability;

/// What `image` says about a partition.
pub(crate) fn assignment(image: &Image, partition: &Partition) -> Assignment {
    let member = |member: plan::Member| Member {
        id: member.id,
        broker_epoch: member.broker_epoch,
        eligible: member.eligible,
    };
    Assignment {
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch,
        replicas: plan::members(image, partition).into_iter().map(member).collect(),
        isr: partition.isr.clone(),
        elr: partition.elr.clone(),
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

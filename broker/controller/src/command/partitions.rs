//! Commands about who holds and leads partitions. They say what is wanted; they do not check it.

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, Failure, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId,
    TopicPartition,
};

/// A leader's changes to in-sync sets: each a compare-and-swap on the partition epoch, each with an outcome of
/// its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterPartitions {
    /// Who leads the partitions, in the run it is registered with.
    pub broker_id: BrokerId,
    pub broker_epoch: BrokerEpoch,
    pub changes: Vec<AlterPartition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterPartition {
    pub topic_id: TopicId,
    pub partition: PartitionIndex,
    pub leader_epoch: LeaderEpoch,
    /// The state that the change is made on.
    pub partition_epoch: PartitionEpoch,
    /// The in-sync set after the change.
    pub isr: Vec<IsrMember>,
}

/// A replica in sync, in the run that its leader has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrMember {
    pub id: BrokerId,
    pub broker_epoch: BrokerEpoch,
}

/// What came of a change: perhaps somebody else leads, because the change completed a reassignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub isr: Vec<BrokerId>,
    pub partition_epoch: PartitionEpoch,
}

/// Who is to be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Election {
    /// The first in order of preference, if it may lead; else nothing changes.
    Preferred,
    /// The broker named, if it is in sync; else nothing changes.
    Transfer { to: BrokerId },
    /// Where nobody leads: anybody who lives, whatever is lost by it.
    Unclean,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectLeaders {
    pub election: Election,
    /// `None`: wherever it changes something, as far as one decision goes.
    pub partitions: Option<Vec<TopicPartition>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elected {
    /// Who leads now: in the order asked for, or only where it changed.
    pub partitions: Vec<(TopicPartition, Result<BrokerId, Failure>)>,
    /// How many more there are for the same command to change.
    pub remaining: u32,
}

/// Moves replicas. Every partition has an outcome of its own; that it has begun, not that it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reassign {
    pub changes: Vec<ReassignPartition>,
    /// Sets the cluster's replication throttle in the same decision.
    pub throttle_bytes_per_second: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignPartition {
    pub partition: TopicPartition,
    /// The replicas it is to have, in order of preference; `None` takes back the reassignment under way.
    pub replicas: Option<Vec<BrokerId>>,
}

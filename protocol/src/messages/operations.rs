//! Operating a cluster: the quorum, brokers that come and go, replicas that move, leaders that change.

use serde::{Deserialize, Serialize};

use super::{cluster::VoterId, data::wire_enum};
use crate::{
    BrokerId, Failure, LeaderEpoch, NodeId, Offset, TopicPartition,
    message::{Api, Request},
};

/// Asks the active controller for the quorum; any other node answers `NotController`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeQuorumRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeQuorumResponse {
    pub leader: NodeId,
    pub term: u64,
    /// Exclusive end of what is committed in the metadata log.
    pub committed_index: u64,
    /// Exclusive end of the active controller's log.
    pub log_end_index: u64,
    /// Voters first, then those that are catching up to become voters.
    pub members: Vec<QuorumMember>,
}

/// One controller, as the active one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumMember {
    pub id: VoterId,
    pub is_voter: bool,
    /// Where the others reach it.
    pub address: String,
    /// Exclusive end of what it is known to hold; its own end for the leader.
    pub log_end_index: u64,
    /// Whether it has been heard from within an election timeout.
    pub is_alive: bool,
}

impl Request for DescribeQuorumRequest {
    const API: Api = Api::DescribeQuorum;
    type Response = DescribeQuorumResponse;
}

/// Adds a controller to the quorum, or removes one. Answers when the change is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeQuorumRequest {
    pub node: NodeId,
    /// Where the node listens, to add it; `None` removes it.
    pub add_at: Option<String>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeQuorumResponse {
    /// The voters after the change.
    pub voters: Vec<VoterId>,
}

impl Request for ChangeQuorumRequest {
    const API: Api = Api::ChangeQuorum;
    type Response = ChangeQuorumResponse;
}

/// What a broker is asked to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum BrokerChange {
    /// Its replicas move to others, and it gets no new ones.
    Drain,
    /// Gets replicas again.
    Undrain,
    /// Forgotten. Refused while it is alive or holds replicas.
    Unregister,
}

wire_enum!(BrokerChange { Drain = 0, Undrain = 1, Unregister = 2 });

/// Changes what the cluster wants of a broker. Answers when that is committed, not when replicas have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBrokerRequest {
    pub broker: BrokerId,
    pub change: BrokerChange,
    /// Check everything, change nothing.
    pub validate_only: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBrokerResponse {
    /// Replicas it holds now.
    pub replicas: u32,
}

impl Request for ChangeBrokerRequest {
    const API: Api = Api::ChangeBroker;
    type Response = ChangeBrokerResponse;
}

/// Moves replicas, or takes a move back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignPartitionsRequest {
    pub moves: Vec<PartitionMove>,
    /// Most bytes per second that a broker fetches for replicas that are not in sync yet, from now on and for all moves;
    /// 0: no bound, `None`: as it is.
    pub throttle_bytes_per_second: Option<u64>,
    /// Check everything, change nothing.
    pub validate_only: bool,
    pub timeout_ms: u32,
}

/// Where the replicas of one partition are to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMove {
    pub partition: TopicPartition,
    /// In order of preference. `None` takes back the move under way.
    pub replicas: Option<Vec<BrokerId>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignPartitionsResponse {
    /// In the order of the request.
    pub moves: Vec<Result<(), Failure>>,
}

impl Request for ReassignPartitionsRequest {
    const API: Api = Api::ReassignPartitions;
    type Response = ReassignPartitionsResponse;
}

/// What a plan of moves is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum PlanGoal {
    /// As many replicas and leaders on every broker, with as few moves as possible.
    Balance,
    /// The partitions named, on the brokers named.
    Place,
    /// Nothing left on the brokers named.
    Evacuate,
}

wire_enum!(PlanGoal { Balance = 0, Place = 1, Evacuate = 2 });

/// Asks what would have to move; changes nothing. [`ReassignPartitionsRequest`] carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMovesRequest {
    pub goal: PlanGoal,
    /// Only these topics; empty: all.
    pub topics: Vec<String>,
    /// Only these partitions; empty: all of the topics.
    pub partitions: Vec<TopicPartition>,
    pub brokers: Vec<BrokerId>,
    /// Replicas per partition afterwards; `None`: as many as there are.
    pub replication_factor: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMovesResponse {
    pub moves: Vec<PlannedMove>,
}

/// One partition's share of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    pub topic: String,
    pub partition: TopicPartition,
    pub from: Vec<BrokerId>,
    pub to: Vec<BrokerId>,
}

impl Request for PlanMovesRequest {
    const API: Api = Api::PlanMoves;
    type Response = PlanMovesResponse;
}

/// How a leader is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Election {
    /// The first replica, if it is in sync.
    Preferred,
    /// The broker named, if it is in sync.
    Transfer,
    /// Any replica that lives, when none in sync is left: committed records may be lost.
    Unclean,
}

wire_enum!(Election { Preferred = 0, Transfer = 1, Unclean = 2 });

/// Elects leaders now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectLeadersRequest {
    pub election: Election,
    /// Empty: all partitions that are not led as the election would have it.
    pub partitions: Vec<TopicPartition>,
    /// For [`Election::Transfer`].
    pub to: Option<BrokerId>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectLeadersResponse {
    /// Those looked at, and the leader each has now.
    pub partitions: Vec<(TopicPartition, Result<BrokerId, Failure>)>,
}

impl Request for ElectLeadersRequest {
    const API: Api = Api::ElectLeaders;
    type Response = ElectLeadersResponse;
}

/// Asks a leader how far its replicas are. Partitions it does not lead are refused one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeReplicasRequest {
    pub partitions: Vec<TopicPartition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeReplicasResponse {
    /// In the order of the request.
    pub partitions: Vec<Result<PartitionReplicas, Failure>>,
}

/// One partition, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReplicas {
    pub leader_epoch: LeaderEpoch,
    pub log_start_offset: Offset,
    pub high_watermark: Offset,
    pub log_end_offset: Offset,
    pub size_bytes: u64,
    /// The leader first.
    pub replicas: Vec<ReplicaProgress>,
}

/// How far one replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaProgress {
    pub broker: BrokerId,
    /// `None` while nothing is known of it in this leader epoch.
    pub log_end_offset: Option<Offset>,
    pub flushed_offset: Option<Offset>,
    /// Bytes of batches it has still to be sent, about.
    pub lag_bytes: u64,
    /// How long ago it had everything, in milliseconds; 0 when it has.
    pub lag_ms: u64,
    pub in_sync: bool,
}

impl Request for DescribeReplicasRequest {
    const API: Api = Api::DescribeReplicas;
    type Response = DescribeReplicasResponse;
}

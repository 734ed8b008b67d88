//! Operating a cluster: its quorum of controllers, brokers that come and go, replicas that move, leaders that change.
//!
//! Like all of [`Admin`], each method is one request. It refuses to wait for replicas to be copied: that goes on in the
//! cluster, whoever has asked for it, and [`Admin::metadata`] and [`Admin::describe_replicas`] show how far it is.

use tidemark_protocol::{
    BrokerId, Failure, NodeId, PartitionIndex, TopicPartition,
    messages::{
        BrokerChange, ChangeBrokerRequest, ChangeBrokerResponse, ChangeQuorumRequest,
        DescribeQuorumRequest, DescribeQuorumResponse, DescribeReplicasRequest,
        ElectLeadersRequest, Election, PartitionMove, PartitionReplicas, PlanMovesRequest,
        PlannedMove, ReassignPartitionsRequest, VoterId,
    },
};

use super::Admin;
use crate::{
    cluster::{Repeat, Target},
    error::AdminError,
    partitions::{Asking, Chosen},
};

/// Replicas to be moved.
#[derive(Clone, Debug, Default)]
pub struct Reassignment {
    /// Where the replicas of partitions are to be; `None` takes back the move under way.
    pub moves: Vec<(TopicPartition, Option<Vec<BrokerId>>)>,
    /// Most bytes per second that a broker fetches for replicas that are not in sync yet, for all moves from now on;
    /// 0: no bound, `None`: as it is.
    pub throttle_bytes_per_second: Option<u64>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

impl Admin {
    /// The controllers, and how far each is.
    pub async fn describe_quorum(&self) -> Result<DescribeQuorumResponse, AdminError> {
        self.question(&Target::Controller, &DescribeQuorumRequest {}).await
    }

    /// Makes the running node that listens at `address` a controller; answers the voters afterwards.
    pub async fn add_controller(
        &self,
        node: NodeId,
        address: &str,
    ) -> Result<Vec<VoterId>, AdminError> {
        self.change_quorum(node, Some(address.to_owned())).await
    }

    /// Takes a controller out of the quorum; answers the voters afterwards.
    pub async fn remove_controller(&self, node: NodeId) -> Result<Vec<VoterId>, AdminError> {
        self.change_quorum(node, None).await
    }

    async fn change_quorum(
        &self,
        node: NodeId,
        add_at: Option<String>,
    ) -> Result<Vec<VoterId>, AdminError> {
        let request = ChangeQuorumRequest { node, add_at, timeout_ms: self.timeout_ms() };
        Ok(self.change(&request).await?.voters)
    }

    /// Drains a broker, takes that back, or forgets it.
    pub async fn change_broker(
        &self,
        broker: BrokerId,
        change: BrokerChange,
        validate_only: bool,
    ) -> Result<ChangeBrokerResponse, AdminError> {
        let timeout_ms = self.timeout_ms();
        let request = ChangeBrokerRequest { broker, change, validate_only, timeout_ms };
        match change {
            BrokerChange::Drain | BrokerChange::Undrain => self.repeatable(&request).await,
            BrokerChange::Unregister => self.change(&request).await,
        }
    }

    /// Starts moves of replicas, or takes them back: one outcome each, in order.
    pub async fn reassign_partitions(
        &self,
        reassignment: Reassignment,
    ) -> Result<Vec<Result<(), Failure>>, AdminError> {
        let moves = reassignment.moves.into_iter();
        let request = ReassignPartitionsRequest {
            moves: moves
                .map(|(partition, replicas)| PartitionMove { partition, replicas })
                .collect(),
            throttle_bytes_per_second: reassignment.throttle_bytes_per_second,
            validate_only: reassignment.validate_only,
            timeout_ms: self.timeout_ms(),
        };
        Ok(self.repeatable(&request).await?.moves)
    }

    /// What would have to move; [`Admin::reassign_partitions`] carries it out.
    pub async fn plan_moves(
        &self,
        request: &PlanMovesRequest,
    ) -> Result<Vec<PlannedMove>, AdminError> {
        Ok(self.question(&Target::Controller, request).await?.moves)
    }

    /// Elects leaders now: those looked at, and the leader each has then. `to` is for [`Election::Transfer`]; without
    /// `partitions` all are meant that are not led as the election would have it.
    pub async fn elect_leaders(
        &self,
        election: Election,
        partitions: Vec<TopicPartition>,
        to: Option<BrokerId>,
    ) -> Result<Vec<(TopicPartition, Result<BrokerId, Failure>)>, AdminError> {
        let timeout_ms = self.timeout_ms();
        let request = ElectLeadersRequest { election, partitions, to, timeout_ms };
        let answer = match election {
            Election::Preferred | Election::Transfer => self.repeatable(&request).await?,
            Election::Unclean => self.change(&request).await?,
        };
        Ok(answer.partitions)
    }

    /// How far the replicas of partitions are, as their leaders see it: one outcome each, in order.
    ///
    /// `Err` outside when nothing could be asked, inside for a single partition.
    pub async fn describe_replicas<T: AsRef<str>>(
        &self,
        partitions: &[(T, PartitionIndex)],
    ) -> Result<Vec<Result<PartitionReplicas, AdminError>>, AdminError> {
        let request = |chosen: &[Chosen]| DescribeReplicasRequest {
            partitions: chosen.iter().map(|(_, partition, _)| *partition).collect(),
        };
        let deadline = self.deadline();
        let asking = Asking { cluster: &self.cluster, repeat: Repeat::Question, deadline };
        asking.leaders(partitions, request, |answer| answer.partitions).await
    }
}

//! What a steered broker's coordinators are asked, and what they want done.

use std::{ops::Range, time::Duration};

use tidemark_coordinator::{
    GroupCoordinator, LoadError, Now, ProducerId, TransactionCoordinator,
    groups::{GroupEffect, GroupRequest, GroupResponse, Verification},
    transactions::{TransactionEffect, TransactionRequest, TransactionResponse},
};
use tidemark_protocol::{ErrorCode, Failure, PartitionIndex};
use tokio::sync::oneshot;

use super::{
    Steered,
    hosted::{Around, Beginning, Steer, until},
};
use crate::coordinators::DecisionOf;

/// The wait for a coordinator's answer.
#[derive(Debug)]
pub struct Asked<T> {
    outcome: oneshot::Receiver<Result<T, Failure>>,
}

impl<T> Asked<T> {
    /// The outcome, once there is one.
    pub fn outcome(&mut self) -> Option<Result<T, Failure>> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => {
                Some(Err(Failure::new(ErrorCode::NotCoordinator, "the coordinator has ended")))
            }
        }
    }
}

/// What was decided and is committed by now, by partition of the coordinators' topics.
#[derive(Debug, Default)]
pub struct Effects {
    pub groups: Vec<(PartitionIndex, GroupEffect)>,
    pub transactions: Vec<(PartitionIndex, TransactionEffect)>,
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.transactions.is_empty()
    }
}

impl Steer for GroupCoordinator {
    fn begin(
        loader: Self::Loader,
        at: Beginning<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError> {
        let (config, topics) = (at.settings.groups.clone(), at.excerpt.clone());
        loader.finish(at.first_offset, config, topics, at.now)
    }

    fn difference(&self, shadow: Self::Loader) -> Option<String> {
        difference(self.state(), shadow.state())
    }
}

impl Steer for TransactionCoordinator {
    fn begin(
        loader: Self::Loader,
        at: Beginning<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError> {
        let epoch = i32::try_from(at.leader_epoch).unwrap_or(i32::MAX);
        loader.finish(at.first_offset, epoch, at.settings.transactions.clone(), at.now)
    }

    fn difference(&self, shadow: Self::Loader) -> Option<String> {
        difference(self.state(), shadow.state())
    }
}

fn difference<S: PartialEq + std::fmt::Debug>(
    live: &S,
    said: Result<S, LoadError>,
) -> Option<String> {
    match said {
        Ok(said) if said == *live => None,
        Ok(said) => Some(format!("the coordinator has {live:?}, its log says {said:?}")),
        Err(error) => Some(error.to_string()),
    }
}

impl Steered {
    /// Lets the coordinators do what has come up. Says whether the shards have something to do for them.
    pub fn coordinate(&mut self) -> bool {
        let Self { followed, partitions, clock, cold_reads, metrics, config, .. } = self;
        let settings = &config.coordinators;
        let around = Around { image: followed, partitions, clock, cold_reads, metrics, settings };
        let mut commands = self.groups.turn(&around);
        commands.extend(self.transactions.turn(&around));
        let has_decided = !commands.is_empty();
        for (shard, command) in commands {
            self.tell(shard, command);
        }
        has_decided
    }

    /// Compares the coordinators with what their logs say (S22). What is wrong is told once.
    pub fn compare_coordinators(&mut self) -> Vec<String> {
        let Self { followed, partitions, clock, cold_reads, metrics, config, .. } = self;
        let settings = &config.coordinators;
        let around = Around { image: followed, partitions, clock, cold_reads, metrics, settings };
        self.groups.compare(&around);
        self.transactions.compare(&around);
        let mut differences = std::mem::take(&mut self.groups.differences);
        differences.append(&mut self.transactions.differences);
        differences
    }

    /// What the coordinators want done, in order.
    pub fn take_effects(&mut self) -> Effects {
        let groups = std::mem::take(&mut self.groups.effects);
        Effects { groups, transactions: std::mem::take(&mut self.transactions.effects) }
    }

    /// Asks the group coordinator of a partition, if it is here.
    pub fn ask_groups(
        &mut self,
        partition: PartitionIndex,
        request: GroupRequest,
    ) -> Result<Asked<GroupResponse>, Failure> {
        let now = self.now();
        Ok(Asked { outcome: self.groups.ask(partition, request, now)? })
    }

    /// Asks the transaction coordinator of a partition, if it is here.
    pub fn ask_transactions(
        &mut self,
        partition: PartitionIndex,
        request: TransactionRequest,
    ) -> Result<Asked<TransactionResponse>, Failure> {
        let now = self.now();
        Ok(Asked { outcome: self.transactions.ask(partition, request, now)? })
    }

    /// Whether a producer's transaction is to be verified before it commits offsets here.
    pub fn begin_verification(
        &mut self,
        partition: PartitionIndex,
        producer_id: ProducerId,
        epoch: i16,
    ) -> Result<Verification, Failure> {
        Ok(self.groups.machine(partition)?.begin_verification(producer_id, epoch))
    }

    /// Hands a block of ids to the transaction coordinator of a partition. One that has ended loses it.
    pub fn add_producer_ids(&mut self, partition: PartitionIndex, block: Range<ProducerId>) {
        if let Ok(machine) = self.transactions.machine(partition) {
            machine.add_producer_ids(block);
        }
    }

    pub(super) fn coordinators_wake_in(&self) -> Duration {
        let due = [self.groups.wake_at_ms(), self.transactions.wake_at_ms()];
        until(due.into_iter().flatten().min(), &self.clock)
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.clock.monotonic_ms(), wall_ms: self.clock.wall_ms() }
    }
}

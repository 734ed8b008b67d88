//! What the active controller does without being asked: fences brokers that are not heard, hands leadership back to
//! preferred leaders, and empties brokers that are being drained. Always a bounded batch, each through an ordinary
//! command; where things stand is in the image, so that the next controller goes on.

use tidemark_protocol::TopicPartition;

use super::{Active, ControllerMachine, event::ControllerConfig};
use crate::{
    command::{BrokerRun, Command, ElectLeaders, Election, Reassign},
    image::{Image, Partition},
    plan,
    quorum::Quorum,
};

/// Most leaders that change in one batch.
const LEADERS_MOVED_MAX: usize = 500;
/// Between batches, when there is more than one.
const LEADERS_MOVED_PAUSE_MS: u64 = 1_000;
/// Most partitions on the move at a time because of brokers that are being drained.
const DRAINED_AT_ONCE_MAX: usize = 50;

#[derive(Debug)]
pub(super) struct Upkeep {
    balance_ms: u64,
    /// Where the metadata was when draining was looked at last.
    drained_index: Option<u64>,
}

impl Upkeep {
    pub(super) fn new(now_ms: u64, config: &ControllerConfig) -> Self {
        let balance_ms = now_ms.saturating_add(config.leader_balance_interval_ms);
        Self { balance_ms, drained_index: None }
    }
}

impl<Q: Quorum> ControllerMachine<Q> {
    pub(super) fn keep_up(&mut self, now_ms: u64) {
        self.fence_lost(now_ms);
        self.balance_leaders(now_ms);
        self.drain();
    }

    /// One decision per broker, so that each sees the effect of the one before.
    pub(super) fn fence_lost(&mut self, now_ms: u64) {
        let Some(active) = &mut self.active else { return };
        active.sessions.retain_registered(&active.image);
        let lost: Vec<_> = active
            .image
            .brokers()
            .filter(|broker| !broker.fenced)
            .map(|broker| BrokerRun { broker_id: broker.id, broker_epoch: broker.epoch })
            .filter(|run| active.sessions.is_over(run.broker_id, run.broker_epoch, now_ms))
            .collect();
        for run in lost {
            self.decide_by_itself(&Command::FenceBroker(run));
        }
    }

    fn balance_leaders(&mut self, now_ms: u64) {
        let interval_ms = self.config.leader_balance_interval_ms;
        let Some(active) = &mut self.active else { return };
        if now_ms < active.upkeep.balance_ms {
            return;
        }
        let mut due = imbalanced(&active.image);
        let partitions: Vec<_> = due.by_ref().take(LEADERS_MOVED_MAX).collect();
        let pause_ms = if due.next().is_some() { LEADERS_MOVED_PAUSE_MS } else { interval_ms };
        drop(due);
        active.upkeep.balance_ms = now_ms.saturating_add(pause_ms);
        if !partitions.is_empty() {
            let (election, partitions) = (Election::Preferred, Some(partitions));
            self.decide_by_itself(&Command::ElectLeaders(ElectLeaders { election, partitions }));
        }
    }

    fn drain(&mut self) {
        let Some(Active { image, upkeep, .. }) = &mut self.active else { return };
        let draining: Vec<_> =
            image.brokers().filter(|one| one.draining).map(|one| one.id).collect();
        let index = image.metadata_index();
        if draining.is_empty() || upkeep.drained_index == Some(index) {
            return;
        }
        let is_leaving =
            |partition: &Partition| partition.removing.iter().any(|id| draining.contains(id));
        let under_way =
            image.partitions().filter(|(_, _, partition)| is_leaving(partition)).count();
        let changes = plan::drain(image, DRAINED_AT_ONCE_MAX.saturating_sub(under_way)).changes;
        // Until the metadata changes there is nothing else to try.
        upkeep.drained_index = Some(index);
        if changes.is_empty() {
            return;
        }
        let throttle_bytes_per_second = None;
        self.decide_by_itself(&Command::Reassign(Reassign { changes, throttle_bytes_per_second }));
    }
}

/// Partitions whose first replica could lead and does not.
fn imbalanced(image: &Image) -> impl Iterator<Item = TopicPartition> {
    let may_lead = |partition: &Partition| {
        let first = partition.replicas[0];
        partition.leader.is_some_and(|leader| leader != first)
            && partition.isr.contains(&first)
            && image.broker(first).is_some_and(|broker| broker.is_eligible() && !broker.draining)
            && !partition.is_reassigning()
    };
    image
        .partitions()
        .filter(move |(_, _, partition)| may_lead(partition))
        .map(|(topic, partition, _)| TopicPartition { topic_id: topic.id, partition })
}

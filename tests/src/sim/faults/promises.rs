//! What may be lost without breaking a promise, and which promises end when more is lost.

use super::{NodeId, TopicPartition, World};

impl World {
    /// Replicas on a node that are acknowledged before they are flushed.
    pub(super) fn in_memory_on(&self, id: NodeId) -> Vec<TopicPartition> {
        let held = self.replicas_on(id).into_iter();
        held.filter(|partition| !self.is_durable(*partition)).collect()
    }

    pub(super) fn may_lose_in_memory(&mut self, id: NodeId) -> bool {
        self.in_memory_on(id).into_iter().all(|partition| {
            self.may_lose(id, partition) && !self.exceeds_promise(partition, Some(id))
        })
    }

    /// Whether more replicas than a topic in memory can do without were killed at once: as many as its minimum of those that
    /// may be elected. The controller cannot tell who of them has lost something. With `also` among them.
    fn exceeds_promise(&self, partition: TopicPartition, also: Option<NodeId>) -> bool {
        let Some(assigned) = self.ghost.metadata.partition(partition) else { return false };
        let min = self.ghost.metadata.image.topic_by_id(partition.topic_id).map_or(1, |topic| {
            usize::from(topic.config.min_insync_replicas).min(assigned.replicas.len())
        });
        let loss = &self.ghost.loss;
        let is_gone = |id: &&NodeId| {
            loss.is_unheard(**id) || loss.is_flagged(**id, partition) || also == Some(**id)
        };
        assigned.isr.iter().chain(&assigned.elr).filter(is_gone).count() >= min
    }

    /// A node has lost something, or was killed while another one lacks something: topics in memory may have lost records
    /// that were acknowledged, if that is more than they promise to survive.
    pub(in crate::sim) fn judge_promises(&mut self, id: NodeId) {
        for partition in self.in_memory_on(id) {
            let Some(assigned) = self.ghost.metadata.partition(partition) else { continue };
            let mut electable = assigned.isr.iter().chain(&assigned.elr);
            let is_lossy = electable.any(|id| self.ghost.loss.is_flagged(*id, partition));
            if is_lossy
                && self.exceeds_promise(partition, None)
                && self.ghost.lossy.insert(partition)
            {
                self.core.figures.happened("partitions beyond their promise");
            }
        }
    }

    /// A flush has failed: of what was not flushed anything may be gone, although the power was not.
    pub(in crate::sim) fn flush_failed(&mut self, id: NodeId) {
        self.ghost.unsynced.insert(id);
        for partition in self.in_memory_on(id) {
            self.ghost.loss.lost_replica(id, partition);
        }
        self.judge_promises(id);
    }

    /// Whether some replica, running or not, has everything that was committed.
    pub(super) fn has_complete_replica(&mut self, partition: TopicPartition) -> bool {
        let holders: Vec<_> =
            self.ghost.replicas.keys().filter(|(_, id)| *id == partition).copied().collect();
        holders
            .into_iter()
            .any(|key| self.is_sound(key.0, partition) && self.ghost.is_complete(key))
    }

    /// Whether nothing is known to be wrong with a replica. What has rotted under a process that goes on is found when it is
    /// read again; until then it leads, and is in sync.
    fn is_sound(&self, id: NodeId, partition: TopicPartition) -> bool {
        !self.ghost.loss.is_flagged(id, partition) && !self.ghost.damaged.contains(&(id, partition))
    }

    fn is_durable(&self, partition: TopicPartition) -> bool {
        let topic = self.ghost.metadata.image.topic_by_id(partition.topic_id);
        let durability = topic.map(|topic| topic.config.durability);
        durability != Some(tidemark_controller::TopicDurability::Memory)
    }

    /// Whether a replica may be lost without breaking a promise: somebody else, who is up, leads, and has everything.
    pub(in crate::sim) fn may_lose(&mut self, id: NodeId, partition: TopicPartition) -> bool {
        let Some(assigned) = self.ghost.metadata.partition(partition) else { return true };
        if !assigned.replicas.contains(&id) {
            return true;
        }
        let Some(leader) = assigned.leader.filter(|leader| *leader != id) else { return false };
        let is_up = self.nodes[&leader].is_up() && self.ghost.metadata.is_live(leader);
        let is_led =
            self.ghost.replicas.get(&(leader, partition)).is_some_and(|it| it.led.is_some());
        is_up
            && is_led
            && self.is_sound(leader, partition)
            && self.ghost.is_complete((leader, partition))
    }
}

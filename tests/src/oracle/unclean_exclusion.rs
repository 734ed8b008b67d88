//! S10, unclean exclusion: from the moment the controller knows that a broker was restarted uncleanly, it is in no in-sync
//! set, not eligible and no leader, until a leader has shown that it has caught up.
//!
//! Here is also which brokers have lost what, for the other oracles.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_controller::{Image, IncarnationId};
use tidemark_protocol::{BrokerEpoch, NodeId, TopicPartition};

use super::{Verdict, require};

/// Which brokers may have lost something.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Crashed, and not registered since: the controller may not know.
    unheard: BTreeSet<NodeId>,
    /// Who runs on each node at present. What a process that is dead had sent may still be committed: that says nothing of
    /// how it ended.
    running: BTreeMap<NodeId, IncarnationId>,
    /// Of whose replicas an unknown part may be missing.
    flagged: BTreeSet<(NodeId, TopicPartition)>,
    /// Epoch with which a broker that had crashed registered.
    unclean_epochs: BTreeMap<NodeId, BrokerEpoch>,
}

impl Loss {
    /// A process runs.
    pub fn started(&mut self, node: NodeId, incarnation: IncarnationId) {
        self.running.insert(node, incarnation);
    }

    /// The process ended without a clean shutdown.
    pub fn crashed(&mut self, node: NodeId) {
        self.running.remove(&node);
        self.unheard.insert(node);
    }

    /// What was in the page cache, or everything, may be gone.
    pub fn lost(&mut self, node: NodeId, partitions: impl IntoIterator<Item = TopicPartition>) {
        self.crashed(node);
        self.flagged.extend(partitions.into_iter().map(|partition| (node, partition)));
    }

    /// Of one replica an unknown part may be gone, while its process goes on.
    pub fn lost_replica(&mut self, node: NodeId, partition: TopicPartition) {
        self.flagged.insert((node, partition));
    }

    /// Whether this replica may lack something.
    pub fn is_flagged(&self, node: NodeId, partition: TopicPartition) -> bool {
        self.flagged.contains(&(node, partition))
    }

    /// Whether it has crashed and not registered since.
    pub fn is_unheard(&self, node: NodeId) -> bool {
        self.unheard.contains(&node)
    }

    /// It has caught up, or is no replica any more.
    pub fn forgive(&mut self, node: NodeId, partition: TopicPartition) {
        self.flagged.remove(&(node, partition));
    }

    /// Whether this is who runs on the node now.
    pub(super) fn is_running(&self, node: NodeId, incarnation: IncarnationId) -> bool {
        self.running.get(&node) == Some(&incarnation)
    }

    /// The broker that runs there has registered: with this entry the controller knows.
    pub(super) fn registered(
        &mut self,
        node: NodeId,
        epoch: BrokerEpoch,
        image: &Image,
    ) -> Verdict {
        if !self.unheard.remove(&node) {
            return Ok(());
        }
        self.unclean_epochs.insert(node, epoch);
        for topic in image.topics() {
            for (assigned, at) in topic.partitions.iter().zip(0..) {
                let is_in = assigned.isr.contains(&node)
                    || assigned.elr.contains(&node)
                    || assigned.leader == Some(node);
                require(!is_in, "S10", || {
                    format!(
                        "node {node} was restarted uncleanly, and {}/{at} still has it: {assigned:?}",
                        topic.name
                    )
                })?;
            }
        }
        Ok(())
    }
}

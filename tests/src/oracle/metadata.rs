//! The metadata log as it was committed: the first node that is told of an entry writes it down here, and everybody else is
//! held to it. The properties are in `isr_cas` (S13), `metadata_matching` (S14) and `raft` (S15).

use std::{collections::BTreeMap, sync::Arc};

use tidemark_controller::{Image, MetadataRecord, Partition, quorum::Committed};
use tidemark_protocol::{NodeId, TopicPartition};

use super::{Ghost, Verdict, candidate_completeness, isr_cas, require, violation};
use crate::sim::figures::Figures;

/// One committed entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub term: u64,
    pub records: Vec<MetadataRecord>,
}

/// Everything that was committed, and every image it led to.
#[derive(Debug, Default)]
pub struct Metadata {
    pub(super) entries: Vec<Entry>,
    /// By metadata index: the image with so many entries applied.
    pub(super) images: BTreeMap<u64, Arc<Image>>,
    pub image: Arc<Image>,
    /// Next entry each process expects, by node.
    pub(super) delivered: BTreeMap<NodeId, (u64, u64)>,
}

impl Metadata {
    pub fn partition(&self, partition: TopicPartition) -> Option<&Arc<Partition>> {
        self.image.partition(partition)
    }

    /// Registered, and not fenced.
    pub fn is_live(&self, node: NodeId) -> bool {
        self.image.broker(node).is_some_and(|broker| !broker.fenced)
    }

    /// Exclusive end of what is committed.
    pub fn end(&self) -> u64 {
        self.entries.len() as u64
    }
}

impl Ghost {
    /// A controller delivers a committed entry.
    pub fn committed(
        &mut self,
        node: NodeId,
        life: u64,
        entry: &Committed,
        figures: &mut Figures,
    ) -> Verdict {
        self.metadata.check_delivered(node, life, entry)?;
        if entry.index < self.metadata.end() {
            return Ok(());
        }
        let before = Arc::clone(&self.metadata.image);
        let mut image = Image::clone(&before);
        if let Err(error) = image.apply(entry.index, &entry.records) {
            return Err(violation("S13", format!("a committed entry does not apply: {error}")));
        }
        let after = Arc::new(image);
        let Committed { term, records, .. } = entry.clone();
        self.metadata.entries.push(Entry { term, records });
        self.metadata.images.insert(after.metadata_index(), Arc::clone(&after));
        self.metadata.image = Arc::clone(&after);
        let changed = isr_cas::check(&before, &after, &entry.records, figures)?;
        figures.check("metadata entries");
        self.judge_in_sync(&after, &changed, figures);
        self.draw_conclusions(&before, &after, entry, &changed)
    }

    fn draw_conclusions(
        &mut self,
        before: &Image,
        after: &Image,
        entry: &Committed,
        changed: &[TopicPartition],
    ) -> Verdict {
        for record in &entry.records {
            match record {
                MetadataRecord::BrokerRegistered { broker_id, incarnation, .. }
                    if self.loss.is_running(*broker_id, *incarnation) =>
                {
                    self.heard_of_disk(*broker_id, before);
                    self.loss.registered(*broker_id, entry.index, after)?;
                }
                MetadataRecord::TopicDeleted { topic_id } => {
                    self.truths.retain(|id, _| id.topic_id != *topic_id);
                }
                _ => {}
            }
        }
        for partition in changed {
            let now = after.partition(*partition);
            let joined = now.map_or(&[][..], |now| &now.isr);
            let was = before.partition(*partition).map_or(&[][..], |was| &was.isr);
            for node in joined.iter().filter(|node| !was.contains(node)) {
                // Let in for what it had said before it died, it has caught up with nothing.
                if !self.loss.is_unheard(*node) {
                    self.loss.forgive(*node, *partition);
                }
                if let Some(shadow) = self.replicas.get_mut(&(*node, *partition)) {
                    shadow.may_be_gone = false;
                }
            }
            let replicas = now.map_or(&[][..], |now| &now.replicas);
            let were = before.partition(*partition).map_or(&[][..], |was| &was.replicas);
            for node in were.iter().filter(|node| !replicas.contains(node)) {
                if let Some(shadow) = self.replicas.get_mut(&(*node, *partition)) {
                    shadow.may_be_gone = true;
                }
            }
            candidate_completeness::check_partition(self, *partition)?;
        }
        // A broker that is let in again is a candidate from now on.
        let let_in = after.live_brokers().filter(|broker| !before.is_eligible(broker.id));
        for broker in let_in {
            for partition in self.held_by(broker.id) {
                candidate_completeness::check_partition(self, partition)?;
            }
        }
        Ok(())
    }

    /// The controller hears that a broker has another disk than before. What it has put on that broker meanwhile, new
    /// partitions among it, has not been there either.
    fn heard_of_disk(&mut self, node: NodeId, before: &Image) {
        if !self.replaced.remove(&node) {
            return;
        }
        for topic in before.topics() {
            for (assigned, partition) in topic.partitions.iter().zip(0..) {
                if assigned.replicas.contains(&node) {
                    self.wiped.insert(TopicPartition { topic_id: topic.id, partition });
                }
            }
        }
    }

    /// A controller's image was replaced by its leader's snapshot.
    pub fn restored(&mut self, node: NodeId, life: u64, image: &Image) -> Verdict {
        let index = image.metadata_index();
        if index == 0 {
            return Ok(());
        }
        self.metadata.delivered.insert(node, (life, index));
        let known = self.metadata.images.get(&index);
        require(known.is_some_and(|known| **known == *image), "S15", || {
            format!("node {node} is given a snapshot at {index} that is not what was committed")
        })
    }
}

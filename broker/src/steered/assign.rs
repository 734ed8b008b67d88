//! Logs opened, led and deleted as an image says, one after the other: what `assignments` does with blocking threads.

use std::sync::Arc;

use tidemark_controller::{Image, Partition, Topic};
use tidemark_protocol::{ErrorCode, LeaderEpoch, TopicPartition};

use super::Steered;
use crate::{
    partitions::PartitionView,
    shard::{Adoption, Command, storage_durability},
};

impl Steered {
    /// Clears what interrupted deletions left, and opens every log that `image` has assigned to this broker. None
    /// is led yet.
    pub fn open_logs(&mut self, image: &Image) {
        let now_ms = u64::try_from(self.clock.wall_ms()).unwrap_or(0);
        if let Err(error) = self.dirs.left_behind.clear_topics(image, now_ms) {
            tracing::warn!(%error, "directories without partitions stay where they are");
        }
        for topic in image.topics() {
            for (id, assigned) in self.assigned_here(topic) {
                self.open_log(topic, id, &assigned, false);
            }
        }
        self.followed = image.clone();
    }

    /// Follows the metadata to `image`, which is not older than the last one.
    pub fn follow(&mut self, image: &Image) {
        let before = std::mem::replace(&mut self.followed, image.clone());
        assert!(before.metadata_index() <= image.metadata_index(), "the metadata went back");
        for topic in before.topics().filter(|topic| image.topic_by_id(topic.id).is_none()) {
            for (id, _) in self.assigned_here(topic) {
                self.delete_log(topic, id);
            }
            self.metrics.forget_topic(&topic.name);
        }
        for topic in image.topics() {
            let known = before.topic_by_id(topic.id);
            if known.is_some_and(|known| Arc::ptr_eq(known, topic)) {
                continue;
            }
            for (id, assigned) in self.assigned_here(topic) {
                match self.partitions.get(id) {
                    Some(view) => self.update(&view, known, topic, &assigned),
                    None => self.open_log(topic, id, &assigned, true),
                }
            }
        }
        self.wake();
    }

    fn assigned_here(&self, topic: &Topic) -> Vec<(TopicPartition, Arc<Partition>)> {
        let (topic_id, broker_id) = (topic.id, self.config.broker_id);
        let all = topic.partitions.iter().zip(0..);
        all.filter(|(assigned, _)| assigned.replicas.contains(&broker_id))
            .map(|(assigned, partition)| {
                (TopicPartition { topic_id, partition }, Arc::clone(assigned))
            })
            .collect()
    }

    fn leads(&self, assigned: &Partition) -> Option<LeaderEpoch> {
        (assigned.leader == Some(self.config.broker_id)).then_some(assigned.leader_epoch)
    }

    fn update(
        &mut self,
        view: &PartitionView,
        known: Option<&Arc<Topic>>,
        topic: &Topic,
        assigned: &Partition,
    ) {
        let partition = view.id;
        if known.is_none_or(|known| known.config != topic.config) {
            self.tell(view.shard.index, Command::Configure { partition, config: topic.config });
        }
        let before = known.and_then(|known| known.partition(partition.partition));
        let led_before = before.and_then(|before| self.leads(before));
        if let Some(epoch) = self.leads(assigned)
            && led_before != Some(epoch)
        {
            self.tell(view.shard.index, Command::Lead { partition, epoch });
        }
    }

    fn open_log(
        &mut self,
        topic: &Arc<Topic>,
        id: TopicPartition,
        assigned: &Partition,
        lead: bool,
    ) {
        let now_ms = u64::try_from(self.clock.wall_ms()).unwrap_or(0);
        let known = self.partitions.unopened().remove(&id).flatten();
        let checkpoint = self.checkpoints.take(id).or(known);
        let log = match self.dirs.open(topic, id, checkpoint.as_ref(), now_ms) {
            Ok(log) => log,
            Err(error) => {
                tracing::error!(topic = %topic.name, partition = id.partition, %error, "a log cannot be opened");
                self.partitions.add_unopened(id, checkpoint);
                return;
            }
        };
        self.partitions.remove_unopened(id);
        let index = id.partition as usize % self.shards.len();
        let shard = self.shards[index].handle.clone();
        let metrics = self.metrics.topic(&topic.name);
        let view =
            Arc::new(PartitionView::new(id, Arc::clone(&topic.name), metrics, log.reader(), shard));
        let adoption = Adoption {
            log,
            view: Arc::clone(&view),
            replica: tidemark_replication::Config {
                broker_id: self.config.broker_id,
                replicas: assigned.replicas.clone(),
                isr: assigned.isr.clone(),
                durability: storage_durability(topic.config.durability),
                min_insync_replicas: topic.config.min_insync_replicas,
            },
            leader_epoch: if lead { self.leads(assigned) } else { None },
        };
        self.ask(index, |reply| Command::Adopt { adoption: Box::new(adoption), reply });
        self.partitions.insert(view);
    }

    fn delete_log(&mut self, topic: &Topic, partition: TopicPartition) {
        if self.partitions.remove_unopened(partition)
            && let Err(error) = self.dirs.delete_unopened(topic, partition.partition)
        {
            tracing::error!(%error, "files of a deleted partition are left behind");
        }
        let Some(view) = self.partitions.remove(partition) else { return };
        view.set_deleted();
        let reason = ErrorCode::UnknownTopicOrPartition;
        let released =
            self.ask(view.shard.index, |reply| Command::Release { partition, reason, reply });
        if let Some(log) = released
            && let Err(error) = self.dirs.delete(log)
        {
            tracing::error!(%error, "files of a deleted partition are left behind");
        }
    }
}

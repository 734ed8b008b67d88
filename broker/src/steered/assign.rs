//! Logs opened, led and deleted as an image says, one after the other: what `assignments` does with blocking threads.

use std::sync::Arc;

use tidemark_controller::{Image, Topic};
use tidemark_protocol::{ErrorCode, TopicPartition};
use tidemark_replication::Assignment;

use super::Steered;
use crate::{
    partitions::PartitionView,
    roles::{self, ChangedBrokers},
    shard::{Adoption, Command},
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
            for id in self.held_here(topic) {
                self.open_log(topic, id, None);
            }
        }
        self.followed = image.clone();
    }

    /// Follows the metadata to `image`, which is not older than the last one.
    pub fn follow(&mut self, image: &Image) {
        let before = std::mem::replace(&mut self.followed, image.clone());
        assert!(before.metadata_index() <= image.metadata_index(), "the metadata went back");
        for topic in before.topics() {
            let now = image.topic_by_id(topic.id);
            for id in self.held_here(topic) {
                let assigned = now.and_then(|now| now.partition(id.partition));
                if !assigned.is_some_and(|it| it.replicas.contains(&self.config.broker_id)) {
                    self.delete_log(topic, id);
                }
            }
            if now.is_none() {
                self.metrics.forget_topic(&topic.name);
            }
        }
        let brokers = ChangedBrokers::between(&before, image);
        for topic in image.topics() {
            let known = before.topic_by_id(topic.id);
            if brokers.is_empty() && known.is_some_and(|known| Arc::ptr_eq(known, topic)) {
                continue;
            }
            for id in self.held_here(topic) {
                if let Some(view) = self.partitions.get(id) {
                    self.update(&view, known, topic, &brokers);
                } else {
                    let assignment = self.assignment(topic, id);
                    self.open_log(topic, id, assignment);
                }
            }
        }
        self.wake();
    }

    /// Tells every replica what the image says of it.
    pub(super) fn assign_all(&mut self) {
        let image = self.followed.clone();
        for topic in image.topics() {
            for id in self.held_here(topic) {
                if let Some(view) = self.partitions.get(id)
                    && let Some(assignment) = self.assignment(topic, id)
                {
                    let assign = Command::Assign { partition: id, assignment };
                    self.tell(view.shard.index, assign);
                }
            }
        }
    }

    fn held_here(&self, topic: &Topic) -> Vec<TopicPartition> {
        let (topic_id, broker_id) = (topic.id, self.config.broker_id);
        let all = topic.partitions.iter().zip(0..);
        all.filter(|(assigned, _)| assigned.replicas.contains(&broker_id))
            .map(|(_, partition)| TopicPartition { topic_id, partition })
            .collect()
    }

    fn assignment(&self, topic: &Topic, id: TopicPartition) -> Option<Assignment> {
        let known = self.followed.broker(self.config.broker_id)?;
        let is_this_run = self.broker_epoch == Some(known.epoch);
        let partition = topic.partition(id.partition).filter(|_| is_this_run)?;
        Some(roles::assignment(&self.followed, partition))
    }

    fn update(
        &mut self,
        view: &PartitionView,
        known: Option<&Arc<Topic>>,
        topic: &Topic,
        brokers: &ChangedBrokers,
    ) {
        let partition = view.id;
        if known.is_none_or(|known| known.config != topic.config) {
            self.tell(view.shard.index, Command::Configure { partition, config: topic.config });
        }
        let known = known.map(|known| &**known);
        if brokers.concern(known, topic, partition.partition)
            && let Some(assignment) = self.assignment(topic, partition)
        {
            self.tell(view.shard.index, Command::Assign { partition, assignment });
        }
    }

    fn open_log(&mut self, topic: &Arc<Topic>, id: TopicPartition, assignment: Option<Assignment>) {
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
        let replica = roles::config(self.config.broker_id, topic, self.config.replica_lag_ms);
        let adoption = Adoption { log, view: Arc::clone(&view), replica, assignment };
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

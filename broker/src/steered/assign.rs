//! Logs opened, led and deleted as an image says, one after the other: what `assignments` does with blocking threads.

use std::sync::Arc;

use tidemark_controller::{
    Image, Topic,
    plan::{self, Placed},
};
use tidemark_protocol::{ErrorCode, TopicPartition};
use tidemark_replication::Assignment;

use super::Steered;
use crate::{
    log_dirs::{LogDirs, Stray},
    partitions::PartitionView,
    roles,
    shard::{Adoption, Assigned, Command},
};

impl Steered {
    /// Clears what interrupted deletions left. The image followed is to be at least as new as what the last process
    /// followed.
    pub fn clear_left_behind(&mut self) {
        let now_ms = u64::try_from(self.clock.wall_ms()).unwrap_or(0);
        if let Err(error) = self.dirs.left_behind.clear_topics(&self.followed, now_ms) {
            tracing::warn!(%error, "directories without partitions stay where they are");
        }
    }

    /// Opens every log that `image` has assigned to this broker. None is led yet.
    pub fn open_logs(&mut self, image: &Image) {
        for placed in plan::difference(&Image::default(), image, self.config.broker_id).open {
            self.open_log(&placed.topic, placed.id, None);
        }
        self.followed = image.clone();
    }

    /// Follows the metadata to `image`, which is not older than the last one, and in which this run is registered.
    pub fn follow(&mut self, image: &Image) {
        let before = std::mem::replace(&mut self.followed, image.clone());
        let difference = plan::difference(&before, image, self.config.broker_id);
        for topic in &difference.deleted_topics {
            self.metrics.forget_topic(&topic.name);
        }
        for gone in [difference.delete, difference.release] {
            self.delete_logs(&gone);
        }
        for Placed { id, topic, .. } in difference.assign {
            match self.partitions.get(id) {
                Some(view) => self.update(&view, &topic),
                None => self.open_log(&topic, id, self.assignment(&topic, id)),
            }
        }
        for Placed { id, topic, .. } in difference.open {
            self.open_log(&topic, id, self.assignment(&topic, id));
        }
        self.partitions.end_expecting();
        self.wake();
    }

    /// Tries again to open the logs that could not be opened.
    pub fn retry_unopened(&mut self) {
        for id in self.partitions.unopened() {
            if let Some(topic) = self.followed.topic_by_id(id.topic_id).map(Arc::clone) {
                self.open_log(&topic, id, self.assignment(&topic, id));
            }
        }
    }

    /// Tells every replica what the image says of it.
    pub(super) fn assign_all(&mut self) {
        let image = self.followed.clone();
        for topic in image.topics() {
            for id in self.held_here(topic) {
                if let Some(view) = self.partitions.get(id)
                    && let Some(assignment) = self.assignment(topic, id)
                {
                    let assigned = Box::new(Assigned { config: topic.config, assignment });
                    let assign = Command::Assign { partition: id, assigned };
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

    fn update(&mut self, view: &PartitionView, topic: &Topic) {
        let partition = view.id;
        if let Some(assignment) = self.assignment(topic, partition) {
            let assigned = Box::new(Assigned { config: topic.config, assignment });
            self.tell(view.shard.index, Command::Assign { partition, assigned });
        }
    }

    fn open_log(&mut self, topic: &Arc<Topic>, id: TopicPartition, assignment: Option<Assignment>) {
        let now_ms = u64::try_from(self.clock.wall_ms()).unwrap_or(0);
        let checkpoint = self.partitions.checkpoint_of(id);
        let stray = if assignment.is_some() { Stray::MoveAside } else { Stray::Keep };
        let opened = self.dirs.open(topic, id, checkpoint.as_ref(), (stray, now_ms));
        let (log, producers) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(topic = %topic.name, partition = id.partition, %error, "a log cannot be opened");
                self.partitions.add_unopened(id);
                return;
            }
        };
        let index = id.partition as usize % self.shards.len();
        let shard = self.shards[index].handle.clone();
        let metrics = self.metrics.topic(&topic.name);
        let view =
            Arc::new(PartitionView::new(id, Arc::clone(&topic.name), metrics, log.reader(), shard));
        let replica = roles::config(self.config.broker_id, topic, self.config.replica_lag_ms);
        let view_of_shard = Arc::clone(&view);
        let adoption = Adoption { log, producers, view: view_of_shard, replica, assignment };
        self.ask(index, |reply| Command::Adopt { adoption: Box::new(adoption), reply });
        self.partitions.insert(view);
        self.partitions.remove_unopened(id);
    }

    fn delete_logs(&mut self, gone: &[Placed]) {
        let mut logs = Vec::new();
        let mut unopened = Vec::new();
        for placed in gone {
            let partition = placed.id;
            if self.partitions.remove_unopened(partition) {
                unopened.push(placed);
            }
            let Some(view) = self.partitions.remove(partition) else { continue };
            view.set_deleted();
            self.glances.remove(&partition);
            let reason = ErrorCode::UnknownTopicOrPartition;
            let release = |reply| Command::Release { partition, reason, reply };
            logs.extend(self.ask(view.shard.index, release));
        }
        let ids: Vec<_> = gone.iter().map(|placed| placed.id).collect();
        let are_forgotten = LogDirs::forget(&self.data_dir, &ids);
        let unopened =
            unopened.into_iter().map(|placed| self.dirs.delete_unopened(&placed.topic, placed.id));
        let deleted = unopened.chain(logs.into_iter().map(|log| self.dirs.delete(log)));
        for error in deleted.filter_map(Result::err) {
            tracing::error!(%error, "files of a deleted partition are left behind");
        }
        if !are_forgotten {
            LogDirs::forget(&self.data_dir, &ids);
        }
    }
}

//! How a committed entry changes the image. Deciding is over by then: a record that does not fit means that
//! the log is not the one this image came from, and whoever applies it has to stop.

use std::sync::Arc;

use tidemark_protocol::{
    BrokerId, Failure, PartitionIndex, TopicId, limits::TOPIC_PARTITIONS_MAX,
    messages::TopicSettings,
};

use crate::{
    decide::PRODUCER_IDS_END,
    image::{Broker, Image, Partition, Topic},
    record::{MetadataRecord, PartitionChange},
    settings::TopicConfig,
};

/// An entry that contradicts the image it is applied to.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("entry {found} does not follow entry {expected}")]
    Gap { expected: u64, found: u64 },
    #[error("entry {index} {problem}")]
    Contradiction { index: u64, problem: String },
    #[error("entry {index} has settings this build refuses: {failure}")]
    Settings { index: u64, failure: Failure },
}

impl Image {
    /// Applies the entry at `index`, which must be [`Image::metadata_index`]; it may have no records. After an
    /// error the image is to be thrown away.
    pub fn apply(&mut self, index: u64, records: &[MetadataRecord]) -> Result<(), ApplyError> {
        if index != self.metadata_index {
            return Err(ApplyError::Gap { expected: self.metadata_index, found: index });
        }
        for record in records {
            self.apply_record(index, record)?;
        }
        self.metadata_index = index + 1;
        Ok(())
    }

    fn apply_record(&mut self, index: u64, record: &MetadataRecord) -> Result<(), ApplyError> {
        match record {
            MetadataRecord::BrokerRegistered { .. } => self.apply_registration(index, record),
            MetadataRecord::BrokerChanged { .. } => self.apply_broker(index, record)?,
            MetadataRecord::BrokerUnregistered { broker_id } => {
                let removed = Arc::make_mut(&mut self.brokers).remove(broker_id);
                removed.ok_or_else(|| unknown_broker(index, *broker_id))?;
            }
            MetadataRecord::TopicCreated { id, name, settings } => {
                self.apply_topic(index, *id, name, settings)?;
            }
            MetadataRecord::PartitionsAdded { topic_id, first_partition, replicas } => {
                self.apply_partitions(index, *topic_id, *first_partition, replicas)?;
            }
            MetadataRecord::PartitionsChanged { topic_id, changes } => {
                let topic = self.topic_mut(index, *topic_id)?;
                changes.iter().try_for_each(|change| apply_change(index, topic, change))?;
            }
            MetadataRecord::TopicSettingsChanged { topic_id, settings } => {
                let config = parse(index, settings)?;
                let topic = self.topic_mut(index, *topic_id)?;
                topic.settings.clone_from(settings);
                topic.config = config;
            }
            MetadataRecord::TopicDeleted { topic_id } => {
                let topic =
                    self.topics.remove(topic_id).ok_or_else(|| unknown(index, *topic_id))?;
                self.names.remove(&topic.name);
                self.partition_count -= topic.partition_count();
            }
            MetadataRecord::ReplicationThrottled { bytes_per_second } => {
                self.replication_throttle = *bytes_per_second;
            }
            MetadataRecord::ProducerIdsAllocated { next } => {
                if *next <= self.next_producer_id || *next > PRODUCER_IDS_END {
                    let problem = format!("hands out producer ids up to {next} again, or too many");
                    return Err(contradiction(index, problem));
                }
                self.next_producer_id = *next;
            }
        }
        Ok(())
    }

    fn apply_registration(&mut self, index: u64, record: &MetadataRecord) {
        let MetadataRecord::BrokerRegistered {
            broker_id,
            incarnation,
            directory,
            host,
            port,
            rack,
        } = record
        else {
            unreachable!("the caller matched");
        };
        let broker = Broker {
            id: *broker_id,
            incarnation: *incarnation,
            directory: *directory,
            epoch: index,
            host: host.clone(),
            port: *port,
            rack: rack.clone(),
            fenced: true,
            in_controlled_shutdown: false,
            draining: self.broker(*broker_id).is_some_and(|known| known.draining),
        };
        Arc::make_mut(&mut self.brokers).insert(*broker_id, broker);
    }

    fn apply_broker(&mut self, index: u64, record: &MetadataRecord) -> Result<(), ApplyError> {
        let MetadataRecord::BrokerChanged {
            broker_id,
            broker_epoch,
            fenced,
            in_controlled_shutdown,
            draining,
        } = record
        else {
            unreachable!("the caller matched");
        };
        let broker = Arc::make_mut(&mut self.brokers).get_mut(broker_id);
        let broker = broker.ok_or_else(|| unknown_broker(index, *broker_id))?;
        if broker.epoch != *broker_epoch {
            let problem = format!("changes an earlier run of broker {broker_id}");
            return Err(contradiction(index, problem));
        }
        broker.fenced = *fenced;
        broker.in_controlled_shutdown = *in_controlled_shutdown;
        broker.draining = *draining;
        Ok(())
    }

    fn apply_topic(
        &mut self,
        index: u64,
        id: TopicId,
        name: &str,
        settings: &TopicSettings,
    ) -> Result<(), ApplyError> {
        if self.names.contains_key(name) || self.topics.contains_key(&id) {
            return Err(contradiction(index, format!("creates topic {name} ({id}) again")));
        }
        let name: Arc<str> = name.into();
        let topic = Topic {
            id,
            name: name.clone(),
            settings: settings.clone(),
            config: parse(index, settings)?,
            partitions: Vec::new(),
        };
        self.topics.insert(id, Arc::new(topic));
        self.names.insert(name, id);
        Ok(())
    }

    fn apply_partitions(
        &mut self,
        index: u64,
        topic_id: TopicId,
        first_partition: PartitionIndex,
        replicas: &[Vec<BrokerId>],
    ) -> Result<(), ApplyError> {
        let topic = self.topic_mut(index, topic_id)?;
        let room = (TOPIC_PARTITIONS_MAX as usize).saturating_sub(topic.partitions.len());
        if topic.partition_count() != first_partition || replicas.len() > room {
            return Err(contradiction(
                index,
                format!("adds partition {first_partition} out of turn"),
            ));
        }
        for replicas in replicas {
            let partition = Partition::new(replicas.clone());
            if let Some(problem) = partition.problem() {
                return Err(contradiction(index, format!("is wrong: {} {problem}", topic.name)));
            }
            topic.partitions.push(Arc::new(partition));
        }
        let added = u32::try_from(replicas.len()).expect("no more than the room there is");
        self.partition_count = self
            .partition_count
            .checked_add(added)
            .ok_or_else(|| contradiction(index, "adds one partition too many".to_owned()))?;
        Ok(())
    }

    fn topic_mut(&mut self, index: u64, id: TopicId) -> Result<&mut Topic, ApplyError> {
        let topic = self.topics.get_mut(&id);
        topic.map(Arc::make_mut).ok_or_else(|| unknown(index, id))
    }
}

/// A change is made on the state before it: anything else would have been decided on something that is not there.
fn apply_change(index: u64, topic: &mut Topic, change: &PartitionChange) -> Result<(), ApplyError> {
    let (name, PartitionChange { partition, state, .. }) = (topic.name.clone(), change);
    let refuse = |why: &str| Err(contradiction(index, format!("changes {name}/{partition} {why}")));
    let Some(before) = topic.partitions.get_mut(*partition as usize) else {
        return refuse("that does not exist");
    };
    if Some(state.partition_epoch) != before.partition_epoch.checked_add(1) {
        return refuse("out of turn");
    }
    if !matches!(state.leader_epoch.checked_sub(before.leader_epoch), Some(0 | 1)) {
        return refuse("to a leader epoch that does not follow");
    }
    if state.leader != before.leader && state.leader_epoch == before.leader_epoch {
        return refuse("to another leader in the same epoch");
    }
    if let Some(problem) = state.problem() {
        return Err(contradiction(index, format!("is wrong: {name} {problem}")));
    }
    *before = Arc::new(state.clone());
    Ok(())
}

fn parse(index: u64, settings: &TopicSettings) -> Result<TopicConfig, ApplyError> {
    TopicConfig::from_settings(settings).map_err(|failure| ApplyError::Settings { index, failure })
}

fn contradiction(index: u64, problem: String) -> ApplyError {
    ApplyError::Contradiction { index, problem }
}

fn unknown_broker(index: u64, id: BrokerId) -> ApplyError {
    contradiction(index, format!("names broker {id}, which is not registered"))
}

fn unknown(index: u64, id: TopicId) -> ApplyError {
    contradiction(index, format!("names topic {id}, which does not exist"))
}

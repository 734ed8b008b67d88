//! How a committed record changes the image. Deciding is over by then: a record that does not fit means that
//! the log is not the one this image came from, and whoever applies it has to stop.

use std::sync::Arc;

use tidemark_protocol::{
    BrokerId, Failure, PartitionIndex, TopicId, limits::TOPIC_PARTITIONS_MAX,
    messages::TopicSettings,
};

use crate::{
    image::{Broker, Image, Partition, Topic},
    record::MetadataRecord,
    settings::TopicConfig,
};

/// A record that contradicts the image it is applied to.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("record {found} does not follow record {expected}")]
    Gap { expected: u64, found: u64 },
    #[error("record {index} {problem}")]
    Contradiction { index: u64, problem: String },
    #[error("record {index} has settings this build refuses: {failure}")]
    Settings { index: u64, failure: Failure },
}

impl Image {
    /// Applies the record at `index`, which must be [`Image::metadata_index`]. After an error the image is to
    /// be thrown away.
    pub fn apply(&mut self, index: u64, record: &MetadataRecord) -> Result<(), ApplyError> {
        if index != self.metadata_index {
            return Err(ApplyError::Gap { expected: self.metadata_index, found: index });
        }
        match record {
            MetadataRecord::BrokerRegistered { .. } => self.apply_registration(index, record),
            MetadataRecord::TopicCreated { id, name, settings } => {
                self.apply_topic(index, *id, name, settings)?;
            }
            MetadataRecord::PartitionsAdded { topic_id, first_partition, replicas } => {
                self.apply_partitions(index, *topic_id, *first_partition, replicas)?;
            }
            MetadataRecord::PartitionChanged { .. } => self.apply_change(index, record)?,
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
        }
        self.metadata_index = index + 1;
        Ok(())
    }

    fn apply_registration(&mut self, index: u64, record: &MetadataRecord) {
        let MetadataRecord::BrokerRegistered { broker_id, incarnation, host, port, rack, fenced } =
            record
        else {
            unreachable!("the caller matched");
        };
        let broker = Broker {
            id: *broker_id,
            incarnation: *incarnation,
            epoch: index,
            host: host.clone(),
            port: *port,
            rack: rack.clone(),
            fenced: *fenced,
        };
        Arc::make_mut(&mut self.brokers).insert(*broker_id, broker);
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
            let partition = Partition {
                replicas: replicas.clone(),
                isr: replicas.clone(),
                leader: replicas.first().copied(),
                leader_epoch: 0,
                partition_epoch: 0,
            };
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

    fn apply_change(&mut self, index: u64, record: &MetadataRecord) -> Result<(), ApplyError> {
        let MetadataRecord::PartitionChanged {
            topic_id,
            partition,
            isr,
            leader,
            leader_epoch,
            partition_epoch,
        } = record
        else {
            unreachable!("the caller matched");
        };
        let topic = self.topic_mut(index, *topic_id)?;
        let name = topic.name.clone();
        let refuse =
            |why: &str| Err(contradiction(index, format!("changes {name}/{partition} {why}")));
        let Some(state) = topic.partitions.get_mut(*partition as usize) else {
            return refuse("that does not exist");
        };
        if *partition_epoch <= state.partition_epoch || *leader_epoch < state.leader_epoch {
            return refuse("back to an older epoch");
        }
        if *leader != state.leader && *leader_epoch == state.leader_epoch {
            return refuse("to another leader in the same epoch");
        }
        let state = Arc::make_mut(state);
        state.isr.clone_from(isr);
        state.leader = *leader;
        state.leader_epoch = *leader_epoch;
        state.partition_epoch = *partition_epoch;
        match state.problem() {
            Some(problem) => Err(contradiction(index, format!("is wrong: {name} {problem}"))),
            None => Ok(()),
        }
    }

    fn topic_mut(&mut self, index: u64, id: TopicId) -> Result<&mut Topic, ApplyError> {
        let topic = self.topics.get_mut(&id);
        topic.map(Arc::make_mut).ok_or_else(|| unknown(index, id))
    }
}

fn parse(index: u64, settings: &TopicSettings) -> Result<TopicConfig, ApplyError> {
    TopicConfig::from_settings(settings).map_err(|failure| ApplyError::Settings { index, failure })
}

fn contradiction(index: u64, problem: String) -> ApplyError {
    ApplyError::Contradiction { index, problem }
}

fn unknown(index: u64, id: TopicId) -> ApplyError {
    contradiction(index, format!("names topic {id}, which does not exist"))
}

//! What a command comes to: the records to commit and the answer to give once they are, or a refusal. One
//! file per kind of command. Pure: the same image and command give the same decision.

mod add_partitions;
mod allocate_producer_ids;
mod alter_partitions;
mod alter_topic;
mod broker_state;
mod change;
mod create_topic;
mod delete_topic;
mod elect_leaders;
mod reassign;
mod register_broker;
mod unregister_broker;

use std::{collections::BTreeMap, sync::Arc};

use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, Failure, PartitionIndex, TopicId, TopicPartition,
    limits::{REQUEST_PARTITIONS_MAX, TOPIC_PARTITIONS_MAX},
};

pub(crate) use self::allocate_producer_ids::PRODUCER_IDS_END;
use self::change::After;
use crate::{
    command::{Answer, Command},
    image::{Broker, Image, Partition, Topic},
    names::quote,
    record::{MetadataRecord, PartitionChange},
};

/// Most partitions in the whole cluster: what one image is meant to hold in memory.
pub const CLUSTER_PARTITIONS_MAX: u32 = 200_000;

/// Records to be committed together, and the answer to give then. No records: nothing is to change.
pub type Decision = (Vec<MetadataRecord>, Answer);

impl Image {
    /// Checks the command against this image and says what to commit. The records apply to this image and
    /// to no other.
    pub fn decide(&self, command: &Command) -> Result<Decision, Failure> {
        match command {
            Command::RegisterBroker(command) => register_broker::decide(self, command),
            Command::FenceBroker(run) => broker_state::fence(self, *run),
            Command::UnfenceBroker(run) => broker_state::unfence(self, *run),
            Command::BeginControlledShutdown(run) => broker_state::begin_shutdown(self, *run),
            Command::SetDraining(command) => broker_state::set_draining(self, *command),
            Command::UnregisterBroker(command) => unregister_broker::decide(self, *command),
            Command::CreateTopic(command) => create_topic::decide(self, command),
            Command::DeleteTopic(command) => delete_topic::decide(self, command),
            Command::AlterTopic(command) => alter_topic::decide(self, command),
            Command::AddPartitions(command) => add_partitions::decide(self, command),
            Command::AlterPartitions(command) => alter_partitions::decide(self, command),
            Command::ElectLeaders(command) => elect_leaders::decide(self, command),
            Command::Reassign(command) => reassign::decide(self, command),
            Command::SetReplicationThrottle { bytes_per_second } => {
                let records = throttle(self, *bytes_per_second).into_iter().collect();
                Ok((records, Answer::ReplicationThrottleSet))
            }
            Command::AllocateProducerIds(run) => allocate_producer_ids::decide(self, *run),
        }
    }

    /// Whether a topic may have `total` partitions, of which `added` are new to the cluster.
    fn check_partition_count(&self, total: u32, added: u32) -> Result<(), Failure> {
        let refuse = |message| Err(Failure::new(ErrorCode::InvalidPartitions, message));
        if total == 0 || total > TOPIC_PARTITIONS_MAX {
            return refuse(format!(
                "a topic has 1 to {TOPIC_PARTITIONS_MAX} partitions; {total} were asked for"
            ));
        }
        let room = CLUSTER_PARTITIONS_MAX.saturating_sub(self.partition_count());
        if added > room {
            return refuse(format!(
                "the cluster holds at most {CLUSTER_PARTITIONS_MAX} partitions and has room for \
                 {room} more; {added} were asked for"
            ));
        }
        Ok(())
    }

    fn require_partition(
        &self,
        id: TopicPartition,
    ) -> Result<(&Arc<Topic>, &Arc<Partition>), Failure> {
        let found = self
            .topic_by_id(id.topic_id)
            .and_then(|topic| Some((topic, topic.partition(id.partition)?)));
        found.ok_or_else(|| {
            let message = format!("there is no partition {id}");
            Failure::new(ErrorCode::UnknownTopicOrPartition, message)
        })
    }

    /// The broker, if that is the run of it which is registered.
    pub(crate) fn require_run(&self, id: BrokerId, epoch: BrokerEpoch) -> Result<&Broker, Failure> {
        let broker = self.require_broker(id)?;
        if broker.epoch != epoch {
            let message = format!(
                "broker {id} is registered with epoch {}, not {epoch}: it has started again",
                broker.epoch
            );
            return Err(Failure::new(ErrorCode::StaleBrokerEpoch, message));
        }
        Ok(broker)
    }

    /// This image with one broker in another state, for decisions that follow from it.
    pub(crate) fn with_broker(&self, broker: Broker) -> Self {
        let mut image = self.clone();
        Arc::make_mut(&mut image.brokers).insert(broker.id, broker);
        image
    }

    /// Every partition with its topic, in the order of topic ids.
    pub(crate) fn partitions(
        &self,
    ) -> impl Iterator<Item = (&Arc<Topic>, PartitionIndex, &Arc<Partition>)> {
        let topics = self.topics.iter().map(|(_, topic)| topic);
        topics.flat_map(|topic| {
            (0..).zip(&topic.partitions).map(move |(index, partition)| (topic, index, partition))
        })
    }
}

/// New states of partitions, gathered into one record per topic.
#[derive(Default)]
struct Changes(BTreeMap<TopicId, Vec<PartitionChange>>);

impl Changes {
    fn add(&mut self, topic_id: TopicId, partition: PartitionIndex, after: Option<After>) {
        if let Some(After { state, is_unclean }) = after {
            let change = PartitionChange { partition, state, is_unclean };
            self.0.entry(topic_id).or_default().push(change);
        }
    }

    fn into_records(self) -> impl Iterator<Item = MetadataRecord> {
        self.0
            .into_iter()
            .map(|(topic_id, changes)| MetadataRecord::PartitionsChanged { topic_id, changes })
    }
}

/// What a broker may do from now on.
fn broker_changed(broker: &Broker) -> MetadataRecord {
    MetadataRecord::BrokerChanged {
        broker_id: broker.id,
        broker_epoch: broker.epoch,
        fenced: broker.fenced,
        in_controlled_shutdown: broker.in_controlled_shutdown,
        draining: broker.draining,
    }
}

fn throttle(image: &Image, bytes_per_second: Option<u64>) -> Option<MetadataRecord> {
    let is_new = image.replication_throttle != bytes_per_second;
    is_new.then_some(MetadataRecord::ReplicationThrottled { bytes_per_second })
}

/// Refuses a list of partitions that one decision cannot deal with.
fn check_request_partitions(count: usize) -> Result<(), Failure> {
    if count <= REQUEST_PARTITIONS_MAX {
        return Ok(());
    }
    let message =
        format!("one request may name {REQUEST_PARTITIONS_MAX} partitions; this one names {count}");
    Err(Failure::new(ErrorCode::InvalidRequest, message))
}

/// Refuses a partition that a request names a second time.
fn named_twice(topic: &Topic, partition: PartitionIndex) -> Failure {
    let message = format!("{}/{partition} is named twice", quote(&topic.name));
    Failure::new(ErrorCode::InvalidRequest, message)
}

//! A topic gets more partitions. It never gets fewer: records would have to go somewhere.

use tidemark_protocol::{ErrorCode, Failure, messages::AddPartitionsResponse};

use super::Decision;
use crate::{
    assignment::{assign, open_places},
    command::{AddPartitions, Answer},
    image::Image,
    record::MetadataRecord,
};

pub(super) fn decide(image: &Image, command: &AddPartitions) -> Result<Decision, Failure> {
    let topic = image.require_topic(&command.name)?;
    let (present, wanted) = (topic.partition_count(), command.partitions);
    if wanted < present {
        let message = format!(
            "topic {:?} has {present} partitions and cannot go down to {wanted}; \
             create another topic and copy what is needed",
            topic.name
        );
        return Err(Failure::new(ErrorCode::InvalidPartitions, message));
    }
    image.check_partition_count(wanted, wanted - present)?;
    let brokers = open_places(image);
    let replication_factor = usize::from(topic.replication_factor());
    if replication_factor > brokers.len() {
        let message = format!(
            "partitions of topic {:?} have {replication_factor} replicas, and only {} brokers live and are not being drained",
            topic.name,
            brokers.len()
        );
        return Err(Failure::new(ErrorCode::InvalidPartitions, message));
    }
    let answer = Answer::PartitionsAdded(AddPartitionsResponse { partitions: wanted });
    if wanted == present || command.validate_only {
        return Ok((Vec::new(), answer));
    }
    let replicas = assign(&brokers, present..wanted, replication_factor, command.seed);
    let records = vec![MetadataRecord::PartitionsAdded {
        topic_id: topic.id,
        first_partition: present,
        replicas,
    }];
    Ok((records, answer))
}

//! A topic and its partitions come into being.

use tidemark_protocol::{ErrorCode, Failure, TopicId, messages::CreateTopicResponse};

use super::Decision;
use crate::{
    assignment::{assign, open_places},
    command::{Answer, CreateTopic},
    image::{Image, REPLICAS_MAX},
    names::check_topic_name,
    record::MetadataRecord,
    settings,
};

pub(super) fn decide(image: &Image, command: &CreateTopic) -> Result<Decision, Failure> {
    let CreateTopic { name, id, partitions, replication_factor, .. } = command;
    check_topic_name(name)?;
    if image.topic(name).is_some() {
        let message = format!("topic {name:?} exists already");
        return Err(Failure::new(ErrorCode::TopicExists, message));
    }
    if *id == TopicId::ZERO || image.topic_by_id(*id).is_some() {
        let message = format!("topic id {id} cannot be given to a new topic");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    image.check_partition_count(*partitions, *partitions)?;
    let brokers = open_places(image);
    check_replication_factor(*replication_factor, brokers.len())?;
    let settings = settings::canonical(&command.settings)?;
    let settings = settings::completed(settings, (*replication_factor).into());
    let mut response = CreateTopicResponse {
        id: TopicId::ZERO,
        partitions: *partitions,
        replication_factor: *replication_factor,
        settings: settings.clone(),
    };
    if command.validate_only {
        return Ok((Vec::new(), Answer::TopicCreated(response)));
    }
    response.id = *id;
    let replicas = assign(&brokers, 0..*partitions, (*replication_factor).into(), command.seed);
    let records = vec![
        MetadataRecord::TopicCreated { id: *id, name: name.clone(), settings },
        MetadataRecord::PartitionsAdded { topic_id: *id, first_partition: 0, replicas },
    ];
    Ok((records, Answer::TopicCreated(response)))
}

fn check_replication_factor(replication_factor: u16, live: usize) -> Result<(), Failure> {
    if !(1..=REPLICAS_MAX).contains(&replication_factor) {
        let message = format!(
            "a partition has 1 to {REPLICAS_MAX} replicas; {replication_factor} were asked for"
        );
        return Err(Failure::new(ErrorCode::InvalidPartitions, message));
    }
    if usize::from(replication_factor) > live {
        let message = format!(
            "{replication_factor} replicas need as many live brokers that are not being drained, and there {}",
            if live == 1 { "is 1".to_owned() } else { format!("are {live}") }
        );
        return Err(Failure::new(ErrorCode::InvalidPartitions, message));
    }
    Ok(())
}

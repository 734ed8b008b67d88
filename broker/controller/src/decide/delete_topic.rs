//! A topic and its data go away, for good.

use tidemark_protocol::{ErrorCode, Failure, messages::DeleteTopicResponse};

use super::Decision;
use crate::{
    command::{Answer, DeleteTopic},
    image::Image,
    record::MetadataRecord,
};

pub(super) fn decide(image: &Image, command: &DeleteTopic) -> Result<Decision, Failure> {
    let topic = image.require_topic(&command.name)?;
    if let Some(id) = command.id.filter(|id| *id != topic.id) {
        let message = format!(
            "topic {:?} has id {} now, not {id}: it was deleted and created again",
            topic.name, topic.id
        );
        return Err(Failure::new(ErrorCode::UnknownTopicOrPartition, message));
    }
    let records = vec![MetadataRecord::TopicDeleted { topic_id: topic.id }];
    Ok((records, Answer::TopicDeleted(DeleteTopicResponse { id: topic.id })))
}

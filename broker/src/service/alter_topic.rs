//! Alter topic: answers when the topic's logs have the new settings.

use std::sync::Arc;

use tidemark_controller::{AlterTopic, Answer, Command};
use tidemark_protocol::{
    Failure,
    messages::{AlterTopicRequest, AlterTopicResponse},
};

use super::{change_metadata, wrong_answer};
use crate::broker::Broker;

pub(crate) async fn alter_topic(
    broker: Arc<Broker>,
    request: AlterTopicRequest,
) -> Result<AlterTopicResponse, Failure> {
    let command = AlterTopic {
        name: request.name,
        set: request.set,
        unset: request.unset,
        validate_only: request.validate_only,
    };
    match change_metadata(&broker, Command::AlterTopic(command), request.timeout_ms).await? {
        Answer::TopicAltered(response) => Ok(response),
        other => Err(wrong_answer(&other)),
    }
}

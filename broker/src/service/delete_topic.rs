//! Delete topic: answers when its files are gone.

use std::sync::Arc;

use tidemark_controller::{Answer, Command, DeleteTopic};
use tidemark_protocol::{
    Failure,
    messages::{DeleteTopicRequest, DeleteTopicResponse},
};

use super::{change_metadata, wrong_answer};
use crate::{broker::Broker, coordinators::topics::refuse_internal};

pub(crate) async fn delete_topic(
    broker: Arc<Broker>,
    request: DeleteTopicRequest,
) -> Result<DeleteTopicResponse, Failure> {
    refuse_internal(&request.name, "deleted")?;
    let command = DeleteTopic { name: request.name, id: request.id };
    match change_metadata(&broker, Command::DeleteTopic(command), request.timeout_ms).await? {
        Answer::TopicDeleted(response) => Ok(response),
        other => Err(wrong_answer(&other)),
    }
}

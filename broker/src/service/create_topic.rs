//! Create topic: answers when the topic can be produced to.

use std::sync::Arc;

use tidemark_controller::{Answer, Command, CreateTopic};
use tidemark_protocol::{
    ErrorCode, Failure, TopicId,
    messages::{CreateTopicRequest, CreateTopicResponse},
};

use super::{change_metadata, require_disk, wrong_answer};
use crate::{broker::Broker, coordinators::topics::refuse_internal};

pub(crate) async fn create_topic(
    broker: Arc<Broker>,
    request: CreateTopicRequest,
) -> Result<CreateTopicResponse, Failure> {
    refuse_internal(&request.name, "created")?;
    if !request.validate_only {
        require_disk(&broker)?;
    }
    let id = TopicId(uuid::Uuid::new_v4().into_bytes());
    let command = CreateTopic {
        name: request.name,
        id,
        partitions: request.partitions.unwrap_or(broker.config.default_partitions),
        replication_factor: request.replication_factor.unwrap_or_else(|| default_replicas(&broker)),
        settings: request.settings,
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        validate_only: request.validate_only,
    };
    let answer =
        change_metadata(&broker, Command::CreateTopic(command), request.timeout_ms).await?;
    let Answer::TopicCreated(response) = answer else { return Err(wrong_answer(&answer)) };
    if !request.validate_only && broker.partitions_missing(id) {
        let message = "the topic was created, but its logs could not be; see the broker's log";
        return Err(Failure::new(ErrorCode::NotReady, message));
    }
    Ok(response)
}

/// As configured, but no more than there are brokers to hold them, alive or not: a broker that is away for a moment
/// must not cost a topic a replica for good.
fn default_replicas(broker: &Broker) -> u16 {
    let brokers = broker.image().brokers().filter(|broker| !broker.draining).count();
    let configured = broker.config.default_replication_factor as usize;
    u16::try_from(configured.min(brokers).max(1)).expect("its setting is bounded")
}

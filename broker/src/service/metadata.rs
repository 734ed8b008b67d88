//! Metadata: brokers, topics, partitions and their leaders.

use std::sync::Arc;

use tidemark_controller::{Image, Topic};
use tidemark_protocol::messages::{BrokerMetadata, MetadataRequest, MetadataResponse};

use crate::broker::{Broker, Caller};

pub(crate) fn metadata(
    broker: &Broker,
    caller: Caller,
    request: &MetadataRequest,
) -> MetadataResponse {
    let image = broker.image();
    let topics = asked_for(&image, request).into_iter().map(|topic| topic.metadata()).collect();
    let mut brokers: Vec<_> = image.brokers().map(tidemark_controller::Broker::metadata).collect();
    for metadata in brokers.iter_mut().filter(|metadata| metadata.id == broker.id) {
        advertise(broker, caller, metadata);
    }
    MetadataResponse {
        cluster_id: broker.cluster_id.clone(),
        controller_id: broker.control.leader(),
        broker_id: broker.id,
        metadata_index: image.metadata_index(),
        brokers,
        topics,
    }
}

/// Sorted by name, none twice.
fn asked_for<'i>(image: &'i Image, request: &MetadataRequest) -> Vec<&'i Arc<Topic>> {
    let Some(names) = &request.topics else { return image.topics().collect() };
    let by_name = names.iter().filter_map(|name| image.topic(name));
    let by_id = request.topic_ids.iter().filter_map(|id| image.topic_by_id(*id));
    let mut topics: Vec<_> = by_name.chain(by_id).collect();
    topics.sort_by(|left, right| left.name.cmp(&right.name));
    topics.dedup_by(|left, right| left.id == right.id);
    topics
}

/// Without a configured address a client is told the one at which it reached us: it works for that client,
/// through whatever container or tunnel it came.
fn advertise(broker: &Broker, caller: Caller, metadata: &mut BrokerMetadata) {
    if broker.config.advertised_address.is_none() && broker.config.controllers.is_empty() {
        metadata.host = caller.local_address.ip().to_string();
        metadata.port = caller.local_address.port();
    }
}

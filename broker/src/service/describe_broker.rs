//! Describe broker: identity, build, state and settings in force.

use tidemark_protocol::messages::{DescribeBrokerRequest, DescribeBrokerResponse};

use crate::broker::Broker;

pub(crate) fn describe_broker(
    broker: &Broker,
    request: DescribeBrokerRequest,
) -> DescribeBrokerResponse {
    let image = broker.image();
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    DescribeBrokerResponse {
        id: broker.id,
        cluster_id: broker.cluster_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: broker.clock.monotonic_ms(),
        not_ready_reasons: broker.health.state().sentences(),
        topics: count(image.topic_count() as u64),
        partitions: count(broker.partitions.count() as u64),
        connections: count(broker.metrics.connections().open_count()),
        settings: if request.include_settings { broker.config.settings() } else { Vec::new() },
    }
}

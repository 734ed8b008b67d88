//! Group coordinators, as the host sees them: what they read of the metadata, and what becomes of their effects.

use std::{collections::BTreeSet, sync::Arc};

use tidemark_controller::Image;
use tidemark_coordinator::{
    GroupConfig, GroupCoordinator, GroupLoader, LoadError, Now, Record, Token, Topic, Topics,
    groups::{GroupEffect, GroupRequest, GroupResponse},
};
use tidemark_protocol::{Offset, PartitionIndex};

use super::{Coordinator, DecisionOf, Start, ms, topics};
use crate::{broker::Broker, config::Config};

impl Coordinator for GroupCoordinator {
    const TOPIC: &'static str = topics::GROUPS;
    type Loader = GroupLoader;
    type Request = GroupRequest;
    type Response = GroupResponse;
    type Effect = GroupEffect;
    type Excerpt = Arc<Topics>;

    fn excerpt(image: &Image) -> Arc<Topics> {
        let racks = image.brokers().any(|broker| broker.rack.is_some());
        Arc::new(image.topics().map(|topic| excerpt_of(image, topic, racks)).collect())
    }

    fn replay(loader: &mut GroupLoader, offset: Offset, record: &Record) -> Result<(), LoadError> {
        loader.replay(offset, record)
    }

    fn finish(
        loader: GroupLoader,
        start: Start<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError> {
        let config = config(&start.broker.config);
        loader.finish(start.first_offset, config, Arc::clone(start.excerpt), start.now)
    }

    fn handle(&mut self, now: Now, token: Token, request: GroupRequest) -> DecisionOf<Self> {
        self.handle(now, token, request)
    }

    fn on_timer(&mut self, now: Now) -> DecisionOf<Self> {
        self.on_timer(now)
    }

    fn on_excerpt(&mut self, excerpt: &Arc<Topics>) -> DecisionOf<Self> {
        self.on_topics(Arc::clone(excerpt))
    }

    fn carry_out(broker: &Arc<Broker>, partition: PartitionIndex, effect: GroupEffect) {
        match effect {
            GroupEffect::Nudge { group, member } => broker.nudges.nudge(partition, group, member),
            GroupEffect::Removed { group, removal } => {
                broker.metrics.groups().removed(removal.reason);
                let (member, reason) = (&removal.member, removal.reason);
                tracing::info!(group, member, ?reason, client = removal.client_id, "member left");
            }
            GroupEffect::OffsetsDropped { group, topic_id } => {
                tracing::info!(group, %topic_id, "topic deleted, and the group's offsets in it");
            }
        }
    }

    fn ended(broker: &Broker, partition: PartitionIndex) {
        broker.nudges.nudge_all(partition);
    }
}

fn excerpt_of(image: &Image, topic: &tidemark_controller::Topic, racks: bool) -> Topic {
    let rack_of = |id: &u32| image.broker(*id).and_then(|broker| broker.rack.clone());
    let of_partition = |partition: &Arc<tidemark_controller::Partition>| {
        partition.replicas.iter().filter_map(rack_of).collect::<BTreeSet<_>>()
    };
    Topic {
        id: topic.id,
        name: topic.name.to_string(),
        partitions: topic.partition_count(),
        racks: if racks { topic.partitions.iter().map(of_partition).collect() } else { Vec::new() },
    }
}

/// The broker's settings, as the machine takes them.
fn config(config: &Config) -> GroupConfig {
    let retention_ms = ms(config.group_offset_retention);
    GroupConfig {
        session_timeout_ms: ms(config.group_session_timeout),
        heartbeat_interval_ms: ms(config.group_heartbeat_interval),
        members_max: config.group_members_max as usize,
        offset_retention_ms: (retention_ms > 0).then_some(retention_ms),
        ..GroupConfig::default()
    }
}

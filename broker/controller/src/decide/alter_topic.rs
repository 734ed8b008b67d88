//! Settings of a topic change, all or none. Those that decide who may lead take effect in the same entry.

use tidemark_protocol::{ErrorCode, Failure, messages::AlterTopicResponse};

use super::{Changes, Decision, change::Change};
use crate::{
    command::{AlterTopic, Answer},
    image::{Image, Topic},
    record::MetadataRecord,
    settings::{self, TopicConfig},
};

pub(super) fn decide(image: &Image, command: &AlterTopic) -> Result<Decision, Failure> {
    let topic = image.require_topic(&command.name)?;
    let mut changed = topic.settings.clone();
    for name in &command.unset {
        let setting = settings::find(name)?;
        if command.set.contains_key(setting.name) {
            let message = format!("{} is both set and unset", setting.name);
            return Err(Failure::new(ErrorCode::InvalidConfig, message));
        }
        changed.remove(setting.name);
    }
    if !command.unset.is_empty() {
        // As if the topic were created without them, with the replicas that it has or is getting.
        let replicas = topic.partitions.iter().map(|it| it.target_replicas().count()).max();
        changed = settings::completed(changed, replicas.unwrap_or(1));
    }
    changed.extend(command.set.clone());
    let changed = settings::canonical(&changed)?;
    let mut records = Vec::new();
    if changed != topic.settings && !command.validate_only {
        let settings = changed.clone();
        let config = TopicConfig::from_settings(&settings)?;
        records.push(MetadataRecord::TopicSettingsChanged { topic_id: topic.id, settings });
        records.extend(follow(image, topic, &config).into_records());
    }
    Ok((records, Answer::TopicAltered(AlterTopicResponse { settings: changed })))
}

/// What becomes of the topic's partitions.
///
/// With another minimum of in-sync replicas records are committed by another rule. A leader that has not heard of
/// it yet must not have in-sync changes accepted that were made under the old one, so every partition changes.
fn follow(image: &Image, topic: &Topic, config: &TopicConfig) -> Changes {
    let mut changes = Changes::default();
    let is_more_unclean = config.unclean_leader_election && !topic.config.unclean_leader_election;
    for (index, partition) in (0..).zip(&topic.partitions) {
        let change = Change::of(image, config, partition);
        if partition.min_insync_replicas(config) != partition.min_insync_replicas(&topic.config) {
            changes.add(topic.id, index, change.forced().build());
        } else if is_more_unclean && partition.leader.is_none() {
            changes.add(topic.id, index, change.build());
        }
    }
    changes
}

//! Settings of a topic change, all or none.

use tidemark_protocol::{ErrorCode, Failure, messages::AlterTopicResponse};

use super::Decision;
use crate::{
    command::{AlterTopic, Answer},
    image::Image,
    record::MetadataRecord,
    settings,
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
    changed.extend(command.set.clone());
    let changed = settings::canonical(&changed)?;
    let mut records = Vec::new();
    if changed != topic.settings && !command.validate_only {
        let settings = changed.clone();
        records.push(MetadataRecord::TopicSettingsChanged { topic_id: topic.id, settings });
    }
    Ok((records, Answer::TopicAltered(AlterTopicResponse { settings: changed })))
}

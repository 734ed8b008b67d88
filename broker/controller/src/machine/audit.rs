//! What an operator has to be able to find later: elections that may have lost committed records.

use std::sync::Arc;

use tidemark_protocol::TopicPartition;

use super::event::{ControllerEffect, UncleanElection};
use crate::{
    image::{Image, Topic},
    record::{MetadataRecord, PartitionChange},
};

/// Unclean elections among the records. `before` has not applied them.
pub(super) fn unclean_elections(
    before: &Image,
    records: &[MetadataRecord],
) -> impl Iterator<Item = ControllerEffect> {
    let changes = records.iter().filter_map(|record| match record {
        MetadataRecord::PartitionsChanged { topic_id, changes } => {
            Some((before.topic_by_id(*topic_id)?, changes))
        }
        _ => None,
    });
    changes
        .flat_map(|(topic, changes)| changes.iter().filter_map(|change| unclean(topic, change)))
        .map(ControllerEffect::Audit)
}

fn unclean(topic: &Topic, change: &PartitionChange) -> Option<UncleanElection> {
    let before = topic.partition(change.partition).filter(|_| change.is_unclean)?;
    let leader = change.state.leader?;
    let had_all = before.isr.iter().chain(&before.elr).chain(&before.last_known_leader);
    let mut passed_over: Vec<_> = had_all.copied().filter(|id| *id != leader).collect();
    passed_over.sort_unstable();
    passed_over.dedup();
    Some(UncleanElection {
        topic: Arc::clone(&topic.name),
        id: TopicPartition { topic_id: topic.id, partition: change.partition },
        leader,
        leader_epoch: change.state.leader_epoch,
        passed_over,
    })
}

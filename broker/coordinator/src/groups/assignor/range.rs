//! Contiguous ranges, topic by topic. Remembers nothing.

use std::collections::BTreeSet;

use tidemark_protocol::TopicPartition;

use super::{Candidate, subscribers};
use crate::topics::Topics;

pub(super) fn assign(members: &[Candidate<'_>], topics: &Topics) -> Vec<BTreeSet<TopicPartition>> {
    let mut assigned = vec![BTreeSet::new(); members.len()];
    for (topic_id, subscribers) in subscribers(members) {
        let Some(topic) = topics.get(topic_id) else { continue };
        let count = u32::try_from(subscribers.len()).expect("members are bounded");
        let (each, more) = (topic.partitions / count, topic.partitions % count);
        let mut first = 0;
        for (place, member) in (0..count).zip(subscribers) {
            let end = first + each + u32::from(place < more);
            let range = (first..end).map(|partition| TopicPartition { topic_id, partition });
            assigned[member].extend(range);
            first = end;
        }
    }
    assigned
}

//! What one broker has to do when the metadata goes from one image to a later one. Topics that share their memory in
//! both are not looked at, unless a broker has changed: then every partition it has a replica of may be affected.

use std::{collections::BTreeSet, sync::Arc};

use tidemark_protocol::{BrokerEpoch, BrokerId, TopicPartition};

use crate::image::{Broker, Image, Partition, Topic};

/// A partition with a replica on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub id: TopicPartition,
    pub topic: Arc<Topic>,
    pub partition: Arc<Partition>,
}

/// To be done in this order: a topic may have come back under the name of a deleted one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Topics that are gone, whoever held them. As they were.
    pub deleted_topics: Vec<Arc<Topic>>,
    /// Partitions that are gone with their topic: delete their files. As they were.
    pub delete: Vec<Placed>,
    /// Partitions that are elsewhere now: delete their files. As they were.
    pub release: Vec<Placed>,
    /// Partitions that are new here: open their logs, and assign them.
    pub open: Vec<Placed>,
    /// Partitions that were here before, and of which something changed that their replica or log must know: leader,
    /// epochs, sets, settings, or the other replicas' brokers.
    pub assign: Vec<Placed>,
}

/// A replica's broker, as the leader has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: BrokerId,
    /// 0 when the broker is not registered.
    pub broker_epoch: BrokerEpoch,
    /// Registered, not fenced, not about to stop.
    pub eligible: bool,
}

/// The brokers of a partition's replicas, in order of preference.
pub fn members(image: &Image, partition: &Partition) -> Vec<Member> {
    let member = |id: &BrokerId| {
        let broker = image.broker(*id);
        Member {
            id: *id,
            broker_epoch: broker.map_or(0, |broker| broker.epoch),
            eligible: broker.is_some_and(Broker::is_eligible),
        }
    };
    partition.replicas.iter().map(member).collect()
}

/// What `broker` has to do. From the empty image, everything it holds is to be opened.
///
/// # Panics
/// When `after` is older than `before`: what is missing from an older image is not deleted.
pub fn difference(before: &Image, after: &Image, broker: BrokerId) -> Difference {
    assert!(
        after.metadata_index() >= before.metadata_index(),
        "the metadata went back from {} to {}",
        before.metadata_index(),
        after.metadata_index()
    );
    let mut difference = Difference::default();
    for topic in before.topics().filter(|topic| after.topic_by_id(topic.id).is_none()) {
        difference.delete.extend(placed(topic, broker));
        difference.deleted_topics.push(Arc::clone(topic));
    }
    let changed = changed_brokers(before, after);
    for topic in after.topics() {
        let known = before.topic_by_id(topic.id);
        if !changed.is_empty() || known.is_none_or(|known| !Arc::ptr_eq(known, topic)) {
            compare(known, topic, broker, &changed, &mut difference);
        }
    }
    difference
}

fn compare(
    known: Option<&Arc<Topic>>,
    topic: &Arc<Topic>,
    broker: BrokerId,
    changed: &BTreeSet<BrokerId>,
    difference: &mut Difference,
) {
    let has_same_config = known.is_some_and(|known| known.config == topic.config);
    for (partition, now) in (0..).zip(&topic.partitions) {
        let old = known.and_then(|known| known.partition(partition));
        let id = TopicPartition { topic_id: topic.id, partition };
        let as_now = || Placed { id, topic: Arc::clone(topic), partition: Arc::clone(now) };
        let was_here = old.filter(|old| old.replicas.contains(&broker));
        match (was_here, now.replicas.contains(&broker)) {
            (None, false) => {}
            (None, true) => difference.open.push(as_now()),
            (Some(old), false) => {
                let topic = known.expect("it has the old partition");
                let (topic, partition) = (Arc::clone(topic), Arc::clone(old));
                difference.release.push(Placed { id, topic, partition });
            }
            (Some(old), true) => {
                let is_same = (Arc::ptr_eq(old, now) || old == now)
                    && has_same_config
                    && !now.replicas.iter().any(|id| changed.contains(id));
                if !is_same {
                    difference.assign.push(as_now());
                }
            }
        }
    }
}

/// Brokers that are another run, or eligible in one image and not in the other.
fn changed_brokers(before: &Image, after: &Image) -> BTreeSet<BrokerId> {
    if Arc::ptr_eq(&before.brokers, &after.brokers) {
        return BTreeSet::new();
    }
    let as_member = |broker: &Broker| (broker.epoch, broker.is_eligible());
    let ids = before.brokers().chain(after.brokers()).map(|broker| broker.id);
    ids.filter(|id| before.broker(*id).map(as_member) != after.broker(*id).map(as_member)).collect()
}

fn placed(topic: &Arc<Topic>, broker: BrokerId) -> impl Iterator<Item = Placed> {
    let partitions = (0..).zip(&topic.partitions);
    partitions.filter(move |(_, partition)| partition.replicas.contains(&broker)).map(
        |(index, partition)| Placed {
            id: TopicPartition { topic_id: topic.id, partition: index },
            topic: Arc::clone(topic),
            partition: Arc::clone(partition),
        },
    )
}

//! What holds of every image, and of every step from one to the next.

use std::collections::BTreeSet;

use tidemark_controller::{Image, Partition, Topic};
use tidemark_protocol::BrokerId;

pub(crate) fn check(image: &Image) {
    let topics: Vec<_> = image.topics().collect();
    assert!(topics.is_sorted_by(|a, b| a.name < b.name));
    let partitions: u32 = topics.iter().map(|topic| topic.partition_count()).sum();
    assert_eq!(partitions, image.partition_count());
    assert_eq!(topics.len(), image.topic_count());
    for topic in topics {
        assert_eq!(image.topic(&topic.name), Some(topic));
        assert_eq!(image.topic_by_id(topic.id), Some(topic));
        assert!(topic.partition_count() > 0);
        for partition in &topic.partitions {
            check_partition(image, topic, partition);
        }
    }
}

fn check_partition(image: &Image, topic: &Topic, partition: &Partition) {
    let set = |list: &[BrokerId]| {
        let set: BTreeSet<_> = list.iter().copied().collect();
        assert_eq!(set.len(), list.len(), "{partition:?}");
        set
    };
    let [replicas, isr, elr] =
        [&partition.replicas, &partition.isr, &partition.elr].map(|list| set(list));
    let [adding, removing] = [&partition.adding, &partition.removing].map(|list| set(list));
    assert!(!replicas.is_empty(), "{partition:?}");
    assert!(replicas.iter().all(|id| image.broker(*id).is_some()), "{partition:?}");
    assert!(isr.is_subset(&replicas) && elr.is_subset(&replicas), "{partition:?}");
    assert!(isr.is_disjoint(&elr), "{partition:?}");
    assert!(adding.is_subset(&replicas) && removing.is_subset(&replicas), "{partition:?}");
    assert!(adding.is_disjoint(&removing) && removing.len() < replicas.len(), "{partition:?}");
    assert_eq!(partition.leader.is_none(), isr.is_empty(), "{partition:?}");
    assert!(partition.leader.is_none_or(|id| isr.contains(&id)), "{partition:?}");
    assert!(isr.iter().all(|id| image.is_eligible(*id)), "{partition:?}");
    if isr.len() >= partition.min_insync_replicas(&topic.config) {
        assert!(elr.is_empty(), "{partition:?}");
    }
    if let Some(last) = partition.last_known_leader {
        assert!(partition.leader.is_none() && replicas.contains(&last), "{partition:?}");
    }
    let is_idle = isr.is_empty() && elr.iter().all(|id| !image.is_eligible(*id));
    assert!(partition.leader.is_some() || is_idle, "{partition:?}: somebody could lead");
    if partition.is_reassigning() {
        let stay = replicas.difference(&removing);
        assert!(!stay.into_iter().all(|id| isr.contains(id)), "{partition:?}: complete");
    }
}

/// Epochs only grow, by one, and a leader changes only with its epoch.
pub(crate) fn check_step(before: &Image, after: &Image) {
    assert_eq!(after.metadata_index(), before.metadata_index() + 1);
    for broker in before.brokers() {
        assert!(after.broker(broker.id).is_none_or(|now| now.epoch >= broker.epoch));
    }
    for old in before.topics() {
        let Some(new) = after.topic_by_id(old.id) else { continue };
        assert!(new.partition_count() >= old.partition_count());
        for (old, new) in old.partitions.iter().zip(&new.partitions) {
            let leader_epochs = new.leader_epoch - old.leader_epoch;
            let partition_epochs = new.partition_epoch - old.partition_epoch;
            assert!(leader_epochs <= 1 && partition_epochs <= 1, "{old:?} {new:?}");
            assert!(old == new || partition_epochs == 1, "{old:?} {new:?}");
            assert!(leader_epochs <= partition_epochs, "{old:?} {new:?}");
            let has_lost_replica = old.replicas.iter().any(|id| !new.replicas.contains(id));
            let is_anew = old.leader != new.leader || has_lost_replica;
            assert_eq!(leader_epochs == 1, is_anew, "{old:?} {new:?}");
        }
    }
}

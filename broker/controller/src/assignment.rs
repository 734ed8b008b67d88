//! Which brokers hold the replicas of new partitions. Knows no racks and no load yet: with as many replicas
//! as brokers, or one broker, there is nothing to choose.

use tidemark_protocol::{BrokerId, PartitionIndex};

/// Replicas for `partitions`, each `replication_factor` distinct brokers, leader first.
///
/// Leaders go round the brokers from where `seed` says. The followers of a broker's partitions start one
/// broker further each time round, so that the load of a broker that dies falls on all others, not on its
/// neighbour.
///
/// # Panics
/// When `replication_factor` is 0 or more than `brokers`: refused before.
pub(crate) fn assign(
    brokers: &[BrokerId],
    partitions: std::ops::Range<PartitionIndex>,
    replication_factor: usize,
    seed: u64,
) -> Vec<Vec<BrokerId>> {
    let count = brokers.len();
    assert!((1..=count).contains(&replication_factor), "{replication_factor} of {count} brokers");
    let start = usize::try_from(seed % count as u64).expect("less than a usize");
    let replicas_of = |partition: PartitionIndex| {
        let leader = start + partition as usize;
        let round = leader / count;
        let follower = |place: usize| leader + 1 + (round + place) % (count - 1);
        std::iter::once(leader)
            .chain((0..replication_factor - 1).map(follower))
            .map(|place| brokers[place % count])
            .collect()
    };
    partitions.map(replicas_of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn replicas_are_distinct_and_leaders_even() {
        let brokers = [1, 2, 3, 5, 8];
        for (replication_factor, seed) in [(1, 0), (3, 7), (5, u64::MAX)] {
            let assigned = assign(&brokers, 0..50, replication_factor, seed);
            let mut led = BTreeMap::new();
            for replicas in &assigned {
                assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), replication_factor);
                *led.entry(replicas[0]).or_insert(0) += 1;
            }
            assert!(
                led.len() == brokers.len() && led.values().all(|count| *count == 10),
                "{led:?}"
            );
        }
    }

    #[test]
    fn the_followers_of_one_leader_are_spread_over_all_others() {
        let followers: BTreeSet<BrokerId> = assign(&[1, 2, 3, 4], 0..16, 2, 0)
            .into_iter()
            .filter(|replicas| replicas[0] == 1)
            .map(|replicas| replicas[1])
            .collect();
        assert_eq!(followers, BTreeSet::from([2, 3, 4]));
    }

    #[test]
    fn one_broker_holds_everything() {
        assert_eq!(assign(&[7], 3..5, 1, 99), vec![vec![7], vec![7]]);
    }
}

//! Which brokers hold the replicas of new partitions: replicas of a partition are spread over racks first, then
//! over brokers, and leaders are even. It knows no load but what it assigns itself; where it starts is random.

use std::collections::BTreeMap;

use tidemark_protocol::{BrokerId, PartitionIndex};

use crate::image::Image;

/// A broker that may be given replicas, and its rack. Brokers that name none are in one together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) broker: BrokerId,
    pub(crate) rack: Option<String>,
}

pub(crate) fn open_places(image: &Image) -> Vec<Place> {
    let place =
        |broker: &crate::image::Broker| Place { broker: broker.id, rack: broker.rack.clone() };
    image.open_brokers().map(place).collect()
}

/// Replicas for `partitions`, each `replication_factor` distinct brokers, leader first.
///
/// Leaders go round the brokers from where `seed` says, from rack to rack. A follower is in the rack with the
/// fewest replicas of the partition, on the broker with the fewest replicas there; among equals those after the
/// leader come first, one broker further each time round, so that the load of a broker that dies falls on all
/// others, not on its neighbour.
///
/// # Panics
/// When `replication_factor` is 0 or more than `places`: refused before.
pub(crate) fn assign(
    places: &[Place],
    partitions: std::ops::Range<PartitionIndex>,
    replication_factor: usize,
    seed: u64,
) -> Vec<Vec<BrokerId>> {
    let count = places.len();
    assert!((1..=count).contains(&replication_factor), "{replication_factor} of {count} brokers");
    let (order, racks) = from_rack_to_rack(places);
    let start = usize::try_from(seed % count as u64).expect("less than a usize");
    let mut loads = vec![0_u32; count];
    let mut assigned = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let (leader, round) =
            ((start + partition as usize) % count, (start + partition as usize) / count);
        let mut chosen = vec![leader];
        while chosen.len() < replication_factor {
            let distance =
                |place: usize| (place + count - leader - 1 + count - round % count) % count;
            let in_rack =
                |place: usize| chosen.iter().filter(|one| racks[**one] == racks[place]).count();
            let next = (0..count)
                .filter(|place| !chosen.contains(place))
                .min_by_key(|place| (in_rack(*place), loads[*place], distance(*place)));
            chosen.push(next.expect("fewer are chosen than there are"));
        }
        for place in &chosen {
            loads[*place] += 1;
        }
        assigned.push(chosen.into_iter().map(|place| order[place]).collect());
    }
    assigned
}

/// The brokers, one of each rack in turn, and the number of each one's rack.
fn from_rack_to_rack(places: &[Place]) -> (Vec<BrokerId>, Vec<usize>) {
    let mut by_rack: BTreeMap<&Option<String>, Vec<BrokerId>> = BTreeMap::new();
    for place in places {
        by_rack.entry(&place.rack).or_default().push(place.broker);
    }
    let (mut order, mut racks) = (Vec::new(), Vec::new());
    for turn in 0..places.len() {
        for (rack, brokers) in by_rack.values().enumerate() {
            if let Some(broker) = brokers.get(turn) {
                order.push(*broker);
                racks.push(rack);
            }
        }
    }
    (order, racks)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn places(racks: &[(BrokerId, Option<&str>)]) -> Vec<Place> {
        let place = |(broker, rack): &(BrokerId, Option<&str>)| Place {
            broker: *broker,
            rack: rack.map(str::to_owned),
        };
        racks.iter().map(place).collect()
    }

    fn brokers(ids: &[BrokerId]) -> Vec<Place> {
        places(&ids.iter().map(|id| (*id, None)).collect::<Vec<_>>())
    }

    fn counts(ids: impl Iterator<Item = BrokerId>) -> BTreeMap<BrokerId, u32> {
        let mut counts = BTreeMap::new();
        for id in ids {
            *counts.entry(id).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn replicas_are_distinct_and_even_and_so_are_leaders() {
        let brokers = brokers(&[1, 2, 3, 5, 8]);
        for (replication_factor, seed) in [(1, 0), (3, 7), (5, u64::MAX)] {
            let assigned = assign(&brokers, 0..50, replication_factor, seed);
            for replicas in &assigned {
                assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), replication_factor);
            }
            let led = counts(assigned.iter().map(|replicas| replicas[0]));
            assert!(
                led.len() == brokers.len() && led.values().all(|count| *count == 10),
                "{led:?}"
            );
            let held = counts(assigned.iter().flatten().copied());
            let share = 10 * u32::try_from(replication_factor).unwrap();
            assert!(held.values().all(|count| count.abs_diff(share) <= 1), "{held:?}");
        }
    }

    #[test]
    fn the_followers_of_one_leader_are_spread_over_all_others() {
        let followers: BTreeSet<BrokerId> = assign(&brokers(&[1, 2, 3, 4]), 0..16, 2, 0)
            .into_iter()
            .filter(|replicas| replicas[0] == 1)
            .map(|replicas| replicas[1])
            .collect();
        assert_eq!(followers, BTreeSet::from([2, 3, 4]));
    }

    #[test]
    fn a_partition_is_in_as_many_racks_as_there_are() {
        let places = places(&[
            (1, Some("a")),
            (2, Some("a")),
            (3, Some("a")),
            (4, Some("b")),
            (5, Some("b")),
            (6, Some("c")),
        ]);
        let rack =
            |id: BrokerId| places.iter().find(|place| place.broker == id).unwrap().rack.clone();
        for replication_factor in 2..=6 {
            let assigned = assign(&places, 0..60, replication_factor, 4);
            for replicas in &assigned {
                let racks: BTreeSet<_> = replicas.iter().map(|id| rack(*id)).collect();
                assert_eq!(racks.len(), replication_factor.min(3), "{replicas:?}");
            }
            let led = counts(assigned.iter().map(|replicas| replicas[0]));
            assert!(led.len() == 6 && led.values().all(|count| *count == 10), "{led:?}");
        }
        for replicas in assign(&places, 0..60, 4, 0) {
            let in_c = replicas.iter().filter(|id| **id == 6).count();
            let in_b = replicas.iter().filter(|id| [4, 5].contains(id)).count();
            assert!(in_c == 1 && (1..=2).contains(&in_b), "no rack has two more than another");
        }
    }

    #[test]
    fn one_broker_holds_everything() {
        assert_eq!(assign(&brokers(&[7]), 3..5, 1, 99), vec![vec![7], vec![7]]);
    }
}

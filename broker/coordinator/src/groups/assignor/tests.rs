//! What every assignment must be, for random groups, and what each assignor promises besides.

use proptest::prelude::*;

use super::*;
use crate::topics::Topic;

type Assignment = Vec<BTreeSet<TopicPartition>>;

fn topic(number: u8, partitions: u32) -> Topic {
    let name = format!("topic-{number}");
    Topic { id: TopicId([number; 16]), name, partitions, racks: Vec::new() }
}

/// A group: the topics of each member, by number, and what it had before.
#[derive(Clone, Debug)]
struct Group {
    topics: Topics,
    subscriptions: Vec<BTreeSet<u8>>,
    before: Assignment,
}

impl Group {
    fn assign(&self, assignor: Assignor) -> Assignment {
        let names: Vec<String> = (0..self.subscriptions.len()).map(|n| format!("{n:03}")).collect();
        let members: Vec<Candidate<'_>> = self
            .subscriptions
            .iter()
            .zip(&self.before)
            .zip(&names)
            .map(|((topics, before), name)| Candidate {
                order: name,
                rack: None,
                topics: topics
                    .iter()
                    .map(|number| TopicId([*number; 16]))
                    .filter(|id| self.topics.get(*id).is_some())
                    .collect(),
                before,
            })
            .collect();
        assignor.assign(&members, &self.topics)
    }

    fn check(&self, assigned: &Assignment) {
        let mut owned = BTreeSet::new();
        for (partitions, topics) in assigned.iter().zip(&self.subscriptions) {
            for partition in partitions {
                assert!(owned.insert(*partition), "{partition} twice");
                assert!(topics.contains(&partition.topic_id.0[0]), "{partition} to a stranger");
            }
        }
        let wanted = self.topics.iter().filter(|topic| {
            self.subscriptions.iter().any(|topics| topics.contains(&topic.id.0[0]))
        });
        let all: BTreeSet<_> = wanted.flat_map(Topic::iter_partitions).collect();
        assert_eq!(owned, all);
    }
}

fn group() -> impl Strategy<Value = Group> {
    let topics = prop::collection::vec(0..8_u32, 1..5);
    let subscriptions = prop::collection::vec(prop::collection::btree_set(1..6_u8, 0..5), 1..9);
    (topics, subscriptions, any::<u64>()).prop_map(|(counts, subscriptions, seed)| {
        let topics: Topics =
            (1..).zip(counts).map(|(number, count)| topic(number, count)).collect();
        // Before: scattered, some of it on members that have since unsubscribed.
        let mut before = vec![BTreeSet::new(); subscriptions.len()];
        for (place, partition) in topics.iter().flat_map(Topic::iter_partitions).enumerate() {
            let place = place as u64;
            let member = (seed.rotate_left(u32::try_from(place % 60).unwrap()) ^ place) % 11;
            if let Some(partitions) = before.get_mut(usize::try_from(member).unwrap()) {
                partitions.insert(partition);
            }
        }
        Group { topics, subscriptions, before }
    })
}

/// A group whose members all want the same, settled by the sticky assignor.
fn settled() -> impl Strategy<Value = Group> {
    (1..12_usize, 0..30_u32, 0..30_u32).prop_map(|(members, a, b)| {
        let topics = [topic(1, a), topic(2, b)].into_iter().collect();
        let subscriptions = vec![BTreeSet::from([1, 2]); members];
        let before = vec![BTreeSet::new(); members];
        let mut group = Group { topics, subscriptions, before };
        group.before = group.assign(Assignor::Sticky);
        group
    })
}

fn loads(assigned: &Assignment) -> (usize, usize) {
    let loads = assigned.iter().map(BTreeSet::len);
    (loads.clone().min().unwrap(), loads.max().unwrap())
}

proptest! {
    #[test]
    fn every_partition_goes_to_one_subscriber(group in group()) {
        for assignor in Assignor::ALL {
            let assigned = group.assign(*assignor);
            group.check(&assigned);
            prop_assert_eq!(&assigned, &group.assign(*assignor));
        }
    }

    #[test]
    fn no_single_move_would_make_it_more_even(group in group()) {
        for assignor in [Assignor::Sticky, Assignor::Uniform] {
            let assigned = group.assign(assignor);
            for from in &assigned {
                for (to, topics) in assigned.iter().zip(&group.subscriptions) {
                    let movable = from.iter().any(|one| topics.contains(&one.topic_id.0[0]));
                    prop_assert!(!movable || from.len() <= to.len() + 1, "{assigned:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_settled_stays(mut group in group()) {
        group.before = group.assign(Assignor::Sticky);
        prop_assert_eq!(group.assign(Assignor::Sticky), group.before);
    }

    #[test]
    fn who_joins_gets_a_share_and_nothing_else_moves(mut group in settled(), place in any::<prop::sample::Index>()) {
        let place = place.index(group.subscriptions.len() + 1);
        group.subscriptions.insert(place, [1, 2].into());
        group.before.insert(place, BTreeSet::new());
        let assigned = group.assign(Assignor::Sticky);
        group.check(&assigned);
        let (least, most) = loads(&assigned);
        prop_assert!(most - least <= 1);
        let all: usize = assigned.iter().map(BTreeSet::len).sum();
        prop_assert_eq!(assigned[place].len(), all / assigned.len());
        for (member, (now, before)) in assigned.iter().zip(&group.before).enumerate() {
            prop_assert!(member == place || now.is_subset(before), "{member} was given more");
        }
    }

    #[test]
    fn what_a_leaver_had_is_spread_and_nothing_else_moves(mut group in settled(), place in any::<prop::sample::Index>()) {
        prop_assume!(group.subscriptions.len() > 1);
        let place = place.index(group.subscriptions.len());
        group.subscriptions.remove(place);
        group.before.remove(place);
        let assigned = group.assign(Assignor::Sticky);
        group.check(&assigned);
        let (least, most) = loads(&assigned);
        prop_assert!(most - least <= 1);
        for (now, before) in assigned.iter().zip(&group.before) {
            prop_assert!(now.is_superset(before));
        }
    }

    #[test]
    fn uniform_and_range_go_by_who_is_there_alone(group in group()) {
        let mut fresh = group.clone();
        fresh.before.fill(BTreeSet::new());
        for assignor in [Assignor::Uniform, Assignor::Range] {
            prop_assert_eq!(group.assign(assignor), fresh.assign(assignor));
        }
    }

    #[test]
    fn range_gives_topics_of_one_size_to_the_same_members(members in 1..8_usize, count in 0..20_u32) {
        let topics = [topic(1, count), topic(2, count)].into_iter().collect();
        let subscriptions = vec![BTreeSet::from([1, 2]); members];
        let group = Group { topics, subscriptions, before: vec![BTreeSet::new(); members] };
        for partitions in group.assign(Assignor::Range) {
            let of = |topic: u8| {
                let of_topic = partitions.iter().filter(move |one| one.topic_id.0[0] == topic);
                of_topic.map(|one| one.partition).collect::<Vec<_>>()
            };
            prop_assert_eq!(of(1), of(2));
            prop_assert!(of(1).windows(2).all(|pair| pair[0] + 1 == pair[1]));
        }
    }
}

#[test]
fn a_partition_goes_where_a_replica_is_near_if_nobody_gets_more_than_his_share() {
    let racks = |racks: &[&str]| racks.iter().map(|rack| (*rack).to_owned()).collect();
    let topics: Topics = [Topic {
        racks: (0..6_usize).map(|n| racks(&[["x", "y", "z"][n % 3]])).collect(),
        ..topic(1, 6)
    }]
    .into_iter()
    .collect();
    let before = BTreeSet::new();
    let member = |order, rack| Candidate {
        order,
        rack: Some(rack),
        topics: [TopicId([1; 16])].into(),
        before: &before,
    };
    let members = [member("a", "z"), member("b", "x"), member("c", "y")];
    let assigned = Assignor::Uniform.assign(&members, &topics);
    for (member, partitions) in members.iter().zip(&assigned) {
        assert_eq!(partitions.len(), 2);
        for partition in partitions {
            let topic = topics.get(partition.topic_id).unwrap();
            assert!(topic.is_in_rack(partition.partition, member.rack.unwrap()), "{assigned:?}");
        }
    }
    // Balance goes before racks: all replicas are in one rack.
    let lopsided: Topics =
        [Topic { racks: vec![racks(&["x"]); 6], ..topic(1, 6) }].into_iter().collect();
    let assigned = Assignor::Uniform.assign(&members, &lopsided);
    assert!(assigned.iter().all(|partitions| partitions.len() == 2), "{assigned:?}");
}

#[test]
fn a_large_group_is_assigned_in_no_time() {
    let topics: Topics = [topic(1, 3_000), topic(2, 3_000)].into_iter().collect();
    let subscriptions = vec![BTreeSet::from([1, 2]); 500];
    let mut group = Group { topics, subscriptions, before: vec![BTreeSet::new(); 500] };
    group.before = group.assign(Assignor::Sticky);
    group.subscriptions.push([1, 2].into());
    group.before.push(BTreeSet::new());
    let assigned = group.assign(Assignor::Sticky);
    assert_eq!(assigned[500].len(), 6_000 / 501);
}

//! What a broker has to do to follow the metadata, and which replicas should move.

use std::collections::BTreeMap;

use tidemark_controller::{
    AddPartitions, AlterPartition, AlterPartitions, Command, CreateTopic, DeleteTopic, Image,
    IsrMember, Reassign, SetDraining,
    plan::{Difference, Moves, balance, difference, drain, members},
};
use tidemark_protocol::{BrokerId, TopicId};

use crate::cluster::{Cluster, Restart, TOPIC, create, register};

/// What a difference is about: how many partitions to open, assign, release, delete.
fn counts(difference: &Difference) -> [usize; 4] {
    let Difference { open, assign, release, delete, .. } = difference;
    [open, assign, release, delete].map(Vec::len)
}

/// What broker 1 has to do about what `act` does.
fn follow(cluster: &mut Cluster, act: impl FnOnce(&mut Cluster)) -> Difference {
    let before = cluster.image.clone();
    act(cluster);
    difference(&before, &cluster.image, 1)
}

#[test]
fn a_broker_opens_what_is_new_and_deletes_what_is_gone() {
    let mut cluster = Cluster::new(2);
    let create = |cluster: &mut Cluster, id: u8| {
        let command = CreateTopic { id: TopicId([id; 16]), ..create(TOPIC, 3, 2) };
        cluster.run(&Command::CreateTopic(command));
    };
    let delete = |cluster: &mut Cluster| {
        let name = TOPIC.to_owned();
        cluster.run(&Command::DeleteTopic(DeleteTopic { name, id: None }));
    };
    let opened = follow(&mut cluster, |cluster| create(cluster, 1));
    assert_eq!(counts(&opened), [3, 0, 0, 0]);
    let everything = difference(&Image::default(), &cluster.image, 1);
    assert_eq!(everything.open, opened.open, "as after a start");
    assert_eq!(counts(&difference(&Image::default(), &cluster.image, 7)), [0; 4]);
    let more = follow(&mut cluster, |cluster| {
        let (name, partitions) = (TOPIC.to_owned(), 5);
        let command = AddPartitions { name, partitions, seed: 0, validate_only: false };
        cluster.run(&Command::AddPartitions(command));
    });
    assert_eq!(counts(&more), [2, 0, 0, 0]);
    let recreated = follow(&mut cluster, |cluster| {
        delete(cluster);
        create(cluster, 2);
    });
    assert_eq!(counts(&recreated), [3, 0, 0, 5]);
    assert_eq!(recreated.deleted_topics[0].id, TopicId([1; 16]));
    assert_eq!(recreated.open[0].id.topic_id, TopicId([2; 16]));
    assert_eq!(counts(&follow(&mut cluster, |_| {})), [0; 4]);
}

#[test]
fn whatever_concerns_a_replica_reaches_it_and_nothing_else_does() {
    let mut cluster = Cluster::with_topic(3, &[]);
    let idle = follow(&mut cluster, |cluster| {
        cluster.run(&register(4, 1));
        cluster.unfence(4);
        cluster.run(&Command::CreateTopic(CreateTopic { seed: 3, ..create("other", 1, 1) }));
        cluster.run(&Command::SetDraining(SetDraining { broker_id: 2, draining: true }));
    });
    assert_eq!(counts(&idle), [0; 4]);
    let assigned = [0, 1, 0, 0];
    let in_sync = follow(&mut cluster, |cluster| drop(cluster.in_sync(&[1, 2])));
    assert_eq!(counts(&in_sync), assigned);
    let settings = follow(&mut cluster, |cluster| cluster.set(&[("retention_ms", "1h")]));
    assert_eq!(counts(&settings), assigned);
    let unfenced = follow(&mut cluster, |cluster| {
        cluster.fence(3);
        cluster.unfence(3);
    });
    assert_eq!(counts(&unfenced), [0; 4], "3 is as it was, and not in sync before or after");
    let fenced = follow(&mut cluster, |cluster| cluster.fence(3));
    assert_eq!(counts(&fenced), assigned, "the partition is the same, its members are not");
    let restarted = follow(&mut cluster, |cluster| cluster.restart(3, Restart::Killed));
    assert_eq!(counts(&restarted), assigned);
    let partition = cluster.partition();
    let shown: Vec<_> = members(&cluster.image, partition)
        .into_iter()
        .map(|member| (member.id, member.broker_epoch, member.eligible))
        .collect();
    let epoch = |id| cluster.image.broker(id).unwrap().epoch;
    assert_eq!(shown, [(1, epoch(1), true), (2, epoch(2), true), (3, epoch(3), false)]);
}

#[test]
fn a_replica_that_moves_away_is_released() {
    let mut cluster = Cluster::with_topic(2, &[]);
    let released = follow(&mut cluster, |cluster| {
        let changes = vec![tidemark_controller::ReassignPartition {
            partition: cluster.id(),
            replicas: Some(vec![2]),
        }];
        let throttle_bytes_per_second = None;
        cluster.run(&Command::Reassign(Reassign { changes, throttle_bytes_per_second }));
    });
    assert_eq!(counts(&released), [0, 0, 1, 0]);
    assert_eq!(released.release[0].partition.replicas, [1, 2], "as it was");
}

/// Brokers `1..=brokers` in `racks` racks, all alive, and `partitions` partitions placed on the first `used`.
fn racked(brokers: u32, racks: u32, used: u32, partitions: u32) -> Cluster {
    let mut cluster = Cluster::new(0);
    for id in 1..=brokers {
        let Command::RegisterBroker(mut command) = register(id, 1) else { unreachable!() };
        command.rack = Some(format!("rack-{}", id % racks));
        cluster.run(&Command::RegisterBroker(command));
        if id <= used {
            cluster.unfence(id);
        }
    }
    cluster.run(&Command::CreateTopic(create(TOPIC, partitions, 2)));
    for id in used + 1..=brokers {
        cluster.unfence(id);
    }
    cluster
}

/// Carries a plan out: all new replicas get in sync.
fn carry_out(cluster: &mut Cluster, moves: Moves) {
    let changes = moves.changes;
    let moved: Vec<_> = changes.iter().map(|change| change.partition).collect();
    cluster.run(&Command::Reassign(Reassign { changes, throttle_bytes_per_second: None }));
    for id in moved {
        let partition = cluster.image.partition(id).unwrap();
        let Some(leader) = partition.leader.filter(|_| partition.is_reassigning()) else {
            continue;
        };
        let epoch = |id: BrokerId| cluster.image.broker(id).map_or(0, |broker| broker.epoch);
        let member = |id: &BrokerId| IsrMember { id: *id, broker_epoch: epoch(*id) };
        let change = AlterPartition {
            topic_id: id.topic_id,
            partition: id.partition,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: partition.replicas.iter().map(member).collect(),
        };
        let (broker_id, broker_epoch, changes) = (leader, epoch(leader), vec![change]);
        let command = AlterPartitions { broker_id, broker_epoch, changes };
        cluster.run(&Command::AlterPartitions(command));
    }
}

/// Replicas held and partitions led, by broker.
fn held(cluster: &Cluster) -> BTreeMap<BrokerId, (u32, u32)> {
    let ids = cluster.image.brokers().map(|broker| (broker.id, (0, 0)));
    let mut held: BTreeMap<_, _> = ids.collect();
    for partition in &cluster.image.topic(TOPIC).unwrap().partitions {
        assert!(!partition.is_reassigning());
        let racks: Vec<_> =
            partition.replicas.iter().map(|id| &cluster.image.broker(*id).unwrap().rack).collect();
        assert_ne!(racks[0], racks[1], "two racks");
        for (place, id) in partition.replicas.iter().enumerate() {
            let counts = held.get_mut(id).unwrap();
            *counts = (counts.0 + 1, counts.1 + u32::from(place == 0));
        }
    }
    held
}

#[test]
fn a_broker_is_drained_in_batches_and_racks_stay_apart() {
    let mut cluster = racked(6, 3, 6, 30);
    assert!((9..=11).contains(&held(&cluster)[&1].0));
    assert_eq!(drain(&cluster.image, 100), Moves::default(), "nobody is being drained");
    let set = |draining| Command::SetDraining(SetDraining { broker_id: 1, draining });
    cluster.run(&set(true));
    let mut batches = 0;
    loop {
        let moves = drain(&cluster.image, 4);
        assert!(moves.changes.len() <= 4 && moves.stuck.is_empty());
        let has_more = moves.has_more;
        carry_out(&mut cluster, moves);
        batches += 1;
        if !has_more {
            break;
        }
    }
    assert_eq!(batches, 3);
    let held = held(&cluster);
    assert_eq!(held[&1], (0, 0));
    let others = held.iter().filter(|(id, _)| **id != 1).map(|(_, counts)| *counts);
    let (replicas, led): (Vec<_>, Vec<_>) = others.unzip();
    assert!(replicas.iter().all(|count| (9..=16).contains(count)), "{replicas:?}");
    assert!(led.iter().all(|count| (5..=8).contains(count)), "{led:?}");
    cluster.run(&set(false));
    assert_eq!(drain(&cluster.image, 100), Moves::default());
}

#[test]
fn a_drain_with_nowhere_to_go_says_so() {
    let mut cluster = Cluster::with_topic(2, &[]);
    cluster.run(&Command::SetDraining(SetDraining { broker_id: 1, draining: true }));
    let moves = drain(&cluster.image, 10);
    assert_eq!((moves.changes.len(), moves.stuck), (0, vec![cluster.id()]));
    cluster.run(&register(3, 1));
    assert_eq!(drain(&cluster.image, 10).stuck.len(), 1, "3 is fenced");
    cluster.unfence(3);
    let moves = drain(&cluster.image, 10);
    assert_eq!(moves.changes[0].replicas, Some(vec![3, 2]));
    carry_out(&mut cluster, moves);
    assert_eq!(cluster.partition().replicas, [3, 2]);
    assert_eq!(drain(&cluster.image, 10), Moves::default());
}

#[test]
fn new_brokers_get_their_share_and_no_more_moves_than_that() {
    let mut cluster = racked(5, 5, 3, 30);
    let moves = balance(&cluster.image, 100);
    assert_eq!(moves.changes.len(), 24, "two brokers of five get 12 replicas of 60 each");
    assert!(!moves.has_more && balance(&cluster.image, 10).has_more);
    carry_out(&mut cluster, moves);
    let held = held(&cluster);
    for (replicas, led) in held.values() {
        assert_eq!(*replicas, 12);
        assert!((5..=7).contains(led), "{held:?}");
    }
    assert_eq!(balance(&cluster.image, 100), Moves::default());
}

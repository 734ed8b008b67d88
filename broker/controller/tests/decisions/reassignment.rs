//! Partitions move from broker to broker.

use tidemark_controller::{
    Answer, Command, CreateTopic, MetadataRecord, Reassign, ReassignPartition, SetDraining,
};
use tidemark_protocol::{BrokerId, ErrorCode, Failure, TopicPartition};

use crate::cluster::{Cluster, Restart, create, settings_of};

/// Five brokers and one partition on the first three, of which one in sync is enough.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(5);
    for id in [4, 5] {
        cluster.fence(id);
    }
    let settings = settings_of(&[("min_insync_replicas", "1")]);
    let topic = CreateTopic { settings, ..create(crate::cluster::TOPIC, 1, 3) };
    cluster.run(&Command::CreateTopic(topic));
    for id in [4, 5] {
        cluster.unfence(id);
    }
    cluster
}

fn command(partition: TopicPartition, replicas: Option<&[BrokerId]>) -> Command {
    let replicas = replicas.map(<[_]>::to_vec);
    let changes = vec![ReassignPartition { partition, replicas }];
    Command::Reassign(Reassign { changes, throttle_bytes_per_second: None })
}

fn reassign(cluster: &mut Cluster, replicas: Option<&[BrokerId]>) -> Result<(), Failure> {
    let answer = cluster.run(&command(cluster.id(), replicas));
    let Answer::Reassigned(outcomes) = answer else { panic!() };
    outcomes.into_iter().next().unwrap()
}

/// Everything about replicas, as one can read it.
fn moves(cluster: &Cluster) -> String {
    let partition = cluster.partition();
    format!(
        "{:?} adding {:?} removing {:?} isr {:?} leader {}",
        partition.replicas,
        partition.adding,
        partition.removing,
        partition.isr,
        partition.leader.map_or("-".to_owned(), |id| id.to_string())
    )
}

#[test]
fn a_move_adds_waits_and_then_removes() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[4, 2, 5])).unwrap();
    let begun = "[4, 2, 5, 1, 3] adding [4, 5] removing [1, 3] isr [2, 1, 3] leader 1";
    assert_eq!(moves(&cluster), begun);
    assert_eq!(cluster.partition().leader_epoch, 0, "nobody else leads");
    cluster.in_sync(&[1, 2, 3, 4]);
    assert_eq!(cluster.partition().leader_epoch, 0);
    let state = cluster.in_sync(&[1, 2, 3, 4, 5]);
    assert_eq!(moves(&cluster), "[4, 2, 5] adding [] removing [] isr [4, 2, 5] leader 4");
    assert_eq!((state.leader, state.leader_epoch), (Some(4), 1), "the old leader is told");
}

#[test]
fn a_move_is_not_complete_before_all_who_stay_are_in_sync() {
    let mut cluster = cluster();
    cluster.in_sync(&[1, 3]);
    reassign(&mut cluster, Some(&[1, 2, 4])).unwrap();
    cluster.in_sync(&[1, 3, 4]);
    let waiting = "[1, 2, 4, 3] adding [4] removing [3] isr [1, 4, 3] leader 1";
    assert_eq!(moves(&cluster), waiting, "2 stays and is behind");
    cluster.in_sync(&[1, 4]);
    assert!(cluster.partition().is_reassigning());
    cluster.in_sync(&[1, 2, 4]);
    assert_eq!(moves(&cluster), "[1, 2, 4] adding [] removing [] isr [1, 2, 4] leader 1");
    assert_eq!(cluster.partition().leader_epoch, 1, "grows though the leader stays");
}

#[test]
fn replicas_that_only_go_go_at_once_and_an_order_is_only_an_order() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[3, 1])).unwrap();
    assert_eq!(moves(&cluster), "[3, 1] adding [] removing [] isr [3, 1] leader 1");
    assert_eq!(cluster.partition().leader_epoch, 1);
    reassign(&mut cluster, Some(&[1, 3])).unwrap();
    assert_eq!(moves(&cluster), "[1, 3] adding [] removing [] isr [1, 3] leader 1");
    assert_eq!(cluster.partition().leader_epoch, 1, "no replica is gone");
    let idle = cluster.image.decide(&command(cluster.id(), Some(&[1, 3]))).unwrap();
    assert_eq!(idle.0, []);
}

#[test]
fn a_move_that_is_taken_back_leaves_what_was() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[4, 5])).unwrap();
    cluster.in_sync(&[1, 2, 3, 4]);
    reassign(&mut cluster, None).unwrap();
    assert_eq!(moves(&cluster), "[1, 2, 3] adding [] removing [] isr [1, 2, 3] leader 1");
    assert_eq!(cluster.partition().leader_epoch, 1, "4 must not be believed any more");
    let failure = reassign(&mut cluster, None).unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
}

#[test]
fn another_move_replaces_the_one_under_way() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[1, 2, 4])).unwrap();
    cluster.in_sync(&[1, 2, 3]);
    reassign(&mut cluster, Some(&[1, 2, 5])).unwrap();
    let replaced = "[1, 2, 5, 3] adding [5] removing [3] isr [1, 2, 3] leader 1";
    assert_eq!(moves(&cluster), replaced);
    reassign(&mut cluster, Some(&[1, 2, 3])).unwrap();
    assert_eq!(moves(&cluster), "[1, 2, 3] adding [] removing [] isr [1, 2, 3] leader 1");
}

#[test]
fn nobody_goes_who_alone_has_the_records() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[4])).unwrap();
    for (isr, dead) in [(&[1, 4][..], 1), (&[4], 0)] {
        if cluster.partition().leader == Some(1) {
            cluster.in_sync(isr);
        }
        if dead != 0 {
            cluster.fence(dead);
        }
    }
    // Complete: 4 is alone. Move it away and let the newcomer be the last in sync.
    assert_eq!(moves(&cluster), "[4] adding [] removing [] isr [4] leader 4");
    reassign(&mut cluster, Some(&[5, 2])).unwrap();
    cluster.in_sync(&[4, 5]);
    cluster.fence(4);
    assert_eq!(moves(&cluster), "[5, 2, 4] adding [5, 2] removing [4] isr [5] leader 5");
    let failure = reassign(&mut cluster, None).unwrap_err();
    assert!(failure.message.contains("[5"), "{failure}");
    let failure = reassign(&mut cluster, Some(&[4, 2])).unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
    cluster.set(&[("unclean_leader_election", "true")]);
    cluster.unfence(4);
    reassign(&mut cluster, None).unwrap();
    assert_eq!(moves(&cluster), "[4] adding [] removing [] isr [4] leader 4");
}

/// A newcomer has led last, and nobody leads. Whoever is eligible may yet turn out to have lost its data, so that the newcomer
/// does not go.
#[test]
fn the_last_leader_stays_while_nobody_leads() {
    let mut cluster = cluster();
    cluster.set(&[("min_insync_replicas", "2")]);
    reassign(&mut cluster, Some(&[4, 2, 3])).unwrap();
    cluster.in_sync(&[1, 4]);
    for id in [1, 4] {
        cluster.fence(id);
    }
    let partition = cluster.partition();
    assert_eq!((partition.leader, partition.last_known_leader), (None, Some(4)));
    assert!(partition.elr.contains(&1), "{partition:?}");
    for back in [Some(&[1, 2, 3][..]), None] {
        let failure = reassign(&mut cluster, back).unwrap_err();
        assert!(failure.message.contains("the last one"), "{failure}");
    }
    cluster.unfence(4);
    reassign(&mut cluster, None).unwrap();
}

#[test]
fn a_target_that_cannot_be_is_refused() {
    let mut cluster = cluster();
    cluster.fence(4);
    cluster.run(&Command::SetDraining(SetDraining { broker_id: 5, draining: true }));
    for (target, hint) in [
        (&[][..], "1 to 32"),
        (&[1, 1], "named twice"),
        (&[1, 9], "no broker 9"),
        (&[1, 4], "not alive"),
        (&[1, 5], "being drained"),
    ] {
        let failure = reassign(&mut cluster, Some(target)).unwrap_err();
        assert!(failure.message.contains(hint), "{:?} lacks {hint:?}", failure.message);
    }
    assert_eq!(cluster.partition().partition_epoch, 0);
    cluster.fence(2);
    reassign(&mut cluster, Some(&[2, 1])).unwrap();
    assert!(cluster.partition().is_reassigning(), "a replica may stay while it is away");
}

#[test]
fn a_throttle_comes_with_the_move_or_alone() {
    let mut cluster = cluster();
    let Command::Reassign(mut with) = command(cluster.id(), Some(&[1, 2])) else { panic!() };
    with.throttle_bytes_per_second = Some(1 << 20);
    cluster.run(&Command::Reassign(with.clone()));
    assert_eq!(cluster.image.replication_throttle(), Some(1 << 20));
    // Zero is no bound, not one that lets nothing through.
    let none = Reassign { changes: Vec::new(), throttle_bytes_per_second: Some(0) };
    let (records, _) = cluster.image.decide(&Command::Reassign(none)).unwrap();
    assert_eq!(records, [MetadataRecord::ReplicationThrottled { bytes_per_second: None }]);
    let alone = |bytes_per_second| Command::SetReplicationThrottle { bytes_per_second };
    assert_eq!(cluster.image.decide(&alone(Some(1 << 20))).unwrap().0, []);
    let (records, _) = cluster.image.decide(&alone(None)).unwrap();
    assert_eq!(records, [MetadataRecord::ReplicationThrottled { bytes_per_second: None }]);
}

#[test]
fn a_move_survives_the_restart_of_its_leader() {
    let mut cluster = cluster();
    reassign(&mut cluster, Some(&[4, 5])).unwrap();
    cluster.in_sync(&[1, 2, 3, 4]);
    cluster.restart(1, Restart::Killed);
    assert_eq!(
        moves(&cluster),
        "[4, 5, 1, 2, 3] adding [4, 5] removing [1, 2, 3] isr [4, 2, 3] leader 4"
    );
    cluster.in_sync(&[2, 4, 5]);
    assert_eq!(moves(&cluster), "[4, 5] adding [] removing [] isr [4, 5] leader 4");
}

//! Decisions have to fit a batch: what is too much at once comes in pieces, and nothing is left out, whoever
//! coordinates by then.

use std::collections::BTreeSet;

use tidemark_coordinator::{
    GroupConfig, Record, Topics,
    groups::{CommitOffsets, Committer, GroupRequest, Heartbeat, OffsetToCommit, Subscription},
    limits::DECISION_BYTES_MAX,
};

use crate::log::{World, partition, topic};

const PARTITIONS: u32 = 1_000;

fn commit(world: &mut World, group: u32) {
    let offset = |number| OffsetToCommit {
        partition: partition(1, number),
        offset: 1,
        leader_epoch: None,
        metadata: String::new(),
    };
    let commit = CommitOffsets {
        group: format!("{group}-{}", "x".repeat(240)),
        committer: Committer::Outside,
        offsets: (0..PARTITIONS).map(offset).collect(),
    };
    world.call(GroupRequest::CommitOffsets(commit)).unwrap();
}

#[test]
fn offsets_of_a_deleted_topic_go_in_pieces() {
    let topics: Topics = [topic(1, "a", PARTITIONS)].into_iter().collect();
    let mut world = World::new(GroupConfig::default(), topics);
    for group in 0..18 {
        commit(&mut world, group);
    }
    let bytes = |log: &[(u64, Record)]| log.iter().map(|(_, record)| record.bytes()).sum::<usize>();
    let before = world.log.len();
    world.set_topics(Topics::default());
    assert!(bytes(&world.log[before..]) < DECISION_BYTES_MAX + 1_000);
    assert_eq!(world.wake_at_ms, Some(0), "there is more to do");
    assert!(world.coordinator.state().groups().len() > 0);
    world.wait(0);
    assert_eq!(world.coordinator.state().groups().len(), 0);
}

#[test]
fn a_group_whose_members_are_gone_is_settled_by_the_next_coordinator_if_not_by_this_one() {
    let topics: Topics = [topic(1, "a", 6)].into_iter().collect();
    let mut world = World::new(GroupConfig::default(), topics);
    for member in ["m1", "m2"] {
        let heartbeat = Heartbeat {
            group: "g".to_owned(),
            member: member.to_owned(),
            subscription: Some(Subscription { topics: ["a".to_owned()].into(), regex: None }),
            rebalance_timeout_ms: Some(1_000),
            ..Heartbeat::default()
        };
        world.call(GroupRequest::Heartbeat(heartbeat)).unwrap();
    }
    let whole = world.log.len();
    let is_of_m2 = |record: &Record| String::from_utf8_lossy(&record.key).contains("m2");
    let mine: Vec<Vec<u8>> =
        world.log.iter().filter(|(_, r)| is_of_m2(r)).map(|(_, r)| r.key.clone()).collect();
    // The coordinator takes m2 out, and fails before it has looked at the targets.
    let keys: BTreeSet<Vec<u8>> = mine.into_iter().collect();
    for key in keys {
        let offset = world.end_offset;
        world.log.push((offset, Record { key, value: None }));
        world.end_offset += 1;
    }
    assert_eq!(world.log.len(), whole + 3);
    world.load();
    let group = world.coordinator.state().group("g").unwrap();
    assert_eq!(group.targets["m1"].partitions.len(), 6);
    assert_eq!(group.epochs.unwrap().epoch, 3);
}

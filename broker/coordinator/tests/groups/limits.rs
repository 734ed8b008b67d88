//! Requests that are too much: refused with the limit in the message, and nothing is written.

use tidemark_coordinator::{
    GroupConfig, Topics,
    groups::{
        CommitOffsets, CommitTransactionalOffsets, Committer, GroupRequest, GroupResponse,
        Heartbeat, JoinGroup, OffsetToCommit, SeekOffsets, Subscription, SyncGroup, Verification,
    },
    limits::{
        CLASSIC_GROUP_BYTES_MAX, CLASSIC_MEMBER_BYTES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX,
        OFFSET_METADATA_BYTES_MAX, SUBSCRIPTION_TOPICS_MAX, TRANSACTION_OFFSETS_MAX,
    },
};
use tidemark_protocol::ErrorCode;

use crate::log::{World, partition, topic};

fn world() -> World {
    let topics: Topics = [topic(1, "a", 20_000)].into_iter().collect();
    let config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    World::new(config, topics)
}

fn offset(number: u32, metadata_bytes: usize) -> OffsetToCommit {
    OffsetToCommit {
        partition: partition(1, number),
        offset: 1,
        leader_epoch: None,
        metadata: "x".repeat(metadata_bytes),
    }
}

fn refused(world: &mut World, request: GroupRequest) -> ErrorCode {
    let before = world.end_offset;
    let failure = world.call(request).unwrap_err();
    assert_eq!(world.end_offset, before);
    assert!(failure.message.len() < 500, "{failure}");
    failure.code
}

#[test]
fn metadata_of_an_offset() {
    let mut world = world();
    let commit = |bytes| {
        GroupRequest::CommitOffsets(CommitOffsets {
            group: "g".to_owned(),
            committer: Committer::Outside,
            offsets: vec![offset(0, bytes), offset(1, 0)],
        })
    };
    let outcome = world.call(commit(OFFSET_METADATA_BYTES_MAX + 1));
    let expected = vec![Err(ErrorCode::OffsetMetadataTooLarge), Ok(())];
    assert_eq!(outcome, Ok(GroupResponse::CommitOffsets(expected)), "the others are committed");
    let outcome = world.call(commit(OFFSET_METADATA_BYTES_MAX));
    assert_eq!(outcome, Ok(GroupResponse::CommitOffsets(vec![Ok(()), Ok(())])));
}

#[test]
fn names() {
    let mut world = world();
    for length in [0, NAME_BYTES_MAX + 1, 1 << 20] {
        let name = "x".repeat(length);
        let heartbeat = |group: &str, member: &str| {
            GroupRequest::Heartbeat(Heartbeat {
                group: group.to_owned(),
                member: member.to_owned(),
                ..Heartbeat::default()
            })
        };
        assert_eq!(refused(&mut world, heartbeat(&name, "m")), ErrorCode::InvalidGroup);
        assert_eq!(refused(&mut world, heartbeat("g", &name)), ErrorCode::InvalidGroup);
        let commit = CommitOffsets {
            group: name.clone(),
            committer: Committer::Outside,
            offsets: vec![offset(0, 0)],
        };
        let code = refused(&mut world, GroupRequest::CommitOffsets(commit));
        assert_eq!(code, ErrorCode::InvalidGroup);
        let seek = SeekOffsets {
            group: "g".to_owned(),
            by: name,
            offsets: vec![(partition(1, 0), 1)],
            dry_run: false,
        };
        let code = refused(&mut world, GroupRequest::SeekOffsets(seek));
        assert_eq!(code, ErrorCode::InvalidGroup);
    }
}

#[test]
fn topics_of_a_subscription() {
    let mut world = world();
    let heartbeat = |count: usize| {
        let topics = (0..count).map(|number| format!("topic-{number}")).collect();
        GroupRequest::Heartbeat(Heartbeat {
            group: "g".to_owned(),
            member: "m".to_owned(),
            subscription: Some(Subscription { topics, regex: None }),
            rebalance_timeout_ms: Some(1),
            ..Heartbeat::default()
        })
    };
    let too_many = heartbeat(SUBSCRIPTION_TOPICS_MAX + 1);
    assert_eq!(refused(&mut world, too_many), ErrorCode::InvalidRequest);
    assert!(world.call(heartbeat(SUBSCRIPTION_TOPICS_MAX)).is_ok());
}

#[test]
fn offsets_of_a_transaction() {
    let mut world = world();
    let commit = |world: &mut World, offsets: Vec<OffsetToCommit>| {
        let guard = match world.coordinator.begin_verification(7, 0) {
            Verification::NotNeeded => None,
            Verification::Needed { guard } => Some(guard),
        };
        GroupRequest::CommitTransactionalOffsets(CommitTransactionalOffsets {
            group: "g".to_owned(),
            producer_id: 7,
            producer_epoch: 0,
            guard,
            committer: Committer::Outside,
            offsets,
        })
    };
    let half = u32::try_from(TRANSACTION_OFFSETS_MAX / 2).unwrap();
    let first = commit(&mut world, (0..half).map(|number| offset(number, 0)).collect());
    assert!(world.call(first).is_ok());
    let more = (half..=half * 2).map(|number| offset(number, 0)).collect();
    let request = commit(&mut world, more);
    assert_eq!(refused(&mut world, request), ErrorCode::TooLarge);
    let count = u32::try_from(METADATA_BYTES_MAX / OFFSET_METADATA_BYTES_MAX).unwrap() + 1;
    let heavy = (0..count).map(|number| offset(number, OFFSET_METADATA_BYTES_MAX)).collect();
    let request = commit(&mut world, heavy);
    assert_eq!(refused(&mut world, request), ErrorCode::TooLarge);
}

#[test]
fn what_a_seek_remembers() {
    let mut world = world();
    let count = u32::try_from(METADATA_BYTES_MAX / OFFSET_METADATA_BYTES_MAX).unwrap() + 1;
    let commit = CommitOffsets {
        group: "g".to_owned(),
        committer: Committer::Outside,
        offsets: (0..count).map(|number| offset(number, OFFSET_METADATA_BYTES_MAX)).collect(),
    };
    world.call(GroupRequest::CommitOffsets(commit)).unwrap();
    let seek = |count| {
        GroupRequest::SeekOffsets(SeekOffsets {
            group: "g".to_owned(),
            by: "operator".to_owned(),
            offsets: (0..count).map(|number| (partition(1, number), 0)).collect(),
            dry_run: false,
        })
    };
    assert_eq!(refused(&mut world, seek(count)), ErrorCode::TooLarge);
    assert!(world.call(seek(count - 1)).is_ok());
}

#[test]
fn bytes_of_a_classic_group() {
    let mut world = world();
    let join = |member: &str, bytes| {
        GroupRequest::JoinGroup(JoinGroup {
            group: "g".to_owned(),
            new_member: member.to_owned(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 10_000,
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), vec![0; bytes])],
            ..JoinGroup::default()
        })
    };
    let too_much = join("m", CLASSIC_MEMBER_BYTES_MAX + 1);
    assert_eq!(refused(&mut world, too_much), ErrorCode::TooLarge);
    assert!(world.call(join("m", 10)).is_ok());
    let sync = |bytes| {
        GroupRequest::SyncGroup(SyncGroup {
            group: "g".to_owned(),
            member: "m".to_owned(),
            generation: 1,
            assignments: [("m".to_owned(), vec![0; bytes])].into(),
            ..SyncGroup::default()
        })
    };
    assert_eq!(refused(&mut world, sync(CLASSIC_GROUP_BYTES_MAX)), ErrorCode::TooLarge);
    assert!(world.call(sync(100)).is_ok(), "the generation is still there to be assigned");
}

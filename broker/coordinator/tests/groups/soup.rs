//! Random requests of every kind to a few groups, in no sensible order: nothing breaks, every request is answered once,
//! a refusal writes nothing, and the log always says what the coordinator knows.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_coordinator::{
    GroupConfig, Topics,
    groups::{
        ClassicHeartbeat, CommitOffsets, Committer, DeleteOffsets, GroupRequest, Heartbeat,
        JoinGroup, LeaveGroup, LeavingMember, MemberName, OffsetToCommit, RemoveMember,
        SeekOffsets, Subscription, SyncGroup, UndoSeek,
    },
};

use crate::log::{World, partition, topic};

#[derive(Clone, Debug)]
enum Step {
    Request(Box<GroupRequest>),
    Wait(u64),
    Topics(u32),
    FailOver { is_compacted: bool },
}

fn group() -> impl Strategy<Value = String> {
    (0..2_u8).prop_map(|number| format!("group-{number}"))
}

fn member() -> impl Strategy<Value = String> {
    (0..4_u8).prop_map(|number| format!("member-{number}"))
}

fn instance() -> impl Strategy<Value = Option<String>> {
    prop::option::weighted(0.3, (0..2_u8).prop_map(|number| format!("instance-{number}")))
}

fn epoch() -> impl Strategy<Value = i32> {
    prop_oneof![2 => Just(0), 1 => Just(-1), 1 => Just(-2), 6 => 1..12_i32]
}

fn heartbeat() -> impl Strategy<Value = GroupRequest> {
    let owned = prop::option::of(prop::collection::btree_set(0..4_u32, 0..4));
    let wants =
        prop::option::weighted(0.4, prop_oneof![Just("a"), Just("b"), Just(".*"), Just("(")]);
    (group(), member(), epoch(), instance(), owned, wants).prop_map(
        |(group, member, epoch, instance, owned, wants)| {
            let wants = if epoch == 0 { wants.or(Some("a")) } else { wants };
            GroupRequest::Heartbeat(Heartbeat {
                group,
                member,
                epoch,
                instance,
                subscription: wants
                    .map(|regex| Subscription { topics: [].into(), regex: Some(regex.to_owned()) }),
                rebalance_timeout_ms: Some(500),
                owned: owned.map(|owned| owned.into_iter().map(|n| partition(1, n)).collect()),
                ..Heartbeat::default()
            })
        },
    )
}

fn classic() -> impl Strategy<Value = GroupRequest> {
    let join = (group(), member(), any::<bool>(), any::<bool>(), instance(), 0..3_u8).prop_map(
        |(group, name, is_new, require_known_member, instance, wants)| {
            GroupRequest::JoinGroup(JoinGroup {
                group,
                member: if is_new { String::new() } else { name.clone() },
                new_member: name,
                require_known_member,
                instance,
                session_timeout_ms: 700,
                rebalance_timeout_ms: 300,
                protocol_type: "consumer".to_owned(),
                protocols: vec![("range".to_owned(), vec![wants])],
                ..JoinGroup::default()
            })
        },
    );
    let sync = (group(), member(), instance(), 0..12_i32).prop_map(
        |(group, member, instance, generation)| {
            let assignments = BTreeMap::from([(member.clone(), vec![1])]);
            GroupRequest::SyncGroup(SyncGroup {
                group,
                member,
                instance,
                generation,
                assignments,
                ..SyncGroup::default()
            })
        },
    );
    let beat = (group(), member(), instance(), 0..12_i32).prop_map(
        |(group, member, instance, generation)| {
            GroupRequest::ClassicHeartbeat(ClassicHeartbeat { group, member, instance, generation })
        },
    );
    let leave = (group(), member(), instance()).prop_map(|(group, member, instance)| {
        GroupRequest::LeaveGroup(LeaveGroup {
            group,
            members: vec![LeavingMember { member, instance }],
        })
    });
    prop_oneof![6 => join, 6 => sync, 2 => beat, 2 => leave]
}

fn offsets() -> impl Strategy<Value = GroupRequest> {
    let committer = prop_oneof![
        Just(Committer::Outside),
        (member(), 0..12_i32, instance()).prop_map(|(member, epoch, instance)| {
            Committer::Member { member, epoch, instance }
        }),
    ];
    let commit =
        (group(), committer, 0..5_u32, 0..9_u64).prop_map(|(group, committer, number, offset)| {
            let partition = partition(1, number);
            let metadata = String::new();
            let offsets = vec![OffsetToCommit { partition, offset, leader_epoch: None, metadata }];
            GroupRequest::CommitOffsets(CommitOffsets { group, committer, offsets })
        });
    let seek = (group(), 0..4_u32, 0..9_u64, any::<bool>()).prop_map(
        |(group, number, offset, dry_run)| {
            let offsets = vec![(partition(1, number), offset)];
            GroupRequest::SeekOffsets(SeekOffsets { group, by: "x".to_owned(), offsets, dry_run })
        },
    );
    let undo = (group(), prop::option::of(0..12_u64))
        .prop_map(|(group, id)| GroupRequest::UndoSeek(UndoSeek { group, by: "y".to_owned(), id }));
    let delete = (group(), 0..4_u32).prop_map(|(group, number)| {
        let partitions = vec![partition(1, number)];
        GroupRequest::DeleteOffsets(DeleteOffsets { group, partitions })
    });
    prop_oneof![4 => commit, 2 => seek, 2 => undo, 1 => delete]
}

fn step() -> impl Strategy<Value = Step> {
    let admin = prop_oneof![
        group().prop_map(|group| GroupRequest::DescribeGroup { group }),
        group().prop_map(|group| GroupRequest::DeleteGroup { group }),
        group().prop_map(|group| GroupRequest::SeekHistory { group }),
        Just(GroupRequest::ListGroups),
        (group(), member()).prop_map(|(group, member)| GroupRequest::RemoveMember(RemoveMember {
            group,
            member: MemberName::Id(member)
        })),
    ];
    let request = prop_oneof![6 => heartbeat(), 8 => classic(), 5 => offsets(), 1 => admin];
    prop_oneof![
        30 => request.prop_map(|request| Step::Request(Box::new(request))),
        6 => (1..900_u64).prop_map(Step::Wait),
        1 => (0..5_u32).prop_map(Step::Topics),
        1 => any::<bool>().prop_map(|is_compacted| Step::FailOver { is_compacted }),
    ]
}

fn topics(partitions: u32) -> Topics {
    [topic(1, "a", partitions), topic(2, "b", 2)].into_iter().collect()
}

proptest! {
    #[test]
    fn the_log_always_says_what_the_coordinator_knows(
        steps in prop::collection::vec(step(), 1..200),
        initial_rebalance_delay_ms in prop::sample::select(vec![0, 200]),
    ) {
        let config = GroupConfig {
            session_timeout_ms: 1_000,
            members_max: 3,
            initial_rebalance_delay_ms,
            classic_session_timeout_ms: (1, 10_000),
            offset_retention_ms: Some(2_000),
            ..GroupConfig::default()
        };
        let mut world = World::new(config, topics(4));
        let mut waiting = Vec::new();
        for step in steps {
            match step {
                Step::Request(request) => {
                    let before = world.end_offset;
                    let token = world.send(*request);
                    match world.answer(token) {
                        Some(Err(_)) => assert_eq!(before, world.end_offset),
                        Some(Ok(_)) => {}
                        None => waiting.push(token),
                    }
                }
                Step::Wait(ms) => world.wait(ms),
                Step::Topics(partitions) => world.set_topics(topics(partitions)),
                Step::FailOver { is_compacted } => {
                    world.fail_over(is_compacted);
                    waiting.clear();
                }
            }
            waiting.retain(|token| world.answer(*token).is_none());
        }
        // Nobody waits for ever.
        for _ in 0..20 {
            world.wait(1_000);
        }
        for token in waiting {
            prop_assert!(world.answer(token).is_some(), "request {token} was never answered");
        }
        world.check_compacted();
    }
}

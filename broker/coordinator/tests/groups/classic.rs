//! Random lives of members of a classic group, whose leader assigns. Answers get lost, members crash, coordinators fail.
//!
//! In one generation no partition is assigned to two members, whoever tells them; a commit counts only in the present
//! generation; and once nothing fails any more all members are in one generation that covers everything.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemark_coordinator::{
    GroupConfig, Topics,
    groups::{
        ClassicHeartbeat, CommitOffsets, Committer, GroupRequest, GroupResponse, JoinGroup,
        JoinedGroup, LeaveGroup, LeavingMember, OffsetToCommit, SyncGroup,
    },
};
use tidemark_protocol::ErrorCode;

use crate::log::{World, partition, topic};

const GROUP: &str = "g";
const CLIENTS: usize = 4;
const PARTITIONS: u8 = 5;

#[derive(Clone, Debug)]
enum Step {
    /// The client does what is next for it.
    Act(usize),
    /// It takes its answer, if there is one.
    Hear(usize),
    /// The answer, or the connection it would come over, is lost.
    Lose(usize),
    Commit(usize),
    Leave(usize),
    Crash(usize),
    Wait(u64),
    FailOver {
        is_compacted: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        20 => client().prop_map(Step::Act),
        20 => client().prop_map(Step::Hear),
        1 => client().prop_map(Step::Lose),
        4 => client().prop_map(Step::Commit),
        1 => client().prop_map(Step::Leave),
        1 => client().prop_map(Step::Crash),
        3 => (1..300_u64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(|is_compacted| Step::FailOver { is_compacted }),
    ]
}

#[derive(Clone, Debug, Default)]
enum Phase {
    #[default]
    Outside,
    Joined(JoinedGroup),
    Stable {
        generation: i32,
        assignment: Vec<u8>,
    },
}

#[derive(Debug, Default)]
struct Client {
    number: usize,
    id: String,
    phase: Phase,
    /// The request that waits, and the generation it is about.
    waiting: Option<(u64, i32)>,
}

impl Client {
    fn instance(&self) -> Option<String> {
        (self.number == 0).then(|| "static".to_owned())
    }

    fn generation(&self) -> i32 {
        match &self.phase {
            Phase::Outside => -1,
            Phase::Joined(joined) => joined.generation,
            Phase::Stable { generation, .. } => *generation,
        }
    }
}

struct Group {
    world: World,
    clients: Vec<Client>,
    next_id: u32,
    /// Who was given a partition in which generation.
    given: BTreeMap<(i32, u8), String>,
    last_commit: i32,
}

impl Group {
    fn new() -> Self {
        let topics: Topics = [topic(1, "a", PARTITIONS.into())].into_iter().collect();
        let config = GroupConfig {
            initial_rebalance_delay_ms: 50,
            classic_session_timeout_ms: (1, 10_000),
            ..GroupConfig::default()
        };
        let client = |number| Client { number, ..Client::default() };
        Self {
            world: World::new(config, topics),
            clients: (0..CLIENTS).map(client).collect(),
            next_id: 0,
            given: BTreeMap::new(),
            last_commit: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Act(client) => self.act(*client),
            Step::Hear(client) => self.hear(*client),
            Step::Lose(client) => self.clients[*client].waiting = None,
            Step::Commit(client) => self.commit(*client),
            Step::Leave(client) => {
                let leaving = &mut self.clients[*client];
                let member = LeavingMember { member: leaving.id.clone(), instance: None };
                let leave = LeaveGroup { group: GROUP.to_owned(), members: vec![member] };
                *leaving = Client { number: *client, ..Client::default() };
                self.world.send(GroupRequest::LeaveGroup(leave));
            }
            Step::Crash(client) => {
                self.clients[*client] = Client { number: *client, ..Client::default() };
            }
            Step::Wait(ms) => self.world.wait(*ms),
            Step::FailOver { is_compacted } => {
                self.world.fail_over(*is_compacted);
                for client in &mut self.clients {
                    client.waiting = None;
                }
            }
        }
    }

    fn act(&mut self, index: usize) {
        self.next_id += 1;
        let client = &self.clients[index];
        if client.waiting.is_some() {
            return;
        }
        let (member, instance, generation) =
            (client.id.clone(), client.instance(), client.generation());
        let group = GROUP.to_owned();
        let request = match &client.phase {
            Phase::Outside => GroupRequest::JoinGroup(JoinGroup {
                group,
                member,
                new_member: format!("member-{}", self.next_id),
                require_known_member: index == 1,
                instance,
                session_timeout_ms: 600,
                rebalance_timeout_ms: 300,
                protocol_type: "consumer".to_owned(),
                protocols: vec![("range".to_owned(), vec![])],
                ..JoinGroup::default()
            }),
            Phase::Joined(joined) => {
                let assignments = (0..PARTITIONS).filter(|_| !joined.members.is_empty());
                let mut shares: BTreeMap<String, Vec<u8>> = BTreeMap::new();
                for number in assignments {
                    let member = &joined.members[usize::from(number) % joined.members.len()];
                    shares.entry(member.member.clone()).or_default().push(number);
                }
                let assignments = if joined.skip_assignment { BTreeMap::new() } else { shares };
                GroupRequest::SyncGroup(SyncGroup {
                    group,
                    member,
                    instance,
                    generation,
                    assignments,
                    ..SyncGroup::default()
                })
            }
            Phase::Stable { .. } => GroupRequest::ClassicHeartbeat(ClassicHeartbeat {
                group,
                member,
                instance,
                generation,
            }),
        };
        let token = self.world.send(request);
        self.clients[index].waiting = Some((token, generation));
    }

    fn hear(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some((token, generation)) = client.waiting else { return };
        let Some(outcome) = self.world.answer(token) else { return };
        client.waiting = None;
        match outcome {
            Ok(GroupResponse::MemberIdRequired { member }) => client.id = member,
            Ok(GroupResponse::JoinGroup(joined)) => {
                client.id.clone_from(&joined.member);
                client.phase = Phase::Joined(joined);
            }
            Ok(GroupResponse::SyncGroup(synced)) => {
                for number in &synced.assignment {
                    let owner =
                        self.given.entry((generation, *number)).or_insert(client.id.clone());
                    // A static member's new process has what the old one had.
                    let is_same = *owner == client.id || client.instance().is_some();
                    assert!(is_same, "{number} is {owner}'s and {}'s in {generation}", client.id);
                    owner.clone_from(&client.id);
                }
                client.phase = Phase::Stable { generation, assignment: synced.assignment };
            }
            Ok(GroupResponse::ClassicHeartbeat) => {}
            Err(failure) if failure.code == ErrorCode::UnknownMember => {
                *client = Client { number: index, ..Client::default() };
            }
            Err(failure) if failure.code == ErrorCode::FencedInstance => {
                *client = Client { number: index, ..Client::default() };
            }
            Err(_) => client.phase = Phase::Outside,
            Ok(other) => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, index: usize) {
        let client = &self.clients[index];
        let Phase::Stable { generation, assignment } = &client.phase else { return };
        let offset = |number: &u8| OffsetToCommit {
            partition: partition(1, (*number).into()),
            offset: 1,
            leader_epoch: None,
            metadata: String::new(),
        };
        let commit = CommitOffsets {
            group: GROUP.to_owned(),
            committer: Committer::Member {
                member: client.id.clone(),
                epoch: *generation,
                instance: client.instance(),
            },
            offsets: assignment.iter().map(offset).collect(),
        };
        if self.world.call(GroupRequest::CommitOffsets(commit)).is_ok() {
            assert!(*generation >= self.last_commit, "a commit of a generation that is over");
            self.last_commit = *generation;
        }
    }

    fn heal(&mut self) {
        for _ in 0..60 {
            for client in 0..CLIENTS {
                self.hear(client);
                self.act(client);
                self.hear(client);
            }
            self.world.wait(40);
        }
        let mut owners = BTreeMap::new();
        for client in &self.clients {
            let Phase::Stable { generation, assignment } = &client.phase else {
                panic!("{client:?} is not stable");
            };
            assert_eq!(*generation, self.clients[0].generation());
            for number in assignment {
                assert_eq!(owners.insert(*number, client.number), None);
            }
        }
        assert_eq!(owners.len(), usize::from(PARTITIONS));
        self.world.check_compacted();
    }
}

proptest! {
    #[test]
    fn a_generation_gives_every_partition_once(steps in prop::collection::vec(step(), 1..150)) {
        let mut group = Group::new();
        for step in &steps {
            group.take(step);
        }
        group.heal();
    }
}

//! Random lives of members of a group with server-side assignment, over a network that loses, repeats and reorders.
//!
//! Whatever happens, no partition is consumed by two members at once, no commit of a former holder is taken after the
//! new holder's, and once the network behaves every partition is consumed again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidemark_coordinator::{
    GroupConfig, Topics,
    groups::{
        Assignor, CommitOffsets, Committer, GroupRequest, GroupResponse, Heartbeat, JOIN_EPOCH,
        LEAVE_EPOCH, LEAVE_STATIC_EPOCH, OffsetToCommit, Subscription, record::MemberState,
    },
};
use tidemark_protocol::{ErrorCode, TopicPartition};

use crate::log::{World, topic};

const GROUP: &str = "g";
const SESSION_MS: u64 = 3_000;
const REBALANCE_MS: u32 = 600;

#[derive(Clone, Debug)]
enum Step {
    /// A heartbeat goes through, there and back.
    Round(usize),
    /// The client of that number sends a heartbeat, whatever that is in its state.
    Send(usize),
    /// One of the requests under way arrives.
    Deliver(prop::sample::Index),
    /// It arrives, and once more later.
    DeliverAndKeep(prop::sample::Index),
    Lose(prop::sample::Index),
    /// One of the answers under way arrives, or is lost.
    Answer(prop::sample::Index),
    LoseAnswer(prop::sample::Index),
    /// The client commits; the requests are under way.
    Commit(usize),
    /// The client commits, and the requests arrive.
    CommitNow(usize),
    /// The client drops what it was told to drop.
    Drop(usize),
    Leave(usize),
    Crash(usize),
    Wait(u64),
    Partitions(u32),
    FailOver {
        is_compacted: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        30 => (0..5_usize).prop_map(Step::Round),
        12 => (0..5_usize).prop_map(Step::Send),
        12 => index().prop_map(Step::Deliver),
        3 => index().prop_map(Step::DeliverAndKeep),
        1 => index().prop_map(Step::Lose),
        12 => index().prop_map(Step::Answer),
        1 => index().prop_map(Step::LoseAnswer),
        8 => (0..5_usize).prop_map(Step::Commit),
        8 => (0..5_usize).prop_map(Step::CommitNow),
        8 => (0..5_usize).prop_map(Step::Drop),
        1 => (0..5_usize).prop_map(Step::Leave),
        1 => (0..5_usize).prop_map(Step::Crash),
        4 => (1..500_u64).prop_map(Step::Wait),
        1 => (1..9_u32).prop_map(Step::Partitions),
        1 => any::<bool>().prop_map(|is_compacted| Step::FailOver { is_compacted }),
    ]
}

/// A client as it should be: it consumes what it was told to, tells all it may be consuming, and stops by itself when
/// its session or its time for giving up partitions has run out.
#[derive(Clone, Debug, Default)]
struct Client {
    number: usize,
    run: u32,
    epoch: i32,
    sequence: u64,
    is_leaving: bool,
    owned: BTreeSet<TopicPartition>,
    dropping: BTreeMap<TopicPartition, u64>,
    /// When its session ends, by its own count.
    session_ends_ms: u64,
    /// When the request was sent that it awaits an answer to.
    sent_ms: u64,
}

impl Client {
    fn id(&self) -> String {
        format!("client-{}-{}", self.number, self.run)
    }

    /// Two of the five are static members.
    fn instance(&self) -> Option<String> {
        (self.number < 2).then(|| format!("instance-{}", self.number))
    }

    fn consumed(&self) -> BTreeSet<TopicPartition> {
        self.owned.iter().chain(self.dropping.keys()).copied().collect()
    }

    fn stop(&mut self) {
        self.owned.clear();
        self.dropping.clear();
        self.epoch = JOIN_EPOCH;
    }

    /// Another process takes its place.
    fn restart(&mut self) {
        *self = Self { number: self.number, run: self.run + 1, ..Self::default() };
    }

    fn heartbeat(&mut self, now_ms: u64) -> Heartbeat {
        self.sequence += 1;
        self.sent_ms = now_ms;
        let epoch = match self.is_leaving {
            true if self.instance().is_some() => LEAVE_STATIC_EPOCH,
            true => LEAVE_EPOCH,
            false => self.epoch,
        };
        Heartbeat {
            group: GROUP.to_owned(),
            member: self.id(),
            epoch,
            sequence: Some(self.sequence),
            instance: self.instance(),
            subscription: (epoch == JOIN_EPOCH).then(|| Subscription {
                topics: ["a".to_owned(), "b".to_owned()].into(),
                regex: None,
            }),
            rebalance_timeout_ms: (epoch == JOIN_EPOCH).then_some(REBALANCE_MS),
            owned: Some(self.consumed()),
            ..Heartbeat::default()
        }
    }
}

/// A commit remembers which grant of the partition it was made under.
#[derive(Clone, Debug)]
enum Message {
    Heartbeat { client: usize, run: u32, heartbeat: Heartbeat },
    Commit { grant: u64, commit: CommitOffsets },
}

struct Net {
    world: World,
    clients: Vec<Client>,
    requests: Vec<Message>,
    answers: Vec<(usize, u32, u64, crate::log::Outcome)>,
    /// How often each partition has been given to another member, and to whom last.
    grants: BTreeMap<TopicPartition, (u64, String)>,
    /// The grant of the last commit that was taken.
    committed: BTreeMap<TopicPartition, u64>,
}

impl Net {
    fn new(assignor: Assignor) -> Self {
        let config = GroupConfig {
            session_timeout_ms: SESSION_MS,
            heartbeat_interval_ms: 100,
            assignor,
            ..GroupConfig::default()
        };
        let clients = (0..5).map(|number| Client { number, ..Client::default() }).collect();
        Self {
            world: World::new(config, topics(4)),
            clients,
            requests: Vec::new(),
            answers: Vec::new(),
            grants: BTreeMap::new(),
            committed: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Round(client) => self.round(*client),
            Step::Send(client) => self.send(*client),
            Step::Deliver(index) if !self.requests.is_empty() => {
                let message = self.requests.remove(index.index(self.requests.len()));
                self.deliver(message);
            }
            Step::DeliverAndKeep(index) if !self.requests.is_empty() => {
                let message = self.requests[index.index(self.requests.len())].clone();
                self.deliver(message);
            }
            Step::Lose(index) if !self.requests.is_empty() => {
                self.requests.remove(index.index(self.requests.len()));
            }
            Step::Answer(index) if !self.answers.is_empty() => {
                let answer = self.answers.remove(index.index(self.answers.len()));
                self.answer(answer);
            }
            Step::LoseAnswer(index) if !self.answers.is_empty() => {
                drop(self.answers.remove(index.index(self.answers.len())));
            }
            Step::Commit(client) => self.commit(*client),
            Step::CommitNow(client) => {
                let before = self.requests.len();
                self.commit(*client);
                for commit in self.requests.split_off(before) {
                    self.deliver(commit);
                }
            }
            Step::Drop(client) => self.clients[*client].dropping.clear(),
            Step::Leave(client) => {
                let leaving = &mut self.clients[*client];
                leaving.stop();
                leaving.is_leaving = true;
                self.send(*client);
                self.clients[*client].restart();
            }
            Step::Crash(client) => self.clients[*client].restart(),
            Step::Wait(ms) => self.wait(*ms),
            Step::Partitions(count) => self.world.set_topics(topics(*count)),
            Step::FailOver { is_compacted } => self.fail_over(*is_compacted),
            _ => {}
        }
        self.check();
    }

    fn send(&mut self, client: usize) {
        let now_ms = self.world.now.mono_ms;
        let heartbeat = self.clients[client].heartbeat(now_ms);
        let run = self.clients[client].run;
        self.requests.push(Message::Heartbeat { client, run, heartbeat });
    }

    fn round(&mut self, client: usize) {
        self.send(client);
        let request = self.requests.pop().unwrap();
        self.deliver(request);
        let answer = self.answers.pop().unwrap();
        self.answer(answer);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Heartbeat { client, run, heartbeat } => {
                let sequence = heartbeat.sequence.unwrap();
                let outcome = self.world.call(GroupRequest::Heartbeat(heartbeat));
                self.answers.push((client, run, sequence, outcome));
            }
            Message::Commit { grant, commit } => {
                let partition = commit.offsets[0].partition;
                let outcome = self.world.call(GroupRequest::CommitOffsets(commit));
                if let Ok(GroupResponse::CommitOffsets(results)) = outcome
                    && results[0].is_ok()
                {
                    let last = self.committed.insert(partition, grant).unwrap_or(0);
                    assert!(last <= grant, "{partition}: grant {grant} committed after {last}");
                }
            }
        }
        self.note_grants();
    }

    fn answer(&mut self, (client, run, sequence, outcome): (usize, u32, u64, crate::log::Outcome)) {
        let client = &mut self.clients[client];
        if client.run != run || client.sequence != sequence {
            return;
        }
        match outcome {
            Ok(GroupResponse::Heartbeat(answer)) => {
                client.epoch = answer.epoch;
                client.session_ends_ms = client.sent_ms + SESSION_MS;
                if let Some(assigned) = answer.assignment {
                    let deadline_ms = client.sent_ms + u64::from(REBALANCE_MS);
                    for partition in client.consumed() {
                        if !assigned.contains(&partition) {
                            client.dropping.entry(partition).or_insert(deadline_ms);
                        } else {
                            client.dropping.remove(&partition);
                        }
                    }
                    client.owned = assigned;
                }
            }
            Err(failure) if failure.code == ErrorCode::StaleRequest => {}
            Err(failure) if failure.code == ErrorCode::UnreleasedInstance => {}
            Err(_) => client.stop(),
            Ok(other) => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, client: usize) {
        let client = &self.clients[client];
        for partition in client.consumed() {
            let (grant, _) = self.grants[&partition];
            let commit = CommitOffsets {
                group: GROUP.to_owned(),
                committer: Committer::Member {
                    member: client.id(),
                    epoch: client.epoch,
                    instance: client.instance(),
                },
                offsets: vec![OffsetToCommit {
                    partition,
                    offset: grant,
                    leader_epoch: None,
                    metadata: String::new(),
                }],
            };
            self.requests.push(Message::Commit { grant, commit });
        }
    }

    fn wait(&mut self, ms: u64) {
        let now_ms = self.world.now.mono_ms + ms;
        for client in &mut self.clients {
            let is_late = client.dropping.values().any(|deadline_ms| *deadline_ms <= now_ms);
            if is_late || client.session_ends_ms <= now_ms {
                client.stop();
            }
        }
        self.world.wait(ms);
        self.note_grants();
    }

    /// The new coordinator is another process: what was sent to the old one reaches nobody.
    fn fail_over(&mut self, is_compacted: bool) {
        let before_ms = self.world.now.mono_ms;
        self.world.fail_over(is_compacted);
        let shift = |at_ms: u64, now_ms: u64| (at_ms + now_ms).saturating_sub(before_ms);
        let now_ms = self.world.now.mono_ms;
        for client in &mut self.clients {
            client.session_ends_ms = shift(client.session_ends_ms, now_ms);
            client.sent_ms = shift(client.sent_ms, now_ms);
            for deadline_ms in client.dropping.values_mut() {
                *deadline_ms = shift(*deadline_ms, now_ms);
            }
        }
        self.requests.clear();
        self.answers.clear();
    }

    fn note_grants(&mut self) {
        let Some(group) = self.world.coordinator.state().group(GROUP) else { return };
        let held = group.currents.iter().flat_map(|(member, current)| {
            current.held().map(move |partition| (*partition, member.clone()))
        });
        for (partition, member) in held {
            let (grant, holder) = self.grants.entry(partition).or_default();
            if *holder != member {
                *grant += 1;
                *holder = member;
            }
        }
    }

    fn check(&self) {
        let mut consumers: BTreeMap<TopicPartition, usize> = BTreeMap::new();
        for client in &self.clients {
            for partition in client.consumed() {
                let other = consumers.insert(partition, client.number);
                assert_eq!(other, None, "{partition} is consumed twice, by {}", client.number);
            }
        }
        let Some(group) = self.world.coordinator.state().group(GROUP) else { return };
        let Some(epochs) = group.epochs else { return };
        assert!(epochs.epoch >= epochs.assignment);
        let targets = group.targets.values().flat_map(|target| &target.partitions);
        let count = targets.clone().count();
        assert_eq!(targets.collect::<BTreeSet<_>>().len(), count, "a target of two members");
        for current in group.currents.values() {
            assert!(
                current.epoch <= epochs.assignment
                    && current.previous_epoch <= current.epoch.max(0)
            );
            assert_eq!(current.revoking.is_empty(), current.state != MemberState::Unrevoked);
        }
    }

    /// With a network that works, everybody gets what is his before long.
    fn heal(&mut self) {
        self.requests.clear();
        self.answers.clear();
        for _ in 0..60 {
            for client in 0..self.clients.len() {
                self.round(client);
                self.clients[client].dropping.clear();
                self.check();
            }
            self.wait(100);
            self.check();
        }
        let group = self.world.coordinator.state().group(GROUP).unwrap();
        let epoch = group.epochs.unwrap().assignment;
        assert_eq!(group.members.len(), 5);
        for (member, current) in &group.currents {
            assert_eq!((current.state, current.epoch), (MemberState::Stable, epoch), "{member}");
            assert_eq!(current.assigned, group.targets[member].partitions);
        }
        let owned: BTreeSet<_> = self.clients.iter().flat_map(Client::consumed).collect();
        let all: BTreeSet<_> = self
            .world
            .topics
            .iter()
            .flat_map(tidemark_coordinator::Topic::iter_partitions)
            .collect();
        assert_eq!(owned, all);
        self.world.check_compacted();
    }
}

fn topics(partitions: u32) -> Topics {
    [topic(1, "a", partitions), topic(2, "b", 3)].into_iter().collect()
}

proptest! {
    #[test]
    fn no_partition_is_consumed_twice_and_everything_is_in_the_end(
        steps in prop::collection::vec(step(), 1..250),
        assignor in prop::sample::select(Assignor::ALL),
    ) {
        let mut net = Net::new(assignor);
        for step in &steps {
            net.take(step);
        }
        net.heal();
    }
}

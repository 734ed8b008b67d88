//! A coordinator with its log. A second one follows the log and must know the same after every call; now and then a
//! third one reads the log as compaction leaves it, and must know the same as well.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_coordinator::{
    GroupConfig, GroupCoordinator, GroupLoader, Now, Record, Topic, Topics,
    groups::{GroupDecision, GroupEffect, GroupRequest, GroupResponse, State},
};
use tidemark_protocol::{Failure, Offset, TopicId, TopicPartition};

pub(crate) type Outcome = Result<GroupResponse, Failure>;

pub(crate) struct World {
    pub(crate) coordinator: GroupCoordinator,
    pub(crate) log: Vec<(Offset, Record)>,
    pub(crate) end_offset: Offset,
    pub(crate) topics: Arc<Topics>,
    pub(crate) now: Now,
    pub(crate) wake_at_ms: Option<u64>,
    pub(crate) effects: Vec<GroupEffect>,
    replies: BTreeMap<u64, Outcome>,
    next_token: u64,
    shadow: GroupLoader,
    loaded_from: Offset,
}

/// How many records are written between two looks at the compacted log.
const COMPACTION_INTERVAL: u64 = 64;

impl World {
    pub(crate) fn new(config: GroupConfig, topics: Topics) -> Self {
        let topics = Arc::new(topics);
        let now = Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let loader = GroupLoader::new();
        let (coordinator, decision) = loader.finish(0, config, topics.clone(), now).unwrap();
        let (effects, replies) = (Vec::new(), BTreeMap::new());
        let mut world = Self {
            coordinator,
            log: Vec::new(),
            end_offset: 0,
            topics,
            now,
            wake_at_ms: None,
            effects,
            replies,
            next_token: 0,
            shadow: GroupLoader::new(),
            loaded_from: 0,
        };
        world.take(decision);
        world
    }

    /// Sends a request that is answered at once.
    pub(crate) fn call(&mut self, request: GroupRequest) -> Outcome {
        let token = self.send(request);
        self.answer(token).expect("answered at once")
    }

    /// Sends a request that may be answered later.
    pub(crate) fn send(&mut self, request: GroupRequest) -> u64 {
        self.next_token += 1;
        let decision = self.coordinator.handle(self.now, self.next_token, request);
        self.take(decision);
        self.next_token
    }

    pub(crate) fn answer(&mut self, token: u64) -> Option<Outcome> {
        self.replies.remove(&token)
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += i64::try_from(ms).unwrap();
        let decision = self.coordinator.on_timer(self.now);
        self.take(decision);
        assert!(self.wake_at_ms.is_none_or(|at_ms| at_ms > self.now.mono_ms));
    }

    pub(crate) fn set_topics(&mut self, topics: Topics) {
        self.topics = Arc::new(topics);
        let decision = self.coordinator.on_topics(self.topics.clone());
        self.take(decision);
    }

    /// Another broker takes over, with what is in the log and nothing else.
    pub(crate) fn fail_over(&mut self, is_compacted: bool) {
        self.check_compacted();
        if is_compacted {
            self.log = compacted(&self.log);
        }
        let before = self.coordinator.state().clone();
        self.load();
        // Whatever it writes first is on top of what there was.
        if self.log.last().is_none_or(|(offset, _)| *offset < self.loaded_from) {
            assert_eq!(&before, self.coordinator.state());
        }
    }

    /// A new coordinator, from the log alone.
    pub(crate) fn load(&mut self) {
        self.loaded_from = self.end_offset;
        let config = self.coordinator.config().clone();
        let loader = loader_of(&self.log);
        self.now.mono_ms = 77_000 + self.now.mono_ms % 1_000;
        let topics = self.topics.clone();
        let loaded = loader.finish(self.end_offset, config, topics, self.now);
        let (coordinator, decision) = loaded.unwrap();
        self.coordinator = coordinator;
        self.replies.clear();
        self.shadow = loader_of(&self.log);
        self.take(decision);
    }

    fn take(&mut self, decision: GroupDecision) {
        assert_eq!(decision.base_offset, self.end_offset);
        let before = self.end_offset;
        self.end_offset = decision.end_offset();
        for (offset, record) in (decision.base_offset..).zip(decision.records) {
            self.shadow.replay(offset, &record).unwrap();
            self.log.push((offset, record));
        }
        for reply in decision.replies {
            let twice = self.replies.insert(reply.token, reply.outcome);
            assert!(twice.is_none(), "request {} is answered twice", reply.token);
        }
        self.effects.extend(decision.effects);
        self.wake_at_ms = decision.wake_at_ms;
        if before == self.end_offset {
            return;
        }
        assert_eq!(&self.shadow.clone().state().unwrap(), self.coordinator.state());
        if before / COMPACTION_INTERVAL != self.end_offset / COMPACTION_INTERVAL {
            self.check_compacted();
        }
    }

    /// What is left after compaction says the same.
    pub(crate) fn check_compacted(&self) {
        assert_eq!(&replay(&compacted(&self.log)), self.coordinator.state());
    }
}

pub(crate) fn replay(log: &[(Offset, Record)]) -> State {
    loader_of(log).state().unwrap()
}

fn loader_of(log: &[(Offset, Record)]) -> GroupLoader {
    let mut loader = GroupLoader::new();
    for (offset, record) in log {
        loader.replay(*offset, record).unwrap();
    }
    loader
}

/// The last record of every key, in the order of offsets.
pub(crate) fn compacted(log: &[(Offset, Record)]) -> Vec<(Offset, Record)> {
    let mut last = BTreeMap::new();
    for (offset, record) in log {
        last.insert(record.key.clone(), *offset);
    }
    log.iter().filter(|(offset, record)| last[&record.key] == *offset).cloned().collect()
}

pub(crate) fn topic(number: u8, name: &str, partitions: u32) -> Topic {
    Topic { id: TopicId([number; 16]), name: name.to_owned(), partitions, racks: Vec::new() }
}

pub(crate) fn partition(number: u8, partition: u32) -> TopicPartition {
    TopicPartition { topic_id: TopicId([number; 16]), partition }
}

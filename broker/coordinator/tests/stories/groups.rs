//! Stories of one group, called `g`.

use std::{collections::BTreeSet, sync::Arc};

use tidemark_coordinator::{
    GroupConfig, GroupCoordinator, GroupLoader, Now, Record, Topic, Topics,
    groups::{
        Assignor, GroupDecision, GroupEffect, GroupRequest, GroupResponse, Heartbeat,
        HeartbeatResponse, JOIN_EPOCH, LEAVE_EPOCH, LEAVE_STATIC_EPOCH, MemberName, Removal,
        RemoveMember, Subscription, record::Key,
    },
};
use tidemark_protocol::{Failure, Offset};

use crate::{
    Teller, classic, offsets,
    words::{Words, show_all, topic_id},
};

pub(crate) const GROUP: &str = "g";
/// What the wall clock says when the other one says 0.
const EPOCH_MS: i64 = 1_700_000_000_000;

pub(crate) struct Groups {
    config: GroupConfig,
    topics: Arc<Topics>,
    coordinator: Option<GroupCoordinator>,
    log: Vec<(Offset, Record)>,
    end_offset: Offset,
    token: u64,
    /// The request that is being decided.
    asked: Option<u64>,
}

impl Groups {
    pub(crate) fn new() -> Self {
        Self {
            config: GroupConfig::default(),
            topics: Arc::default(),
            coordinator: None,
            log: Vec::new(),
            end_offset: 0,
            token: 0,
            asked: None,
        }
    }

    /// Tells a decision; the request's own answer without its token.
    fn told(&mut self, decision: GroupDecision) -> Vec<String> {
        assert_eq!(decision.base_offset, self.end_offset);
        self.end_offset = decision.end_offset();
        let mut told = Vec::new();
        let keys: Vec<String> = decision.records.iter().map(describe_key).collect();
        if !keys.is_empty() {
            told.push(format!("writes {}", keys.join(", ")));
        }
        self.log.extend((decision.base_offset..).zip(decision.records));
        for reply in &decision.replies {
            let to = if self.asked == Some(reply.token) {
                String::new()
            } else {
                format!("to request {}: ", reply.token)
            };
            told.extend(describe(&reply.outcome).into_iter().map(|line| format!("{to}{line}")));
        }
        told.extend(decision.effects.iter().map(describe_effect));
        let coordinator = self.coordinator.as_ref().unwrap();
        let mut loader = GroupLoader::new();
        for (offset, record) in &self.log {
            loader.replay(*offset, record).unwrap();
        }
        assert_eq!(&loader.state().unwrap(), coordinator.state());
        told
    }

    fn load(&mut self, now: Now) -> Vec<String> {
        let mut loader = GroupLoader::new();
        for (offset, record) in &self.log {
            loader.replay(*offset, record).unwrap();
        }
        let (config, topics) = (self.config.clone(), self.topics.clone());
        let (coordinator, decision) = loader.finish(self.end_offset, config, topics, now).unwrap();
        self.coordinator = Some(coordinator);
        self.told(decision)
    }
}

impl Teller for Groups {
    fn tell(&mut self, words: &Words<'_>) -> Vec<String> {
        let now =
            Now { mono_ms: words.now_ms, wall_ms: EPOCH_MS + i64::try_from(words.now_ms).unwrap() };
        match words.verb {
            "coordinator" => {
                self.config = config(words);
                return Vec::new();
            }
            "topics" => {
                self.topics = Arc::new(topics(words));
                let Some(coordinator) = &mut self.coordinator else { return self.load(now) };
                let decision = coordinator.on_topics(self.topics.clone());
                return self.told(decision);
            }
            "failover" => return self.load(now),
            _ => {}
        }
        let coordinator = self.coordinator.as_mut().expect("topics come first");
        if words.verb == "tick" {
            let decision = coordinator.on_timer(now);
            self.asked = None;
            return self.told(decision);
        }
        if words.verb == "verify" {
            let (id, epoch) = (words.number("pid").unwrap(), words.number("epoch").unwrap());
            return vec![format!("{:?}", coordinator.begin_verification(id, epoch))];
        }
        self.token += 1;
        self.asked = Some(self.token);
        let decision = coordinator.handle(now, self.token, request(words));
        self.told(decision)
    }
}

fn config(words: &Words<'_>) -> GroupConfig {
    let mut config = GroupConfig {
        session_timeout_ms: 1_000,
        initial_rebalance_delay_ms: words.number("initial_delay").unwrap_or(0),
        classic_session_timeout_ms: (1, 1_800_000),
        offset_retention_ms: words.number("retention"),
        ..GroupConfig::default()
    };
    if let Some(session_ms) = words.number("session") {
        config.session_timeout_ms = session_ms;
    }
    if let Some(members_max) = words.number("members_max") {
        config.members_max = members_max;
    }
    if let Some(name) = words.text("assignor") {
        config.assignor = Assignor::by_name(&name).unwrap();
    }
    config
}

/// `a=3` is a topic of three partitions; `a=x,y` has one in each of the racks `x` and `y`.
fn topics(words: &Words<'_>) -> Topics {
    let topic = |word: &&str| {
        let (name, what) = word.split_once('=').unwrap();
        let racks: Vec<BTreeSet<String>> = match what.parse::<u32>() {
            Ok(_) => Vec::new(),
            Err(_) => what.split(',').map(|rack| [rack.to_owned()].into()).collect(),
        };
        let partitions = what.parse().unwrap_or(u32::try_from(racks.len()).unwrap());
        Topic { id: topic_id(name), name: name.to_owned(), partitions, racks }
    };
    words.rest.iter().map(topic).collect()
}

fn request(words: &Words<'_>) -> GroupRequest {
    let group = GROUP.to_owned();
    match words.verb {
        "join" | "beat" | "leave" | "leave_for_a_while" => {
            GroupRequest::Heartbeat(heartbeat(words))
        }
        "kick" => GroupRequest::RemoveMember(RemoveMember {
            group,
            member: MemberName::Id(words.name.to_owned()),
        }),
        "describe" => GroupRequest::DescribeGroup { group },
        "delete_group" => GroupRequest::DeleteGroup { group },
        _ => classic::request(words)
            .or_else(|| offsets::request(words))
            .unwrap_or_else(|| panic!("{}: no such verb", words.line)),
    }
}

fn heartbeat(words: &Words<'_>) -> Heartbeat {
    let epoch = match words.verb {
        "join" => JOIN_EPOCH,
        "leave" => LEAVE_EPOCH,
        "leave_for_a_while" => LEAVE_STATIC_EPOCH,
        _ => words.number("epoch").expect("a heartbeat has an epoch"),
    };
    let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let subscription = (words.has("topics") || words.has("regex")).then(|| Subscription {
        topics: words.list("topics").map(names).unwrap_or_default(),
        regex: words.text("regex"),
    });
    Heartbeat {
        group: GROUP.to_owned(),
        member: words.name.to_owned(),
        epoch,
        sequence: words.number("sequence"),
        instance: words.text("instance"),
        rack: words.text("rack"),
        client_id: String::new(),
        host: String::new(),
        subscription,
        rebalance_timeout_ms: words.number("rebalance").or((epoch == JOIN_EPOCH).then_some(500)),
        assignor: words.text("assignor"),
        owned: words.partitions("owned"),
        missed_processing_deadline: words.has("late"),
    }
}

fn describe(outcome: &Result<GroupResponse, Failure>) -> Vec<String> {
    match outcome {
        Err(failure) => vec![format!("{}: {}", failure.code.name(), failure.message)],
        Ok(GroupResponse::Heartbeat(answer)) => vec![describe_heartbeat(answer)],
        Ok(GroupResponse::DescribeGroup(group)) => {
            let mut told = vec![format!("{:?}, epoch {}", group.state, group.epoch)];
            told.extend(group.members.iter().map(|member| {
                format!(
                    "{} in epoch {}, {:?}{}: has {}, gives up {}, is to have {}",
                    member.member,
                    member.epoch,
                    member.state,
                    if member.is_away { ", away" } else { "" },
                    show_all(&member.assigned),
                    show_all(&member.revoking),
                    show_all(&member.target),
                )
            }));
            told.extend(group.removals.iter().map(describe_removal));
            told
        }
        Ok(GroupResponse::DeleteGroup | GroupResponse::RemoveMember) => vec!["done".to_owned()],
        Ok(other) => classic::describe(other)
            .or_else(|| offsets::describe(other))
            .unwrap_or_else(|| panic!("{other:?}")),
    }
}

fn describe_heartbeat(answer: &HeartbeatResponse) -> String {
    let has = answer
        .assignment
        .as_ref()
        .map_or_else(|| "as it said".to_owned(), |assigned| format!("has {}", show_all(assigned)));
    format!("epoch {}, {has}, next in {} ms", answer.epoch, answer.heartbeat_interval_ms)
}

fn describe_effect(effect: &GroupEffect) -> String {
    match effect {
        GroupEffect::Nudge { member, .. } => format!("nudge {member}"),
        GroupEffect::Removed { removal, .. } => describe_removal(removal),
        GroupEffect::OffsetsDropped { topic_id, .. } => {
            format!("dropped the offsets of {}", char::from(topic_id.0[0]))
        }
    }
}

fn describe_removal(removal: &Removal) -> String {
    format!("removed {}: {:?}", removal.member, removal.reason)
}

/// The key as it is in the log, in words, with `no` in front for a tombstone. Topics by their letter.
fn describe_key(record: &Record) -> String {
    let key = Key::from_bytes(&record.key).unwrap();
    let mut text = key.to_string();
    if let Key::Offset { topic_id, .. } | Key::Pending { topic_id, .. } = key {
        let letter = char::from(topic_id.0[0]);
        text = text.replace(&topic_id.to_string(), &letter.to_string());
    }
    if record.value.is_none() { format!("no {text}") } else { text }
}

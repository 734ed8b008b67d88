//! A member of a group: a model of the shipped `GroupConsumer`. It joins, sends heartbeats that are numbered, takes what it is
//! told to have and says what it has, commits, leaves, dies, and is paused and goes on as if nothing had happened. It reads no
//! records: its positions count up by themselves.
//!
//! Like the shipped one it counts its session itself, from when the last heartbeat that was answered was sent.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_coordinator::groups::{
    CommitOffsets, Committer, FetchOffsets, GroupRequest, GroupResponse, Heartbeat,
    HeartbeatResponse, JOIN_EPOCH, LEAVE_EPOCH, OffsetToCommit, Subscription,
};
use tidemark_protocol::{ErrorCode, NodeId, Offset, TopicPartition};

use super::{Answer, Caller, ClientId, REFRESH_US, Reach};
use crate::sim::{
    core::{Core, Event, MS, Micros},
    message::{Correlation, Request, Response},
    network::Delivery,
    shape::{GROUPS, LEDGER},
    trace::Who,
};

/// Timer: the next look.
const NEXT: u64 = 1;
const LOOK_US: Micros = 40 * MS;
/// How long an answer is waited for before another connection is tried.
const PATIENCE_US: Micros = 500 * MS;
/// Partitions are given up within this. Longer than a session: who is paused for so long has none any more.
const REBALANCE_MS: u32 = 5_000;

/// What the oracles are told.
#[derive(Clone, Debug)]
pub enum GroupEvent {
    /// It may consume this from now on, until then at most.
    Claims { partition: TopicPartition, until_us: Micros },
    /// It consumes this no more.
    Drops { partition: TopicPartition },
    /// A commit that was sent then; `is_known`: it was acknowledged now, otherwise nobody knows.
    Committed { partition: TopicPartition, offset: Offset, sent_us: Micros, is_known: bool },
    /// What is committed, by an answer to a question that was asked then.
    Fetched { partition: TopicPartition, offset: Option<Offset>, sent_us: Micros },
}

#[derive(Debug)]
enum Asked {
    Heartbeat { is_leave: bool },
    Commit(Vec<(TopicPartition, Offset)>),
    Fetch,
}

/// One member.
#[derive(Debug)]
pub struct Member {
    caller: Caller,
    pub group: String,
    /// Counts the processes.
    life: u64,
    epoch: i32,
    sequence: u64,
    told: BTreeSet<TopicPartition>,
    /// What it has consumed, up to where: its application may commit that late.
    left: BTreeMap<TopicPartition, Offset>,
    /// What it consumes, and from where; `None`: it has yet to learn.
    reading: BTreeMap<TopicPartition, Option<Offset>>,
    /// It comes and goes all the time, and what it has sent may come late.
    pub is_restless: bool,
    /// The last heartbeat was answered.
    is_heard: bool,
    ends_at_us: Option<Micros>,
    next_beat_us: Micros,
    paused_until_us: Micros,
    asked: BTreeMap<Correlation, (Asked, Micros)>,
    refreshing: Option<Correlation>,
    pub is_done: bool,
    pub events: Vec<GroupEvent>,
}

impl Member {
    pub fn new(id: ClientId, group: String, nodes: Vec<NodeId>, core: &mut Core) -> Self {
        core.after(core.now_us().max(MS), Event::Client { client: id, timer: NEXT });
        Self {
            caller: Caller::new(id, nodes),
            group,
            life: 0,
            epoch: JOIN_EPOCH,
            sequence: 0,
            told: BTreeSet::new(),
            left: BTreeMap::new(),
            reading: BTreeMap::new(),
            is_restless: false,
            is_heard: false,
            ends_at_us: None,
            next_beat_us: 0,
            paused_until_us: 0,
            asked: BTreeMap::new(),
            refreshing: None,
            is_done: false,
            events: Vec::new(),
        }
    }

    /// What it is called in its group.
    pub fn name(&self) -> String {
        format!("member-{}-{}", self.caller.id, self.life)
    }

    /// What it has, if it is in its group and has nothing to give up.
    pub fn settled(&self) -> Option<&BTreeSet<TopicPartition>> {
        let is_it = self.reading.keys().eq(self.told.iter());
        (self.epoch > JOIN_EPOCH && is_it).then_some(&self.told)
    }

    pub fn deliver(&mut self, delivery: Delivery, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, &answer, reach);
        }
    }

    pub fn timer(&mut self, timer: u64, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, &answer, reach);
        }
        if timer == NEXT {
            let pause_us = reach.core.draw(MS, LOOK_US);
            reach.core.after(pause_us, Event::Client { client: self.caller.id, timer: NEXT });
            self.look(reach);
        }
    }

    fn look(&mut self, reach: &mut Reach<'_>) {
        let now_us = reach.core.now_us();
        if now_us < self.paused_until_us {
            return;
        }
        if self.paused_until_us > 0 {
            // It goes on with what it was about to do before it looks at the time.
            self.paused_until_us = 0;
            self.commit(reach);
        }
        if self.ends_at_us.is_some_and(|at_us| now_us >= at_us) {
            self.lose();
        }
        self.take_told();
        if !self.is_done {
            self.misbehave(reach);
        }
        if self.refreshing.is_none() && self.caller.is_stale(reach) {
            self.refreshing = Some(self.caller.refresh(reach));
        }
        if now_us >= self.next_beat_us {
            self.beat(reach);
        }
        self.fetch(reach);
        self.progress(reach);
    }

    fn misbehave(&mut self, reach: &mut Reach<'_>) {
        let now_us = reach.core.now_us();
        match reach.core.draw(0, if self.is_restless { 150 } else { 1_500 }) {
            0 => {
                reach.core.figures.fault("members killed");
                self.begin_anew(now_us + reach.core.draw(MS, 1_000 * MS));
            }
            1 => {
                reach.core.figures.operation("members left");
                self.drop_all();
                self.epoch = LEAVE_EPOCH;
                self.beat(reach);
                self.begin_anew(now_us + reach.core.draw(MS, 1_000 * MS));
            }
            2..5 => {
                reach.core.figures.fault("members paused");
                self.paused_until_us = now_us + reach.core.draw(500 * MS, 5_000 * MS);
            }
            _ => {}
        }
    }

    /// Another process, which knows nothing.
    fn begin_anew(&mut self, at_us: Micros) {
        self.drop_all();
        for (asked, sent_us) in std::mem::take(&mut self.asked).into_values() {
            self.in_doubt(&asked, sent_us);
        }
        self.life += 1;
        self.left.clear();
        (self.epoch, self.sequence, self.ends_at_us) = (JOIN_EPOCH, 0, None);
        self.next_beat_us = at_us;
    }

    /// Everything it had is over; it joins again.
    fn lose(&mut self) {
        self.drop_all();
        (self.epoch, self.ends_at_us, self.next_beat_us) = (JOIN_EPOCH, None, 0);
    }

    fn drop_all(&mut self) {
        self.told.clear();
        self.take_told();
    }

    /// Consumes what it was told to, and nothing else. Whoever was told must know at once.
    fn take_told(&mut self) {
        let before = self.reading.len();
        let Self { reading, told, events, left, .. } = self;
        reading.retain(|partition, position| {
            let stays = told.contains(partition);
            if !stays {
                left.extend(position.map(|position| (*partition, position)));
                events.push(GroupEvent::Drops { partition: *partition });
            }
            stays
        });
        if reading.len() < before {
            self.next_beat_us = 0;
        }
        for partition in &self.told {
            self.reading.entry(*partition).or_insert(None);
            self.left.remove(partition);
        }
    }

    fn ask(
        &mut self,
        request: GroupRequest,
        asked: Asked,
        reach: &mut Reach<'_>,
    ) -> Option<Correlation> {
        let (partition, leader) = self.caller.coordinator(GROUPS, &self.group)?;
        let request = Request::Group(partition, Box::new(request));
        let correlation = self.caller.ask(leader, request, reach);
        self.asked.insert(correlation, (asked, reach.core.now_us()));
        Some(correlation)
    }

    fn beat(&mut self, reach: &mut Reach<'_>) {
        let is_leave = self.epoch == LEAVE_EPOCH;
        self.sequence += 1;
        self.is_heard = false;
        let is_joining = self.epoch == JOIN_EPOCH;
        let owned = self.reading.keys().chain(&self.told).copied().collect();
        let subscription = Subscription { topics: [LEDGER.to_owned()].into(), regex: None };
        let heartbeat = Heartbeat {
            group: self.group.clone(),
            member: self.name(),
            epoch: self.epoch,
            sequence: Some(self.sequence),
            client_id: "simulated".to_owned(),
            host: "simulated".to_owned(),
            subscription: is_joining.then_some(subscription),
            rebalance_timeout_ms: is_joining.then_some(REBALANCE_MS),
            owned: (!is_joining && !is_leave).then_some(owned),
            ..Heartbeat::default()
        };
        // Who asks again listens to no earlier answer, and goes over another connection if it waited for too long.
        let is_beat = |(_, (asked, _)): &(&Correlation, &(Asked, Micros))| {
            matches!(asked, Asked::Heartbeat { .. })
        };
        let earlier = self.asked.iter().find(is_beat).map(|(id, (_, sent_us))| (*id, *sent_us));
        self.asked.retain(|_, (asked, _)| !matches!(asked, Asked::Heartbeat { .. }));
        if let Some((correlation, sent_us)) = earlier
            && reach.core.now_us() >= sent_us + PATIENCE_US
        {
            for (correlation, answer) in self.caller.give_up(correlation, reach) {
                self.answered(correlation, &answer, reach);
            }
        }
        // Until it is answered; an answer that does not come is asked for again, on whatever connection there is then.
        self.next_beat_us = reach.core.now_us() + 600 * MS;
        let asked =
            self.ask(GroupRequest::Heartbeat(heartbeat), Asked::Heartbeat { is_leave }, reach);
        if let Some(correlation) = asked.filter(|_| self.is_restless && reach.core.chance(100)) {
            // It may arrive all the same, behind what goes over the next connection.
            reach.core.figures.fault("connections of members broken");
            self.caller.break_off(correlation, reach);
        }
    }

    /// Offsets that it has sent for a partition, and has no answer to.
    pub fn pending(&self, partition: TopicPartition) -> Vec<Offset> {
        let commits = self.asked.values().filter_map(|(asked, _)| match asked {
            Asked::Commit(offsets) => Some(offsets),
            _ => None,
        });
        let all = commits.flatten().filter(|(id, _)| *id == partition);
        all.map(|(_, offset)| *offset).collect()
    }

    fn has_asked(&self, is_it: fn(&Asked) -> bool) -> bool {
        self.asked.values().any(|(asked, _)| is_it(asked))
    }

    fn fetch(&mut self, reach: &mut Reach<'_>) {
        let unknown = self.reading.iter().filter(|(_, position)| position.is_none());
        let partitions: Vec<_> = unknown.map(|(partition, _)| *partition).collect();
        if partitions.is_empty() || self.has_asked(|asked| matches!(asked, Asked::Fetch)) {
            return;
        }
        let fetch = FetchOffsets {
            group: self.group.clone(),
            member: Some((self.name(), self.epoch)),
            partitions: Some(partitions),
            require_stable: true,
        };
        self.ask(GroupRequest::FetchOffsets(fetch), Asked::Fetch, reach);
    }

    fn progress(&mut self, reach: &mut Reach<'_>) {
        for position in self.reading.values_mut().flatten() {
            *position += reach.core.draw(0, 3);
        }
        if !self.is_done && reach.core.chance(150) {
            self.commit(reach);
        }
    }

    fn commit(&mut self, reach: &mut Reach<'_>) {
        let known = self.reading.iter().filter_map(|(id, position)| Some((*id, (*position)?)));
        let mut offsets: Vec<_> = known.collect();
        // Only while it knows what it has: what a heartbeat under way gives it, it may commit for.
        if self.is_heard && reach.core.chance(300) {
            offsets.extend(std::mem::take(&mut self.left));
        }
        if offsets.is_empty() || self.has_asked(|asked| matches!(asked, Asked::Commit(_))) {
            return;
        }
        let to_commit = |(partition, offset): &(TopicPartition, Offset)| OffsetToCommit {
            partition: *partition,
            offset: *offset,
            leader_epoch: None,
            metadata: String::new(),
        };
        let commit = CommitOffsets {
            group: self.group.clone(),
            committer: Committer::Member { member: self.name(), epoch: self.epoch, instance: None },
            offsets: offsets.iter().map(to_commit).collect(),
        };
        self.ask(GroupRequest::CommitOffsets(commit), Asked::Commit(offsets), reach);
    }

    fn answered(&mut self, correlation: Correlation, answer: &Answer, reach: &mut Reach<'_>) {
        if self.refreshing.take_if(|it| *it == correlation).is_some() {
            if let Answer::Response(Response::Metadata(index, topics)) = answer {
                self.caller.learn(*index, topics.clone(), reach);
            }
            return;
        }
        let Some((asked, sent_us)) = self.asked.remove(&correlation) else { return };
        reach.core.note(Who::Client(self.caller.id), "member", [sent_us, 0], || {
            format!("{} {} at {}: {asked:?}: {answer:?}", self.group, self.name(), self.epoch)
        });
        match (asked, answer) {
            (
                Asked::Heartbeat { is_leave: false },
                Answer::Response(Response::Group(GroupResponse::Heartbeat(response))),
            ) => self.beaten(response, sent_us, reach),
            (
                Asked::Commit(offsets),
                Answer::Response(Response::Group(GroupResponse::CommitOffsets(outcomes))),
            ) => {
                for ((partition, offset), outcome) in offsets.into_iter().zip(outcomes) {
                    if outcome.is_ok() {
                        reach.core.figures.operation("offsets committed");
                        let is_known = true;
                        let committed =
                            GroupEvent::Committed { partition, offset, sent_us, is_known };
                        self.events.push(committed);
                    }
                }
            }
            (
                Asked::Fetch,
                Answer::Response(Response::Group(GroupResponse::FetchOffsets(fetched))),
            ) => {
                for one in fetched {
                    let Ok(committed) = &one.outcome else { continue };
                    let (partition, offset) =
                        (one.partition, committed.as_ref().map(|committed| committed.offset));
                    self.events.push(GroupEvent::Fetched { partition, offset, sent_us });
                    if let Some(position @ None) = self.reading.get_mut(&partition) {
                        *position = Some(offset.unwrap_or(0));
                    }
                }
            }
            (asked, answer) => self.refused(&asked, answer, sent_us, reach),
        }
    }

    /// Nobody will ever know whether this was carried out.
    fn in_doubt(&mut self, asked: &Asked, sent_us: Micros) {
        let Asked::Commit(offsets) = asked else { return };
        for (partition, offset) in offsets.iter().copied() {
            let is_known = false;
            self.events.push(GroupEvent::Committed { partition, offset, sent_us, is_known });
        }
    }

    fn beaten(&mut self, response: &HeartbeatResponse, sent_us: Micros, reach: &mut Reach<'_>) {
        let now_us = reach.core.now_us();
        let until_us = sent_us + response.session_timeout_ms * MS;
        if self.ends_at_us.is_some_and(|ends_at_us| ends_at_us <= now_us) || until_us <= now_us {
            // Its session is over by its own count, whatever the answer says.
            return self.lose();
        }
        if self.epoch != JOIN_EPOCH && response.epoch < self.epoch {
            return;
        }
        self.ends_at_us = Some(self.ends_at_us.map_or(until_us, |at_us| at_us.max(until_us)));
        self.epoch = response.epoch;
        self.is_heard = true;
        if let Some(assignment) = &response.assignment {
            self.told.clone_from(assignment);
        }
        let until_us = self.ends_at_us.unwrap_or(until_us);
        for partition in self.told.iter().chain(self.reading.keys()) {
            self.events.push(GroupEvent::Claims { partition: *partition, until_us });
        }
        self.next_beat_us = now_us + response.heartbeat_interval_ms * MS;
        reach.core.figures.operation("heartbeats answered");
    }

    fn refused(&mut self, asked: &Asked, answer: &Answer, sent_us: Micros, reach: &mut Reach<'_>) {
        if answer.is_indeterminate() || answer.is_retriable() {
            self.in_doubt(asked, sent_us);
        }
        let code = match answer {
            Answer::Refused(failure) => Some(failure.code),
            _ => None,
        };
        let is_out = matches!(code, Some(ErrorCode::UnknownMember | ErrorCode::FencedMemberEpoch));
        if is_out && matches!(asked, Asked::Heartbeat { .. }) && self.epoch != JOIN_EPOCH {
            reach.core.figures.happened("members put out");
            return self.lose();
        }
        if self.refreshing.is_none() {
            self.refreshing = Some(self.caller.refresh(reach));
        }
        self.next_beat_us = self.next_beat_us.min(reach.core.now_us() + REFRESH_US);
    }
}

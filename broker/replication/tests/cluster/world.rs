//! Brokers with the shipped machine and a log in memory, a controller, and a network that delays, reorders and loses.
//! Carries out effects as the broker's shards do.

use std::collections::BTreeMap;

use tidemark_protocol::{
    BrokerEpoch, BrokerId, ErrorCode, Offset, PartitionEpoch, bug,
    messages::{Acks, Durability, Position, ReplicaRefusal},
};
use tidemark_replication::{
    Answer, AnswerTo, Config, Effect, Event, Fetched, FollowerFetch, IsrChange, Produced, Replica,
    ReplicaId, StorageDurability,
};

use crate::{
    controller::Controller,
    ghost::Ghost,
    log::{Log, Record},
};

pub(crate) const REPLICA_LAG_MS: u64 = 2_000;
/// Records in one answer.
const SERVED_MAX: usize = 3;

/// Something on its way.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Position {
        to: BrokerId,
        from: ReplicaId,
        position: Position,
    },
    /// The leader has yet to look what there is.
    Serve {
        leader: ReplicaId,
        to: AnswerTo,
        offset: Offset,
    },
    Answer {
        leader: BrokerId,
        to: AnswerTo,
        said: Said,
    },
    AlterIsr {
        from: ReplicaId,
        change: IsrChange,
    },
    IsrAnswered {
        to: ReplicaId,
        partition_epoch: PartitionEpoch,
        answer: Result<(), ErrorCode>,
    },
}

impl Message {
    /// Whether it is between these two, either way, or still with the second.
    pub(crate) fn is_between(&self, follower: BrokerId, leader: BrokerId) -> bool {
        match self {
            Self::Position { to, from, .. } => (from.broker_id, *to) == (follower, leader),
            Self::Serve { leader: from, to, .. } => {
                (to.follower.broker_id, from.broker_id) == (follower, leader)
            }
            Self::Answer { leader: from, to, .. } => {
                (to.follower.broker_id, *from) == (follower, leader)
            }
            Self::AlterIsr { .. } | Self::IsrAnswered { .. } => false,
        }
    }
}

/// What a leader says.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    high_watermark: Offset,
    log_start_offset: Offset,
    base: Offset,
    records: Vec<Record>,
    refusal: Option<ReplicaRefusal>,
}

/// A flush under way: how far it goes, and how often the log had been cut.
type Flush = (Offset, u64);

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) id: BrokerId,
    pub(crate) epoch: BrokerEpoch,
    pub(crate) is_up: bool,
    /// It was shut down, everything flushed, and has not started since.
    is_clean: bool,
    /// Its disk was replaced, and the controller has not heard of it.
    pub(crate) is_wiped: bool,
    pub(crate) log: Log,
    pub(crate) replica: Option<Replica>,
    /// The state of the controller that it has come to.
    pub(crate) followed: usize,
    flush: Option<Flush>,
}

pub(crate) struct World {
    pub(crate) now_ms: u64,
    pub(crate) brokers: BTreeMap<BrokerId, Broker>,
    pub(crate) controller: Controller,
    pub(crate) network: Vec<Message>,
    pub(crate) ghost: Ghost,
    pub(crate) durability: StorageDurability,
    /// Every so many appends of followers the disk is full, or a batch damaged on its way.
    pub(crate) refuses_every: u64,
    /// Where logs were cut, and whose.
    pub(crate) cuts: Vec<(BrokerId, Offset)>,
    min_insync: u16,
    attempts: u64,
    next_value: u64,
    next_token: u64,
}

impl World {
    pub(crate) fn new(ids: &[BrokerId], durability: StorageDurability, min_insync: u16) -> Self {
        let controller = Controller::new(ids, min_insync.into());
        let brokers = ids.iter().map(|id| {
            let epoch = controller.now().brokers[id].epoch;
            let log = Log::default();
            let (replica, followed, flush) = (None, 0, None);
            let (is_up, is_clean, is_wiped) = (true, false, false);
            let broker =
                Broker { id: *id, epoch, is_up, is_clean, is_wiped, log, replica, followed, flush };
            (*id, broker)
        });
        let mut world = Self {
            now_ms: 0,
            brokers: brokers.collect(),
            controller,
            network: Vec::new(),
            ghost: Ghost::default(),
            durability,
            refuses_every: u64::MAX,
            cuts: Vec::new(),
            min_insync,
            attempts: 0,
            next_value: 0,
            next_token: 0,
        };
        for id in ids {
            world.follow(*id, 0);
        }
        world
    }

    /// A broker comes to a later state of the metadata, leaping over those in between.
    pub(crate) fn follow(&mut self, id: BrokerId, index: usize) {
        let state = self.controller.states[index].clone();
        let broker = self.brokers.get_mut(&id).unwrap();
        broker.followed = index;
        if !broker.is_up || state.brokers[&id].epoch != broker.epoch {
            // What it says is about an earlier run of this broker.
            return;
        }
        if !state.replicas.contains(&id) {
            if broker.replica.take().is_some() {
                (broker.log, broker.flush) = (Log::default(), None);
                self.ghost.forget(id);
            }
            return;
        }
        let config = Config {
            broker_id: id,
            durability: self.durability,
            min_insync_replicas: self.min_insync,
            replica_lag_ms: REPLICA_LAG_MS,
        };
        let settings = config.settings();
        broker.replica.get_or_insert_with(|| Replica::new(config));
        let (assignment, log) = (state.assignment(), broker.log.state());
        let event = Event::Assigned { assignment, settings, log };
        self.step(id, event);
    }

    pub(crate) fn produce(&mut self, id: BrokerId, records: u64, acks: Acks) {
        let broker = self.brokers.get_mut(&id).unwrap();
        let Some(replica) = &broker.replica else { return };
        let Some(epoch) = replica.leader_epoch() else { return };
        if replica.admit(acks).is_err() {
            return;
        }
        let base_offset = broker.log.end();
        for _ in 0..records {
            self.next_value += 1;
            broker.log.append((epoch, self.next_value));
        }
        self.ghost.appended(id, epoch);
        let produced = Produced {
            token: self.next_token,
            acks,
            durability: Durability::Topic,
            deadline_ms: self.now_ms + 5_000,
            base_offset,
            end_offset: broker.log.end(),
        };
        self.next_token += 1;
        self.ghost.asked(id, produced);
        self.step(id, Event::Produced(produced));
    }

    pub(crate) fn begin_flush(&mut self, id: BrokerId) {
        let broker = self.brokers.get_mut(&id).unwrap();
        broker.flush = broker.flush.or(Some((broker.log.end(), broker.log.cuts)));
    }

    pub(crate) fn end_flush(&mut self, id: BrokerId) {
        let broker = self.brokers.get_mut(&id).unwrap();
        let Some((end, cuts)) = broker.flush.take() else { return };
        if cuts == broker.log.cuts {
            broker.log.flushed = broker.log.flushed.max(end);
            let end_offset = broker.log.flushed;
            self.step(id, Event::Flushed { end_offset });
        }
    }

    pub(crate) fn tick(&mut self, id: BrokerId) {
        self.step(id, Event::Tick);
    }

    /// The leader gives up what is old.
    pub(crate) fn trim(&mut self, id: BrokerId, per_mille: u64) {
        let broker = self.brokers.get_mut(&id).unwrap();
        let Some(replica) = broker.replica.as_ref().filter(|it| it.leader_epoch().is_some()) else {
            return;
        };
        let start = broker.log.start();
        let offset = start + (replica.high_watermark() - start) * per_mille / 1000;
        broker.log.trim(offset);
        self.step(id, Event::LogStartMoved { offset });
    }

    /// The stream from `follower` to `leader` breaks and is opened again. What was on its way may come all the same.
    pub(crate) fn break_stream(&mut self, follower: BrokerId, leader: BrokerId) {
        let lost = ReplicaId { broker_id: follower, broker_epoch: self.brokers[&follower].epoch };
        self.step(leader, Event::FollowerLost { follower: lost });
        self.step(follower, Event::LeaderConnected { leader });
    }

    /// The process dies, and what it had not flushed with it, but for `kept` records.
    pub(crate) fn crash(&mut self, id: BrokerId, kept: u64) {
        let all = self.durability == StorageDurability::Memory;
        self.end(id, if all { u64::MAX / 2 } else { kept }, false);
    }

    /// The process ends, everything flushed.
    pub(crate) fn shut_down(&mut self, id: BrokerId) {
        self.end(id, u64::MAX / 2, true);
    }

    /// The process and its disk are lost, and everybody sees it: as long as another replica is in sync nothing that was
    /// committed is lost with them.
    pub(crate) fn wipe(&mut self, id: BrokerId) {
        if self.controller.now().isr.iter().any(|member| *member != id) {
            self.end(id, 0, false);
            self.controller.fence(id);
            let broker = self.brokers.get_mut(&id).unwrap();
            (broker.log, broker.is_clean, broker.is_wiped) = (Log::default(), false, true);
        }
    }

    fn end(&mut self, id: BrokerId, kept: u64, is_clean: bool) {
        let broker = self.brokers.get_mut(&id).unwrap();
        if broker.is_up {
            (broker.is_up, broker.is_clean) = (false, is_clean);
            (broker.replica, broker.flush) = (None, None);
            broker.log.crash(kept);
            self.ghost.forget(id);
        }
    }

    /// Starts again; the controller is told at once.
    pub(crate) fn restart(&mut self, id: BrokerId) {
        let Broker { is_up, is_clean, .. } = self.brokers[&id];
        if is_up {
            return;
        }
        let epoch = self.controller.register(id, is_clean);
        let broker = self.brokers.get_mut(&id).unwrap();
        (broker.is_up, broker.is_clean, broker.epoch) = (true, false, epoch);
        broker.is_wiped = false;
    }

    pub(crate) fn deliver(&mut self, index: usize) {
        match self.network.remove(index) {
            Message::Position { to, from, position } => {
                let broker = &self.brokers[&to];
                let last = position.last_fetched_epoch;
                let epoch_end = last.and_then(|epoch| broker.log.epoch_end(epoch));
                self.step(
                    to,
                    Event::FollowerFetched(FollowerFetch { follower: from, position, epoch_end }),
                );
            }
            Message::Serve { leader, to, offset } => self.serve(leader, to, offset),
            Message::Answer { leader, to, said } => self.answered(leader, to, &said),
            Message::AlterIsr { from, change } => {
                let known = self.controller.now().brokers[&from.broker_id].epoch;
                let answer = if known == from.broker_epoch {
                    self.controller.alter_isr(from.broker_id, &change)
                } else {
                    Err(ErrorCode::StaleBrokerEpoch)
                };
                let partition_epoch = change.partition_epoch;
                self.network.push(Message::IsrAnswered { to: from, partition_epoch, answer });
            }
            Message::IsrAnswered { to, partition_epoch, answer } => {
                if self.brokers[&to.broker_id].epoch == to.broker_epoch {
                    self.step(to.broker_id, Event::IsrAnswered { partition_epoch, answer });
                }
            }
        }
    }

    /// Delivers, oldest first, what `wanted` says, and what comes of it.
    pub(crate) fn deliver_those(&mut self, wanted: impl Fn(&Message) -> bool) {
        while let Some(index) = self.network.iter().position(&wanted) {
            self.deliver(index);
        }
    }

    /// Reads for a follower, if the leadership is still the one that it asked.
    fn serve(&mut self, leader: ReplicaId, to: AnswerTo, offset: Offset) {
        let broker = &self.brokers[&leader.broker_id];
        let Some(replica) = &broker.replica else { return };
        if broker.epoch != leader.broker_epoch || replica.leader_epoch() != Some(to.leader_epoch) {
            return;
        }
        let said = Said {
            high_watermark: replica.high_watermark(),
            log_start_offset: broker.log.start(),
            base: offset,
            records: broker.log.read(offset, SERVED_MAX),
            refusal: (offset < broker.log.start()).then(|| ReplicaRefusal::OutOfRange {
                log_start_offset: broker.log.start(),
                log_end_offset: broker.log.end(),
            }),
        };
        self.network.push(Message::Answer { leader: leader.broker_id, to, said });
    }

    fn answered(&mut self, leader: BrokerId, to: AnswerTo, said: &Said) {
        let id = to.follower.broker_id;
        let broker = &self.brokers[&id];
        let Some(replica) = broker.replica.as_ref() else { return };
        // The stream belongs to one run of the follower, and to one leader.
        if broker.epoch != to.follower.broker_epoch
            || replica.following().is_none_or(|(followed, _)| followed != leader)
        {
            return;
        }
        let answer = match said.refusal {
            Some(ReplicaRefusal::Diverging { epoch, end_offset }) => Answer::Diverging {
                leader: tidemark_replication::EpochEnd { epoch, end_offset },
                own: broker.log.epoch_end(epoch),
            },
            Some(ReplicaRefusal::OutOfRange { log_start_offset, log_end_offset }) => {
                Answer::OutOfRange { log_start_offset, log_end_offset }
            }
            Some(ReplicaRefusal::Error { code }) => Answer::Error { code },
            None if !said.records.is_empty() => Answer::Batches,
            None => Answer::Watermark,
        };
        let fetched = Fetched {
            leader_epoch: to.leader_epoch,
            round: to.round,
            high_watermark: said.high_watermark,
            log_start_offset: said.log_start_offset,
            removals_end: 0,
            answer,
        };
        self.step_with(id, Event::Fetched(fetched), Some(said));
    }

    pub(crate) fn step(&mut self, id: BrokerId, event: Event) {
        self.step_with(id, event, None);
    }

    fn step_with(&mut self, id: BrokerId, event: Event, said: Option<&Said>) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let Some(replica) = &mut self.brokers.get_mut(&id).unwrap().replica else { return };
            let mut effects = Vec::new();
            replica.step(self.now_ms, event, &mut effects);
            let watermark = replica.high_watermark();
            for effect in effects {
                assert!(next.is_none(), "an outcome is the last of its step");
                if let Effect::Reply { token, outcome } = effect {
                    self.ghost.replied(token, outcome, watermark);
                } else {
                    next = self.carry_out(id, effect, said);
                }
            }
        }
        self.check(id);
    }

    fn carry_out(&mut self, id: BrokerId, effect: Effect, said: Option<&Said>) -> Option<Event> {
        let may_fail = matches!(
            effect,
            Effect::Append { .. } | Effect::Truncate { .. } | Effect::StartAt { .. }
        );
        self.attempts += u64::from(may_fail);
        if may_fail && self.attempts.is_multiple_of(self.refuses_every) {
            return Some(Event::EffectRefused);
        }
        let broker = self.brokers.get_mut(&id).unwrap();
        let me = ReplicaId { broker_id: id, broker_epoch: broker.epoch };
        match effect {
            Effect::SetHighWatermark { .. }
            | Effect::Reply { .. }
            | Effect::RequestFlush { .. } => {}
            Effect::AssignEpoch { epoch, start_offset } => {
                broker.log.assign_epoch(epoch, start_offset);
                self.ghost.leads(id, epoch);
            }
            Effect::AlterIsr(change) => {
                self.network.push(Message::AlterIsr { from: me, change });
            }
            Effect::Serve { to, offset } => {
                self.network.push(Message::Serve { leader: me, to, offset });
            }
            Effect::ShareWatermark { to, high_watermark, log_start_offset } => {
                let (base, records, refusal) = (0, Vec::new(), None);
                let said = Said { high_watermark, log_start_offset, base, records, refusal };
                self.network.push(Message::Answer { leader: id, to, said });
            }
            Effect::Refuse { to, refusal } => {
                let replica = broker.replica.as_ref().expect("it refuses");
                let said = Said {
                    high_watermark: replica.high_watermark(),
                    log_start_offset: broker.log.start(),
                    base: 0,
                    records: Vec::new(),
                    refusal: Some(refusal),
                };
                self.network.push(Message::Answer { leader: id, to, said });
            }
            Effect::Fetch { leader, position } => {
                self.network.push(Message::Position { to: leader, from: me, position });
            }
            Effect::Append { leader_epoch, .. } => {
                let Said { base, records, .. } = said.expect("batches came");
                if !broker.log.append_as_follower(*base, records, leader_epoch) {
                    return Some(Event::EffectRefused);
                }
                let last_epoch = records.last().expect("at least one").0;
                return Some(Event::Appended { end_offset: broker.log.end(), last_epoch });
            }
            Effect::Truncate { offset } => {
                self.cuts.push((id, offset));
                if offset < broker.log.end() || !bug::is_put_back("epochs-not-truncated-at-end") {
                    broker.log.truncate(offset.min(broker.log.end()));
                }
                return Some(Event::Truncated { log: broker.log.state() });
            }
            Effect::StartAt { offset } => {
                self.cuts.push((id, offset));
                broker.log.restart_at(offset);
                return Some(Event::Truncated { log: broker.log.state() });
            }
            Effect::SetLogStart { offset } => {
                broker.log.trim(offset);
                return Some(Event::LogStartMoved { offset });
            }
        }
        None
    }
}

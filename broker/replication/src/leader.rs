//! The leader: takes records, hears its followers, and moves the watermark. Who is in sync is in [`crate::isr`].
//!
//! ```text
//!            log start        high watermark      flushed        log end
//!   durable: ───┴──── readable ─────┴────────────────┘              │     watermark ≤ flushed of every in-sync replica
//!   memory:  ───┴──── readable ────────────────────────────────────┘     watermark ≤ log end of every in-sync replica
//! ```

use tidemark_protocol::{
    ErrorCode, LeaderEpoch, Offset, PartitionEpoch, bug,
    messages::{Acks, Durability, ReplicaRefusal},
};

use crate::{
    event::{
        AnswerTo, Assignment, Effect, Event, FollowerFetch, Produced, Receipt, ReplicaId,
        StorageDurability, Token,
    },
    followers::{Asked, Follower, InSync},
    isr::PendingIsr,
    parked::{PARKED_PRODUCES_MAX, Parked, Request, Wait},
    replica::Core,
};

/// A follower that is this close to having everything, but not in sync yet, holds the watermark back: otherwise it would
/// run ahead of the follower for as long as records keep coming, and the follower could never join.
const NEARLY_CAUGHT_UP_MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) partition_epoch: PartitionEpoch,
    /// Where this leadership began: the log end offset at that time (LESO).
    pub(crate) start_offset: Offset,
    pub(crate) me: ReplicaId,
    /// Everybody but us.
    pub(crate) followers: Vec<Follower>,
    pub(crate) pending_isr: Option<PendingIsr>,
    /// No change of the in-sync set is proposed before this.
    pub(crate) propose_at_ms: u64,
    parked: Parked,
}

impl Leader {
    /// Begins to lead with the log as `core` knows it. `before` led in an older epoch: what it believed of its followers
    /// is worth nothing now.
    pub(crate) fn begin(
        core: &mut Core,
        assignment: &Assignment,
        before: Option<&Self>,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let epoch = assignment.leader_epoch;
        let start_offset = core.log.log_end_offset;
        let mut leader = Self {
            epoch,
            partition_epoch: assignment.partition_epoch,
            start_offset,
            me: ReplicaId { broker_id: core.config.broker_id, broker_epoch: 0 },
            followers: Vec::new(),
            pending_isr: None,
            propose_at_ms: 0,
            parked: Parked::new(),
        };
        leader.set_members(core, assignment);
        for old in before.map_or(&[][..], |before| &before.followers) {
            let same = |new: &&mut Follower| new.member.replica() == old.member.replica();
            if let Some(new) = leader.followers.iter_mut().find(same) {
                new.inherit(old);
            }
        }
        core.log.last_epoch = Some(epoch);
        effects.push(Effect::AssignEpoch { epoch, start_offset });
        leader.advance(core, effects);
        core.request_flush_if_behind(effects);
        leader.tend_isr(core, effects);
        leader
    }

    /// Same leadership, other members, another in-sync set or other settings.
    pub(crate) fn reassigned(
        &mut self,
        core: &mut Core,
        assignment: &Assignment,
        effects: &mut Vec<Effect>,
    ) {
        self.set_members(core, assignment);
        self.advance(core, effects);
        self.tend_isr(core, effects);
    }

    pub(crate) fn admit(&self, core: &Core, acks: Acks) -> Result<(), ErrorCode> {
        if acks == Acks::All && self.isr_size() < self.min_insync(core) {
            return Err(ErrorCode::NotEnoughReplicas);
        }
        if acks != Acks::None && self.parked.len() >= PARKED_PRODUCES_MAX {
            return Err(ErrorCode::Overloaded);
        }
        Ok(())
    }

    pub(crate) fn step(&mut self, core: &mut Core, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Produced(produced) => self.produced(core, produced, effects),
            Event::Repeated(produced) => self.repeated(core, produced, effects),
            Event::Flushed { end_offset } => {
                core.flushed(end_offset);
                self.advance(core, effects);
            }
            Event::FollowerFetched(fetch) => self.follower_fetched(core, &fetch, effects),
            Event::FollowerLost { follower } => {
                let same = |known: &&mut Follower| known.member.replica() == follower;
                if let Some(known) = self.followers.iter_mut().find(same) {
                    known.lost();
                    self.advance(core, effects);
                }
            }
            Event::IsrAnswered { partition_epoch, answer } => {
                self.isr_answered(core, partition_epoch, answer);
                self.advance(core, effects);
            }
            Event::LogStartMoved { offset } => {
                core.log_start_moved(offset);
                self.share(core, effects);
            }
            Event::Tick => self.advance(core, effects),
            // Answers of the leader we followed, come too late.
            Event::Fetched(_) | Event::LeaderConnected { .. } => {}
            outcome @ (Event::Appended { .. } | Event::Truncated { .. } | Event::EffectRefused) => {
                panic!("{outcome:?} was not asked for");
            }
            Event::Assigned { .. } | Event::StorageFailed | Event::Stop { .. } => {
                unreachable!("roles are changed elsewhere")
            }
        }
        self.expire(core, effects);
        self.tend_isr(core, effects);
    }

    /// Answers everybody who waits with `reason`; their records stay in the log.
    pub(crate) fn resign(&mut self, reason: ErrorCode, effects: &mut Vec<Effect>) {
        self.parked.drain(|request| effects.push(reply_error(request.token, reason)));
    }

    pub(crate) fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// Whether the watermark is known to be as high as readers may have seen it under an earlier leader.
    pub(crate) fn is_watermark_known(&self, core: &Core) -> bool {
        core.high_watermark >= self.start_offset
    }

    /// See [`crate::Replica::removals_max`].
    pub(crate) fn removals_max(&self) -> Offset {
        self.followers.iter().filter_map(Follower::heard_end).min().unwrap_or(Offset::MAX)
    }

    pub(crate) fn next_deadline_ms(&self, core: &Core) -> Option<u64> {
        let parked = self.parked.next_deadline_ms();
        if self.followers.is_empty() {
            return parked;
        }
        let waits = self.followers.iter().filter(|follower| !follower.is_in_sync());
        let waits = waits.filter_map(|follower| {
            let (durability, end) = (core.config.durability, core.log.log_end_offset);
            follower.falls_behind_at_ms(durability, end, nearly_ms(core))
        });
        // Those that have fallen behind already hold nothing back any more.
        let waits = waits.filter(|at_ms| *at_ms > core.now_ms).min();
        [parked, waits, self.next_isr_ms(core)].into_iter().flatten().min()
    }

    fn produced(&mut self, core: &mut Core, produced: Produced, effects: &mut Vec<Effect>) {
        let Produced { base_offset, end_offset, .. } = produced;
        let before = core.log.log_end_offset;
        assert!(base_offset < end_offset, "an append of nothing at {base_offset}");
        assert!(base_offset == before, "appended at {base_offset}, the log ended at {before}");
        core.log.log_end_offset = end_offset;
        let durability = core.config.durability;
        for follower in &mut self.followers {
            follower.leader_appended(durability, (before, end_offset), core.now_ms);
        }
        self.await_acks(core, produced, effects);
        self.serve(core, effects);
        self.advance(core, effects);
    }

    /// The records are there; whether they are as safe as asked is another question, and has the same answer as at first.
    fn repeated(&mut self, core: &mut Core, produced: Produced, effects: &mut Vec<Effect>) {
        let (end_offset, log_end) = (produced.end_offset, core.log.log_end_offset);
        assert!(end_offset <= log_end, "repeats up to {end_offset}, the log ended at {log_end}");
        self.await_acks(core, produced, effects);
        self.advance(core, effects);
    }

    /// Answers what waits for nothing, and has the rest wait.
    fn await_acks(&mut self, core: &Core, produced: Produced, effects: &mut Vec<Effect>) {
        let Produced { token, acks, base_offset, end_offset, deadline_ms, .. } = produced;
        let wait = wait_for(acks, produced.durability);
        if core.log.flushed_offset < end_offset
            && (core.config.durability == StorageDurability::Disk
                || matches!(wait, Some(Wait::Flushed | Wait::CommittedAndFlushed)))
        {
            effects.push(Effect::RequestFlush { end_offset });
        }
        let request = Request { token, base_offset, end_offset, deadline_ms };
        match wait {
            Some(wait) => self.parked.park(wait, request),
            None if acks != Acks::None => {
                effects.push(reply_receipt(self.epoch, core, &self.followers, request));
            }
            None => {}
        }
    }

    /// Sends what there is to those that wait and do not have it.
    fn serve(&mut self, core: &Core, effects: &mut Vec<Effect>) {
        let (epoch, watermark) = (self.epoch, core.high_watermark);
        let behind = |follower: &&mut Follower| follower.log_end() < core.log.log_end_offset;
        for follower in self.followers.iter_mut().filter(behind) {
            if let Some(round) = follower.take_question(watermark, core.log.log_start_offset) {
                let to = answer_to(follower, epoch, round);
                effects.push(Effect::Serve { to, offset: follower.log_end() });
            }
        }
    }

    /// Tells those that wait what has moved besides the log end.
    fn share(&mut self, core: &Core, effects: &mut Vec<Effect>) {
        let (high_watermark, log_start_offset) = (core.high_watermark, core.log.log_start_offset);
        for follower in &mut self.followers {
            if let Some(round) = follower.tell(high_watermark, log_start_offset) {
                let to = answer_to(follower, self.epoch, round);
                effects.push(Effect::ShareWatermark { to, high_watermark, log_start_offset });
            }
        }
    }

    fn follower_fetched(
        &mut self,
        core: &mut Core,
        fetch: &FollowerFetch,
        effects: &mut Vec<Effect>,
    ) {
        let FollowerFetch { follower, position, .. } = fetch;
        let to = AnswerTo::position(*follower, position);
        let index = match self.recognise(fetch) {
            Ok(index) => index,
            Err(code) => {
                effects.push(Effect::Refuse { to, refusal: ReplicaRefusal::Error { code } });
                return;
            }
        };
        let durability = core.config.durability;
        let log_end = core.log.log_end_offset;
        let follower = &mut self.followers[index];
        match follower.asked(position) {
            Asked::Nothing => return,
            Asked::Report => follower.believe(position),
            Asked::Question => {
                if let Err(refusal) = compare(core, fetch) {
                    if bug::is_put_back("diverging-fetch-updates-state") {
                        follower.believe(position);
                    }
                    effects.push(Effect::Refuse { to, refusal });
                    return;
                }
                follower.believe(position);
                follower.wait();
            }
        }
        follower.measure(durability, log_end, core.now_ms);
        self.serve(core, effects);
        self.advance(core, effects);
        // Whoever has just begun to wait may have missed what moved before.
        self.share(core, effects);
    }

    /// Which follower this is, if it may speak to this leadership.
    fn recognise(&self, fetch: &FollowerFetch) -> Result<usize, ErrorCode> {
        let FollowerFetch { follower: from, position, .. } = fetch;
        if position.leader_epoch < self.epoch {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        let known = self.followers.iter().position(|known| known.member.id == from.broker_id);
        // A replica that we have not heard of yet; our metadata is behind (KAFKA-13837).
        let Some(index) = known.filter(|_| position.leader_epoch == self.epoch) else {
            return Err(ErrorCode::UnknownLeaderEpoch);
        };
        if self.followers[index].member.broker_epoch != from.broker_epoch
            && !bug::is_put_back("no-broker-epoch-check")
        {
            return Err(ErrorCode::StaleBrokerEpoch);
        }
        if position.flushed_offset > position.fetch_offset
            || position.log_start_offset > position.fetch_offset
        {
            return Err(ErrorCode::InvalidRequest);
        }
        Ok(index)
    }

    /// Moves the watermark as far as it may go, and answers those it has passed.
    fn advance(&mut self, core: &mut Core, effects: &mut Vec<Effect>) {
        let committed = self.committed_offset(core);
        if committed > core.high_watermark {
            core.high_watermark = committed;
            effects.push(Effect::SetHighWatermark { offset: committed });
            self.share(core, effects);
        }
        let is_below_min = self.maximal_isr_size() < self.min_insync(core);
        let Self { parked, followers, epoch, .. } = self;
        parked.release(core.high_watermark, core.log.flushed_offset, |wait, request| {
            effects.push(if wait.is_for_commit() && is_below_min {
                reply_error(request.token, ErrorCode::NotEnoughReplicasAfterAppend)
            } else {
                reply_receipt(*epoch, core, followers, request)
            });
        });
    }

    /// Answers those whose time is up.
    fn expire(&mut self, core: &Core, effects: &mut Vec<Effect>) {
        let is_below_min = self.isr_size() < self.min_insync(core);
        self.parked.expire(core.now_ms, |wait, request| {
            let code = if wait.is_for_commit() && is_below_min {
                ErrorCode::NotEnoughReplicasAfterAppend
            } else {
                ErrorCode::Timeout
            };
            effects.push(reply_error(request.token, code));
        });
    }

    /// Exclusive end of what every in-sync replica, present and proposed, holds as durably as the topic asks.
    fn committed_offset(&self, core: &Core) -> Offset {
        if self.isr_size() < self.min_insync(core) && !bug::is_put_back("watermark-below-min-isr") {
            return core.high_watermark;
        }
        let durability = core.config.durability;
        let held_back = self.followers.iter().filter(|follower| {
            follower.is_in_sync()
                || !bug::is_put_back("watermark-ignores-pending-isr")
                    && (follower.in_sync == InSync::Proposed || is_nearly_there(follower, core))
        });
        held_back.map(|follower| follower.counted(durability)).fold(core.counted(), Offset::min)
    }
}

/// Whether the watermark waits for this follower although it is not in sync yet.
fn is_nearly_there(follower: &Follower, core: &Core) -> bool {
    let (durability, end) = (core.config.durability, core.log.log_end_offset);
    follower.member.eligible
        && follower.is_known
        && follower.is_caught_up(durability, end, nearly_ms(core), core.now_ms)
}

fn nearly_ms(core: &Core) -> u64 {
    core.config.replica_lag_ms.min(NEARLY_CAUGHT_UP_MS)
}

/// Whether the follower's log is the beginning of ours.
fn compare(core: &Core, fetch: &FollowerFetch) -> Result<(), ReplicaRefusal> {
    let FollowerFetch { position, epoch_end, .. } = fetch;
    let (log_start_offset, log_end_offset) = (core.log.log_start_offset, core.log.log_end_offset);
    let out_of_range = ReplicaRefusal::OutOfRange { log_start_offset, log_end_offset };
    // Before the histories are compared: below the log start there is none (KAFKA-12996).
    if position.fetch_offset < log_start_offset {
        return Err(out_of_range);
    }
    if let Some(last_fetched_epoch) = position.last_fetched_epoch {
        let Some(end) = *epoch_end else { return Err(out_of_range) };
        if end.epoch < last_fetched_epoch || end.end_offset < position.fetch_offset {
            let (epoch, end_offset) = (end.epoch, end.end_offset);
            return Err(ReplicaRefusal::Diverging { epoch, end_offset });
        }
    }
    if position.fetch_offset > log_end_offset { Err(out_of_range) } else { Ok(()) }
}

fn answer_to(follower: &Follower, leader_epoch: LeaderEpoch, round: u64) -> AnswerTo {
    AnswerTo { follower: follower.member.replica(), leader_epoch, round }
}

/// What a request waits for; `None` when the append was all.
fn wait_for(acks: Acks, durability: Durability) -> Option<Wait> {
    match (acks, durability) {
        (Acks::None, _) | (Acks::Leader, Durability::Topic | Durability::Memory) => None,
        (Acks::Leader, Durability::Disk) => Some(Wait::Flushed),
        (Acks::All, _) if bug::is_put_back("reply-before-commit") => None,
        (Acks::All, Durability::Disk) => Some(Wait::CommittedAndFlushed),
        // What the topic asks for is in the watermark already, and a request cannot have less: what is
        // acknowledged by all can be read.
        (Acks::All, Durability::Topic | Durability::Memory) => Some(Wait::Committed),
    }
}

fn reply_receipt(
    leader_epoch: LeaderEpoch,
    core: &Core,
    followers: &[Follower],
    request: Request,
) -> Effect {
    let Request { token, base_offset, end_offset, .. } = request;
    let durable = end_offset <= core.log.flushed_offset;
    let count = |holds: fn(&Follower, Offset) -> bool| {
        let holders = followers.iter().filter(|follower| holds(follower, end_offset)).count();
        u16::try_from(holders).expect("replicas are few")
    };
    let receipt = Receipt {
        base_offset,
        end_offset,
        leader_epoch,
        durability: if durable { Durability::Disk } else { Durability::Memory },
        replicas_memory: 1 + count(Follower::holds_in_memory),
        replicas_durable: u16::from(durable) + count(Follower::holds_on_disk),
    };
    Effect::Reply { token, outcome: Ok(receipt) }
}

pub(crate) fn reply_error(token: Token, code: ErrorCode) -> Effect {
    Effect::Reply { token, outcome: Err(code) }
}

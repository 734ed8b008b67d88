//! The machine: one replica of one partition, leading or idle. It refuses to follow; an in-sync set of more
//! than this replica commits nothing, because nobody reports.
//!
//! ```text
//!            log start        high watermark      flushed        log end
//!   durable: ───┴──── readable ─────┴────────────────┘              │     watermark ≤ flushed ≤ log end
//!   memory:  ───┴──── readable ────────────────────────────────────┘     watermark = log end
//! ```

use tidemark_protocol::{
    ErrorCode, LeaderEpoch, Offset,
    messages::{Acks, Durability},
};

use crate::{
    event::{Config, Effect, Event, Produced, Receipt, StorageDurability, Token},
    parked::{PARKED_PRODUCES_MAX, Parked, Request, Wait},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Takes no records. The code is what callers are told.
    Idle(ErrorCode),
    Leader,
    /// The log failed in this life; no event leads out of here.
    Failed,
}

/// One replica of one partition. Owned by one thread; time and outcomes come in as arguments.
#[derive(Debug)]
pub struct Replica {
    config: Config,
    role: Role,
    /// The last epoch led in.
    leader_epoch: Option<LeaderEpoch>,
    log_end_offset: Offset,
    flushed_offset: Offset,
    high_watermark: Offset,
    parked: Parked,
}

impl Replica {
    /// A replica that leads nothing yet.
    ///
    /// # Panics
    /// When `config` contradicts itself: the metadata image never holds such a partition.
    pub fn new(config: Config) -> Self {
        assert!(config.replicas.contains(&config.broker_id), "not a replica here: {config:?}");
        assert!(config.isr.iter().all(|id| config.replicas.contains(id)), "stray isr: {config:?}");
        assert!(config.min_insync_replicas >= 1, "nothing would be replicated: {config:?}");
        Self {
            config,
            role: Role::Idle(ErrorCode::NotLeader),
            leader_epoch: None,
            log_end_offset: 0,
            flushed_offset: 0,
            high_watermark: 0,
            parked: Parked::new(),
        }
    }

    /// Whether records may be appended on behalf of a produce request with these `acks`. Ask before the
    /// append; an error means that nothing was written.
    pub fn admit(&self, acks: Acks) -> Result<(), ErrorCode> {
        match self.role {
            Role::Idle(reason) => return Err(reason),
            Role::Failed => return Err(ErrorCode::StorageFailed),
            Role::Leader => {}
        }
        if acks == Acks::All && !self.has_enough_replicas() {
            return Err(ErrorCode::NotEnoughReplicas);
        }
        if acks != Acks::None && self.parked.len() >= PARKED_PRODUCES_MAX {
            return Err(ErrorCode::Overloaded);
        }
        Ok(())
    }

    /// Advances by one event and adds what is to be done to `effects`. `now_ms` is any clock that does not
    /// run backwards; deadlines are on the same clock. Never blocks, never fails.
    ///
    /// # Panics
    /// When the event contradicts what the machine was told before (a flush beyond the log end, an append
    /// that leaves a gap): going on would acknowledge what is not there.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) {
        let watermark_before = self.high_watermark;
        match event {
            Event::BecomeLeader { epoch, log_start_offset, log_end_offset, flushed_offset } => {
                let ends = (log_end_offset, flushed_offset);
                self.become_leader(epoch, log_start_offset, ends, effects);
            }
            Event::Produced(produced) => self.produced(produced, effects),
            Event::Flushed { end_offset } => self.flushed(end_offset, effects),
            Event::SetConfig { durability, min_insync_replicas } => {
                self.set_config(durability, min_insync_replicas, effects);
            }
            Event::Tick => {}
            Event::StorageFailed => self.resign(Role::Failed, ErrorCode::StorageFailed, effects),
            Event::Stop { reason } => self.stop(reason, effects),
        }
        self.parked.expire(now_ms, |request| {
            effects.push(reply_error(request.token, ErrorCode::Timeout));
        });
        self.check_invariants(watermark_before);
    }

    /// Exclusive end of what readers may see.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Exclusive end of what is known to be on stable storage here.
    pub fn flushed_offset(&self) -> Offset {
        self.flushed_offset
    }

    pub fn log_end_offset(&self) -> Offset {
        self.log_end_offset
    }

    /// The epoch this replica leads in; `None` when it does not lead.
    pub fn leader_epoch(&self) -> Option<LeaderEpoch> {
        if self.role == Role::Leader { self.leader_epoch } else { None }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Produce requests that wait.
    pub fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// When to send [`Event::Tick`] at the latest, if nothing else happens; it may find nothing to do.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.parked.next_deadline_ms()
    }

    fn become_leader(
        &mut self,
        epoch: LeaderEpoch,
        log_start_offset: Offset,
        (log_end_offset, flushed_offset): (Offset, Offset),
        effects: &mut Vec<Effect>,
    ) {
        if self.role == Role::Failed {
            return;
        }
        assert!(self.leader_epoch < Some(epoch), "epoch {epoch} after {:?}", self.leader_epoch);
        assert!(flushed_offset <= log_end_offset, "flushed {flushed_offset} of {log_end_offset}");
        let watermark_min = self.high_watermark.max(log_start_offset);
        assert!(log_end_offset >= watermark_min, "committed records are gone");
        // A receipt names the epoch of its append, so what was appended in an older one is not answered in
        // this one: its fate is unknown to us.
        self.resign(Role::Leader, ErrorCode::NotLeader, effects);
        self.leader_epoch = Some(epoch);
        self.log_end_offset = log_end_offset;
        self.flushed_offset = flushed_offset;
        self.high_watermark = watermark_min;
        self.high_watermark = watermark_min.max(self.committed_offset());
        effects.push(Effect::SetHighWatermark { offset: self.high_watermark });
        self.request_flush_if_behind(effects);
    }

    fn produced(&mut self, produced: Produced, effects: &mut Vec<Effect>) {
        let Produced { token, acks, base_offset, end_offset, deadline_ms, .. } = produced;
        assert!(base_offset < end_offset, "an append of nothing at {base_offset}");
        if self.role != Role::Leader {
            // The append raced with the end of this leadership; nobody can say what becomes of it.
            if acks != Acks::None {
                effects.push(reply_error(token, self.refusal()));
            }
            return;
        }
        assert!(
            base_offset == self.log_end_offset,
            "appended at {base_offset}, the log ended at {}",
            self.log_end_offset
        );
        self.log_end_offset = end_offset;
        let wait = wait_for(acks, produced.durability);
        if self.config.durability == StorageDurability::Disk
            || matches!(wait, Some(Wait::Flushed | Wait::CommittedAndFlushed))
        {
            effects.push(Effect::RequestFlush { end_offset });
        }
        let request = Request { token, base_offset, end_offset, deadline_ms };
        match wait {
            Some(wait) => self.parked.park(wait, request),
            None if acks == Acks::Leader => {
                effects.push(reply_receipt(request, self.epoch_led(), self.flushed_offset));
            }
            None => {}
        }
        self.advance(effects);
    }

    fn flushed(&mut self, end_offset: Offset, effects: &mut Vec<Effect>) {
        if self.role != Role::Leader {
            return;
        }
        assert!(
            end_offset <= self.log_end_offset,
            "flushed {end_offset}, the log ends at {}",
            self.log_end_offset
        );
        // Flushes may be reported out of order; an older one says nothing new.
        self.flushed_offset = self.flushed_offset.max(end_offset);
        self.advance(effects);
    }

    fn set_config(
        &mut self,
        durability: StorageDurability,
        min_insync_replicas: u16,
        effects: &mut Vec<Effect>,
    ) {
        assert!(min_insync_replicas >= 1, "settings are validated by the controller");
        self.config.durability = durability;
        self.config.min_insync_replicas = min_insync_replicas;
        if self.role == Role::Leader {
            self.advance(effects);
            self.request_flush_if_behind(effects);
        }
    }

    fn stop(&mut self, reason: ErrorCode, effects: &mut Vec<Effect>) {
        let role = if self.role == Role::Failed { Role::Failed } else { Role::Idle(reason) };
        self.resign(role, reason, effects);
    }

    /// Answers everybody who waits with `reason`; their records stay in the log.
    fn resign(&mut self, role: Role, reason: ErrorCode, effects: &mut Vec<Effect>) {
        self.role = role;
        self.parked.drain(|request| effects.push(reply_error(request.token, reason)));
    }

    /// Moves the watermark as far as it may go, and answers those it has passed.
    fn advance(&mut self, effects: &mut Vec<Effect>) {
        let committed = self.committed_offset();
        if committed > self.high_watermark {
            self.high_watermark = committed;
            effects.push(Effect::SetHighWatermark { offset: committed });
        }
        let (epoch, flushed) = (self.epoch_led(), self.flushed_offset);
        self.parked.release(self.high_watermark, flushed, |request| {
            effects.push(reply_receipt(request, epoch, flushed));
        });
    }

    /// Exclusive end of what every in-sync replica holds as durably as the topic asks.
    fn committed_offset(&self) -> Offset {
        let alone = self.config.isr == [self.config.broker_id];
        if !alone || !self.has_enough_replicas() {
            return self.high_watermark;
        }
        match self.config.durability {
            StorageDurability::Disk => self.flushed_offset,
            StorageDurability::Memory => self.log_end_offset,
        }
    }

    fn has_enough_replicas(&self) -> bool {
        self.config.isr.len() >= usize::from(self.config.min_insync_replicas)
    }

    fn request_flush_if_behind(&self, effects: &mut Vec<Effect>) {
        if self.config.durability == StorageDurability::Disk
            && self.flushed_offset < self.log_end_offset
        {
            effects.push(Effect::RequestFlush { end_offset: self.log_end_offset });
        }
    }

    fn epoch_led(&self) -> LeaderEpoch {
        self.leader_epoch.expect("whoever leads was given an epoch")
    }

    fn refusal(&self) -> ErrorCode {
        match self.role {
            Role::Idle(reason) => reason,
            Role::Failed => ErrorCode::StorageFailed,
            Role::Leader => ErrorCode::Internal,
        }
    }

    /// Cheap enough to stay on: three comparisons after every event.
    fn check_invariants(&self, watermark_before: Offset) {
        assert!(self.high_watermark <= self.log_end_offset, "watermark past the log end: {self:?}");
        assert!(self.flushed_offset <= self.log_end_offset, "flushed past the log end: {self:?}");
        assert!(self.high_watermark >= watermark_before, "watermark went back: {self:?}");
        assert!(self.role == Role::Leader || self.parked.len() == 0, "waiting in vain: {self:?}");
    }
}

/// What a request waits for; `None` when the append was all.
fn wait_for(acks: Acks, durability: Durability) -> Option<Wait> {
    match (acks, durability) {
        (Acks::None, _) | (Acks::Leader, Durability::Topic | Durability::Memory) => None,
        (Acks::Leader, Durability::Disk) => Some(Wait::Flushed),
        (Acks::All, Durability::Disk) => Some(Wait::CommittedAndFlushed),
        // What the topic asks for is in the watermark already, and a request cannot have less: what is
        // acknowledged by all can be read.
        (Acks::All, Durability::Topic | Durability::Memory) => Some(Wait::Committed),
    }
}

fn reply_receipt(request: Request, leader_epoch: LeaderEpoch, flushed_offset: Offset) -> Effect {
    let Request { token, base_offset, end_offset, .. } = request;
    let durable = end_offset <= flushed_offset;
    let receipt = Receipt {
        base_offset,
        end_offset,
        leader_epoch,
        durability: if durable { Durability::Disk } else { Durability::Memory },
        // The leader itself: followers do not report yet.
        replicas_memory: 1,
        replicas_durable: u16::from(durable),
    };
    Effect::Reply { token, outcome: Ok(receipt) }
}

fn reply_error(token: Token, code: ErrorCode) -> Effect {
    Effect::Reply { token, outcome: Err(code) }
}

//! The machine: one replica of one partition, and which role it plays. What the roles do is in [`crate::leader`] and
//! [`crate::follower`]; this file refuses to know how records are replicated.

use tidemark_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionEpoch,
    messages::{Acks, ReplicaRefusal},
};

use crate::{
    event::{
        AnswerTo, Assignment, Config, Effect, Event, FollowerStatus, LogState, Settings,
        StorageDurability,
    },
    follower::{Following, Standing},
    followers::{Follower, counted},
    leader::{Leader, reply_error},
};

#[derive(Debug)]
enum Role {
    /// Nobody leads, as far as we know.
    Idle,
    Leader(Box<Leader>),
    Follower(Following),
    /// The log failed, or the replica was given up; no event leads out of here. The code is what callers are told.
    Ended(ErrorCode),
}

/// What both roles know.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) log: LogState,
    pub(crate) high_watermark: Offset,
    /// Of the last question asked as a follower. Never asked twice, whoever led in between.
    pub(crate) round: u64,
    /// The time of the last step.
    pub(crate) now_ms: u64,
}

/// What of an assignment tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Assigned {
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
}

/// One replica of one partition. Owned by one thread; time and outcomes come in as arguments.
#[derive(Debug)]
pub struct Replica {
    core: Core,
    assigned: Option<Assigned>,
    role: Role,
}

impl Replica {
    /// A replica that has no role yet.
    ///
    /// # Panics
    /// When `config` contradicts itself: the settings are validated by the controller.
    pub fn new(config: Config) -> Self {
        assert!(config.min_insync_replicas >= 1, "nothing would be replicated: {config:?}");
        let log = LogState::default();
        let core = Core { config, log, high_watermark: 0, round: 0, now_ms: 0 };
        Self { core, assigned: None, role: Role::Idle }
    }

    /// Whether records may be appended on behalf of a produce request with these `acks`. Ask before the
    /// append; an error means that nothing was written.
    pub fn admit(&self, acks: Acks) -> Result<(), ErrorCode> {
        match &self.role {
            Role::Leader(leader) => leader.admit(&self.core, acks),
            _ => Err(self.refusal()),
        }
    }

    /// How many replicas are in sync, and with how few anything is committed; `None` where this replica does not lead.
    pub fn in_sync(&self) -> Option<(usize, usize)> {
        match &self.role {
            Role::Leader(leader) => Some((leader.isr_size(), leader.min_insync(&self.core))),
            _ => None,
        }
    }

    /// Advances by one event and adds what is to be done to `effects`. `now_ms` is any clock that does not
    /// run backwards; deadlines are on the same clock. Never blocks, never fails.
    ///
    /// # Panics
    /// When the event contradicts what the machine was told before (a flush beyond the log end, an append
    /// that leaves a gap, metadata that goes back): going on would acknowledge what is not there.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) {
        self.core.now_ms = now_ms;
        let before = (self.leader_epoch(), self.core.high_watermark);
        match event {
            _ if matches!(self.role, Role::Ended(_)) => self.refuse(&event, effects),
            Event::Assigned { assignment, settings, log } => {
                let are_new = self.core.set_settings(settings);
                self.assigned(&assignment, (log, are_new), effects);
            }
            Event::StorageFailed => self.end(ErrorCode::StorageFailed, effects),
            Event::Stop { reason } => self.end(reason, effects),
            event => match &mut self.role {
                Role::Leader(leader) => leader.step(&mut self.core, event, effects),
                Role::Follower(_) | Role::Idle
                    if matches!(
                        event,
                        Event::Produced(_) | Event::Repeated(_) | Event::FollowerFetched(_)
                    ) =>
                {
                    self.refuse(&event, effects);
                }
                Role::Follower(following) => following.step(&mut self.core, &event, effects),
                Role::Idle => self.idle(&event),
                Role::Ended(_) => unreachable!("dealt with above"),
            },
        }
        self.check_invariants(before);
    }

    /// Exclusive end of what readers may see.
    pub fn high_watermark(&self) -> Offset {
        self.core.high_watermark
    }

    /// Whether a leader knows the watermark to be as high as readers may have seen it under an earlier one. Until then
    /// nobody can be told what the latest offset is.
    pub fn is_watermark_known(&self) -> bool {
        self.leader().is_some_and(|leader| leader.is_watermark_known(&self.core))
    }

    /// Exclusive end of what is known to be on stable storage here.
    pub fn flushed_offset(&self) -> Offset {
        self.core.log.flushed_offset
    }

    pub fn log_end_offset(&self) -> Offset {
        self.core.log.log_end_offset
    }

    /// The epoch this replica leads in; `None` when it does not lead.
    pub fn leader_epoch(&self) -> Option<LeaderEpoch> {
        self.leader().map(|leader| leader.epoch)
    }

    /// Whether its log failed, or it was given up: it does nothing any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.role, Role::Ended(_))
    }

    /// Whom it follows, and in which epoch.
    pub fn following(&self) -> Option<(BrokerId, LeaderEpoch)> {
        match &self.role {
            Role::Follower(following) => Some((following.leader, following.epoch)),
            _ => None,
        }
    }

    /// What a leader knows of its followers; nothing from anybody else.
    pub fn followers(&self) -> impl Iterator<Item = FollowerStatus> {
        let followers = self.leader().map_or(&[][..], |leader| &leader.followers);
        followers.iter().map(Follower::status)
    }

    /// Compaction may drop the marks of removals below. A follower that copies this log must find behind its end the mark of
    /// whatever was removed since it began, or it would keep that. Whoever is not a leader, or has not heard of a follower in this
    /// epoch, waits for nobody: a follower that begins too far behind starts over.
    pub fn removals_max(&self) -> Offset {
        self.leader().map_or(Offset::MAX, Leader::removals_max)
    }

    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Produce requests that wait.
    pub fn parked_count(&self) -> usize {
        self.leader().map_or(0, Leader::parked_count)
    }

    /// When to send [`Event::Tick`] at the latest, if nothing else happens; it may find nothing to do.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        match &self.role {
            Role::Leader(leader) => leader.next_deadline_ms(&self.core),
            Role::Follower(following) => following.next_deadline_ms(),
            Role::Idle | Role::Ended(_) => None,
        }
    }

    fn leader(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn assigned(
        &mut self,
        assignment: &Assignment,
        (log, are_settings_new): (LogState, bool),
        effects: &mut Vec<Effect>,
    ) {
        self.check_assignment(assignment);
        let is_busy = matches!(&self.role, Role::Follower(following) if following.is_busy());
        assert!(!is_busy, "an outcome is missing: {self:?}");
        let Assignment { leader, leader_epoch, partition_epoch, .. } = *assignment;
        let is_same = self
            .assigned
            .is_some_and(|known| known.leader == leader && known.leader_epoch == leader_epoch);
        self.assigned = Some(Assigned { leader, leader_epoch, partition_epoch });
        let core = &mut self.core;
        core.set_log(log);
        assert!(core.high_watermark <= log.log_end_offset, "committed records are gone");
        // Only what is committed is ever deleted.
        core.high_watermark = core.high_watermark.max(log.log_start_offset);
        if are_settings_new && is_same {
            core.request_flush_if_behind(effects);
        }
        let before = match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Leader(mut leading) if is_same => {
                leading.reassigned(core, assignment, effects);
                self.role = Role::Leader(leading);
                return;
            }
            Role::Follower(mut following) if is_same => {
                let standing = Standing::of(core.config.broker_id, assignment);
                following.reassigned(core, standing, effects);
                self.role = Role::Follower(following);
                return;
            }
            same if is_same => {
                self.role = same;
                return;
            }
            Role::Leader(mut leading) => {
                // A receipt names the epoch of its append, so what was appended in an older one is not answered
                // in this one: its fate is unknown to us.
                leading.resign(ErrorCode::NotLeaderAfterAppend, effects);
                Some(leading)
            }
            Role::Follower(_) | Role::Idle | Role::Ended(_) => None,
        };
        effects.push(Effect::SetHighWatermark { offset: core.high_watermark });
        self.role = match leader {
            Some(id) if id == core.config.broker_id => {
                let leading = Leader::begin(core, assignment, before.as_deref(), effects);
                Role::Leader(Box::new(leading))
            }
            Some(id) => {
                let standing = Standing::of(core.config.broker_id, assignment);
                let leader = (id, leader_epoch);
                Role::Follower(Following::begin(core, leader, standing, effects))
            }
            None => Role::Idle,
        };
    }

    fn check_assignment(&self, assignment: &Assignment) {
        let Assignment { leader, replicas, isr, .. } = assignment;
        let is_replica = |id: &BrokerId| replicas.iter().any(|member| member.id == *id);
        assert!(is_replica(&self.core.config.broker_id), "not a replica here: {assignment:?}");
        assert!(isr.iter().all(is_replica), "stray isr: {assignment:?}");
        assert!(leader.as_ref().is_none_or(is_replica), "stray leader: {assignment:?}");
        if let Some(known) = self.assigned {
            let goes_on = assignment.partition_epoch >= known.partition_epoch
                && assignment.leader_epoch >= known.leader_epoch;
            assert!(goes_on, "the metadata went back from {known:?} to {assignment:?}");
        }
    }

    /// What a replica without a role hears.
    fn idle(&mut self, event: &Event) {
        match *event {
            Event::Flushed { end_offset } if self.assigned.is_some() => {
                self.core.flushed(end_offset);
            }
            Event::LogStartMoved { offset } => self.core.log_start_moved(offset),
            _ => {}
        }
    }

    /// Answers what only a leader can do, and lets everything else pass.
    fn refuse(&self, event: &Event, effects: &mut Vec<Effect>) {
        match event {
            // The append raced with the end of this leadership; nobody can say what becomes of it.
            Event::Produced(produced) | Event::Repeated(produced)
                if produced.acks != Acks::None =>
            {
                effects.push(reply_error(produced.token, after_append(self.refusal())));
            }
            Event::FollowerFetched(fetch) => effects.push(Effect::Refuse {
                to: AnswerTo::position(fetch.follower, &fetch.position),
                refusal: ReplicaRefusal::Error { code: self.refusal() },
            }),
            _ => {}
        }
    }

    fn end(&mut self, reason: ErrorCode, effects: &mut Vec<Effect>) {
        if let Role::Leader(leader) = &mut self.role {
            leader.resign(after_append(reason), effects);
        }
        self.role = Role::Ended(reason);
    }

    fn refusal(&self) -> ErrorCode {
        match self.role {
            Role::Ended(reason) => reason,
            Role::Idle | Role::Follower(_) | Role::Leader(_) => ErrorCode::NotLeader,
        }
    }

    /// Cheap enough to stay on: a few comparisons after every event.
    fn check_invariants(&self, before: (Option<LeaderEpoch>, Offset)) {
        let Core { log, high_watermark, .. } = &self.core;
        assert!(*high_watermark <= log.log_end_offset, "watermark past the log end: {self:?}");
        assert!(log.flushed_offset <= log.log_end_offset, "flushed past the log end: {self:?}");
        let (epoch, watermark) = before;
        let still_leads = epoch.is_some() && self.leader_epoch() == epoch;
        assert!(!still_leads || *high_watermark >= watermark, "watermark went back: {self:?}");
    }
}

/// What a producer is told whose records are in the log when this replica stops leading for `reason`: not that nothing
/// was done.
fn after_append(reason: ErrorCode) -> ErrorCode {
    match reason {
        ErrorCode::NotLeader | ErrorCode::NotReady => ErrorCode::NotLeaderAfterAppend,
        // Nobody can say more of a failed disk, and a deleted topic has nothing to commit.
        other => other,
    }
}

impl Core {
    /// How far this replica counts.
    pub(crate) fn counted(&self) -> Offset {
        counted(self.config.durability, self.log.log_end_offset, self.log.flushed_offset)
    }

    /// Takes over what the log is like, whatever was known before.
    pub(crate) fn set_log(&mut self, log: LogState) {
        assert!(log.flushed_offset <= log.log_end_offset, "flushed past the log end: {log:?}");
        assert!(log.log_start_offset <= log.log_end_offset, "start past the log end: {log:?}");
        self.log = log;
    }

    /// Takes note of a flush. Flushes may be reported out of order; says whether this one is news.
    pub(crate) fn flushed(&mut self, end_offset: Offset) -> bool {
        let LogState { log_end_offset, flushed_offset, .. } = self.log;
        assert!(
            end_offset <= log_end_offset,
            "flushed {end_offset}, the log ends at {log_end_offset}"
        );
        self.log.flushed_offset = flushed_offset.max(end_offset);
        end_offset > flushed_offset
    }

    pub(crate) fn log_start_moved(&mut self, offset: Offset) {
        self.log.log_start_offset = self.log.log_start_offset.max(offset);
        // What is deleted needs no flushing.
        self.log.flushed_offset = self.log.flushed_offset.max(offset);
    }

    /// Takes over settings; says whether they are others than before: what was good enough in memory may have to be on disk now.
    fn set_settings(&mut self, settings: Settings) -> bool {
        let Settings { durability, min_insync_replicas } = settings;
        assert!(min_insync_replicas >= 1, "settings are validated by the controller");
        let before = self.config.settings();
        self.config.durability = durability;
        self.config.min_insync_replicas = min_insync_replicas;
        before != settings
    }

    pub(crate) fn request_flush_if_behind(&self, effects: &mut Vec<Effect>) {
        let LogState { log_end_offset, flushed_offset, .. } = self.log;
        if self.config.durability == StorageDurability::Disk && flushed_offset < log_end_offset {
            effects.push(Effect::RequestFlush { end_offset: log_end_offset });
        }
    }
}

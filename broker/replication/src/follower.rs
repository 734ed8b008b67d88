//! The follower: asks its leader for records, appends them, and takes its log back to where the leader's agrees.
//!
//! It truncates on the leader's word alone, never to a watermark, and takes an answer only if it is to its last
//! question, by leader epoch and round.
//!
//! A log with damaged records is cut in front of them and fetched anew, as soon as nobody can be misled by that: what a
//! replica that may be elected holds is counted on, damaged or not.

use tidemark_protocol::{BrokerId, LeaderEpoch, Offset, bug, messages::Position};

use crate::{
    event::{Answer, Assignment, Effect, Event, Fetched, LogState},
    replica::Core,
};

/// How long after a refusal the leader is asked again: at first, since a leader that has yet to hear of its epoch hears
/// soon, and twice as long each time up to this, since what lasts would fill logs.
const RETRY_MIN_MS: u64 = 25;
const RETRY_MAX_MS: u64 = 800;

#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) leader: BrokerId,
    pub(crate) epoch: LeaderEpoch,
    state: State,
    /// The last pause, since something went well.
    paused_ms: u64,
    standing: Standing,
    /// The leader may have heard in this epoch where our log ends.
    has_reported: bool,
    /// All that is in the log was copied from this leader, in this epoch.
    is_copy: bool,
}

/// What the controller may do with this replica, by the metadata that it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    InSync,
    /// Not in sync, and electable all the same.
    Eligible,
    /// Nobody counts on what it holds.
    Neither,
}

impl Standing {
    pub(crate) fn of(me: BrokerId, assignment: &Assignment) -> Self {
        if assignment.isr.contains(&me) {
            Self::InSync
        } else if assignment.elr.contains(&me) {
            Self::Eligible
        } else {
            Self::Neither
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A question is with the leader.
    Asked,
    /// The last question was answered with something to get over; the next is asked at this time.
    Paused { until_ms: u64 },
    /// Batches are being appended; with them came the leader's watermark and log start.
    Appending { high_watermark: Offset, log_start_offset: Offset },
    /// The log is being cut; it was like this before.
    Truncating { before: LogState },
    /// The log is damaged, and is counted on. Nothing is said until the leader gives this replica up.
    Silent,
}

impl Following {
    pub(crate) fn begin(
        core: &mut Core,
        (leader, epoch): (BrokerId, LeaderEpoch),
        standing: Standing,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let state = State::Silent;
        let is_copy = is_empty(&core.log);
        let mut following =
            Self { leader, epoch, state, paused_ms: 0, standing, has_reported: false, is_copy };
        core.request_flush_if_behind(effects);
        if bug::is_put_back("truncate-to-watermark") {
            following.truncate(core, core.high_watermark, effects);
        } else {
            following.go_on(core, effects);
        }
        following
    }

    /// Same leader, same epoch, other members.
    pub(crate) fn reassigned(
        &mut self,
        core: &mut Core,
        standing: Standing,
        effects: &mut Vec<Effect>,
    ) {
        self.standing = standing;
        if self.state == State::Silent {
            self.go_on(core, effects);
        }
    }

    /// Asks for more; first of all, gets rid of damage.
    ///
    /// Whoever has said nothing in this epoch and is not electable stays so until it says something: nobody can have let
    /// it in meanwhile for what it has just thrown away. An eligible replica may be the one that is needed for the
    /// in-sync set to be large enough, and is let in with its damage; the next start gets rid of it.
    fn go_on(&mut self, core: &mut Core, effects: &mut Vec<Effect>) {
        match (core.log.damaged_from.filter(|_| !self.has_reported), self.standing) {
            (Some(offset), Standing::Neither) => self.truncate(core, offset, effects),
            (Some(_), Standing::InSync) => self.state = State::Silent,
            (Some(_), Standing::Eligible) | (None, _) => self.ask(core, effects),
        }
    }

    /// Whether the leader is to hear nothing for now.
    fn is_silent(&self) -> bool {
        match self.state {
            State::Silent => true,
            State::Truncating { .. } | State::Paused { .. } => !self.has_reported,
            State::Asked | State::Appending { .. } => false,
        }
    }

    pub(crate) fn step(&mut self, core: &mut Core, event: &Event, effects: &mut Vec<Effect>) {
        match *event {
            Event::Fetched(ref fetched) => self.fetched(core, fetched, effects),
            Event::Appended { end_offset, last_epoch } => {
                self.appended(core, (end_offset, last_epoch), effects);
            }
            Event::Truncated { log } => self.truncated(core, log, effects),
            Event::EffectRefused => {
                assert!(self.is_busy(), "nothing was asked for: {self:?}");
                self.pause(core);
            }
            Event::Flushed { end_offset } => {
                if core.flushed(end_offset) && !self.is_silent() {
                    effects.push(self.report(core));
                }
            }
            Event::LogStartMoved { offset } => core.log_start_moved(offset),
            Event::LeaderConnected { leader } => {
                if leader == self.leader {
                    self.go_on(core, effects);
                }
            }
            Event::Tick => {
                if self.next_deadline_ms().is_some_and(|until_ms| core.now_ms >= until_ms) {
                    self.go_on(core, effects);
                }
            }
            // Meant for the leader that we were.
            Event::FollowerLost { .. } | Event::IsrAnswered { .. } => {}
            Event::Produced(_) | Event::Repeated(_) | Event::FollowerFetched(_) => {
                unreachable!("refused before")
            }
            Event::Assigned { .. } | Event::StorageFailed | Event::Stop { .. } => {
                unreachable!("roles are changed elsewhere")
            }
        }
    }

    /// Whether an effect has yet to be reported as done.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.state, State::Appending { .. } | State::Truncating { .. })
    }

    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        match self.state {
            State::Paused { until_ms } => Some(until_ms),
            _ => None,
        }
    }

    /// A new question: whatever was said to older ones is void.
    fn ask(&mut self, core: &mut Core, effects: &mut Vec<Effect>) {
        core.round += 1;
        self.state = State::Asked;
        self.has_reported = true;
        effects.push(self.report(core));
    }

    fn report(&self, core: &Core) -> Effect {
        let position = Position {
            leader_epoch: self.epoch,
            round: core.round,
            fetch_offset: core.log.log_end_offset,
            flushed_offset: core.log.flushed_offset,
            last_fetched_epoch: core.log.last_epoch,
            log_start_offset: core.log.log_start_offset,
        };
        Effect::Fetch { leader: self.leader, position }
    }

    fn pause(&mut self, core: &Core) {
        self.paused_ms = (self.paused_ms * 2).clamp(RETRY_MIN_MS, RETRY_MAX_MS);
        self.state = State::Paused { until_ms: core.now_ms.saturating_add(self.paused_ms) };
    }

    fn fetched(&mut self, core: &mut Core, fetched: &Fetched, effects: &mut Vec<Effect>) {
        let Fetched { high_watermark, log_start_offset, removals_end, answer, .. } = *fetched;
        let is_late = fetched.leader_epoch != self.epoch || fetched.round != core.round;
        let is_believed = !is_late
            || (bug::is_put_back("late-diverging-reply")
                && matches!(answer, Answer::Diverging { .. }));
        if !is_believed || self.state != State::Asked {
            return;
        }
        match answer {
            Answer::Batches => {
                let misses_removals = core.log.log_end_offset < removals_end;
                if misses_removals && !self.is_copy && !bug::is_put_back("removals-are-missed") {
                    self.start_copying(core, log_start_offset, effects);
                    return;
                }
                self.state = State::Appending { high_watermark, log_start_offset };
                let removals_end = if misses_removals { removals_end } else { 0 };
                effects.push(Effect::Append { leader_epoch: self.epoch, removals_end });
            }
            Answer::Watermark => {
                self.paused_ms = 0;
                learn(core, high_watermark, log_start_offset, effects);
            }
            Answer::Diverging { leader, own } => {
                if bug::is_put_back("diverging-reply-raises-watermark") {
                    raise_watermark(core, high_watermark, effects);
                }
                let ends =
                    own.map_or(leader.end_offset, |own| own.end_offset.min(leader.end_offset));
                self.truncate(core, ends.min(core.log.log_end_offset), effects);
            }
            Answer::OutOfRange { log_start_offset, log_end_offset } => {
                let end = core.log.log_end_offset;
                if end > log_end_offset {
                    self.truncate(core, log_end_offset, effects);
                } else if end < log_start_offset {
                    self.start_at(core, log_start_offset, effects);
                } else {
                    self.pause(core);
                }
            }
            Answer::Error { .. } => self.pause(core),
        }
    }

    fn appended(
        &mut self,
        core: &mut Core,
        (end_offset, last_epoch): (Offset, LeaderEpoch),
        effects: &mut Vec<Effect>,
    ) {
        let State::Appending { high_watermark, log_start_offset } = self.state else {
            panic!("no append was asked for: {self:?}");
        };
        assert!(end_offset > core.log.log_end_offset, "an append of nothing at {end_offset}");
        self.paused_ms = 0;
        core.log.log_end_offset = end_offset;
        core.log.last_epoch = Some(last_epoch);
        // First of all: the leader can send more while we flush.
        self.ask(core, effects);
        core.request_flush_if_behind(effects);
        learn(core, high_watermark, log_start_offset, effects);
    }

    /// Takes the log back to `offset`; readers first.
    fn truncate(&mut self, core: &mut Core, offset: Offset, effects: &mut Vec<Effect>) {
        if offset < core.log.log_start_offset {
            // Only after an election of a leader that lacks what was committed.
            self.start_at(core, offset, effects);
            return;
        }
        lower_watermark(core, offset, effects);
        self.state = State::Truncating { before: core.log };
        effects.push(Effect::Truncate { offset });
    }

    /// The leader's log has no mark any more of something that was removed behind our end: we may hold what was removed, and would
    /// keep it. All that is committed is in the leader's log, and nobody who is counted on is that far behind what is committed.
    fn start_copying(&mut self, core: &mut Core, offset: Offset, effects: &mut Vec<Effect>) {
        match self.standing {
            Standing::Neither => self.start_at(core, offset, effects),
            // By metadata that has yet to arrive.
            Standing::InSync | Standing::Eligible => self.pause(core),
        }
    }

    fn start_at(&mut self, core: &mut Core, offset: Offset, effects: &mut Vec<Effect>) {
        lower_watermark(core, offset, effects);
        self.state = State::Truncating { before: core.log };
        effects.push(Effect::StartAt { offset });
    }

    fn truncated(&mut self, core: &mut Core, log: LogState, effects: &mut Vec<Effect>) {
        let State::Truncating { before } = self.state else {
            panic!("no truncation was asked for: {self:?}");
        };
        core.set_log(log);
        self.is_copy |= is_empty(&core.log);
        lower_watermark(core, log.log_end_offset, effects);
        if core.high_watermark < log.log_start_offset {
            core.high_watermark = log.log_start_offset;
            effects.push(Effect::SetHighWatermark { offset: core.high_watermark });
        }
        core.request_flush_if_behind(effects);
        let position = |log: LogState| (log.log_end_offset, log.last_epoch);
        if position(log) == position(before) {
            // The same question would get the same answer.
            self.pause(core);
        } else {
            self.go_on(core, effects);
        }
    }
}

fn is_empty(log: &LogState) -> bool {
    log.log_start_offset == log.log_end_offset
}

/// Takes note of what the leader says is committed and deleted. What is known to be committed stays so, whoever leads.
fn learn(core: &mut Core, high_watermark: Offset, log_start: Offset, effects: &mut Vec<Effect>) {
    raise_watermark(core, high_watermark, effects);
    let log_start = log_start.min(core.high_watermark);
    if log_start > core.log.log_start_offset {
        effects.push(Effect::SetLogStart { offset: log_start });
    }
}

fn raise_watermark(core: &mut Core, high_watermark: Offset, effects: &mut Vec<Effect>) {
    let committed = high_watermark.min(core.log.log_end_offset);
    if committed > core.high_watermark {
        core.high_watermark = committed;
        effects.push(Effect::SetHighWatermark { offset: committed });
    }
}

fn lower_watermark(core: &mut Core, offset: Offset, effects: &mut Vec<Effect>) {
    if offset < core.high_watermark {
        core.high_watermark = offset;
        effects.push(Effect::SetHighWatermark { offset });
    }
}

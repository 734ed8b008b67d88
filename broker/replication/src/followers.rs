//! What a leader believes of one follower: how far it is, what it has asked, when it last had everything. Knows
//! nothing of the in-sync set's rules; all of it is dropped when the leader epoch changes, and all but where the follower's log
//! ended when its run does.

use tidemark_protocol::{Offset, bug, messages::Position};

use crate::event::{FollowerStatus, Member, StorageDurability};

#[derive(Clone, Debug)]
pub(crate) struct Follower {
    pub(crate) member: Member,
    pub(crate) in_sync: InSync,
    /// A position was accepted in this leader epoch: `log_end` and `flushed` can be believed.
    pub(crate) is_known: bool,
    log_end: Offset,
    flushed: Offset,
    round: u64,
    /// Where its log ended when it was last believed in this leader epoch, in whatever run.
    heard_end: Option<Offset>,
    question: Question,
    /// Watermark and log start as it knows them at least.
    told: Option<(Offset, Offset)>,
    /// The last moment at which it is known to have had everything.
    caught_up_ms: Option<u64>,
    /// Where our log ended at some moment after `caught_up_ms`: once the follower is there, that is its new
    /// `caught_up_ms`. Under a steady load it is always behind, and this is how far in time.
    mark: Option<(Offset, u64)>,
}

/// Whether a follower is in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InSync {
    No,
    /// In the set that was proposed last.
    Proposed,
    /// In the committed set.
    Committed,
}

/// What became of a follower's last question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Not in order, or never asked.
    Refused,
    /// It has all there is, and waits.
    Open,
    Served,
}

/// What a position is, by its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Overtaken by a later one, or not in order.
    Nothing,
    /// No question: it only says how far the flush has got.
    Report,
    Question,
}

impl Follower {
    pub(crate) fn new(member: Member, in_isr: bool, log_end: Offset, now_ms: u64) -> Self {
        Self {
            member,
            in_sync: if in_isr { InSync::Committed } else { InSync::No },
            is_known: false,
            log_end: 0,
            flushed: 0,
            round: 0,
            heard_end: None,
            question: Question::Refused,
            told: None,
            // Its time begins now; whoever is not in sync has to show that it is there first.
            caught_up_ms: in_isr.then_some(now_ms),
            mark: in_isr.then_some((log_end, now_ms)),
        }
    }

    /// What `before`, known in an older epoch, leaves behind: nothing, unless a bug is put back.
    pub(crate) fn inherit(&mut self, before: &Self) {
        let keep_in_sync = bug::is_put_back("keep-follower-state-over-epochs") && self.is_in_sync();
        if keep_in_sync || bug::is_put_back("expand-without-fetch-in-epoch") {
            (self.log_end, self.flushed) = (before.log_end, before.flushed);
        }
        if keep_in_sync {
            self.is_known = before.is_known;
        }
    }

    /// What stays of what was known of it in its former run, if there was one in the same leader epoch: its log may go on from where
    /// it was.
    pub(crate) fn in_another_run(self, former: Option<&Self>) -> Self {
        Self { heard_end: former.and_then(|former| former.heard_end), ..self }
    }

    /// The committed in-sync set has changed, or not.
    pub(crate) fn set_in_isr(&mut self, in_isr: bool, leader_log_end: Offset, now_ms: u64) {
        // Its time begins when it is let in: one that is behind everything, on a full disk say, would be thrown out at once,
        // and be let in again as soon as it is out where the watermark stands still.
        if in_isr && (self.caught_up_ms.is_none() || !self.is_in_sync()) {
            (self.caught_up_ms, self.mark) = (Some(now_ms), Some((leader_log_end, now_ms)));
        }
        self.in_sync = match self.in_sync {
            _ if in_isr => InSync::Committed,
            InSync::Proposed => InSync::Proposed,
            InSync::No | InSync::Committed => InSync::No,
        };
    }

    /// In the committed set.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.in_sync == InSync::Committed
    }

    /// The set that was proposed is void.
    pub(crate) fn forget_proposal(&mut self) {
        if self.in_sync == InSync::Proposed {
            self.in_sync = InSync::No;
        }
    }

    /// Exclusive end of what it is known to hold as durably as the topic asks.
    pub(crate) fn counted(&self, durability: StorageDurability) -> Offset {
        if self.is_known { self.claimed(durability) } else { 0 }
    }

    fn claimed(&self, durability: StorageDurability) -> Offset {
        counted(durability, self.log_end, self.flushed)
    }

    /// Whether it may be proposed for the in-sync set of a leader that began at `start_offset`.
    pub(crate) fn may_join(
        &self,
        durability: StorageDurability,
        high_watermark: Offset,
        start_offset: Offset,
    ) -> bool {
        let claimed = self.claimed(durability);
        let reaches_start = claimed >= start_offset || bug::is_put_back("expand-before-leso");
        let is_known = self.is_known || bug::is_put_back("expand-without-fetch-in-epoch");
        self.in_sync == InSync::No
            && self.member.eligible
            && is_known
            && claimed >= high_watermark
            && reaches_start
    }

    pub(crate) fn holds_in_memory(&self, end_offset: Offset) -> bool {
        self.is_known && self.log_end >= end_offset
    }

    pub(crate) fn holds_on_disk(&self, end_offset: Offset) -> bool {
        self.is_known && self.flushed >= end_offset
    }

    /// Sorts a position by its round, and takes note of the round.
    pub(crate) fn asked(&mut self, position: &Position) -> Asked {
        if position.round > self.round {
            let took_answer =
                self.question == Question::Served && position.fetch_offset > self.log_end;
            if !took_answer {
                // What was said may have been lost with a stream.
                self.told = None;
            }
            self.round = position.round;
            self.question = Question::Refused;
            return Asked::Question;
        }
        let continues = position.round == self.round
            && self.question != Question::Refused
            && position.fetch_offset == self.log_end
            && position.flushed_offset >= self.flushed;
        if continues { Asked::Report } else { Asked::Nothing }
    }

    /// Believes a position that agrees with our log.
    pub(crate) fn believe(&mut self, position: &Position) {
        self.is_known = true;
        self.log_end = position.fetch_offset;
        self.flushed = position.flushed_offset;
        self.heard_end = Some(position.fetch_offset);
    }

    /// Takes note of how far behind it is, now that our log ends at `log_end`.
    pub(crate) fn measure(
        &mut self,
        durability: StorageDurability,
        leader_log_end: Offset,
        now_ms: u64,
    ) {
        let counted = self.counted(durability);
        if counted >= leader_log_end {
            (self.caught_up_ms, self.mark) = (Some(now_ms), Some((leader_log_end, now_ms)));
            return;
        }
        match self.mark {
            Some((mark, _)) if counted < mark => {}
            reached => {
                let reached_ms = reached.map(|(_, at_ms)| at_ms);
                self.caught_up_ms = self.caught_up_ms.max(reached_ms);
                self.mark = Some((leader_log_end, now_ms));
            }
        }
    }

    /// Our log grew from `before` to `after`: whoever had everything until now has not any more.
    pub(crate) fn leader_appended(
        &mut self,
        durability: StorageDurability,
        (before, after): (Offset, Offset),
        now_ms: u64,
    ) {
        if self.counted(durability) >= before {
            (self.caught_up_ms, self.mark) = (Some(now_ms), Some((after, now_ms)));
        }
    }

    /// Its stream is gone: if it is not in sync, nobody need wait for it.
    pub(crate) fn lost(&mut self) {
        if !self.is_in_sync() {
            (self.caught_up_ms, self.mark) = (None, None);
        }
    }

    /// Whether it had everything at most `within_ms` ago.
    pub(crate) fn is_caught_up(
        &self,
        durability: StorageDurability,
        leader_log_end: Offset,
        within_ms: u64,
        now_ms: u64,
    ) -> bool {
        self.counted(durability) >= leader_log_end
            || self.caught_up_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) <= within_ms)
    }

    /// From when on it will not count as caught up within `within_ms`, if it does not move.
    pub(crate) fn falls_behind_at_ms(
        &self,
        durability: StorageDurability,
        leader_log_end: Offset,
        within_ms: u64,
    ) -> Option<u64> {
        let behind = self.counted(durability) < leader_log_end;
        let caught_up_ms = self.caught_up_ms.filter(|_| behind)?;
        Some(caught_up_ms.saturating_add(within_ms).saturating_add(1))
    }

    /// The round of its open question, which is answered with this.
    pub(crate) fn take_question(&mut self, watermark: Offset, log_start: Offset) -> Option<u64> {
        if self.question != Question::Open {
            return None;
        }
        self.question = Question::Served;
        self.told = Some((watermark, log_start));
        Some(self.round)
    }

    /// Its question is in order.
    pub(crate) fn wait(&mut self) {
        self.question = Question::Open;
    }

    /// The round of its open question, if it has yet to be told these. The question stays open.
    pub(crate) fn tell(&mut self, watermark: Offset, log_start: Offset) -> Option<u64> {
        let told = Some((watermark, log_start));
        if self.question != Question::Open || self.told == told {
            return None;
        }
        self.told = told;
        Some(self.round)
    }

    /// What lies behind, it has yet to read. `None`: it has not been heard of in this leader epoch.
    pub(crate) fn heard_end(&self) -> Option<Offset> {
        self.heard_end
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.log_end
    }

    pub(crate) fn status(&self) -> FollowerStatus {
        let known = |offset| if self.is_known { offset } else { 0 };
        FollowerStatus {
            id: self.member.id,
            is_known: self.is_known,
            is_in_sync: self.is_in_sync(),
            is_proposed: self.in_sync == InSync::Proposed,
            log_end_offset: known(self.log_end),
            flushed_offset: known(self.flushed),
            caught_up_ms: self.caught_up_ms,
        }
    }
}

/// How far a replica counts: in a durable topic only what it has flushed.
pub(crate) fn counted(durability: StorageDurability, log_end: Offset, flushed: Offset) -> Offset {
    match durability {
        StorageDurability::Disk if !bug::is_put_back("durable-counts-unflushed") => flushed,
        StorageDurability::Disk | StorageDurability::Memory => log_end,
    }
}

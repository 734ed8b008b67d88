//! Forgetting what has been idle for longer than it is kept. Offsets only when an operator asked for it.

use super::{GroupCoordinator, Timer, record::Change, state::Group};
use crate::{ProducerId, decision::Now};

/// How often it is looked.
const INTERVAL_MS: u64 = 10 * 60 * 1000;

impl GroupCoordinator {
    pub(super) fn schedule_expiry(&mut self, now: Now) {
        self.deadlines.set(Timer::Expire, now.mono_ms + INTERVAL_MS);
    }

    pub(super) fn expire(&mut self, now: Now) {
        self.schedule_expiry(now);
        self.expire_producers(now);
        if let Some(retention_ms) = self.config.offset_retention_ms {
            self.expire_offsets(now, retention_ms);
        }
        if self.out.is_full() {
            self.deadlines.set(Timer::Expire, now.mono_ms + 1);
        }
    }

    fn expire_producers(&mut self, now: Now) {
        let before_ms = before(now, self.config.producer_retention_ms);
        let idle = self
            .state
            .producers()
            .filter(|(_, fence)| !fence.is_open && fence.updated_ms < before_ms);
        let idle: Vec<ProducerId> = idle.map(|(id, _)| id).collect();
        for producer_id in idle {
            if self.out.is_full() {
                return;
            }
            self.write(Change::Producer(producer_id, None));
        }
    }

    /// A partition in an open transaction keeps its offset: the transaction may yet commit on top of it.
    fn expire_offsets(&mut self, now: Now, retention_ms: u64) {
        let before_ms = before(now, retention_ms);
        let mut idle = Vec::new();
        for (name, group) in self.state.groups() {
            if group.has_members() || self.has_classic_members(name) {
                continue;
            }
            let old = group.offsets.iter().filter(|(partition, committed)| {
                committed.value.committed_ms < before_ms && !group.pending.contains_key(partition)
            });
            idle.extend(old.map(|(partition, _)| (name.to_owned(), *partition)));
        }
        for (group, partition) in &idle {
            if self.out.is_full() {
                return;
            }
            self.drop_offset(group, *partition);
        }
        let is_idle = |group: &Group| group.offsets.is_empty() && group.pending.is_empty();
        for (group, _) in idle {
            if self.out.is_full() {
                return;
            }
            if self.state.group(&group).is_some_and(is_idle) {
                self.erase_group(&group);
            }
        }
    }
}

fn before(now: Now, retention_ms: u64) -> i64 {
    now.wall_ms.saturating_sub(i64::try_from(retention_ms).unwrap_or(i64::MAX))
}

//! What a process does for its logs from time to time.

use tidemark_broker::steered::Compacted;

use super::{Io, Micros, Process, SECOND, Wanted};

/// How often logs that could not be opened are tried again.
const RETRY_UNOPENED_US: Micros = 5 * SECOND;
/// How long another leader is asked for.
const RELINQUISH_US: Micros = 2 * SECOND;

impl Process {
    /// Clears what is left of logs once the metadata is new enough to tell, and tries failed ones again.
    pub(super) fn look_after_logs(&mut self, io: &Io<'_>) {
        if self.member.is_active && !std::mem::replace(&mut self.has_cleared, true) {
            self.broker.clear_left_behind();
        }
        match self.broker.step_compaction() {
            Compacted::Nothing => {}
            step => self.coordination.compacted.push(step),
        }
        if io.core.now_us() >= self.retry_at_us && self.has_opened {
            self.retry_at_us = io.core.now_us() + RETRY_UNOPENED_US;
            self.broker.retry_unopened();
        }
    }

    /// Has others lead what this broker cannot serve well.
    pub(super) fn relinquish(&mut self, io: &mut Io<'_>) {
        if self.commands.is_relinquishing() {
            return;
        }
        for command in self.broker.relinquish() {
            io.core.figures.happened("leaderships relinquished");
            let id = self.commands.add(command, Wanted::Relinquish, RELINQUISH_US, io);
            self.attempt(id, io);
        }
    }
}

//! The library's log lines: warnings and errors go where ours go, the rest nowhere.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

struct Forward;

impl Drain for Forward {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!("raft: {}", record.msg()),
            Level::Warning => tracing::warn!("raft: {}", record.msg()),
            Level::Info | Level::Debug | Level::Trace => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(Level::Warning)
    }
}

pub(super) fn logger() -> Logger {
    Logger::root(Forward, o!())
}

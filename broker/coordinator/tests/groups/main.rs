//! The group coordinator over a log in memory.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod log;
mod members;

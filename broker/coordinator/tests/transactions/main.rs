//! The transaction coordinator, over a log in memory and with partitions around it.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod coordinator;
mod everything;
mod known_bugs;
mod partition;

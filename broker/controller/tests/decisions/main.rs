//! What each command comes to, and what it is refused with.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod brokers;
mod cluster;
mod in_sync;
mod reassignment;
mod topics;

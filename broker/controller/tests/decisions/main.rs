//! What each command comes to and is refused with, and what follows from images.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod brokers;
mod cluster;
mod in_sync;
mod plan;
mod reassignment;
mod topics;

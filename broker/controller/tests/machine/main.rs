//! The controller's machine over a quorum that does what the test says.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod brokers;
mod commands;
mod rig;
mod three_nodes;
mod upkeep;

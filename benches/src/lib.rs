//! Measuring Tidemark: the floor program, the load it shares with the broker, and the arithmetic of medians.
//!
//! Nothing here judges. It refuses to turn a time into a pass or a failure: figures go to `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "these programs report to a person")]

pub mod broker;
pub mod cluster;
pub mod floor;
pub mod latency;
pub mod load;
pub mod report;

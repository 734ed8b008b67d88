//! A cluster in one thread, from one seed: the shipped controllers, replicas, shards and logs, over a simulated network, a
//! simulated disk and simulated time, while everything that can go wrong does. See `docs/rfcs/2026-11-25-simulator.md`.
//!
//! Everything random is drawn from the seed; nothing depends on real time, on addresses in memory or on the order of a
//! hash table. The same seed is the same run.

#![expect(
    clippy::unnecessary_wraps,
    clippy::needless_pass_by_value,
    clippy::struct_excessive_bools,
    clippy::case_sensitive_file_extension_comparisons,
    missing_debug_implementations,
    dead_code,
    reason = "faults of every kind have one signature; worlds are printed by their trace; some observations have no oracle yet"
)]

pub mod bugs;
pub mod client;
mod coordinated;
pub mod core;
mod corruption;
mod faults;
pub mod figures;
pub mod heal;
pub mod message;
pub mod network;
pub mod node;
pub mod run;
pub mod shape;
pub mod trace;
pub mod world;

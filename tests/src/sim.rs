//! A cluster in one thread, from one seed: the shipped controllers, replicas, shards and logs, over a simulated network, a
//! simulated disk and simulated time, while everything that can go wrong does. See `docs/rfcs/2026-11-25-simulator.md`.
//!
//! Everything random is drawn from the seed; nothing depends on real time, on addresses in memory or on the order of a
//! hash table. The same seed is the same run.

pub mod client;
pub mod core;
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

//! Transactions over real brokers: all or nothing, once, whoever is killed in the middle.

#[path = "transactions/fleet.rs"]
mod fleet;
#[path = "transactions/pipeline.rs"]
mod pipeline;
#[path = "transactions/refusals.rs"]
mod refusals;
#[path = "transactions/rig.rs"]
mod rig;
#[path = "transactions/single.rs"]
mod single;

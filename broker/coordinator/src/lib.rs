//! Consumer groups, committed offsets and transactions, as pure machines over a replicated log.
//!
//! A coordinator is a function from a request to records and an answer. The records go into the coordinator's
//! partition of an internal compacted topic; the answer is held until everything appended so far is committed;
//! replaying the records rebuilds the state. What the coordinator knows beyond its log (sessions, parked
//! requests, timers) is soft: losing it costs time and never safety.
//!
//! **Uncommitted state.** Every decision is made on state that includes what is appended and not yet committed,
//! and [`Decision::replies`] wait for it, so nobody is told what could still be lost. When an append fails, or
//! the partition is led elsewhere, the whole coordinator is dropped, everybody who waits is answered
//! `NotCoordinator`, and the next one loads the log. There is no rollback.
//!
//! **Compaction.** The state is the last record of every key and nothing else, so a compacted log loads to the
//! same state as a whole one, in whatever order the keys come.
//!
//! The crate refuses to read a clock, a file, a socket or a random source, and to serve before its log has been
//! loaded without a contradiction.
//!
//! Reading order: [`record`], [`decision`], [`topics`], [`groups`], [`transactions`], [`producer_state`].

pub mod deadlines;
pub mod decision;
pub mod groups;
pub mod limits;
pub mod producer_ids;
pub mod producer_state;
pub mod record;
pub mod topics;
pub mod transactions;

pub use decision::{Decision, Now, Token};
pub use groups::{GroupConfig, GroupCoordinator, GroupLoader};
pub use producer_ids::ProducerIds;
pub use producer_state::ProducerStates;
pub use record::{LoadError, Record};
pub use topics::{Topic, Topics};
pub use transactions::{TransactionConfig, TransactionCoordinator, TransactionLoader};

/// Identity of a producer, given out by the controller in blocks. Never negative.
pub type ProducerId = i64;
/// Generation of a producer under its id. Never negative.
pub type ProducerEpoch = i16;

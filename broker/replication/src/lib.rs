//! One replica of one partition, as a pure state machine.
//!
//! The machine decides when records are committed, who may be told so, what must be flushed first, what a follower
//! takes back, and who is proposed as in sync. It refuses to read a clock, to touch a file or a socket, to block, and to
//! fail: what can fail is an [`Effect`], and how that went comes back as an [`Event`].
//!
//! Reading order: [`event`] (what goes in and what comes out), [`replica`] (the machine and its roles), `leader`,
//! `followers` (what a leader believes of each), `isr` (who is in sync), `parked` (produce requests that wait),
//! `follower`.

pub mod event;
mod follower;
mod followers;
mod isr;
mod leader;
mod parked;
pub mod replica;

pub use event::{
    Answer, AnswerTo, Assignment, Config, Effect, EpochEnd, Event, Fetched, FollowerFetch,
    FollowerStatus, IsrChange, LogState, Member, ProduceOutcome, Produced, Receipt, ReplicaId,
    Settings, StorageDurability, Token,
};
pub use parked::PARKED_PRODUCES_MAX;
pub use replica::Replica;

//! One replica of one partition, as a pure state machine.
//!
//! The machine decides when records are committed, who may be told so, and what must be flushed first. It
//! refuses to read a clock, to touch a file or a socket, to block, and to fail: what can fail is an
//! [`Effect`], and how that went comes back as an [`Event`].
//!
//! Reading order: [`event`] (what goes in and what comes out), [`replica`] (the machine), `parked`
//! (produce requests that wait).

pub mod event;
mod parked;
pub mod replica;

pub use event::{
    Config, Effect, Event, ProduceOutcome, Produced, Receipt, StorageDurability, Token,
};
pub use parked::PARKED_PRODUCES_MAX;
pub use replica::Replica;

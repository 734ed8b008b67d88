//! What tests of logs, here and in other crates, are made of: the simulated disk, and the suite that
//! every disk must pass.
//!
//! Part of the library proper because integration tests and the cluster simulator use it; nothing
//! in a broker does.

mod suite;

pub use self::suite::suite;
pub use crate::disk::{Faults, SimDisk};

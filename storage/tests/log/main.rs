//! The log against a trivial model: random operations, crashes at every operation of a disk, failing
//! syncs, rotten bits, compaction.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod compaction;
mod crash;
mod faults;
mod hostile;
mod model;
mod random;
mod removals;
mod truncation;

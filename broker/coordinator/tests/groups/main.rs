//! The group coordinator over a log in memory.

#![expect(clippy::unwrap_used, reason = "in tests")]

mod classic;
mod hostile;
mod large;
mod limits;
mod log;
mod members;
mod soup;
mod transactional;

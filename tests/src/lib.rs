//! The harness of the whole-system suites: real `tidemarkd` processes, started, killed and asked.
//!
//! Suites lie in `tests/tests/`, one binary each. Nothing here waits by sleeping: a broker says on its standard output when
//! it is ready, and everything else is asked for over its ports.

pub mod checker;
pub mod cli;
pub mod cluster;
pub mod effort;
pub mod faults;
pub mod history;
pub mod http;
pub mod image;
pub mod network;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod repository;
pub mod sim;
pub mod tools;
pub mod up;
pub mod workload;

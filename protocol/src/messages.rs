//! The messages of the native protocol: MessagePack headers, one file per family.
//!
//! Structures are MessagePack arrays in field order. They evolve by adding optional fields at the end: a
//! reader fills what is missing with the default and skips what it does not know.

mod admin;
mod cluster;
mod data;
mod groups;
mod lag;
mod offsets;
mod operations;
mod replica;
mod transactions;

pub use admin::*;
pub use cluster::*;
pub use data::*;
pub use groups::*;
pub use lag::*;
pub use offsets::*;
pub use operations::*;
pub use replica::*;
pub use transactions::*;

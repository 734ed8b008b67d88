//! Placeholder.
pub mod disk;

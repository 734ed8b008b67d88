//! Assignors by themselves.

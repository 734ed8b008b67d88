//! Tests of a whole log on the real disk.

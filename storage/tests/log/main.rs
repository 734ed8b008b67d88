//! The log against a trivial model: random operations, crashes at every operation of a disk, failing
//! syncs, rotten bits, compaction.

mod compaction;
mod crash;
mod faults;
mod hostile;
mod model;
mod random;

//! The disk this broker runs on, and storage's types over it: the one place that chooses.

#[cfg(test)]
mod faulty;

use tidemark_storage as storage;

#[cfg(test)]
pub(crate) use faulty::{Fault, FaultyDisk};

#[cfg(not(test))]
pub(crate) type Disk = storage::disk::RealDisk;
/// The same, except that a test may hold up its syncs or have them fail.
#[cfg(test)]
pub(crate) type Disk = FaultyDisk;

pub(crate) type Log = storage::Log<Disk>;
pub(crate) type Reader = storage::LogReader<Disk>;
pub(crate) type FlushJob = storage::FlushJob<Disk>;
pub(crate) type CompactionJob = storage::CompactionJob<Disk>;
pub(crate) type CompactionDone = storage::CompactionDone<Disk>;
pub(crate) type SegmentFiles = storage::SegmentFiles<Disk>;

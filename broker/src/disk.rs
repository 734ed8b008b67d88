//! The disk this broker runs on, and storage's types over it: the one place that chooses. It knows of no log.

mod either;
#[cfg(test)]
mod faulty;

use tidemark_storage as storage;

pub(crate) use either::Disk;
#[cfg(test)]
pub(crate) use faulty::{Fault, FaultyDisk};

pub(crate) type Log = storage::Log<Disk>;
pub(crate) type Reader = storage::LogReader<Disk>;
pub(crate) type FlushJob = storage::FlushJob<Disk>;
pub(crate) type CompactionJob = storage::CompactionJob<Disk>;
pub(crate) type CompactionDone = storage::CompactionDone<Disk>;
pub(crate) type SummaryJob = storage::SummaryJob<Disk>;
pub(crate) type SegmentFiles = storage::SegmentFiles<Disk>;

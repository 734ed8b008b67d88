//! The disk this broker runs on, and storage's types over it: the one place that chooses.

use tidemark_storage as storage;

pub(crate) type Disk = storage::disk::RealDisk;
pub(crate) type Log = storage::Log<Disk>;
pub(crate) type Reader = storage::LogReader<Disk>;
pub(crate) type FlushJob = storage::FlushJob<Disk>;
pub(crate) type CompactionJob = storage::CompactionJob<Disk>;
pub(crate) type CompactionDone = storage::CompactionDone<Disk>;
pub(crate) type SegmentFiles = storage::SegmentFiles<Disk>;

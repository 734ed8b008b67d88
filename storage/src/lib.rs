//! One partition's log on local disk.
//!
//! A log is a directory of segment files, each nothing but consecutive record batches, written by
//! one owner ([`Log`]), read by any number of readers ([`LogReader`]) that never wait for the owner,
//! and made durable by jobs that run elsewhere ([`FlushJob`]). This crate knows batches and offsets.
//! It refuses to know topics by name, requests, replicas or consumers, reads no clock, and starts no
//! thread.
//!
//! Reading order: [`config`], [`disk`], `log`, `segment`, `index`, [`epochs`], [`checkpoint`],
//! [`data_dir`].

pub mod checkpoint;
mod compaction;
pub mod config;
pub mod data_dir;
pub mod disk;
pub mod epochs;
pub mod error;
mod index;
mod log;
mod meta;
mod segment;
mod segment_files;
mod state_file;
pub mod testing;
mod truncations;
mod walk;

pub use checkpoint::Checkpoint;
pub use compaction::AbortedRange;
pub use config::{Appended, Cleanup, LogConfig, LogIdentity};
pub use data_dir::{Checkpoints, DataDir, DataDirIdentity, LockedDataDir};
pub use disk::{Disk, DiskError, DiskFile, RealDisk};
pub use epochs::{EpochEnd, EpochHistory, EpochStart};
pub use error::{AppendError, FlushError, OpenError, ReadError, StorageError};
pub use log::{
    Compacted, CompactionBounds, CompactionDone, CompactionJob, Deleted, Extent, FlushDone,
    FlushJob, Log, LogReader, ReadOutcome, Recovery, Residency, SUMMARY_BYTES_MAX, Summary,
    SummaryJob, delete_log_dir,
};
pub use meta::{is_nobodys_log_dir, log_dir_owner};
pub use segment_files::SegmentFiles;

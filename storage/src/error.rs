//! One error type for each family of operations on a log.

use std::{ops::Range, path::PathBuf};

use tidemark_protocol::{LeaderEpoch, Offset};

use crate::disk::DiskError;

/// Why a log or a data directory could not be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A state file does not say what it must. Nothing was changed.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Written by a newer version of this program.
    #[error("{} has format version {found}; this program reads up to {supported}", path.display())]
    NewerFormat { path: PathBuf, found: u16, supported: u16 },
    /// The data belongs to something else.
    #[error("{} belongs to {found}, not to {expected}", path.display())]
    Foreign { path: PathBuf, found: String, expected: String },
    /// A directory that was never ours and has files of somebody else's in it.
    #[error("{} holds {found:?}, which is not Tidemark's, and no data of ours", path.display())]
    NotEmpty { path: PathBuf, found: String },
    #[error("{} is in use by another process ({holder})", path.display())]
    Locked { path: PathBuf, holder: String },
}

/// Why nothing was appended. The log is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No space; retriable once some is freed.
    #[error("the disk is full")]
    Full(#[source] DiskError),
    /// An earlier flush failed: what is durable is no longer known, so the log takes no more.
    #[error("the log is fenced after a failed flush")]
    Fenced,
    #[error("leader epoch {given} is older than {latest}, which the log has seen")]
    StaleEpoch { given: LeaderEpoch, latest: LeaderEpoch },
    #[error("the batch starts at offset {given}; the log ends at {expected}")]
    NotContiguous { given: Offset, expected: Offset },
    #[error("{bytes} bytes are too many for one append or batch (at most {max_bytes})")]
    TooLarge { bytes: u64, max_bytes: u64 },
    #[error("there is no batch to append")]
    Empty,
    #[error(transparent)]
    Disk(DiskError),
}

impl From<DiskError> for AppendError {
    fn from(error: DiskError) -> Self {
        if error.is_full() { Self::Full(error) } else { Self::Disk(error) }
    }
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("offset {offset} is outside {} to {}", range.start, range.end)]
    OutOfRange { offset: Offset, range: Range<Offset> },
    /// The bytes on disk are not what was written. They are quarantined: never served, never
    /// deleted but by retention; reading may go on at the end of the range.
    #[error("offsets {} to {} are corrupt on disk and quarantined", range.start, range.end)]
    Corrupt { range: Range<Offset> },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a flush did not make its data durable.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// No space for the small files beside the data. Nothing is lost and nothing is fenced: ask
    /// for another job once space is freed.
    #[error("the disk is full")]
    Full(#[source] DiskError),
    /// The device did not take the data. Final: the log is fenced.
    #[error("the log is fenced: {0}")]
    Failed(#[source] DiskError),
    #[error("the log was fenced before")]
    Fenced,
    #[error("the log was deleted")]
    Deleted,
}

/// Why a change to a log other than an append failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Flush(#[from] FlushError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the log is fenced after a failed flush")]
    Fenced,
    #[error("offset {offset} is outside {} to {}", range.start, range.end)]
    OutOfRange { offset: Offset, range: Range<Offset> },
}

//! What a log asks of a disk: a handful of file operations with their durability spelled out.
//!
//! There are two implementations: [`RealDisk`] over mapped files, and [`SimDisk`] in memory, which
//! loses power, tears pages, rots bits, fills up and fails to sync on command. The suite in
//! `crate::testing` holds both to the same behaviour.
//!
//! What a caller may rely on, and nothing more:
//! - bytes are durable after [`DiskFile::sync`] of a range that covers them returned `Ok`;
//! - a name (created, renamed, unlinked) is durable after [`Disk::sync_dir`] of its directory;
//! - a failed sync is final: the file refuses every later sync, because the kernel may have marked
//!   the lost pages clean and a second attempt could succeed without having written them.
//!
//! This module knows nothing of batches, segments or offsets, and retries nothing.

mod real;
mod sim;

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;

pub use real::{MappedFile, RealDisk, RealLock};
pub use sim::{Faults, Mishaps, SimDisk, SimFile, SimLock};

/// Bytes per page: the granularity of the page cache, and of what a power loss keeps or loses.
pub const PAGE_BYTES: u64 = 4096;

/// The outcome of a disk operation.
pub type Result<T, E = DiskError> = std::result::Result<T, E>;

/// A disk: names, directories and space. Clones are handles to the same disk.
///
/// Every operation blocks until it is done and may be called from any thread.
pub trait Disk: Clone + fmt::Debug + Send + Sync + 'static {
    type File: DiskFile;
    /// Holds a lock taken with [`Disk::lock`] until it is dropped.
    type Lock: fmt::Debug + Send + Sync + 'static;

    /// Creates a file that must not exist yet, with `reserve_bytes` allocated and zero, and room to
    /// [`DiskFile::grow`] up to `capacity_bytes` (which costs address space, not disk).
    ///
    /// [`DiskError::Full`] leaves no file behind.
    fn create(&self, path: &Path, reserve_bytes: u64, capacity_bytes: u64) -> Result<Self::File>;

    /// Opens an existing file, with room to grow up to `capacity_bytes` or its length, if larger.
    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<Self::File>;

    /// Cuts a file down to `len` bytes. Refused with [`DiskError::InUse`] while this process has
    /// the file open: a mapping beyond the end of its file is a SIGBUS waiting to happen, and
    /// slices keep a file open for as long as they live.
    fn shrink(&self, path: &Path, len: u64) -> Result<()>;

    /// Whether something has this name.
    fn exists(&self, path: &Path) -> Result<bool>;

    /// The entries of a directory, sorted by name. Names that are not UTF-8 are not ours and are
    /// left out.
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>>;

    /// Creates one directory, whose parent exists. [`DiskError::Exists`] if the name is taken.
    fn create_dir(&self, path: &Path) -> Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> Result<()>;

    /// Removes the name of a file. Open files and slices of it stay readable.
    fn unlink(&self, path: &Path) -> Result<()>;

    /// Renames a file or directory, replacing a file that has the name `to`. Atomic with respect
    /// to crashes once both names' directories are synced: one name or the other exists.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Makes the names in `dir` durable as they are now.
    fn sync_dir(&self, dir: &Path) -> Result<()>;

    /// The whole of a small file; `None` when it does not exist, [`DiskError::TooLarge`] when it is
    /// larger than `max_bytes`.
    fn read_file(&self, path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>>;

    /// Replaces a small file durably: after `Ok` the new content survives a power loss; until then
    /// a crash leaves the old content or the new, never a mixture. The name with `.tmp` appended is
    /// used on the way and may be left behind by a crash.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()>;

    /// Size of the file system that holds `path`, and what is left of it for us.
    fn space(&self, path: &Path) -> Result<Space>;

    /// Takes an exclusive lock on the file, creating it if need be, without waiting:
    /// [`DiskError::Locked`] when another process (or another handle of this one) holds it.
    fn lock(&self, path: &Path) -> Result<Self::Lock>;
}

/// An open file.
///
/// Ranges are in bytes from the start of the file and must lie within `0..len()`; a range beyond it
/// is a bug in the caller and panics. One thread writes; any number read what has been written,
/// provided the writer never touches bytes that it has handed out or published.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Allocated bytes: all of `0..len()` may be touched without running out of space.
    fn len(&self) -> u64;

    /// Whether nothing is allocated.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Allocates up to `len` bytes; the new ones read as zero. Does nothing when the file is that
    /// long already. [`DiskError::Full`] changes nothing. Panics beyond the capacity.
    fn grow(&self, len: u64) -> Result<()>;

    /// Writes into the page cache. Must not overlap bytes that a live slice or a concurrent reader
    /// looks at.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Writes zeros; the rule of [`DiskFile::write_at`] holds.
    fn zero(&self, range: Range<u64>) -> Result<()>;

    /// A view of the bytes, without a copy on a real disk. It keeps the file open and mapped. Where
    /// the bytes may not be in memory, call [`DiskFile::populate_read`] first: it reports a read
    /// error that touching the slice could only answer with a signal.
    fn slice(&self, range: Range<u64>) -> Bytes;

    /// Copies bytes out, reporting a read error instead of faulting.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Makes the bytes of the range durable (and, on most disks, everything written before).
    /// After an error nothing is known about what was not durable yet, and every further call on
    /// this file fails with [`DiskError::Poisoned`].
    fn sync(&self, range: Range<u64>) -> Result<()>;

    /// Brings the bytes into memory, reporting a read error instead of faulting.
    fn populate_read(&self, range: Range<u64>) -> Result<()>;
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    pub name: String,
    pub is_dir: bool,
    /// Length of a file; 0 for a directory.
    pub bytes: u64,
}

/// Space on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What an unprivileged process may still allocate.
    pub free_bytes: u64,
}

/// Why a disk operation failed. Each says which operation, on what.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot {operation} {}: no space left on the device", path.display())]
    Full { operation: Operation, path: PathBuf },
    #[error("cannot {operation} {}: it does not exist", path.display())]
    NotFound { operation: Operation, path: PathBuf },
    #[error("cannot {operation} {}: it exists already", path.display())]
    Exists { operation: Operation, path: PathBuf },
    #[error("{} is locked by another process", path.display())]
    Locked { path: PathBuf },
    #[error("cannot {operation} {}: it is open", path.display())]
    InUse { operation: Operation, path: PathBuf },
    #[error("{} is larger than the {max_bytes} bytes such a file may have", path.display())]
    TooLarge { path: PathBuf, max_bytes: usize },
    #[error("an earlier sync of {} failed; its unsynced data may be lost", path.display())]
    Poisoned { path: PathBuf },
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: Operation, path: PathBuf, source: io::Error },
}

impl DiskError {
    /// Whether freeing space would help.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// Whether the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Puts a name to what the operating system answered.
    fn from_io(operation: Operation, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { operation, path }
            }
            io::ErrorKind::NotFound => Self::NotFound { operation, path },
            io::ErrorKind::AlreadyExists => Self::Exists { operation, path },
            _ => Self::Io { operation, path, source },
        }
    }
}

/// What was attempted, for messages and for choosing where a simulated fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Create,
    Open,
    Shrink,
    Stat,
    List,
    CreateDir,
    RemoveDir,
    Unlink,
    Rename,
    SyncDir,
    Read,
    Write,
    Sync,
    Grow,
    Map,
    Lock,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Shrink => "shrink",
            Self::Stat => "look up",
            Self::List => "list",
            Self::CreateDir => "create directory",
            Self::RemoveDir => "remove directory",
            Self::Unlink => "remove",
            Self::Rename => "rename",
            Self::SyncDir => "sync directory",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Grow => "allocate space for",
            Self::Map => "map",
            Self::Lock => "lock",
        })
    }
}

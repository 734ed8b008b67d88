//! A disk chosen at run time: the real one, or the simulated one under whoever steers time and disk. It adds
//! nothing to either.

use std::{ops::Range, path::Path};

use bytes::Bytes;
use tidemark_storage::{
    DiskFile, RealDisk,
    disk::{DirEntry, MappedFile, RealLock, Result, SimDisk, SimFile, SimLock, Space},
};

#[cfg(test)]
use super::faulty::{FaultyDisk, FaultyFile};

/// Where a broker keeps its data.
#[derive(Clone, Debug)]
pub(crate) enum Disk {
    Real(RealDisk),
    Simulated(SimDisk),
    /// The real one, except that a test may hold up its syncs or have them fail.
    #[cfg(test)]
    Faulty(FaultyDisk),
}

/// An open file of a [`Disk`].
#[derive(Debug)]
pub(crate) enum File {
    Real(MappedFile),
    Simulated(SimFile),
    #[cfg(test)]
    Faulty(FaultyFile),
}

/// A lock held on a [`Disk`].
#[derive(Debug)]
#[expect(dead_code, reason = "it is held until it is dropped")]
pub(crate) enum Lock {
    Real(RealLock),
    Simulated(SimLock),
}

impl Default for Disk {
    fn default() -> Self {
        Self::Real(RealDisk::default())
    }
}

impl From<SimDisk> for Disk {
    fn from(disk: SimDisk) -> Self {
        Self::Simulated(disk)
    }
}

#[cfg(test)]
impl From<FaultyDisk> for Disk {
    fn from(disk: FaultyDisk) -> Self {
        Self::Faulty(disk)
    }
}

/// The same call, on whichever it is.
macro_rules! each {
    ($of:ident: $it:expr, $inner:ident => $call:expr) => {
        match $it {
            $of::Real($inner) => $call,
            $of::Simulated($inner) => $call,
            #[cfg(test)]
            $of::Faulty($inner) => $call,
        }
    };
}

impl tidemark_storage::Disk for Disk {
    type File = File;
    type Lock = Lock;

    fn create(&self, path: &Path, reserve_bytes: u64, capacity_bytes: u64) -> Result<File> {
        Ok(match self {
            Self::Real(disk) => File::Real(disk.create(path, reserve_bytes, capacity_bytes)?),
            Self::Simulated(disk) => {
                File::Simulated(disk.create(path, reserve_bytes, capacity_bytes)?)
            }
            #[cfg(test)]
            Self::Faulty(disk) => File::Faulty(disk.create(path, reserve_bytes, capacity_bytes)?),
        })
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<File> {
        Ok(match self {
            Self::Real(disk) => File::Real(disk.open(path, capacity_bytes)?),
            Self::Simulated(disk) => File::Simulated(disk.open(path, capacity_bytes)?),
            #[cfg(test)]
            Self::Faulty(disk) => File::Faulty(disk.open(path, capacity_bytes)?),
        })
    }

    fn shrink(&self, path: &Path, len: u64) -> Result<()> {
        each!(Self: self, disk => disk.shrink(path, len))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        each!(Self: self, disk => disk.exists(path))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        each!(Self: self, disk => disk.list(dir))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        each!(Self: self, disk => disk.create_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        each!(Self: self, disk => disk.remove_dir(path))
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        each!(Self: self, disk => disk.unlink(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        each!(Self: self, disk => disk.rename(from, to))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        each!(Self: self, disk => disk.sync_dir(dir))
    }

    fn read_file(&self, path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        each!(Self: self, disk => disk.read_file(path, max_bytes))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        each!(Self: self, disk => disk.write_file(path, bytes))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        each!(Self: self, disk => disk.space(path))
    }

    fn lock(&self, path: &Path) -> Result<Lock> {
        Ok(match self {
            Self::Real(disk) => Lock::Real(disk.lock(path)?),
            Self::Simulated(disk) => Lock::Simulated(disk.lock(path)?),
            #[cfg(test)]
            Self::Faulty(disk) => Lock::Real(disk.lock(path)?),
        })
    }
}

impl DiskFile for File {
    fn len(&self) -> u64 {
        each!(Self: self, file => file.len())
    }

    fn grow(&self, len: u64) -> Result<()> {
        each!(Self: self, file => file.grow(len))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        each!(Self: self, file => file.write_at(offset, bytes))
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        each!(Self: self, file => file.zero(range))
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        each!(Self: self, file => file.slice(range))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        each!(Self: self, file => file.read_at(offset, into))
    }

    fn sync(&self, range: Range<u64>) -> Result<()> {
        each!(Self: self, file => file.sync(range))
    }

    fn populate_read(&self, range: Range<u64>) -> Result<()> {
        each!(Self: self, file => file.populate_read(range))
    }
}

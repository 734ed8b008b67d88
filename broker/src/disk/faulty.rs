//! The real disk with a lever, for files whose path contains a text: their syncs wait or fail, their directory
//! cannot be listed yet. It simulates no loss and no full disk; storage's own simulated disk does.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use bytes::Bytes;
use tidemark_storage::{
    Disk, DiskError, DiskFile, RealDisk,
    disk::{DirEntry, MappedFile, Operation, RealLock, Result, Space},
};

/// What is wrong with files whose path contains a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Syncs wait until the fault is another.
    SyncsWait(&'static str),
    SyncsFail(&'static str),
    /// Looks at directories wait until the fault is another.
    ListsWait(&'static str),
}

/// Clones share the lever.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyDisk {
    real: RealDisk,
    lever: Arc<Lever>,
}

#[derive(Debug, Default)]
struct Lever {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    /// Syncs that failed.
    failures: usize,
    /// Whoever waits for the fault to be another.
    waiting: usize,
}

impl FaultyDisk {
    pub(crate) fn set(&self, fault: Fault) {
        self.lever.lock().fault = fault;
        self.lever.changed.notify_all();
    }

    pub(crate) fn failures(&self) -> usize {
        self.lever.lock().failures
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lever.lock().waiting
    }

    fn file(&self, path: &Path, real: MappedFile) -> FaultyFile {
        FaultyFile { real, path: path.to_owned(), lever: Arc::clone(&self.lever) }
    }
}

impl Lever {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    fn wait_while(&self, held_up: impl Fn(Fault) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.waiting += 1;
        let waited = self.changed.wait_while(state, |state| held_up(state.fault));
        let mut state = waited.expect("nobody panics while holding it");
        state.waiting -= 1;
        state
    }

    fn before_sync(&self, path: &Path) -> Result<()> {
        let strikes = |part| path.to_string_lossy().contains(part);
        let mut state =
            self.wait_while(|fault| matches!(fault, Fault::SyncsWait(part) if strikes(part)));
        if matches!(state.fault, Fault::SyncsFail(part) if strikes(part)) {
            state.failures += 1;
            let source = io::Error::from_raw_os_error(5);
            return Err(DiskError::Io {
                operation: Operation::Sync,
                path: path.to_owned(),
                source,
            });
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    type File = FaultyFile;
    type Lock = RealLock;

    fn create(&self, path: &Path, reserve_bytes: u64, capacity_bytes: u64) -> Result<FaultyFile> {
        Ok(self.file(path, self.real.create(path, reserve_bytes, capacity_bytes)?))
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<FaultyFile> {
        Ok(self.file(path, self.real.open(path, capacity_bytes)?))
    }

    fn shrink(&self, path: &Path, len: u64) -> Result<()> {
        self.real.shrink(path, len)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.real.exists(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let strikes = |part| dir.to_string_lossy().contains(part);
        let held_up = |fault| matches!(fault, Fault::ListsWait(part) if strikes(part));
        drop(self.lever.wait_while(held_up));
        self.real.list(dir)
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        self.real.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.real.remove_dir(path)
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        self.real.unlink(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.real.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.real.sync_dir(dir)
    }

    fn read_file(&self, path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        self.real.read_file(path, max_bytes)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.real.write_file(path, bytes)
    }

    fn space(&self, path: &Path) -> Result<Space> {
        self.real.space(path)
    }

    fn lock(&self, path: &Path) -> Result<RealLock> {
        self.real.lock(path)
    }
}

#[derive(Debug)]
pub(crate) struct FaultyFile {
    real: MappedFile,
    path: PathBuf,
    lever: Arc<Lever>,
}

impl DiskFile for FaultyFile {
    fn len(&self) -> u64 {
        self.real.len()
    }

    fn grow(&self, len: u64) -> Result<()> {
        self.real.grow(len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.real.write_at(offset, bytes)
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        self.real.zero(range)
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        self.real.slice(range)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.real.read_at(offset, into)
    }

    fn sync(&self, range: Range<u64>) -> Result<()> {
        self.lever.before_sync(&self.path)?;
        self.real.sync(range)
    }

    fn populate_read(&self, range: Range<u64>) -> Result<()> {
        self.real.populate_read(range)
    }
}

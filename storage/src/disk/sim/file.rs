//! An open file of the simulated disk: counts, checks and faults around the image's bytes.

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{InodeId, SimDisk, State};
use crate::disk::{DiskError, DiskFile, Operation, PAGE_BYTES, Result};

/// An open file of a [`SimDisk`]. Dead after a crash: every operation fails.
#[derive(Debug)]
pub struct SimFile {
    handle: Arc<Handle>,
    capacity_bytes: u64,
    poisoned: AtomicBool,
}

impl SimFile {
    pub(super) fn new(handle: Handle, capacity_bytes: u64) -> Self {
        Self { handle: Arc::new(handle), capacity_bytes, poisoned: AtomicBool::new(false) }
    }

    fn change<T>(
        &self,
        operation: Operation,
        perform: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        self.handle.disk.change(operation, &self.handle.path, |state| {
            self.handle.check_alive(state, operation)?;
            perform(state)
        })
    }

    fn write(&self, range: Range<u64>, bytes: &[u8]) -> Result<()> {
        let mut state = self.handle.disk.lock_state();
        self.handle.check_alive(&state, Operation::Write)?;
        check_range(&range, state.image.len(self.handle.inode));
        let was_running = state.stopped.is_none();
        let counted = state.count(Operation::Write, &self.handle.path);
        if counted.is_ok() {
            state.image.write(self.handle.inode, range.start, bytes);
        } else if was_running && !bytes.is_empty() {
            // Killed in the middle of the copy, which need not run from front to back.
            let cut = usize::try_from(state.rng.below(bytes.len() as u64)).expect("below a usize");
            let (at, part) = if state.rng.below(2) == 0 {
                (range.start, &bytes[..cut])
            } else {
                (range.start + cut as u64, &bytes[cut..])
            };
            state.image.write(self.handle.inode, at, part);
        }
        counted
    }

    fn check_read(&self, state: &State, range: &Range<u64>) -> Result<()> {
        state.check_running()?;
        self.handle.check_alive(state, Operation::Read)?;
        check_range(range, state.image.len(self.handle.inode));
        state.check_readable(&self.handle.path)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        let state = self.handle.disk.lock_state();
        if state.generation != self.handle.generation {
            return 0;
        }
        state.image.len(self.handle.inode)
    }

    fn grow(&self, len: u64) -> Result<()> {
        let from = self.len();
        if len <= from {
            return Ok(());
        }
        assert!(len <= self.capacity_bytes, "growth stays within the capacity");
        self.change(Operation::Grow, |state| {
            let from_pages = from.next_multiple_of(PAGE_BYTES);
            let more = len.saturating_sub(from_pages);
            state.check_space(Operation::Grow, &self.handle.path, more)?;
            state.image.grow(self.handle.inode, len);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(offset..offset + bytes.len() as u64, bytes)
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        let len = usize::try_from(range.end - range.start).expect("a range in memory");
        self.write(range, &vec![0; len])
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        let state = self.handle.disk.lock_state();
        assert!(
            state.generation == self.handle.generation,
            "slice of {} through a handle from before the crash",
            self.handle.path.display()
        );
        check_range(&range, state.image.len(self.handle.inode));
        let copy = state.image.read(self.handle.inode, range);
        drop(state);
        Bytes::from_owner(Slice { copy, _handle: Arc::clone(&self.handle) })
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let range = offset..offset + into.len() as u64;
        let state = self.handle.disk.lock_state();
        self.check_read(&state, &range)?;
        into.copy_from_slice(&state.image.read(self.handle.inode, range));
        Ok(())
    }

    fn sync(&self, range: Range<u64>) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(DiskError::Poisoned { path: self.handle.path.to_path_buf() });
        }
        self.change(Operation::Sync, |state| {
            let State { image, faults, rng, mishaps, .. } = state;
            check_range(&range, image.len(self.handle.inode));
            let fails = faults.failing_syncs > 0 && faults.sound_syncs == 0;
            faults.sound_syncs = faults.sound_syncs.saturating_sub(1);
            if fails {
                faults.failing_syncs -= 1;
                mishaps.failed_syncs += 1;
                image.fail_sync(self.handle.inode, rng);
                self.poisoned.store(true, Ordering::Release);
                return Err(DiskError::Io {
                    operation: Operation::Sync,
                    path: self.handle.path.to_path_buf(),
                    source: io::Error::other("simulated write-back error"),
                });
            }
            image.sync(self.handle.inode, range);
            Ok(())
        })
    }

    fn populate_read(&self, range: Range<u64>) -> Result<()> {
        let state = self.handle.disk.lock_state();
        self.check_read(&state, &range)
    }
}

fn check_range(range: &Range<u64>, len: u64) {
    assert!(
        range.start <= range.end && range.end <= len,
        "{range:?} is not within the {len} allocated bytes"
    );
}

/// Keeps an inode open for as long as a file or a slice of it lives.
#[derive(Debug)]
pub(super) struct Handle {
    disk: SimDisk,
    generation: u64,
    inode: InodeId,
    path: Box<Path>,
}

impl Handle {
    pub(super) fn new(disk: SimDisk, generation: u64, inode: InodeId, path: Box<Path>) -> Self {
        Self { disk, generation, inode, path }
    }

    fn check_alive(&self, state: &State, operation: Operation) -> Result<()> {
        if state.generation == self.generation {
            return Ok(());
        }
        Err(DiskError::Io {
            operation,
            path: self.path.to_path_buf(),
            source: io::Error::other("the simulated process that opened this file has crashed"),
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.generation == self.generation {
            state.image.close(self.inode);
        }
    }
}

struct Slice {
    copy: Vec<u8>,
    _handle: Arc<Handle>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.copy
    }
}

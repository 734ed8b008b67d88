//! A disk in memory that fails on command, the same way every time for the same seed.
//!
//! It keeps two images: what the process sees, and what would survive a loss of power. A page
//! reaches the second one when it is synced, a name when its directory is. [`SimDisk::power_loss`]
//! decides for everything in between, each page and each name on its own: kept, lost, or (pages) a
//! mixture by sector. Every operation that changes something is counted, so that a test can stop a
//! workload at each of them in turn ([`SimDisk::stop_at`]).
//!
//! One assumption is built in, that of every log that appends into a page it has synced before: a
//! torn sector may hold anything where the old and the new content differ, but the bytes that were
//! the same in both are not damaged ("powersafe overwrite").
//!
//! It models no time: nothing here is slow.

mod file;
mod image;

use std::{
    collections::VecDeque,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::file::SimFile;
use self::{
    file::Handle,
    image::{Image, InodeId, NameChange},
};
use super::{DirEntry, Disk, DiskError, DiskFile, Operation, PAGE_BYTES, Result, Space};

/// A simulated disk; clones are handles to the same one. It starts with one directory, `/`.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What goes wrong, apart from crashes. All off at first.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The next syncs that fail, each with `EIO`. Their pages count as clean afterwards, and each
    /// holds its old or its new content, as on real file systems.
    pub failing_syncs: u32,
    /// So many syncs succeed before those that fail.
    pub sound_syncs: u32,
    /// Allocating fails beyond this; `None` is unlimited.
    pub capacity_bytes: Option<u64>,
    /// Reading any byte of these files fails with `EIO`.
    pub unreadable: Vec<PathBuf>,
}

/// How often things went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishaps {
    pub failed_syncs: u64,
    /// Operations that met a full disk.
    pub refused_full: u64,
    /// Pages that lost what had not been synced when the power went.
    pub lost_pages: u64,
    /// Pages that kept some sectors of it, or garbage.
    pub torn_pages: u64,
}

struct State {
    image: Image,
    mishaps: Mishaps,
    faults: Faults,
    rng: Rng,
    /// Counts crashes: handles from before one are dead.
    generation: u64,
    /// Operations so far that changed something, or would have.
    operations: u64,
    stop_at: Option<u64>,
    /// The operation at which the disk stopped.
    stopped: Option<(Operation, PathBuf)>,
    locks: Vec<PathBuf>,
    /// The latest operations, for the report of a failed test.
    trace: VecDeque<(u64, Operation, PathBuf)>,
}

const TRACE_ENTRIES: usize = 32;

impl SimDisk {
    /// An empty disk. The seed decides every choice it will ever make.
    pub fn new(seed: u64) -> Self {
        let state = State {
            image: Image::new(),
            mishaps: Mishaps::default(),
            faults: Faults::default(),
            rng: Rng(seed),
            generation: 0,
            operations: 0,
            stop_at: None,
            stopped: None,
            locks: Vec::new(),
            trace: VecDeque::with_capacity(TRACE_ENTRIES),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// An independent copy of this disk as it is now, whose choices follow from another seed. It
    /// has no open files: those of the original stay with the original.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let state = self.lock_state();
        let fork = State {
            image: state.image.clone(),
            mishaps: Mishaps::default(),
            faults: state.faults.clone(),
            rng: Rng(seed),
            generation: state.generation + 1,
            operations: state.operations,
            stop_at: state.stop_at,
            stopped: state.stopped.clone(),
            locks: Vec::new(),
            trace: state.trace.clone(),
        };
        drop(state);
        Self { state: Arc::new(Mutex::new(fork)) }
    }

    /// Kills the process: every handle and lock is dead, the page cache stays. The disk works again
    /// afterwards, whatever had stopped it.
    pub fn crash(&self) {
        self.lock_state().restart();
    }

    /// Cuts the power: like [`SimDisk::crash`], and what was not synced is kept, lost or torn.
    pub fn power_loss(&self) {
        let mut state = self.lock_state();
        state.restart();
        let State { image, rng, mishaps, .. } = &mut *state;
        image.lose_power(rng, mishaps);
    }

    /// Operations so far that changed something: the range of [`SimDisk::stop_at`].
    pub fn operations(&self) -> u64 {
        self.lock_state().operations
    }

    /// The operation with this number (from 0) and everything after it fails, reads included, until
    /// [`SimDisk::crash`] or [`SimDisk::power_loss`]. Of a write, an arbitrary part gets through.
    pub fn stop_at(&self, operation: u64) {
        self.lock_state().stop_at = Some(operation);
    }

    /// Whether, and at what, the disk has stopped.
    pub fn stopped(&self) -> Option<String> {
        let state = self.lock_state();
        state.stopped.as_ref().map(|(operation, path)| format!("{operation} {}", path.display()))
    }

    /// Whether the disk has stopped. Cheaper than [`SimDisk::stopped`], for whoever asks all the time.
    pub fn is_stopped(&self) -> bool {
        self.lock_state().stopped.is_some()
    }

    /// What is allocated.
    pub fn used_bytes(&self) -> u64 {
        self.lock_state().image.used_bytes()
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock_state().faults = faults;
    }

    /// How many of the asked-for sync failures have not happened yet.
    pub fn failing_syncs(&self) -> u32 {
        self.lock_state().faults.failing_syncs
    }

    /// Flips one bit of a file, in memory and on the medium. Panics when there is no such byte: a
    /// test that rots nothing proves nothing.
    pub fn bit_rot(&self, path: &Path, offset: u64, bit: u8) {
        let mut state = self.lock_state();
        let inode = state.image.file_at(path).expect("the file to rot exists");
        state.image.flip_bit(inode, offset, bit, true);
    }

    /// Flips one bit of a file on the medium: whoever has the page in memory does not see it before [`SimDisk::evict`] or a
    /// loss of power. Panics when there is no such byte.
    pub fn bit_rot_on_medium(&self, path: &Path, offset: u64, bit: u8) {
        let mut state = self.lock_state();
        let inode = state.image.file_at(path).expect("the file to rot exists");
        state.image.flip_bit(inode, offset, bit, false);
    }

    /// Empties the page cache of what need not be written back, as a kernel does when it wants the memory.
    pub fn evict(&self) {
        self.lock_state().image.evict();
    }

    /// How often things have gone wrong so far.
    pub fn mishaps(&self) -> Mishaps {
        self.lock_state().mishaps
    }

    /// The latest operations, oldest first.
    pub fn trace(&self) -> Vec<String> {
        let state = self.lock_state();
        let lines = state
            .trace
            .iter()
            .map(|(number, operation, path)| format!("{number}: {operation} {}", path.display()));
        lines.collect()
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        // A panic of one test thread must not hide behind the poisoning of another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation that changes something, then performs it unless the disk has stopped.
    fn change<T>(
        &self,
        operation: Operation,
        path: &Path,
        perform: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock_state();
        state.count(operation, path)?;
        perform(&mut state)
    }

    fn look<T>(&self, perform: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let state = self.lock_state();
        state.check_running()?;
        perform(&state)
    }

    fn handle(&self, state: &mut State, inode: InodeId, path: &Path, capacity: u64) -> SimFile {
        state.image.open(inode);
        let capacity_bytes = capacity.max(state.image.len(inode));
        SimFile::new(
            Handle::new(self.clone(), state.generation, inode, path.into()),
            capacity_bytes,
        )
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock_state();
        out.debug_struct("SimDisk")
            .field("operations", &state.operations)
            .field("stopped", &state.stopped)
            .field("faults", &state.faults)
            .finish_non_exhaustive()
    }
}

impl State {
    fn restart(&mut self) {
        self.generation += 1;
        self.stop_at = None;
        self.stopped = None;
        self.locks.clear();
        self.image.close_all();
    }

    fn check_running(&self) -> Result<()> {
        match &self.stopped {
            None => Ok(()),
            Some((operation, path)) => {
                let source = io::Error::other("the simulated process has stopped");
                Err(DiskError::Io { operation: *operation, path: path.clone(), source })
            }
        }
    }

    fn count(&mut self, operation: Operation, path: &Path) -> Result<()> {
        self.check_running()?;
        if self.trace.len() == TRACE_ENTRIES {
            self.trace.pop_front();
        }
        self.trace.push_back((self.operations, operation, path.to_owned()));
        if self.stop_at == Some(self.operations) {
            self.stopped = Some((operation, path.to_owned()));
            return self.check_running();
        }
        self.operations += 1;
        Ok(())
    }

    fn free_bytes(&self) -> u64 {
        self.faults.capacity_bytes.map_or(u64::MAX, |capacity_bytes| {
            capacity_bytes.saturating_sub(self.image.used_bytes())
        })
    }

    fn check_space(&mut self, operation: Operation, path: &Path, bytes: u64) -> Result<()> {
        if bytes.next_multiple_of(PAGE_BYTES) > self.free_bytes() {
            self.mishaps.refused_full += 1;
            return Err(DiskError::Full { operation, path: path.to_owned() });
        }
        Ok(())
    }

    fn check_readable(&self, path: &Path) -> Result<()> {
        if self.faults.unreadable.iter().any(|unreadable| unreadable == path) {
            // EIO, without asking the platform for its number.
            let source = io::Error::other("simulated read error");
            return Err(DiskError::Io { operation: Operation::Read, path: path.into(), source });
        }
        Ok(())
    }

    fn create(&mut self, operation: Operation, path: &Path, bytes: u64) -> Result<InodeId> {
        let (dir, name) = self.image.parent_of(operation, path)?;
        if self.image.lookup(dir, &name).is_some() {
            return Err(DiskError::Exists { operation, path: path.to_owned() });
        }
        self.check_space(operation, path, bytes)?;
        let inode = self.image.new_file(bytes);
        self.image.change_names(NameChange::Link { dir, name, inode });
        Ok(inode)
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn create(&self, path: &Path, reserve_bytes: u64, capacity_bytes: u64) -> Result<SimFile> {
        self.change(Operation::Create, path, |state| {
            let inode = state.create(Operation::Create, path, reserve_bytes)?;
            Ok(self.handle(state, inode, path, capacity_bytes))
        })
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<SimFile> {
        let mut state = self.lock_state();
        state.check_running()?;
        let inode = state.image.existing_file(Operation::Open, path)?;
        Ok(self.handle(&mut state, inode, path, capacity_bytes))
    }

    fn shrink(&self, path: &Path, len: u64) -> Result<()> {
        self.change(Operation::Shrink, path, |state| {
            let inode = state.image.existing_file(Operation::Shrink, path)?;
            if state.image.is_open(inode) {
                return Err(DiskError::InUse { operation: Operation::Shrink, path: path.into() });
            }
            state.image.shrink(inode, len);
            Ok(())
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.look(|state| Ok(state.image.resolve(path).is_some()))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.look(|state| state.image.list(dir))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        self.change(Operation::CreateDir, path, |state| {
            let operation = Operation::CreateDir;
            let (dir, name) = state.image.parent_of(operation, path)?;
            if state.image.lookup(dir, &name).is_some() {
                return Err(DiskError::Exists { operation, path: path.to_owned() });
            }
            let inode = state.image.new_dir();
            state.image.change_names(NameChange::Link { dir, name, inode });
            Ok(())
        })
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.change(Operation::RemoveDir, path, |state| {
            state.image.check_empty_dir(path)?;
            let (dir, name) = state.image.parent_of(Operation::RemoveDir, path)?;
            state.image.change_names(NameChange::Unlink { dir, name });
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        self.change(Operation::Unlink, path, |state| {
            state.image.existing_file(Operation::Unlink, path)?;
            let (dir, name) = state.image.parent_of(Operation::Unlink, path)?;
            state.image.change_names(NameChange::Unlink { dir, name });
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(Operation::Rename, from, |state| {
            let operation = Operation::Rename;
            let (from_dir, from_name) = state.image.parent_of(operation, from)?;
            let inode = state
                .image
                .lookup(from_dir, &from_name)
                .ok_or_else(|| DiskError::NotFound { operation, path: from.to_owned() })?;
            let (to_dir, to_name) = state.image.parent_of(operation, to)?;
            let change = NameChange::Rename { from_dir, from_name, to_dir, to_name, inode };
            state.image.change_names(change);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.change(Operation::SyncDir, dir, |state| state.image.sync_dir(dir))
    }

    fn read_file(&self, path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        self.look(|state| {
            let Some(inode) = state.image.file_at(path) else { return Ok(None) };
            state.check_readable(path)?;
            let len = state.image.len(inode);
            if len > max_bytes as u64 {
                return Err(DiskError::TooLarge { path: path.to_owned(), max_bytes });
            }
            Ok(Some(state.image.read(inode, 0..len)))
        })
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        if self.exists(&temporary)? {
            self.unlink(&temporary)?;
        }
        let file = self.create(&temporary, bytes.len() as u64, 0)?;
        file.write_at(0, bytes)?;
        file.sync(0..file.len())?;
        drop(file);
        self.rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }

    fn space(&self, _path: &Path) -> Result<Space> {
        self.look(|state| {
            Ok(Space {
                total_bytes: state.faults.capacity_bytes.unwrap_or(u64::MAX),
                free_bytes: state.free_bytes(),
            })
        })
    }

    fn lock(&self, path: &Path) -> Result<SimLock> {
        self.change(Operation::Lock, path, |state| {
            if state.locks.iter().any(|locked| locked == path) {
                return Err(DiskError::Locked { path: path.to_owned() });
            }
            if state.image.file_at(path).is_none() {
                state.create(Operation::Lock, path, 0)?;
            }
            state.locks.push(path.to_owned());
            Ok(SimLock { disk: self.clone(), generation: state.generation, path: path.into() })
        })
    }
}

/// A lock on a simulated file; a crash releases it.
#[derive(Debug)]
pub struct SimLock {
    disk: SimDisk,
    generation: u64,
    path: Box<Path>,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.generation == self.generation {
            state.locks.retain(|locked| **locked != *self.path);
        }
    }
}

/// `SplitMix64`: all the randomness there is, from one seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `0..bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

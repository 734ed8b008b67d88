//! The real disk: mapped files on a local Linux file system.
//!
//! The rules it keeps, so that the layers above need not know them: writing goes through the
//! descriptor and reading through the map; space is allocated before anything is written; a mapped
//! file never gets shorter; the descriptor whose errors a sync reports is the one that wrote. It does not retry, does not cache, and never deletes by itself.

mod mapped;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

use self::mapped::Mapping;
use super::{DirEntry, Disk, DiskError, DiskFile, Operation, Result, Space};

/// What a range is zeroed with, a piece at a time.
const ZEROS: &[u8] = &[0; 16 << 10];

/// The local file system. Paths are used as given.
#[derive(Clone, Debug, Default)]
pub struct RealDisk {
    open_files: OpenFiles,
}

impl RealDisk {
    pub fn new() -> Self {
        Self::default()
    }

    fn map(&self, file: File, path: &Path, capacity_bytes: u64) -> Result<MappedFile> {
        let failed = |operation| move |source| DiskError::from_io(operation, path, source);
        // Registered before the length is read, so that no `shrink` falls between the two.
        let registration = self.open_files.register(&file).map_err(failed(Operation::Stat))?;
        let allocated_bytes = file.metadata().map_err(failed(Operation::Stat))?.len();
        let mapped_bytes = capacity_bytes.max(allocated_bytes);
        let mapping = Mapping::new(&file, allocated_bytes, mapped_bytes, registration)
            .map_err(failed(Operation::Map))?;
        Ok(MappedFile {
            file,
            path: path.into(),
            mapping: Arc::new(mapping),
            poisoned: AtomicBool::new(false),
        })
    }
}

impl Disk for RealDisk {
    type File = MappedFile;
    type Lock = RealLock;

    fn create(&self, path: &Path, reserve_bytes: u64, capacity_bytes: u64) -> Result<MappedFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| DiskError::from_io(Operation::Create, path, source))?;
        let created = allocate(&file, 0, reserve_bytes)
            .map_err(|source| DiskError::from_io(Operation::Create, path, source))
            .and_then(|()| self.map(file, path, capacity_bytes.max(reserve_bytes)));
        if created.is_err() {
            remove_best_effort(path);
        }
        created
    }

    fn open(&self, path: &Path, capacity_bytes: u64) -> Result<MappedFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| DiskError::from_io(Operation::Open, path, source))?;
        self.map(file, path, capacity_bytes)
    }

    fn shrink(&self, path: &Path, len: u64) -> Result<()> {
        let failed = |source| DiskError::from_io(Operation::Shrink, path, source);
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() <= len {
            return Ok(());
        }
        // Held across the truncation: nobody can map the file in between.
        let open_files = self.open_files.lock();
        if open_files.contains_key(&file_id(&metadata)) {
            return Err(DiskError::InUse { operation: Operation::Shrink, path: path.to_owned() });
        }
        file.set_len(len).map_err(failed)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        fs::exists(path).map_err(|source| DiskError::from_io(Operation::Stat, path, source))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let failed = |source| DiskError::from_io(Operation::List, dir, source);
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(metadata) => {
                    let is_dir = metadata.is_dir();
                    entries.push(DirEntry {
                        name,
                        is_dir,
                        bytes: if is_dir { 0 } else { metadata.len() },
                    });
                }
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir(path)
            .map_err(|source| DiskError::from_io(Operation::CreateDir, path, source))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        fs::remove_dir(path)
            .map_err(|source| DiskError::from_io(Operation::RemoveDir, path, source))
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|source| DiskError::from_io(Operation::Unlink, path, source))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|source| DiskError::from_io(Operation::Rename, from, source))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        File::open(dir)
            .and_then(|handle| handle.sync_all())
            .map_err(|source| DiskError::from_io(Operation::SyncDir, dir, source))
    }

    fn read_file(&self, path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        let failed = |source| DiskError::from_io(Operation::Read, path, source);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > max_bytes {
            return Err(DiskError::TooLarge { path: path.to_owned(), max_bytes });
        }
        Ok(Some(bytes))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = temporary_name(path);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        if let Err(source) = written {
            remove_best_effort(&temporary);
            return Err(DiskError::from_io(Operation::Write, path, source));
        }
        self.rename(&temporary, path)?;
        self.sync_dir(parent(path))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let stat = rustix::fs::statvfs(path)
            .map_err(|source| DiskError::from_io(Operation::Stat, path, source.into()))?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, path: &Path) -> Result<RealLock> {
        let failed = |source| DiskError::from_io(Operation::Lock, path, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(RealLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DiskError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// An exclusive `flock`, released when dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct RealLock {
    _file: File,
}

/// A file and its mapping.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    path: Box<Path>,
    mapping: Arc<Mapping>,
    poisoned: AtomicBool,
}

impl MappedFile {
    fn failed(&self, operation: Operation) -> impl FnOnce(io::Error) -> DiskError {
        move |source| DiskError::from_io(operation, &self.path, source)
    }
}

impl DiskFile for MappedFile {
    fn len(&self) -> u64 {
        self.mapping.allocated_bytes()
    }

    fn grow(&self, len: u64) -> Result<()> {
        let from = self.len();
        if len <= from {
            return Ok(());
        }
        assert!(len <= self.mapping.capacity_bytes(), "growth stays within the capacity");
        allocate(&self.file, from, len).map_err(self.failed(Operation::Grow))?;
        self.mapping.set_allocated_bytes(len);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // Through the descriptor, not the map, which shows the same page cache: no page fault per page, no
        // TLB shoot-down per flushed page, and an error instead of a signal when the disk fails.
        // RFC 2026-11-23-write-through-the-descriptor.
        let end = offset.checked_add(bytes.len() as u64).expect("no file is that long");
        self.mapping.check(offset..end);
        self.file.write_all_at(bytes, offset).map_err(self.failed(Operation::Write))
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.len() as u64);
            self.write_at(at, &ZEROS[..usize::try_from(len).expect("a short array")])?;
            at += len;
        }
        Ok(())
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        Mapping::slice(&self.mapping, range)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        // Through the descriptor: a bad sector is an error here and would be a signal in the map.
        // Both see the same page cache.
        self.file.read_exact_at(into, offset).map_err(self.failed(Operation::Read))
    }

    fn sync(&self, _range: Range<u64>) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(DiskError::Poisoned { path: self.path.to_path_buf() });
        }
        // fdatasync rather than msync of the range. Both write the dirty pages, but only fdatasync
        // is specified to cover the metadata without which they cannot be read back: the file size,
        // and the conversion of the extents that fallocate left marked as unwritten. It also
        // reports write-back errors since this descriptor was opened, which was before the writes.
        self.file.sync_data().map_err(|source| {
            self.poisoned.store(true, Ordering::Release);
            DiskError::from_io(Operation::Sync, &self.path, source)
        })
    }

    fn populate_read(&self, range: Range<u64>) -> Result<()> {
        match self.mapping.populate_read(range.clone()) {
            Err(error) if is_unsupported(&error) => {
                read_through(&self.file, range).map_err(self.failed(Operation::Read))
            }
            outcome => outcome.map_err(self.failed(Operation::Read)),
        }
    }
}

/// `MADV_POPULATE_*` came with Linux 5.14; before, the advice is an invalid argument.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// Brings a range into the page cache by reading it, where the kernel cannot populate a map.
fn read_through(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    if from >= to {
        return Ok(());
    }
    rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, FallocateFlags::empty(), from, to - from)
    })
    .map_err(io::Error::from)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".tmp");
    name.into()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Cleans up after a failure that is being reported already.
fn remove_best_effort(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "could not remove a half-made file");
    }
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// How many mappings of each file this process has; what `shrink` must not touch.
#[derive(Clone, Debug, Default)]
struct OpenFiles(Arc<Mutex<HashMap<FileId, usize>>>);

impl OpenFiles {
    fn register(&self, file: &File) -> io::Result<Registration> {
        let id = file_id(&file.metadata()?);
        *self.lock().entry(id).or_insert(0) += 1;
        Ok(Registration { open_files: self.clone(), id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileId, usize>> {
        // The counts are right whether or not a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One entry in [`OpenFiles`], for as long as a mapping exists.
#[derive(Debug)]
struct Registration {
    open_files: OpenFiles,
    id: FileId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut open_files = self.open_files.lock();
        if let Some(count) = open_files.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                open_files.remove(&self.id);
            }
        }
    }
}

//! A shared mapping of a file that may be longer than the file is: the only unsafe code of the crate.
//!
//! Every access is checked against the allocated length, in release builds too. What no check here
//! can enforce is left to two promises of the callers: the file never gets shorter while it is
//! mapped (`RealDisk::shrink` sees to that within the process, the lock of the data directory
//! between processes), and bytes that a slice shows are not written again while it lives (a log
//! appends behind what it published).
#![expect(unsafe_code, reason = "a mapping is memory that the compiler knows nothing about")]

use std::{
    fs::File,
    io,
    ops::Range,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::Registration;

/// A shared mapping, for reading, of `capacity_bytes`, of which the first `allocated_bytes` may be touched.
#[derive(Debug)]
pub(super) struct Mapping {
    map: MmapRaw,
    allocated_bytes: AtomicU64,
    /// Dropped after `map`, in declaration order: the file counts as open until it is unmapped.
    _registration: Registration,
}

impl Mapping {
    pub(super) fn new(
        file: &File,
        allocated_bytes: u64,
        capacity_bytes: u64,
        registration: Registration,
    ) -> io::Result<Self> {
        assert!(allocated_bytes <= capacity_bytes, "a mapping covers its file");
        let len = usize::try_from(capacity_bytes)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Self {
            map,
            allocated_bytes: AtomicU64::new(allocated_bytes),
            _registration: registration,
        })
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Acquire)
    }

    /// To be called once the file has space up to `bytes`; never lowers the figure.
    pub(super) fn set_allocated_bytes(&self, bytes: u64) {
        assert!(bytes <= self.capacity_bytes(), "what is allocated is mapped");
        self.allocated_bytes.fetch_max(bytes, Ordering::Release);
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    pub(super) fn slice(this: &Arc<Self>, range: Range<u64>) -> Bytes {
        let (start, len) = this.check(range);
        if len == 0 {
            return Bytes::new();
        }
        Bytes::from_owner(MappedSlice { mapping: Arc::clone(this), start, len })
    }

    /// Faults the pages of the range in for reading; `EFAULT` or `EHWPOISON` where a load would
    /// raise SIGBUS.
    pub(super) fn populate_read(&self, range: Range<u64>) -> io::Result<()> {
        self.advise(Advice::PopulateRead, range)
    }

    fn advise(&self, advice: Advice, range: Range<u64>) -> io::Result<()> {
        let (start, len) = self.check(range);
        if len == 0 {
            return Ok(());
        }
        loop {
            match self.map.advise_range(advice, start, len) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    /// Start and length of a range that may be touched; panics on any other.
    pub(super) fn check(&self, range: Range<u64>) -> (usize, usize) {
        let allocated_bytes = self.allocated_bytes();
        assert!(
            range.start <= range.end && range.end <= allocated_bytes,
            "{range:?} is not within the {allocated_bytes} allocated bytes"
        );
        let fits = "what is mapped fits the address space";
        (
            usize::try_from(range.start).expect(fits),
            usize::try_from(range.end - range.start).expect(fits),
        )
    }
}

/// A checked range of a mapping, which it keeps alive.
struct MappedSlice {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for MappedSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was checked against the allocated length when the slice was made, and
        // that length never gets smaller while the mapping lives, which it does as long as `self`.
        // Nobody stores to these bytes meanwhile: `DiskFile::write_at` forbids it to its callers.
        unsafe { slice::from_raw_parts(self.mapping.map.as_ptr().add(self.start), self.len) }
    }
}

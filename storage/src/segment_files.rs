//! The open segment files of a data directory, bounded.
//!
//! An open file costs a descriptor and a mapping, and the system has few of both. Logs open the
//! files they need through one [`SegmentFiles`]; when more than its bound are open, those that have
//! not been used for longest are closed, except files with data that is not flushed yet: the error
//! of a failed write-back is reported to descriptors that were open when the data was written.
//!
//! The bound is soft by exactly those files. It does not count slices that readers still hold.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::disk::Disk;

/// Something that holds an open file and can do without it.
pub(crate) trait Closable: Send + Sync {
    /// Closes the file unless it was used since the last call or must stay open. Returns whether
    /// nothing is open any more.
    fn close_if_idle(&self) -> bool;
}

/// A disk together with the bound on open segment files. Clones share the bound.
#[derive(Clone)]
pub struct SegmentFiles<D: Disk> {
    disk: D,
    open: Arc<OpenFiles>,
}

impl<D: Disk> fmt::Debug for SegmentFiles<D> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SegmentFiles").field("open", &self.open_count()).finish_non_exhaustive()
    }
}

struct OpenFiles {
    limit: usize,
    count: AtomicUsize,
    clock: Mutex<Clock>,
}

/// Looks at so many holders each time one is added, so that a bound which cannot be kept (too much
/// is not flushed) costs little.
const LOOKS_MAX: usize = 64;
/// Below so many holders, those that are gone are not worth looking for.
const SWEEP_MIN: usize = 1024;

/// Everything that was opened and not closed again since, in the order to look at.
#[derive(Default)]
struct Clock {
    holders: VecDeque<Weak<dyn Closable>>,
    /// With so many holders, those that are gone are thrown out.
    sweep_at: usize,
}

impl<D: Disk> SegmentFiles<D> {
    /// `open_files_max` bounds both descriptors and mappings of segments; leave room below the
    /// process's limits for sockets and everything else.
    pub fn new(disk: D, open_files_max: usize) -> Self {
        let open = OpenFiles {
            limit: open_files_max.max(1),
            count: AtomicUsize::new(0),
            clock: Mutex::default(),
        };
        Self { disk, open: Arc::new(open) }
    }

    /// The disk the files are on.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Segment files open now.
    pub fn open_count(&self) -> usize {
        self.open.count.load(Ordering::Relaxed)
    }

    /// Counts one more open file, held by `holder`.
    pub(crate) fn admit(&self, holder: Weak<dyn Closable>) -> OpenTicket {
        self.open.count.fetch_add(1, Ordering::Relaxed);
        self.watch(holder);
        OpenTicket { open: Arc::clone(&self.open) }
    }

    /// Notes a holder of an open file, and closes idle ones beyond the bound.
    pub(crate) fn watch(&self, holder: Weak<dyn Closable>) {
        let mut clock = self.clock();
        // Two looks at each at most: the first may only clear its "used" mark.
        let mut looks = (clock.holders.len() * 2).min(LOOKS_MAX);
        while self.open_count() > self.open.limit && looks > 0 {
            looks -= 1;
            let Some(candidate) = clock.holders.pop_front() else { break };
            if candidate.upgrade().is_some_and(|holder| !holder.close_if_idle()) {
                clock.holders.push_back(candidate);
            }
        }
        if clock.holders.len() >= clock.sweep_at.max(SWEEP_MIN) {
            clock.holders.retain(|holder| holder.strong_count() > 0);
            clock.sweep_at = clock.holders.len() * 2;
        }
        clock.holders.push_back(holder);
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        // A panic in between leaves at worst a holder that is not looked at.
        self.open.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one open file until it is dropped with it.
pub(crate) struct OpenTicket {
    open: Arc<OpenFiles>,
}

impl fmt::Debug for OpenTicket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("OpenTicket")
    }
}

impl Drop for OpenTicket {
    fn drop(&mut self) {
        self.open.count.fetch_sub(1, Ordering::Relaxed);
    }
}

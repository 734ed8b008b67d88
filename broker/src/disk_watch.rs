//! Whether a data directory takes writes: enough space, too little, or failed.
//!
//! The state is one atomic that the produce path reads; a task refreshes it from the file system. Full recovers
//! by itself, with hysteresis so that a disk at the brink does not flap. Failed is final: after a failed fsync
//! nobody knows what is on the disk, so the directory is fenced until the process restarts and recovers. This
//! file does not touch the disk itself: it is given the function that does.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    health::{Health, Reason},
    tasks::Shutdown,
};

/// A full disk takes writes again when it has this share of the reserve free on top of the reserve.
const RECOVERY_MARGIN_DIVISOR: u64 = 8;

/// Whether a data directory takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DiskState {
    Ok = 0,
    /// Less than the reserve is free: produce is refused, everything else works.
    Full = 2,
    /// A write or fsync failed: reads work, nothing is written until the process restarts.
    Failed = 3,
}

impl DiskState {
    /// Name for answers and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Ok,
            2 => Self::Full,
            3 => Self::Failed,
            other => unreachable!("only states are stored, not {other}"),
        }
    }
}

/// Space in the file system that holds a data directory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// What an unprivileged process may still write.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// The state of one data directory. Clones share it.
#[derive(Clone, Debug)]
pub struct DiskWatch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    reserve_bytes: u64,
    state: AtomicU8,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
    failure: OnceLock<String>,
    health: Health,
}

impl DiskWatch {
    /// A directory that is in order until told otherwise. Produce is refused below `reserve_bytes` free.
    pub fn new(dir: PathBuf, reserve_bytes: u64, health: Health) -> Self {
        Self {
            inner: Arc::new(Inner {
                dir,
                reserve_bytes,
                state: AtomicU8::new(DiskState::Ok as u8),
                free_bytes: AtomicU64::new(0),
                total_bytes: AtomicU64::new(0),
                failure: OnceLock::new(),
                health,
            }),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// One relaxed load: cheap enough for every produce.
    pub fn state(&self) -> DiskState {
        DiskState::from_u8(self.inner.state.load(Ordering::Relaxed))
    }

    /// The space seen by the last [`DiskWatch::observe`]; zeros before the first.
    pub fn space(&self) -> DiskSpace {
        DiskSpace {
            free_bytes: self.inner.free_bytes.load(Ordering::Relaxed),
            total_bytes: self.inner.total_bytes.load(Ordering::Relaxed),
        }
    }

    /// Why the directory failed, if it did: the first reason given.
    pub fn failure(&self) -> Option<&str> {
        self.inner.failure.get().map(String::as_str)
    }

    /// Takes in what the file system says, and moves between ok and full.
    pub fn observe(&self, space: DiskSpace) {
        self.inner.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        self.inner.total_bytes.store(space.total_bytes, Ordering::Relaxed);
        let reserve = self.inner.reserve_bytes;
        let recovered = reserve.saturating_add(reserve / RECOVERY_MARGIN_DIVISOR);
        match self.state() {
            DiskState::Ok if space.free_bytes < reserve => self.fill(),
            DiskState::Full if space.free_bytes >= recovered => {
                if self.change(DiskState::Full, DiskState::Ok) {
                    self.inner.health.clear(Reason::DiskFull);
                    let free = readable(space.free_bytes);
                    tracing::info!(dir = %self.inner.dir.display(), free, "disk has space again");
                }
            }
            DiskState::Ok | DiskState::Full | DiskState::Failed => {}
        }
    }

    /// A write met "no space left": full now, whatever the last look at the file system said.
    pub fn fill(&self) {
        if self.change(DiskState::Ok, DiskState::Full) {
            let sentence = format!(
                "{} has {} free, less than disk_reserve_bytes ({}); produce is refused until space returns",
                self.inner.dir.display(),
                readable(self.space().free_bytes),
                readable(self.inner.reserve_bytes),
            );
            tracing::error!("{sentence}");
            self.inner.health.raise(Reason::DiskFull, sentence);
        }
    }

    /// A write or fsync failed. Final for the life of the process; only the first reason is kept.
    pub fn fail(&self, cause: &str) {
        if self.inner.failure.set(cause.to_owned()).is_ok() {
            self.inner.state.store(DiskState::Failed as u8, Ordering::SeqCst);
            let sentence = format!(
                "{}: {cause}; the directory takes no more writes until the disk is in order and tidemarkd \
                 is restarted",
                self.inner.dir.display()
            );
            tracing::error!("{sentence}");
            self.inner.health.clear(Reason::DiskFull);
            self.inner.health.raise(Reason::DiskFailed, sentence);
        }
    }

    /// Looks at the file system every `interval` until shutdown. `space` may block for as long as `statvfs`
    /// does, so it runs on tokio's blocking pool.
    pub async fn run<F>(self, space: F, interval: Duration, shutdown: Shutdown)
    where
        F: Fn() -> io::Result<DiskSpace> + Clone + Send + 'static,
    {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.or_stop(ticks.tick()).await.is_some() {
            match tokio::task::spawn_blocking(space.clone()).await {
                Ok(Ok(space)) => self.observe(space),
                Ok(Err(error)) => {
                    let dir = self.inner.dir.display();
                    tracing::warn!(%dir, %error, "cannot see how much space is left");
                }
                Err(_runtime_is_stopping) => return,
            }
        }
    }

    /// A compare-and-swap, so that a failure that comes in between is never overwritten.
    fn change(&self, from: DiskState, to: DiskState) -> bool {
        let state = &self.inner.state;
        state.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// A number of bytes for people: two decimals at most, in the largest unit that fits.
fn readable(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut hundredths = u128::from(bytes) * 100;
    let mut unit = 0;
    while hundredths >= 102_400 && unit + 1 < UNITS.len() {
        hundredths /= 1024;
        unit += 1;
    }
    format!("{}.{:02} {}", hundredths / 100, hundredths % 100, UNITS[unit]).replace(".00 ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(reserve_bytes: u64) -> (DiskWatch, Health) {
        let health = Health::starting();
        health.clear(Reason::Starting);
        (DiskWatch::new(PathBuf::from("/data"), reserve_bytes, health.clone()), health)
    }

    fn free(free_bytes: u64) -> DiskSpace {
        DiskSpace { free_bytes, total_bytes: 10_000 }
    }

    #[test]
    fn a_full_disk_recovers_by_itself_but_only_past_the_margin() {
        let (watch, health) = watch(800);
        watch.observe(free(800));
        assert_eq!(watch.state(), DiskState::Ok);
        watch.observe(free(799));
        assert_eq!(watch.state(), DiskState::Full);
        assert!(health.state().reasons.contains_key(&Reason::DiskFull));
        watch.observe(free(899));
        assert_eq!(watch.state(), DiskState::Full, "inside the margin it stays full");
        watch.observe(free(900));
        assert_eq!(watch.state(), DiskState::Ok);
        assert_eq!(health.state().reasons.len(), 0);
    }

    #[test]
    fn sizes_are_told_in_units_that_people_read() {
        let sizes = [0, 1023, 1024, 256 << 20, 71_469_468 << 10];
        let told = ["0 B", "1023 B", "1 KiB", "256 MiB", "68.15 GiB"];
        assert_eq!(sizes.map(readable), told);
    }

    #[test]
    fn a_failure_is_final_and_its_first_cause_is_kept() {
        let (watch, health) = watch(800);
        watch.fail("fsync of 0.log: Input/output error");
        watch.fail("something later");
        watch.observe(free(5_000));
        watch.fill();
        assert_eq!(watch.state(), DiskState::Failed);
        assert_eq!(watch.failure(), Some("fsync of 0.log: Input/output error"));
        assert_eq!(
            health.state().reasons.keys().copied().collect::<Vec<_>>(),
            [Reason::DiskFailed]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_looks_until_shutdown() {
        let (watch, _health) = watch(800);
        let shutdown = Shutdown::new();
        let space = || Ok(DiskSpace { free_bytes: 1, total_bytes: 2 });
        let stop = async {
            while watch.state() == DiskState::Ok {
                tokio::task::yield_now().await;
            }
            shutdown.start();
        };
        tokio::join!(watch.clone().run(space, Duration::from_secs(1), shutdown.clone()), stop);
        assert_eq!(watch.space(), DiskSpace { free_bytes: 1, total_bytes: 2 });
    }
}

//! How much may be read ahead of the caller, in bytes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Bytes received for a caller that has not taken them yet, against a limit.
#[derive(Debug)]
pub(super) struct Window {
    limit_bytes: usize,
    held_bytes: AtomicUsize,
    /// Released and not yet granted to the broker again.
    released_bytes: AtomicUsize,
    released: Notify,
}

/// A share of a window, given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    window: Arc<Window>,
    bytes: usize,
}

impl Window {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            held_bytes: AtomicUsize::new(0),
            released_bytes: AtomicUsize::new(0),
            released: Notify::new(),
        }
    }

    /// Takes a share, also beyond the limit: what has arrived is here.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.held_bytes.fetch_add(bytes, Ordering::AcqRel);
        Held { window: self.clone(), bytes }
    }

    fn room_bytes(&self) -> usize {
        self.limit_bytes.saturating_sub(self.held_bytes.load(Ordering::Acquire))
    }

    /// Resolves when there is room, with how much.
    pub(super) async fn room(&self) -> usize {
        loop {
            let released = self.released.notified();
            match self.room_bytes() {
                0 => released.await,
                room_bytes => return room_bytes,
            }
        }
    }

    /// Resolves when so much was released that telling the broker is worth a frame, with how much.
    pub(super) async fn worth_granting(&self) -> usize {
        loop {
            let released = self.released.notified();
            let bytes = self.released_bytes.load(Ordering::Acquire);
            // Below this the broker still has three quarters of the window: it is not waiting.
            if bytes > 0 && bytes >= self.limit_bytes / 4 {
                self.released_bytes.fetch_sub(bytes, Ordering::AcqRel);
                return bytes;
            }
            released.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.window.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.window.released_bytes.fetch_add(self.bytes, Ordering::AcqRel);
        self.window.released.notify_one();
    }
}

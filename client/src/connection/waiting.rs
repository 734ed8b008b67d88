//! Who waits for what on one connection, and the single place where it is declared lost.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemark_protocol::frame::Frame;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::error::RequestError;

/// What a request gets in the end.
pub(super) type Answer = Result<Frame, RequestError>;

/// One request in flight. Its slot is free again when its answer has arrived, whether or not anybody still
/// waits for it.
#[derive(Debug)]
pub(super) struct Waiter {
    correlation: u32,
    patience: Duration,
    answer: oneshot::Sender<Answer>,
    _slot: OwnedSemaphorePermit,
}

impl Waiter {
    pub(super) fn new(
        correlation: u32,
        patience: Duration,
        answer: oneshot::Sender<Answer>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { correlation, patience, answer, _slot: slot }
    }
}

/// Shared by a connection's owner, its reader and its writer.
#[derive(Debug)]
pub(super) struct Waiting {
    address: Arc<str>,
    lost: AtomicBool,
    /// Cancelled when the connection is lost, to end both tasks.
    ended: CancellationToken,
    /// Told when a request is in flight where none was.
    busy: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order written, which is the order in which answers come.
    requests: VecDeque<Waiter>,
    /// Since when the front request has been the one the broker owes an answer to.
    front_since: Option<Instant>,
    subscribers: HashMap<u32, mpsc::Sender<Frame>>,
    /// Why the connection is lost; the first reason stays.
    loss: Option<Arc<str>>,
}

impl Waiting {
    pub(super) fn new(address: Arc<str>) -> Self {
        Self {
            address,
            lost: AtomicBool::new(false),
            ended: CancellationToken::new(),
            busy: Notify::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Resolves when the connection is lost.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// The error of someone whose request was in flight (`sent`) or never left.
    pub(super) fn loss(&self, sent: bool) -> RequestError {
        let reason = self.state().loss.clone().unwrap_or_else(|| "closed".into());
        RequestError::ConnectionLost { address: self.address.clone(), reason, sent }
    }

    /// Expects an answer from now on. Called in the order of writing, before writing.
    pub(super) fn add(&self, waiter: Waiter) {
        let mut state = self.state();
        if state.loss.is_some() {
            return; // dropping the waiter tells its owner that nothing was sent
        }
        if state.requests.is_empty() {
            state.front_since = Some(Instant::now());
            self.busy.notify_one();
        }
        state.requests.push_back(waiter);
    }

    /// Hands an answer to the request it belongs to, which must be the oldest one.
    pub(super) fn answer(&self, frame: Frame) -> Result<(), String> {
        let mut state = self.state();
        let expected = state.requests.front().map(|waiter| waiter.correlation);
        if expected != Some(frame.correlation) {
            return Err(format!("answer {} where {expected:?} was due", frame.correlation));
        }
        let waiter = state.requests.pop_front();
        state.front_since = (!state.requests.is_empty()).then(Instant::now);
        drop(state);
        if let Some(waiter) = waiter {
            // The owner may have given up; its answer is then nobody's.
            drop(waiter.answer.send(Ok(frame)));
        }
        Ok(())
    }

    /// When the broker's silence about the oldest request becomes a loss.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        let state = self.state();
        Some(state.front_since? + state.requests.front()?.patience)
    }

    /// Resolves when a request is added to none, or was since the last call.
    pub(super) async fn busy(&self) {
        self.busy.notified().await;
    }

    pub(super) fn add_subscriber(&self, correlation: u32, pushes: mpsc::Sender<Frame>) {
        let mut state = self.state();
        if state.loss.is_none() {
            state.subscribers.insert(correlation, pushes);
        }
    }

    pub(super) fn remove_subscriber(&self, correlation: u32) {
        self.state().subscribers.remove(&correlation);
    }

    /// Whom a push is for; `None` when its subscription was cancelled.
    pub(super) fn subscriber(&self, correlation: u32) -> Option<mpsc::Sender<Frame>> {
        self.state().subscribers.get(&correlation).cloned()
    }

    /// Declares the connection lost and fails everything in flight. Later reasons change nothing.
    pub(super) fn lose(&self, reason: &str) {
        let mut state = self.state();
        if state.loss.is_some() {
            return;
        }
        let reason: Arc<str> = reason.into();
        state.loss = Some(reason.clone());
        let requests = std::mem::take(&mut state.requests);
        state.subscribers.clear();
        drop(state);
        self.lost.store(true, Ordering::Release);
        self.ended.cancel();
        tracing::debug!(address = %self.address, %reason, in_flight = requests.len(), "connection lost");
        for waiter in requests {
            let (address, reason) = (self.address.clone(), reason.clone());
            let error = RequestError::ConnectionLost { address, reason, sent: true };
            drop(waiter.answer.send(Err(error)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

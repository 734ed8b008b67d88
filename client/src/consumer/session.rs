//! Reading from one broker, in a task, until told to stop or something needs a decision.
//!
//! Both transports do the same job: batches of the session's partitions, in order, as events, within a
//! window of bytes. A session refuses to retry: it says what happened, and the consumer starts another.

mod fetch;
mod push;
mod silence;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tidemark_protocol::{
    Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{AbortedRecords, FetchedPartition},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    config::{ConsumerConfig, Transport},
    window::{Held, Window},
};
use crate::{cluster::Cluster, error::RequestError, pool::Pool, tasks};

/// Events that may wait for the consumer; each is at most one response's share of one partition.
pub(super) const EVENTS_QUEUED_MAX: usize = 64;

/// Told apart so that events of sessions that were ended are known as such.
pub(super) type SessionId = u64;

/// One partition of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// The consumer's own number for the partition.
    pub(super) slot: usize,
    pub(super) partition: TopicPartition,
    pub(super) epoch: LeaderEpoch,
    pub(super) offset: Offset,
}

/// One partition's share of one response.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) payload: Bytes,
    pub(super) high_watermark: Offset,
    /// What is to be left out.
    pub(super) aborted: Vec<AbortedRecords>,
}

/// What a session has to say.
#[derive(Debug)]
pub(super) enum Event {
    /// Whole batches, in order; maybe none, when only the ends of the log have moved.
    Batches { slot: usize, batches: Received, held: Held },
    /// The session goes on without this partition.
    PartitionFailed { slot: usize, failure: Failure },
    /// The session has ended.
    Ended(RequestError),
}

/// Handle of a running session. Dropping it ends the session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    task: JoinHandle<()>,
}

/// What a session's task works with.
struct Worker {
    id: SessionId,
    address: Arc<str>,
    cluster: Arc<Cluster>,
    pool: Arc<Pool>,
    config: Arc<ConsumerConfig>,
    window: Arc<Window>,
    window_bytes: u32,
    events: mpsc::Sender<(SessionId, Event)>,
    readings: Vec<Reading>,
    /// Set with everything that comes from the broker.
    heard: Arc<AtomicBool>,
}

/// The consumer is gone, or does not want this session any more.
struct Unwanted;

/// Why a session's loop ends.
enum End {
    Unwanted,
    Error(RequestError),
}

/// What all sessions of a consumer are started with.
#[derive(Debug)]
pub(super) struct Starter {
    pub(super) cluster: Arc<Cluster>,
    pub(super) pool: Arc<Pool>,
    pub(super) config: Arc<ConsumerConfig>,
    pub(super) events: mpsc::Sender<(SessionId, Event)>,
}

impl Starter {
    /// Starts reading from the broker at `address`, at most `window_bytes` ahead.
    pub(super) fn start(
        &self,
        id: SessionId,
        address: &Arc<str>,
        window_bytes: u32,
        readings: Vec<Reading>,
    ) -> Session {
        let worker = Worker {
            id,
            address: address.clone(),
            cluster: self.cluster.clone(),
            pool: self.pool.clone(),
            config: self.config.clone(),
            window: Arc::new(Window::new(window_bytes as usize)),
            window_bytes,
            events: self.events.clone(),
            readings,
            heard: Arc::default(),
        };
        Session { id, task: tasks::spawn("consumer-session", address, worker.run()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    async fn run(mut self) {
        let silence = silence::Watch::new(&self);
        let reading = async {
            match self.config.transport {
                Transport::Push => self.push().await,
                Transport::Fetch => self.fetch().await,
            }
        };
        let end = tokio::select! {
            biased;
            end = reading => end,
            error = silence.led_by_others() => Err(End::Error(error)),
        };
        if let Err(End::Error(error)) = end {
            // Nobody listening is the same as nobody wanting to know.
            drop(self.tell(Event::Ended(error)).await);
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Unwanted> {
        self.heard.store(true, Ordering::Relaxed);
        self.events.send((self.id, event)).await.map_err(|_| Unwanted)
    }

    /// Hands on what came for one partition.
    async fn hand_on(
        &self,
        slot: usize,
        outcome: Result<FetchedPartition, Failure>,
        payload: Bytes,
    ) -> Result<(), Unwanted> {
        let event = match outcome {
            Ok(fetched) => {
                let held = self.window.hold(payload.len());
                let high_watermark = fetched.high_watermark;
                let aborted = fetched.stable.map_or(Vec::new(), |stable| stable.aborted);
                let batches = Received { payload, high_watermark, aborted };
                Event::Batches { slot, batches, held }
            }
            Err(failure) => Event::PartitionFailed { slot, failure },
        };
        self.tell(event).await
    }

    fn slots(&self) -> HashMap<TopicPartition, usize> {
        self.readings.iter().map(|reading| (reading.partition, reading.slot)).collect()
    }

    fn protocol_error(&self, detail: &str) -> End {
        End::Error(RequestError::Protocol { address: self.address.clone(), detail: detail.into() })
    }
}

impl From<Unwanted> for End {
    fn from(_: Unwanted) -> Self {
        Self::Unwanted
    }
}

impl From<RequestError> for End {
    fn from(error: RequestError) -> Self {
        Self::Error(error)
    }
}

impl From<crate::error::ConnectError> for End {
    fn from(error: crate::error::ConnectError) -> Self {
        Self::Error(error.into())
    }
}

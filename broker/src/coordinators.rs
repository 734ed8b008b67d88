//! Coordinators of this broker: one machine per led partition of an internal topic, fed, written down and answered.
//!
//! A [`Coordinator`] is a pure machine; [`host`] is the one task that holds all machines of a kind. What a machine decides is
//! appended to its partition, and told to nobody before it is committed. When an append fails or leadership ends, the
//! machine is dropped, and everybody who waits is answered `NotCoordinator`: the next one reads the log. Nothing here knows
//! what a group or a transaction is, except for [`groups`] and [`transactions`].

pub(crate) mod groups;
mod host;
pub(crate) mod led;
pub(crate) mod load;
mod nudges;
#[cfg(test)]
mod testing;
pub(crate) mod topics;
mod transactions;
pub(crate) mod watch;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tidemark_controller::Image;
use tidemark_coordinator::{
    Decision, Now, Token,
    record::{LoadError, Record},
};
use tidemark_protocol::{ErrorCode, Failure, LeaderEpoch, Offset, PartitionIndex};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{host::Host, nudges::Nudges};
use crate::broker::Broker;

/// Requests that may wait in front of all coordinators of a kind.
const ASKS_QUEUED_MAX: usize = 1024;

/// A machine that lives in a partition of an internal topic.
pub(crate) trait Coordinator: fmt::Debug + Send + Sized + 'static {
    /// The internal topic that its records are in.
    const TOPIC: &'static str;
    /// Reads the log. Serves nothing.
    type Loader: Default + Send;
    type Request: fmt::Debug + Send + 'static;
    type Response: Send + 'static;
    type Effect: Send + 'static;
    /// What it has to know of the metadata. The host looks at every new image and passes on what has changed.
    type Excerpt: Clone + PartialEq + Send + Sync;

    fn excerpt(image: &Image) -> Self::Excerpt;

    fn replay(loader: &mut Self::Loader, offset: Offset, record: &Record) -> Result<(), LoadError>;

    /// The machine, and what it wants first.
    fn finish(
        loader: Self::Loader,
        start: Start<'_, Self>,
    ) -> Result<(Self, DecisionOf<Self>), LoadError>;

    fn handle(&mut self, now: Now, token: Token, request: Self::Request) -> DecisionOf<Self>;

    fn on_timer(&mut self, now: Now) -> DecisionOf<Self>;

    fn on_excerpt(&mut self, excerpt: &Self::Excerpt) -> DecisionOf<Self>;

    /// Carries out what was decided and is committed by now. Must not wait: what takes time is a task of its own.
    fn carry_out(broker: &Arc<Broker>, partition: PartitionIndex, effect: Self::Effect);

    /// The machine of this partition has ended: whoever waits for something of it outside of the host is to look again.
    fn ended(broker: &Broker, partition: PartitionIndex);
}

pub(crate) type DecisionOf<C> = Decision<<C as Coordinator>::Response, <C as Coordinator>::Effect>;

/// What a machine begins with.
pub(crate) struct Start<'a, C: Coordinator> {
    pub(crate) broker: &'a Broker,
    pub(crate) leader_epoch: LeaderEpoch,
    /// Of what it decides.
    pub(crate) first_offset: Offset,
    pub(crate) excerpt: &'a C::Excerpt,
    pub(crate) now: Now,
}

/// How a request ended.
type Outcome<C> = Result<<C as Coordinator>::Response, Failure>;
type Reply<C> = oneshot::Sender<Outcome<C>>;
type Visit<C> = Box<dyn FnOnce(Result<&mut C, Failure>) + Send>;

/// What the host is asked.
enum Ask<C: Coordinator> {
    Request {
        partition: PartitionIndex,
        request: C::Request,
        reply: Reply<C>,
    },
    /// Something about the machine that leaves no record.
    Visit {
        partition: PartitionIndex,
        visit: Visit<C>,
    },
}

/// The way to the coordinators of one kind on this broker.
pub(crate) struct Handle<C: Coordinator> {
    asks: mpsc::Sender<Ask<C>>,
    counts: Arc<Counts>,
}

impl<C: Coordinator> fmt::Debug for Handle<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Handle").field("topic", &C::TOPIC).finish_non_exhaustive()
    }
}

/// Partitions led here, by what became of their coordinator. For the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) serving: AtomicU64,
    pub(crate) loading: AtomicU64,
    /// Their log cannot be read: nothing is served from it.
    pub(crate) broken: AtomicU64,
}

impl Counts {
    fn set(&self, (serving, loading, broken): (u64, u64, u64)) {
        self.serving.store(serving, Ordering::Relaxed);
        self.loading.store(loading, Ordering::Relaxed);
        self.broken.store(broken, Ordering::Relaxed);
    }
}

/// What a host takes its requests from.
pub(crate) struct Mailbox<C: Coordinator> {
    asks: mpsc::Receiver<Ask<C>>,
    counts: Arc<Counts>,
}

/// The two ends of the way to the coordinators of one kind.
pub(crate) fn channel<C: Coordinator>() -> (Handle<C>, Mailbox<C>) {
    let (sender, asks) = mpsc::channel(ASKS_QUEUED_MAX);
    let counts = Arc::<Counts>::default();
    (Handle { asks: sender, counts: Arc::clone(&counts) }, Mailbox { asks, counts })
}

impl<C: Coordinator> Handle<C> {
    /// Asks the coordinator of `partition`, if it is here. Waits for room, and for the commit of what is answered.
    pub(crate) async fn ask(
        &self,
        partition: PartitionIndex,
        request: C::Request,
    ) -> Result<C::Response, Failure> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Request { partition, request, reply };
        self.asks.send(ask).await.map_err(|_closed| stopping())?;
        answer.await.map_err(|_dropped| stopping())?
    }

    /// Runs `visit` on the machine of `partition`, if it is here: for what leaves no record and is not held until a commit.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        partition: PartitionIndex,
        visit: impl FnOnce(&mut C) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let visit = Box::new(move |machine: Result<&mut C, Failure>| {
            // Whoever asked may have stopped.
            drop(reply.send(machine.map(visit)));
        });
        let ask = Ask::Visit { partition, visit };
        self.asks.send(ask).await.map_err(|_closed| stopping())?;
        answer.await.map_err(|_dropped| stopping())?
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

fn stopping() -> Failure {
    Failure::new(ErrorCode::NotCoordinator, "the broker is stopping")
}

pub(crate) fn not_here<C: Coordinator>(partition: PartitionIndex) -> Failure {
    let message = format!("this broker does not coordinate {}/{partition}", C::TOPIC);
    Failure::new(ErrorCode::NotCoordinator, message)
}

/// A setting, as machines count time.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

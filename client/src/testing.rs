//! A broker in memory, for tests of this client and of programs that use it.
//!
//! It speaks the native protocol over a real socket and misbehaves on demand: see [`Fault`]. It keeps
//! nothing on disk, replicates nothing and refuses most of administration; tests of what a broker promises
//! belong to the real one.

mod log;
mod serve;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidemark_protocol::{ErrorCode, message::Api};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tasks;
use log::Topics;

/// What goes wrong with the next request of an API. Each happens once.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The whole request is refused.
    Refuse(ErrorCode),
    /// The first partition of the request is refused; nothing of it is done.
    RefuseFirstPartition(ErrorCode),
    /// The connection breaks before anything is done.
    BreakBefore,
    /// The request is carried out and the connection breaks instead of answering.
    BreakAfter,
    /// The answer comes this much later.
    Delay(Duration),
    /// The request is never answered.
    Swallow,
}

/// A running broker. Stops when it is dropped.
#[derive(Debug)]
pub struct FakeBroker {
    address: SocketAddr,
    world: Arc<World>,
    listening: Option<Listening>,
}

/// The accepting task. Ends when it is dropped.
#[derive(Debug)]
struct Listening {
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// What all connections share.
#[derive(Debug)]
struct World {
    address: SocketAddr,
    topics: Mutex<Topics>,
    faults: Mutex<BTreeMap<Api, VecDeque<Fault>>>,
    requests: Mutex<BTreeMap<Api, usize>>,
    /// Counts changes of logs, for those who wait for more.
    changes: watch::Sender<u64>,
    connections: watch::Sender<usize>,
    /// Cancelled to break every connection there is; then replaced.
    connected: Mutex<CancellationToken>,
}

impl FakeBroker {
    /// Listens on a free port of the loopback interface.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let world = Arc::new(World {
            address,
            topics: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            changes: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            connected: Mutex::default(),
        });
        let mut broker = Self { address, world, listening: None };
        broker.listen(listener);
        Ok(broker)
    }

    /// `host:port`, for [`crate::ClientConfig`].
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Makes the next request of this API that has no fault yet go wrong.
    pub fn inject(&self, api: Api, fault: Fault) {
        locked(&self.world.faults).entry(api).or_default().push_back(fault);
    }

    /// Requests of this API received so far.
    pub fn requests(&self, api: Api) -> usize {
        locked(&self.world.requests).get(&api).copied().unwrap_or(0)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        *self.world.connections.borrow()
    }

    /// Resolves when every connection is closed.
    pub async fn all_closed(&self) {
        let mut connections = self.world.connections.subscribe();
        // The sender lives in the world this holds.
        drop(connections.wait_for(|count| *count == 0).await);
    }

    /// Breaks every connection. New ones are accepted.
    pub fn break_connections(&self) {
        self.world.break_connections();
    }

    /// Breaks every connection and accepts none until [`FakeBroker::resume`]. Logs are kept.
    pub async fn stop(&mut self) {
        if let Some(Listening { task, stop }) = self.listening.take() {
            drop(stop);
            // The port is free when the task has ended; how it ended does not matter.
            drop(task.await);
        }
        self.world.break_connections();
    }

    /// Listens again on the same port.
    pub fn resume(&mut self) -> io::Result<()> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        self.listen(socket.listen(128)?);
        Ok(())
    }

    /// Deletes the records below `offset`, as retention would.
    pub fn trim(&self, topic: &str, partition: u32, offset: u64) {
        locked(&self.world.topics).trim(topic, partition, offset);
    }

    /// Every stored batch of a partition, one after the other.
    pub fn stored(&self, topic: &str, partition: u32) -> Vec<tidemark_protocol::batch::Batch> {
        locked(&self.world.topics).stored(topic, partition)
    }

    fn listen(&mut self, listener: TcpListener) {
        let stop = CancellationToken::new();
        let accepting = serve::accept(listener, self.world.clone(), stop.clone());
        let task = tasks::spawn("fake-broker", "", accepting);
        self.listening = Some(Listening { task, stop: stop.drop_guard() });
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.world.break_connections();
    }
}

impl World {
    fn break_connections(&self) {
        std::mem::take(&mut *locked(&self.connected)).cancel();
    }

    /// Counts a request and draws its fault.
    fn arrived(&self, api: Api) -> Option<Fault> {
        *locked(&self.requests).entry(api).or_default() += 1;
        locked(&self.faults).get_mut(&api).and_then(VecDeque::pop_front)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

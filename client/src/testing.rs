//! A broker in memory, for tests of this client and of programs that use it.
//!
//! It speaks the native protocol over a real socket and misbehaves on demand: see [`Fault`]. Several make a cluster
//! ([`FakeBroker::join`]) whose leaders and controller are whoever the test says. They keep nothing on disk, replicate
//! nothing (their logs are shared) and refuse most of administration; tests of what a broker promises belong to the real one.

mod coordinate;
mod log;
mod serve;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tidemark_protocol::{
    BrokerId, ErrorCode, Offset,
    message::Api,
    messages::{BrokerMetadata, ProducerIdentity},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tasks;
use coordinate::Coordinated;
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

/// What all brokers of a cluster share.
#[derive(Debug)]
struct Shared {
    topics: Mutex<Topics>,
    members: Mutex<Members>,
    /// Counts changes of logs and leaders, for those who wait for more.
    changes: watch::Sender<u64>,
    /// Producers that were given an identity.
    producers: AtomicI64,
}

/// Who belongs to a cluster, as its metadata has it.
#[derive(Debug)]
struct Members {
    brokers: BTreeMap<BrokerId, BrokerMetadata>,
    controller: Option<BrokerId>,
    metadata_index: u64,
}

/// What all connections of one broker share.
#[derive(Debug)]
struct World {
    id: BrokerId,
    shared: Arc<Shared>,
    faults: Mutex<BTreeMap<Api, VecDeque<Fault>>>,
    requests: Mutex<BTreeMap<Api, usize>>,
    coordinated: Mutex<Coordinated>,
    /// It lives and does nothing.
    paused: watch::Sender<bool>,
    connections: watch::Sender<usize>,
    /// Cancelled to break every connection there is; then replaced.
    connected: Mutex<CancellationToken>,
}

impl FakeBroker {
    /// Listens on a free port of the loopback interface: broker 1, which leads everything and is the controller.
    pub async fn start() -> io::Result<Self> {
        let members = Members { brokers: BTreeMap::new(), controller: Some(1), metadata_index: 0 };
        let shared = Shared {
            topics: Mutex::default(),
            members: Mutex::new(members),
            changes: watch::Sender::new(0),
            producers: AtomicI64::new(0),
        };
        Self::start_in(Arc::new(shared)).await
    }

    /// Another broker of the same cluster, with the next free id.
    pub async fn join(&self) -> io::Result<Self> {
        Self::start_in(Arc::clone(&self.world.shared)).await
    }

    async fn start_in(shared: Arc<Shared>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let id = shared.change_members(|members| {
            let id = members.brokers.keys().max().map_or(1, |last| last + 1);
            let (host, port) = (address.ip().to_string(), address.port());
            let broker = BrokerMetadata { id, host, port, ..BrokerMetadata::default() };
            members.brokers.insert(id, broker);
            id
        });
        let world = Arc::new(World {
            id,
            shared,
            faults: Mutex::default(),
            requests: Mutex::default(),
            coordinated: Mutex::default(),
            paused: watch::Sender::new(false),
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

    /// Its id in the cluster.
    pub fn id(&self) -> BrokerId {
        self.world.id
    }

    /// Gives the leadership of a partition to this broker, in the next leader epoch.
    pub fn lead(&self, topic: &str, partition: u32) {
        self.world.shared.set_leader(topic, partition, Some(self.id()));
    }

    /// Leaves a partition without a leader, in the next leader epoch.
    pub fn depose(&self, topic: &str, partition: u32) {
        self.world.shared.set_leader(topic, partition, None);
    }

    /// Makes this broker the active controller.
    pub fn control(&self) {
        self.world.shared.change_members(|members| members.controller = Some(self.id()));
    }

    /// Says in the metadata whether this broker is fenced. It serves all the same.
    pub fn fence(&self, fenced: bool) {
        self.world.shared.change_members(|members| {
            if let Some(broker) = members.brokers.get_mut(&self.world.id) {
                broker.fenced = fenced;
            }
        });
    }

    /// Stops or goes on with everything, as SIGSTOP and SIGCONT would: connections stay open and nothing answers.
    pub fn pause(&self, paused: bool) {
        self.world.paused.send_replace(paused);
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
        locked(&self.world.shared.topics).trim(topic, partition, offset);
    }

    /// Every stored batch of a partition, one after the other.
    pub fn stored(&self, topic: &str, partition: u32) -> Vec<tidemark_protocol::batch::Batch> {
        locked(&self.world.shared.topics).stored(topic, partition)
    }

    /// The offsets that producers have committed in transactions here, each with who did, in the order in which that was done.
    pub fn transactional_offsets(&self) -> Vec<(ProducerIdentity, Offset)> {
        locked(&self.world.coordinated).transactional_offsets.clone()
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

    /// Returns when it is not paused.
    async fn going(&self) {
        let mut paused = self.paused.subscribe();
        // The sender lives in the world this holds.
        drop(paused.wait_for(|paused| !paused).await);
    }
}

impl Shared {
    fn next_producer_id(&self) -> i64 {
        self.producers.fetch_add(1, Ordering::Relaxed)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn change_members<T>(&self, change: impl FnOnce(&mut Members) -> T) -> T {
        let mut members = locked(&self.members);
        members.metadata_index += 1;
        change(&mut members)
    }

    fn set_leader(&self, topic: &str, partition: u32, leader: Option<BrokerId>) {
        locked(&self.topics).set_leader(topic, partition, leader);
        self.change_members(|_| {});
        self.changed();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The other nodes of the cluster, and one connection to each for whoever wants to ask or tell them something.
//!
//! A message without an answer is dropped while there is no connection: who sends such messages sends them again. A
//! connection that is lost is reported, because the end of a process shows nowhere sooner.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tidemark_controller::Image;
use tidemark_protocol::{ErrorCode, Failure, NodeId, message::Request, messages::MetadataRequest};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{peer::Peer, tasks::Tasks};

/// Pause after the first failure to connect to a node, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often a node that is connected is asked for a sign of life, and how long it may take.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Lost connections that may wait to be heard of.
const LOST_QUEUED_MAX: usize = 256;

/// Where nodes are: first what the metadata says of brokers, then the configured controllers.
#[derive(Clone)]
pub(crate) struct Addresses {
    configured: BTreeMap<NodeId, String>,
    images: watch::Receiver<Arc<Image>>,
}

impl Addresses {
    pub(crate) fn new(
        configured: BTreeMap<NodeId, String>,
        images: watch::Receiver<Arc<Image>>,
    ) -> Self {
        Self { configured, images }
    }

    /// `host:port` of a node. Controllers are reached as they are configured: that works before there is
    /// any metadata.
    pub(crate) fn of(&self, node: NodeId) -> Option<String> {
        self.configured.get(&node).cloned().or_else(|| {
            let image = self.images.borrow();
            image.broker(node).map(|broker| join(&broker.host, broker.port))
        })
    }

    /// The configured controllers.
    pub(crate) fn controllers(&self) -> impl Iterator<Item = NodeId> {
        self.configured.keys().copied()
    }
}

/// A bare IPv6 address needs brackets before a port can follow.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Connections to other nodes, made when they are wanted. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    tasks: Tasks,
    addresses: Addresses,
    links: Mutex<HashMap<NodeId, Link>>,
    lost: mpsc::Sender<NodeId>,
}

#[derive(Default)]
struct Link {
    peer: Option<Peer>,
    is_dialing: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Peers").finish_non_exhaustive()
    }
}

impl Peers {
    /// The second value names nodes whose connection was lost.
    pub(crate) fn new(tasks: Tasks, addresses: Addresses) -> (Self, mpsc::Receiver<NodeId>) {
        let (lost, losses) = mpsc::channel(LOST_QUEUED_MAX);
        let shared = Shared { tasks, addresses, links: Mutex::default(), lost };
        (Self { shared: Arc::new(shared) }, losses)
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    /// Sends a message that has no answer, or drops it.
    pub(crate) fn post<R: Request>(&self, node: NodeId, request: &R, payload: Bytes) {
        let peer = {
            let mut links = self.links();
            let link = links.entry(node).or_default();
            match link.peer.clone().filter(|peer| !peer.is_closed()) {
                Some(peer) => peer,
                None => return self.dial(node, link),
            }
        };
        if !peer.post(request, payload) {
            tracing::trace!(node, api = R::API.name(), "a message was dropped");
        }
    }

    /// Sees to it that there will be a connection before anything is to be sent: what is posted without one is dropped.
    pub(crate) fn keep(&self, node: NodeId) {
        let mut links = self.links();
        let link = links.entry(node).or_default();
        if link.peer.as_ref().is_none_or(Peer::is_closed) {
            self.dial(node, link);
        }
    }

    /// Asks a node, on a connection that is there or one that is made now.
    pub(crate) async fn ask<R: Request>(
        &self,
        node: NodeId,
        request: &R,
        wait: Duration,
    ) -> Result<(R::Response, Bytes), Failure> {
        let known = self.links().entry(node).or_default().peer.clone();
        let peer = match known.filter(|peer| !peer.is_closed()) {
            Some(peer) => peer,
            None => self.connect(node).await?,
        };
        peer.ask(request, wait).await
    }

    /// Connects, and keeps the connection for others.
    async fn connect(&self, node: NodeId) -> Result<Peer, Failure> {
        let peer = self.shared.connect(node).await?;
        let mut links = self.links();
        let link = links.entry(node).or_default();
        // Somebody else may have been faster.
        if let Some(known) = link.peer.clone().filter(|known| !known.is_closed()) {
            return Ok(known);
        }
        *link = Link { peer: Some(peer.clone()), is_dialing: link.is_dialing, ..Link::default() };
        self.watch(node, peer.clone());
        Ok(peer)
    }

    fn dial(&self, node: NodeId, link: &mut Link) {
        let now = Instant::now();
        if link.is_dialing || link.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        link.is_dialing = true;
        let peers = self.clone();
        self.shared.tasks.spawn("dial", async move {
            let connected = peers.connect(node).await;
            let mut links = peers.links();
            let link = links.entry(node).or_default();
            link.is_dialing = false;
            if connected.is_err() {
                link.failures = link.failures.saturating_add(1);
                link.not_before = Some(Instant::now() + pause(link.failures));
            }
        });
    }

    fn watch(&self, node: NodeId, peer: Peer) {
        let lost = self.shared.lost.clone();
        let shutdown = self.shared.tasks.shutdown().clone();
        self.shared.tasks.spawn("peer-watch", async move {
            let watch = async {
                tokio::select! {
                    () = peer.closed() => {}
                    () = silence(&peer) => {
                        tracing::debug!(node, "a node does not answer any more");
                        peer.close();
                    }
                }
                // Full: so much is lost that one more makes no difference.
                lost.try_send(node).ok();
            };
            shutdown.or_stop(watch).await;
        });
    }

    fn links(&self) -> MutexGuard<'_, HashMap<NodeId, Link>> {
        self.shared.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    async fn connect(&self, node: NodeId) -> Result<Peer, Failure> {
        let Some(address) = self.addresses.of(node) else {
            let message = format!("nobody knows where node {node} is");
            return Err(Failure::new(ErrorCode::NotReady, message));
        };
        let (peer, _pushes) = Peer::connect(&self.tasks, &address).await.map_err(|error| {
            let message = format!("cannot connect to node {node} at {address}: {error}");
            Failure::new(ErrorCode::NotReady, message)
        })?;
        Ok(peer)
    }
}

/// Completes when the peer no longer answers. What swallows bytes without closing is not noticed otherwise by those who
/// only send.
async fn silence(peer: &Peer) {
    let ping = MetadataRequest { topics: Some(Vec::new()), topic_ids: Vec::new() };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if let Err(Failure { code: ErrorCode::Timeout, .. }) = peer.ask(&ping, PING_TIMEOUT).await {
            return;
        }
    }
}

/// How long to leave a node alone after so many failures in a row.
pub(crate) fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::tasks::Shutdown;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn accepted(listener: &TcpListener) -> TcpStream {
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        accepted.expect("a connection comes").expect("it is accepted").0
    }

    /// Completes when a connection has come, while the node is kept connected as its owner does: again and again.
    async fn kept(peers: &Peers, listener: &TcpListener) -> TcpStream {
        let keeping = async {
            loop {
                peers.keep(2);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            stream = accepted(listener) => stream,
            () = keeping => unreachable!("it goes on"),
        }
    }

    #[tokio::test]
    async fn a_node_is_connected_to_again_before_anything_is_to_be_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (_images, images) = watch::channel(Arc::new(Image::default()));
        let addresses = Addresses::new(BTreeMap::from([(2, address)]), images);
        let shutdown = Shutdown::new();
        let (peers, _losses) = Peers::new(Tasks::new(shutdown.clone()), addresses);
        let first = kept(&peers, &listener).await;
        drop(first);
        let _second = kept(&peers, &listener).await;
        shutdown.start();
    }
}

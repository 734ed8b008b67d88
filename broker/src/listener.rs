//! Accepts connections on the data port, greets them and hands them to the door they ask for.
//!
//! It refuses more than `max_connections`, and whoever does not say within seconds what protocol it speaks. It
//! knows nothing of requests.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    sync::mpsc,
};

use crate::{
    broker::{Broker, Caller},
    connection::{Closed, Connection, Limits, PUSHES_QUEUED_MAX},
    metrics::connections::{Ending, OpenConnection, Rejection},
    native::{GreetError, NativeDoor, greet},
};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 1024;
/// How long a client may take to say which protocol it speaks.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that says nothing for this long is asked by the kernel whether it is still there.
const KEEP_ALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;
/// Pause after a failure to accept that only others can end, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `address` (`host:port`), on the first address of that name that can be had.
pub(crate) async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(address).await? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until shutdown.
pub(crate) async fn run(listener: TcpListener, broker: Arc<Broker>) {
    let shutdown = broker.tasks.shutdown().clone();
    let mut failing = false;
    while let Some(accepted) = shutdown.or_stop(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                admit(&broker, stream, peer);
            }
            Err(error) => {
                // Once, not ten times a second for as long as it lasts.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(broker: &Arc<Broker>, stream: TcpStream, peer: SocketAddr) {
    let connections = broker.metrics.connections();
    let max = u64::from(broker.config.max_connections);
    if connections.open_count() >= max {
        connections.rejected(Rejection::Limit);
        tracing::debug!(%peer, max, "connection refused: there are max_connections already");
        return;
    }
    let open = connections.opened();
    let task = serve(Arc::clone(broker), stream, peer, open);
    broker.tasks.spawn("connection", task);
}

async fn serve(broker: Arc<Broker>, mut stream: TcpStream, peer: SocketAddr, open: OpenConnection) {
    let _open = open;
    let connections = broker.metrics.connections();
    let local_address = match prepare(&stream) {
        Ok(address) => address,
        Err(error) => {
            tracing::debug!(%peer, %error, "connection lost before it began");
            connections.ended(Ending::IoError);
            return;
        }
    };
    let shutdown = broker.tasks.shutdown().clone();
    let greeting = tokio::time::timeout(GREETING_TIMEOUT, greet(&mut stream));
    let received = match shutdown.or_stop(greeting).await {
        None => return connections.ended(Ending::Shutdown),
        Some(Ok(Ok(received))) => received,
        Some(Ok(Err(error))) => return refuse(&broker, peer, &error),
        Some(Err(_elapsed)) => {
            tracing::info!(%peer, "connection closed: it did not say what protocol it speaks");
            return connections.rejected(Rejection::Preface);
        }
    };
    let (pushes_in, pushes_out) = mpsc::channel(PUSHES_QUEUED_MAX);
    let door = NativeDoor::new(
        Arc::clone(&broker),
        Caller { local_address, peer_ip: peer.ip() },
        pushes_in,
    );
    let connection =
        Connection::new(stream, received, door, pushes_out, Limits::of(&broker.config));
    let closed = connection.run(shutdown.started()).await;
    if let Closed::BadFrame(_) | Closed::NeverReads = closed {
        tracing::info!(%peer, reason = %closed, "connection closed");
    } else {
        tracing::debug!(%peer, reason = %closed, "connection closed");
    }
    connections.ended(ending(&closed));
}

fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_IDLE)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)?;
    stream.local_addr()
}

fn refuse(broker: &Broker, peer: SocketAddr, error: &GreetError) {
    let connections = broker.metrics.connections();
    match error {
        GreetError::OtherProtocol { .. } | GreetError::CutShort { .. } | GreetError::Preface(_) => {
            connections.rejected(Rejection::Preface);
        }
        GreetError::Version { .. } => connections.rejected(Rejection::Version),
        GreetError::Io(error) => {
            // Port scans and health checks of load balancers come this way.
            tracing::debug!(%peer, %error, "connection lost before it began");
            return connections.ended(Ending::Client);
        }
    }
    tracing::info!(%peer, reason = %error, "connection refused");
}

fn ending(closed: &Closed) -> Ending {
    match closed {
        Closed::ByPeer => Ending::Client,
        Closed::Stopping => Ending::Shutdown,
        Closed::BadFrame(_) => Ending::ProtocolError,
        Closed::NeverReads => Ending::Stalled,
        Closed::Idle => Ending::Idle,
        Closed::Io(_) => Ending::IoError,
    }
}

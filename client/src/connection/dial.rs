//! From a name to a TCP connection on which both sides have agreed on a version.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tidemark_protocol::frame::{PREFACE_BYTES, Preface};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::error::ConnectError;

/// Connects to the first of the name's addresses that answers. The name is resolved on every call, so that a
/// broker that moved is found.
pub(super) async fn dial(address: &Arc<str>, limit: Duration) -> Result<TcpStream, ConnectError> {
    let timed_out = |_| ConnectError::TimedOut { address: address.clone(), after: limit };
    timeout(limit, dial_unhurried(address)).await.map_err(timed_out)?
}

async fn dial_unhurried(address: &Arc<str>) -> Result<TcpStream, ConnectError> {
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(ConnectError::BadAddress { address: address.to_string() });
    }
    let resolved: Vec<SocketAddr> = lookup_host(&**address)
        .await
        .map_err(|source| ConnectError::Resolve {
            address: address.clone(),
            source: source.into(),
        })?
        .collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in resolved {
        match TcpStream::connect(candidate).await {
            Ok(stream) => return agree(stream, address).await,
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Refused { address: address.clone(), source: last.into() })
}

async fn agree(mut stream: TcpStream, address: &Arc<str>) -> Result<TcpStream, ConnectError> {
    let io_error = |source: io::Error| ConnectError::Refused {
        address: address.clone(),
        source: source.into(),
    };
    // A request waits for nothing: the writer already gathers what can go together.
    stream.set_nodelay(true).map_err(io_error)?;
    stream.write_all(&Preface::OURS.encode()).await.map_err(io_error)?;
    let mut answer = [0; PREFACE_BYTES];
    match stream.read_exact(&mut answer).await {
        Ok(_) => {}
        // Whoever hangs up without a word may be a broker that is dying; what is no broker says something else.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(io_error(io::Error::new(error.kind(), "it closed the connection")));
        }
        Err(error) => return Err(io_error(error)),
    }
    let theirs = Preface::decode(&answer)
        .map_err(|_| ConnectError::NotTidemark { address: address.clone() })?;
    if Preface::OURS.negotiate(theirs).is_none() {
        let (min, max) = (theirs.min, theirs.max);
        return Err(ConnectError::Version { address: address.clone(), min, max });
    }
    Ok(stream)
}

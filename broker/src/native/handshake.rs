//! The first bytes of a connection: which protocol, which version.

use std::io;

use bytes::BytesMut;
use tidemark_protocol::frame::{PREFACE_BYTES, Preface};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    /// It sent something else, or nothing.
    #[error("not a Tidemark client: the connection began with {first_bytes:?}, not with \"TIDE\"")]
    OtherProtocol { first_bytes: String },
    #[error("no common protocol version: the client speaks {min} to {max}")]
    Version { min: u16, max: u16 },
    #[error("{0}")]
    Preface(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the client's preface and sends ours. Gives back what was read beyond it. The caller bounds the time.
pub(crate) async fn greet(stream: &mut TcpStream) -> Result<BytesMut, GreetError> {
    let mut received = BytesMut::with_capacity(PREFACE_BYTES);
    while received.len() < PREFACE_BYTES {
        let ended = stream.read_buf(&mut received).await? == 0;
        let tells = received.len().min(4);
        if received[..tells] != b"TIDE"[..tells] || (ended && !received.is_empty()) {
            let first_bytes = received[..tells].escape_ascii().to_string();
            return Err(GreetError::OtherProtocol { first_bytes });
        }
        if ended {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    let preface = received.split_to(PREFACE_BYTES);
    let preface: &[u8; PREFACE_BYTES] = preface.first_chunk().expect("that many were split off");
    let preface = Preface::decode(preface);
    // Sent in any case: it tells the client what would have been understood.
    stream.write_all(&Preface::OURS.encode()).await?;
    let preface = preface.map_err(|error| GreetError::Preface(error.to_string()))?;
    match Preface::OURS.negotiate(preface) {
        Some(_version) => Ok(received),
        None => Err(GreetError::Version { min: preface.min, max: preface.max }),
    }
}

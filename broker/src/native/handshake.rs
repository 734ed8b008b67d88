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
    /// It sent something else.
    #[error("not a Tidemark client: the connection began with {first_bytes:?}, not with \"TIDE\"")]
    OtherProtocol { first_bytes: String },
    #[error("the connection ended after {received} of the {PREFACE_BYTES} bytes of its preface")]
    CutShort { received: usize },
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
        if received[..tells] != b"TIDE"[..tells] {
            let first_bytes = received[..tells].escape_ascii().to_string();
            return Err(GreetError::OtherProtocol { first_bytes });
        }
        if ended {
            return Err(match received.len() {
                0 => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                received => GreetError::CutShort { received },
            });
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What a client is told apart by that sends this and goes away.
    async fn refusal(sent: &[u8]) -> GreetError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        greet(&mut accepted).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_preface_that_is_cut_short_is_not_taken_for_another_protocol() {
        let cut = refusal(b"TIDE\0").await.to_string();
        assert_eq!(cut, "the connection ended after 5 of the 8 bytes of its preface");
        let other = refusal(b"GET / HTTP/1.1\r\n").await.to_string();
        assert!(other.ends_with(r#"began with "GET ", not with "TIDE""#), "{other}");
        assert!(matches!(refusal(b"").await, GreetError::Io(_)), "nothing was sent");
    }
}

//! The reading task of a connection: bytes to frames, frames to whoever waits.

use std::sync::Arc;

use bytes::BytesMut;
use tidemark_protocol::{
    frame::{Frame, FrameDecoder, FrameKind},
    limits::FRAME_BYTES_MAX,
};
use tokio::{io::AsyncReadExt, net::tcp::OwnedReadHalf, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::waiting::Waiting;

/// Reads until the connection is lost or `stop` fires. A subscriber that does not take its pushes stops the
/// reading, and so, through TCP, the broker.
pub(super) async fn run(mut stream: OwnedReadHalf, waiting: Arc<Waiting>, stop: CancellationToken) {
    let reason = tokio::select! {
        () = stop.cancelled() => "closed by this client".to_owned(),
        () = waiting.ended() => return,
        reason = read_frames(&mut stream, &waiting) => reason,
        reason = watch_silence(&waiting) => reason,
    };
    waiting.lose(&reason);
}

/// Returns why no more frames can be read.
async fn read_frames(stream: &mut OwnedReadHalf, waiting: &Waiting) -> String {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    let mut buffer = BytesMut::new();
    loop {
        match decoder.decode(&mut buffer) {
            Ok(Some(frame)) => {
                if let Err(reason) = deliver(frame, waiting).await {
                    return reason;
                }
            }
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(0) => return "the broker closed it".to_owned(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            },
            Err(error) => return format!("the broker broke the protocol: {error}"),
        }
    }
}

async fn deliver(frame: Frame, waiting: &Waiting) -> Result<(), String> {
    match frame.kind {
        FrameKind::Response => waiting
            .answer(frame)
            .map_err(|detail| format!("the broker broke the protocol: {detail}")),
        FrameKind::Push => {
            if let Some(subscriber) = waiting.subscriber(frame.correlation) {
                // A subscriber that has gone meanwhile has cancelled; its pushes are discarded.
                drop(subscriber.send(frame).await);
            }
            Ok(())
        }
        FrameKind::Request | FrameKind::Credit | FrameKind::Cancel => {
            Err(format!("the broker broke the protocol: it sent a {:?} frame", frame.kind))
        }
    }
}

/// Returns when the oldest request has waited longer than it may.
async fn watch_silence(waiting: &Waiting) -> String {
    loop {
        match waiting.patience_ends() {
            Some(at) if at <= tokio::time::Instant::now() => {
                return "the broker is silent about a request".to_owned();
            }
            Some(at) => sleep_until(at).await,
            None => waiting.busy().await,
        }
    }
}

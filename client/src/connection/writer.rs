//! The writing task of a connection: gathers what is queued and writes it at once, without copying payloads.

use std::{collections::VecDeque, io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::waiting::{Waiter, Waiting};

/// Frames taken from the queue for one round of writing.
const FRAMES_PER_ROUND_MAX: usize = 32;
/// Slices handed to one system call; Linux takes up to 1024.
const SLICES_PER_WRITE_MAX: usize = 64;

/// A frame to write: its head, what follows it as is, and who waits for the answer.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) head: Bytes,
    pub(super) payload: Vec<Bytes>,
    pub(super) waiter: Option<Waiter>,
}

/// Writes until the connection is lost, `stop` fires, or the owner is gone.
pub(super) async fn run(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: Arc<Waiting>,
    stop: CancellationToken,
) {
    let reason = tokio::select! {
        () = stop.cancelled() => "closed by this client".to_owned(),
        () = waiting.ended() => return,
        reason = write_frames(&mut stream, &mut queue, &waiting) => reason,
    };
    waiting.lose(&reason);
}

/// Returns why no more frames can be written.
async fn write_frames(
    stream: &mut OwnedWriteHalf,
    queue: &mut mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
) -> String {
    let mut round = Vec::with_capacity(FRAMES_PER_ROUND_MAX);
    let mut slices = VecDeque::new();
    loop {
        if queue.recv_many(&mut round, FRAMES_PER_ROUND_MAX).await == 0 {
            return "closed by this client".to_owned();
        }
        for frame in round.drain(..) {
            if let Some(waiter) = frame.waiter {
                waiting.add(waiter);
            }
            slices.push_back(frame.head);
            slices.extend(frame.payload.into_iter().filter(|bytes| !bytes.is_empty()));
        }
        if let Err(error) = write_all(stream, &mut slices).await {
            return error.to_string();
        }
    }
}

async fn write_all(
    stream: &mut OwnedWriteHalf,
    slices: &mut VecDeque<Bytes>,
) -> std::io::Result<()> {
    while !slices.is_empty() {
        let mut io_slices = [IoSlice::new(&[]); SLICES_PER_WRITE_MAX];
        let mut used = 0;
        for (io_slice, bytes) in io_slices.iter_mut().zip(slices.iter()) {
            *io_slice = IoSlice::new(bytes);
            used += 1;
        }
        let mut written = stream.write_vectored(&io_slices[..used]).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(front) = slices.front_mut() {
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            slices.pop_front();
        }
    }
    Ok(())
}

//! Bytes on their way to the socket: slices in order, written several at a time and never copied.

use std::{collections::VecDeque, io, io::IoSlice};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::door::Reply;

/// Slices given to the kernel in one call.
const SLICES_PER_WRITE: usize = 64;

/// What is still to be sent. Its bound is kept by whoever pushes.
#[derive(Default)]
pub(super) struct SendQueue {
    slices: VecDeque<Bytes>,
    len_bytes: usize,
    /// Whether the socket took anything since this was last asked.
    progress: bool,
}

impl SendQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Appends a frame and tells whoever waits for its place in the order.
    pub(super) fn push(&mut self, reply: Reply) {
        for slice in std::iter::once(reply.head).chain(reply.payload) {
            if !slice.is_empty() {
                self.len_bytes += slice.len();
                self.slices.push_back(slice);
            }
        }
        if let Some(placed) = reply.placed {
            placed();
        }
    }

    /// Gives the socket as much as it takes without waiting.
    pub(super) fn send(&mut self, stream: &TcpStream) -> io::Result<()> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
            let count = self.slices.len().min(SLICES_PER_WRITE);
            for (slot, slice) in slices.iter_mut().zip(&self.slices) {
                *slot = IoSlice::new(slice);
            }
            match stream.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the socket took anything since the last call.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    fn advance(&mut self, mut sent: usize) {
        self.progress = true;
        self.len_bytes -= sent;
        while sent > 0 {
            let front = self.slices.front_mut().expect("the kernel took no more than it was given");
            let part = sent.min(front.len());
            front.advance(part);
            sent -= part;
            if front.is_empty() {
                self.slices.pop_front();
            }
        }
    }
}

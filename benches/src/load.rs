//! The load, the same for floor and broker: batches pushed through lanes with a bounded window, bytes read back.
//!
//! A lane is one connection to one partition. Every batch of a run is the same bytes, so that a count of bytes tells which
//! batch has arrived.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidemark_protocol::batch::{BatchBuilder, Compression};

/// Of every record: in the future, so that no retention of a default topic deletes it under the load.
const TIMESTAMP_MS: i64 = 4_000_000_000_000;

/// Writes what goes in front of batch number `n`.
pub type Head = Box<dyn FnMut(u64) -> Bytes + Send>;
/// Blocks for the next acknowledgement and returns how many batches are acknowledged in all.
pub type Acknowledged = Box<dyn FnMut(&mut TcpStream) -> io::Result<u64> + Send>;
/// Blocks for more stored bytes and returns how many came.
pub type Received = Box<dyn FnMut(&mut TcpStream) -> io::Result<u64> + Send>;

/// A connection that stores.
pub struct StoreLane {
    pub stream: TcpStream,
    pub head: Head,
    pub acknowledged: Acknowledged,
}

/// A connection that reads back.
pub struct ReadLane {
    pub stream: TcpStream,
    pub received: Received,
}

impl fmt::Debug for StoreLane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StoreLane").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReadLane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ReadLane").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// What a run sends through each lane.
#[derive(Clone, Debug)]
pub struct Load {
    pub batch: Bytes,
    pub batches: u64,
    /// Most batches sent and not acknowledged, per lane.
    pub window: u64,
}

/// One batch of `batch_bytes` or a little less, of records of `record_bytes` with incompressible values.
///
/// # Panics
/// When a single record does not fit.
pub fn batch(record_bytes: usize, batch_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut value = vec![0; record_bytes];
    while builder.is_empty() || builder.estimated_bytes() + record_bytes + 16 <= batch_bytes {
        for chunk in value.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        builder.push(TIMESTAMP_MS, None, Some(&value), &[]);
    }
    builder.build().expect("the batch is far below its limits")
}

/// Batches acknowledged so far in one lane, and the sender waiting for them.
#[derive(Default)]
struct Window {
    acknowledged: Mutex<u64>,
    moved: Condvar,
}

impl Window {
    fn wait_until(&self, at_least: u64) {
        let mut acknowledged = self.acknowledged.lock().expect("no holder panics");
        while *acknowledged < at_least {
            acknowledged = self.moved.wait(acknowledged).expect("no holder panics");
        }
    }

    fn advance(&self, to: u64) {
        *self.acknowledged.lock().expect("no holder panics") = to;
        self.moved.notify_all();
    }
}

/// Sends the load through every lane at once; the time from the first byte to the last acknowledgement.
///
/// # Errors
/// The first lane's that failed.
pub fn store(lanes: Vec<StoreLane>, load: &Load) -> io::Result<Duration> {
    let start = Instant::now();
    let lanes: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let load = load.clone();
            thread::spawn(move || store_lane(lane, &load, |_| {}))
        })
        .collect();
    for lane in lanes {
        lane.join().expect("lanes do not panic")?;
    }
    Ok(start.elapsed())
}

/// Sends the load through one lane, calling `before` with each batch's number just before it is sent.
pub(crate) fn store_lane(
    lane: StoreLane,
    load: &Load,
    mut before: impl FnMut(u64),
) -> io::Result<()> {
    let StoreLane { mut stream, mut head, mut acknowledged } = lane;
    let window = Arc::new(Window::default());
    let acknowledging = {
        let (mut stream, window, batches) =
            (stream.try_clone()?, Arc::clone(&window), load.batches);
        thread::spawn(move || -> io::Result<()> {
            let mut seen = 0;
            while seen < batches {
                seen = match acknowledged(&mut stream) {
                    Ok(seen) => seen,
                    Err(error) => {
                        // Frees the sender; its next write or the join below reports.
                        window.advance(batches);
                        return Err(error);
                    }
                };
                window.advance(seen);
            }
            Ok(())
        })
    };
    for number in 0..load.batches {
        window.wait_until((number + 1).saturating_sub(load.window));
        before(number);
        write_both(&mut stream, &head(number), &load.batch)?;
    }
    acknowledging.join().expect("the acknowledging thread does not panic")
}

fn write_both(stream: &mut TcpStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let written = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
    if written < head.len() {
        stream.write_all(&head[written..])?;
        return stream.write_all(body);
    }
    stream.write_all(&body[written - head.len()..])
}

/// Reads `bytes` from every lane at once; the time from start to the last byte.
///
/// # Errors
/// The first lane's that failed.
pub fn read(lanes: Vec<ReadLane>, bytes: u64) -> io::Result<Duration> {
    let start = Instant::now();
    let lanes: Vec<_> = lanes
        .into_iter()
        .map(|mut lane| {
            thread::spawn(move || -> io::Result<()> {
                let mut received = 0;
                while received < bytes {
                    received += (lane.received)(&mut lane.stream)?;
                }
                Ok(())
            })
        })
        .collect();
    for lane in lanes {
        lane.join().expect("lanes do not panic")?;
    }
    Ok(start.elapsed())
}

/// Reads whatever is there, up to the scratch buffer's length; the end of the stream is an error.
pub(crate) fn read_some(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<u64> {
    match stream.read(scratch)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count as u64),
    }
}

//! The floor: what physics demands of a log server and nothing else.
//!
//! Receive a batch over loopback, check its CRC, copy it into a mapped file, flush if asked, acknowledge; and send
//! stored bytes back. One connection is one partition with a file of its own. It refuses to be a broker: no offsets,
//! no names, no limits, no recovery. The broker's speed is quoted as a ratio to this.
#![expect(unsafe_code, reason = "maps the files it copies into, as the broker does")]

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use memmap2::MmapRaw;
use rustix::fs::FallocateFlags;

use crate::load::{Acknowledged, Head, Load, ReadLane, Received, StoreLane, read_some};

/// First byte of a connection that stores batches: `S`, flags, partition, capacity.
const STORE: u8 = b'S';
/// First byte of a connection that reads them back: `R`, flags, partition, bytes wanted.
const READ: u8 = b'R';
/// Flag: acknowledge only what is flushed.
const FLUSH: u8 = 1;
/// Flag: send bytes as they are stored rather than all that is there.
const FOLLOW: u8 = 2;
/// Bytes handed to the kernel in one write when reading back.
const SEND_BYTES: usize = 1 << 20;

/// What a connection wants, in its first 18 bytes.
#[derive(Clone, Copy, Debug)]
struct Opening {
    verb: u8,
    flags: u8,
    partition: u64,
    bytes: u64,
}

impl Opening {
    fn encode(self) -> [u8; 18] {
        let mut out = [0; 18];
        out[0] = self.verb;
        out[1] = self.flags;
        out[2..10].copy_from_slice(&self.partition.to_be_bytes());
        out[10..].copy_from_slice(&self.bytes.to_be_bytes());
        out
    }

    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = [0; 18];
        stream.read_exact(&mut bytes)?;
        let number = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(field)
        };
        Ok(Self { verb: bytes[0], flags: bytes[1], partition: number(2), bytes: number(10) })
    }
}

/// One partition: a mapped file and how much of it is stored.
struct Partition {
    file: File,
    map: MmapRaw,
    stored: AtomicU64,
    /// What readers are sent: all that is stored, or flushed when flushing was asked for.
    readable: AtomicU64,
    closed: AtomicBool,
    grown: Mutex<()>,
    signal: Condvar,
}

impl Partition {
    /// A file without a name, since nobody looks for it; but one that is flushed keeps its name, and so its blocks, until
    /// the folder goes: blocks that were written a moment ago take the next flush several times faster on some disks, and
    /// the broker does not get the same ones back either.
    fn create(dir: &Path, capacity: u64, flush: bool) -> io::Result<Self> {
        let named = tempfile::Builder::new().prefix("floor-").suffix(".log").tempfile_in(dir)?;
        let file = if flush { named.keep()?.0 } else { named.into_file() };
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, capacity)?;
        let map = MmapRaw::map_raw(&file)?;
        Ok(Self {
            file,
            map,
            stored: AtomicU64::new(0),
            readable: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            grown: Mutex::new(()),
            signal: Condvar::new(),
        })
    }

    /// Copies a batch in behind what is stored. Only the one storing connection of the partition calls it.
    fn store(&self, batch: &[u8]) -> u64 {
        let at = usize::try_from(self.stored.load(Ordering::Relaxed)).expect("64-bit");
        assert!(at + batch.len() <= self.map.len(), "the load fits the capacity it asked for");
        // SAFETY: in bounds by the assertion; this thread is the only writer and readers stay below `stored`.
        unsafe {
            self.map.as_mut_ptr().add(at).copy_from_nonoverlapping(batch.as_ptr(), batch.len());
        };
        (at + batch.len()) as u64
    }

    fn bytes(&self, from: usize, to: usize) -> &[u8] {
        assert!(from <= to && to as u64 <= self.readable.load(Ordering::Acquire));
        // SAFETY: below `stored`, where nothing is written any more.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(from), to - from) }
    }

    fn announce(&self, end: &AtomicU64, value: u64) {
        end.store(value, Ordering::Release);
        drop(self.grown.lock().expect("no holder panics"));
        self.signal.notify_all();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.grown.lock().expect("no holder panics"));
        self.signal.notify_all();
    }

    /// Blocks until `end` is beyond `seen`; `None` when it will not be.
    fn wait_beyond(&self, end: &AtomicU64, seen: u64) -> Option<u64> {
        let mut guard = self.grown.lock().expect("no holder panics");
        loop {
            let value = end.load(Ordering::Acquire);
            if value > seen {
                return Some(value);
            }
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            guard = self.signal.wait(guard).expect("no holder panics");
        }
    }
}

type Partitions = Arc<Mutex<Vec<Option<Arc<Partition>>>>>;

/// Serves until the process ends, printing the address first.
///
/// # Errors
/// When it cannot listen.
pub fn serve(dir: &Path, listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("{}", listener.local_addr()?);
    let partitions = Partitions::default();
    for stream in listener.incoming() {
        let (stream, partitions, dir) = (stream?, Arc::clone(&partitions), dir.to_path_buf());
        thread::spawn(move || {
            // A load generator that hangs up is how every round ends.
            let _ended: io::Result<()> = serve_connection(stream, &dir, &partitions);
        });
    }
    Ok(())
}

fn serve_connection(mut stream: TcpStream, dir: &Path, partitions: &Partitions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let opening = Opening::read(&mut stream)?;
    let index = usize::try_from(opening.partition).expect("64-bit");
    if opening.verb == STORE {
        let flush = opening.flags & FLUSH != 0;
        let partition = Arc::new(Partition::create(dir, opening.bytes, flush)?);
        let mut all = partitions.lock().expect("no holder panics");
        if all.len() <= index {
            all.resize_with(index + 1, || None);
        }
        all[index] = Some(Arc::clone(&partition));
        drop(all);
        stream.write_all(&[STORE])?;
        return store(stream, &partition, flush);
    }
    let partition = partitions.lock().expect("no holder panics").get(index).cloned().flatten();
    let partition = partition.ok_or_else(|| io::Error::other("read before store"))?;
    send(&mut stream, &partition, opening)
}

fn store(mut stream: TcpStream, partition: &Arc<Partition>, flush: bool) -> io::Result<()> {
    let flusher = flush
        .then(|| {
            let (partition, stream) = (Arc::clone(partition), stream.try_clone()?);
            io::Result::Ok(thread::spawn(move || flush_and_acknowledge(&partition, stream)))
        })
        .transpose()?;
    let mut batch = Vec::new();
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            break;
        }
        batch.resize(u32::from_be_bytes(length) as usize, 0);
        stream.read_exact(&mut batch)?;
        // Bytes 17..21 of a v2 batch hold the CRC-32C of everything after them.
        let crc = u32::from_be_bytes([batch[17], batch[18], batch[19], batch[20]]);
        assert_eq!(tidemark_protocol::batch::crc32c(&batch[21..]), crc, "the load is well-formed");
        let end = partition.store(&batch);
        partition.announce(&partition.stored, end);
        if !flush {
            partition.announce(&partition.readable, end);
            stream.write_all(&end.to_be_bytes())?;
        }
    }
    partition.close();
    flusher.map_or(Ok(()), |flusher| flusher.join().expect("the flusher does not panic"))
}

/// Group commit: one flush covers all that was stored when it began; then one acknowledgement of the end.
fn flush_and_acknowledge(partition: &Partition, mut stream: TcpStream) -> io::Result<()> {
    let mut flushed = 0;
    while let Some(end) = partition.wait_beyond(&partition.stored, flushed) {
        rustix::fs::fdatasync(&partition.file)?;
        flushed = end;
        partition.announce(&partition.readable, end);
        stream.write_all(&end.to_be_bytes())?;
    }
    Ok(())
}

fn send(stream: &mut TcpStream, partition: &Partition, opening: Opening) -> io::Result<()> {
    let wanted = usize::try_from(opening.bytes).expect("64-bit");
    let mut sent = 0;
    while sent < wanted {
        let ready = if opening.flags & FOLLOW != 0 {
            partition.wait_beyond(&partition.readable, sent as u64).unwrap_or(0)
        } else {
            partition.readable.load(Ordering::Acquire)
        };
        let ready = usize::try_from(ready).expect("64-bit").min(wanted);
        if ready <= sent {
            return Err(io::Error::other("asked for more than is stored"));
        }
        while sent < ready {
            let end = ready.min(sent + SEND_BYTES);
            stream.write_all(partition.bytes(sent, end))?;
            sent = end;
        }
    }
    Ok(())
}

/// Opens a connection that stores into `partition`, a new file of `capacity` bytes.
fn open_store(
    address: SocketAddr,
    partition: u64,
    capacity: u64,
    flush: bool,
) -> io::Result<TcpStream> {
    let flags = if flush { FLUSH } else { 0 };
    let mut stream = open(address, Opening { verb: STORE, flags, partition, bytes: capacity })?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Opens a connection that is sent `bytes` of `partition`, as they are stored when `follow` is set.
fn open_read(
    address: SocketAddr,
    partition: u64,
    bytes: u64,
    follow: bool,
) -> io::Result<TcpStream> {
    let flags = if follow { FOLLOW } else { 0 };
    open(address, Opening { verb: READ, flags, partition, bytes })
}

fn open(address: SocketAddr, opening: Opening) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&opening.encode())?;
    Ok(stream)
}

/// The floor as a target: a lane that stores batches of `batch_bytes`.
///
/// # Errors
/// Those of the socket.
pub fn store_lane(
    address: SocketAddr,
    partition: u64,
    load: &Load,
    flush: bool,
) -> io::Result<StoreLane> {
    let batch_bytes = load.batch.len();
    let stream = open_store(address, partition, load.batches * batch_bytes as u64, flush)?;
    let length = u32::try_from(batch_bytes).expect("below the batch limit").to_be_bytes();
    let head: Head = Box::new(move |_| Bytes::copy_from_slice(&length));
    let acknowledged: Acknowledged = Box::new(move |stream| {
        let mut end = [0; 8];
        stream.read_exact(&mut end)?;
        Ok(u64::from_be_bytes(end) / batch_bytes as u64)
    });
    Ok(StoreLane { stream, head, acknowledged })
}

/// The floor as a target: a lane that is sent `bytes` of what is stored.
///
/// # Errors
/// Those of the socket.
pub fn read_lane(
    address: SocketAddr,
    partition: u64,
    bytes: u64,
    follow: bool,
) -> io::Result<ReadLane> {
    let stream = open_read(address, partition, bytes, follow)?;
    let mut scratch = vec![0; 1 << 20];
    let received: Received = Box::new(move |stream| read_some(stream, &mut scratch));
    Ok(ReadLane { stream, received })
}

//! One direction of one connection of a proxy.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Orders, Rules, Way};
use crate::random::Random;

/// Read at once, at most. Small, so that a break hits the middle of what was written together.
const CHUNK_BYTES: usize = 16 << 10;
/// Bytes on their way through a delay, at most; after that the sender is not read.
const HELD_BYTES_MAX: usize = 4 << 20;

pub(super) struct Pump {
    pub(super) from: Arc<TcpStream>,
    pub(super) to: Arc<TcpStream>,
    pub(super) orders: watch::Receiver<Orders>,
    /// Of the connection; nothing is carried under a later one.
    pub(super) generation: u64,
    /// Which of the rules are for this direction.
    pub(super) way: fn(&Rules) -> &Way,
    pub(super) random: Random,
}

/// Bytes and when they may leave.
struct Held {
    due: Instant,
    bytes: Vec<u8>,
}

/// What becomes of a chunk.
enum Lot {
    Deliver,
    Swallow,
    CutShort,
    Break,
}

impl Pump {
    /// Carries until the sender ends. An error, be it the network's or by the rules, ends the connection: with a close
    /// that delivers what was sent when it is `UnexpectedEof`, and else with a reset.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut held_bytes = 0;
        let mut free_at = Instant::now();
        let (mut ended, mut cut_short) = (false, false);
        while !ended || !held.is_empty() {
            let due = held.front().map(|first| first.due);
            tokio::select! {
                readable = self.from.readable(), if !ended && held_bytes < HELD_BYTES_MAX => {
                    readable?;
                    let lot = self.draw();
                    let mut chunk = match self.read() {
                        Ok(None) => continue,
                        Ok(Some(chunk)) if !chunk.is_empty() => chunk,
                        // That somebody has hung up is swallowed like everything else; the connection ends with the rules.
                        _hung_up if matches!(lot, Lot::Swallow) => std::future::pending().await,
                        Ok(Some(_end)) => {
                            ended = true;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    match lot {
                        Lot::Swallow => continue,
                        Lot::Break => return Err(io::ErrorKind::ConnectionReset.into()),
                        // Behind what is still held, or bytes would be missing from the middle of the stream.
                        Lot::CutShort => {
                            chunk.truncate(chunk.len() / 2);
                            (ended, cut_short) = (true, true);
                        }
                        Lot::Deliver => {}
                    }
                    let due = self.due(chunk.len(), &mut free_at);
                    held_bytes += chunk.len();
                    held.push_back(Held { due, bytes: chunk });
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let first = held.pop_front().expect("due");
                    held_bytes -= first.bytes.len();
                    write_all(&self.to, &first.bytes).await?;
                }
            }
        }
        if cut_short {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The other direction may go on: a half-closed connection stays one.
        Ok(rustix::net::shutdown(&*self.to, rustix::net::Shutdown::Write)?)
    }

    /// `None`: nothing there after all. Empty: the end.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        match self.from.try_read(&mut chunk) {
            Ok(count) => {
                chunk.truncate(count);
                Ok(Some(chunk))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn draw(&mut self) -> Lot {
        let orders = self.orders.borrow();
        let way = (self.way)(&orders.rules);
        if orders.generation != self.generation {
            Lot::Break
        } else if way.swallow {
            Lot::Swallow
        } else if self.random.one_in(way.break_one_in) {
            Lot::Break
        } else if self.random.one_in(way.cut_short_one_in) {
            Lot::CutShort
        } else {
            Lot::Deliver
        }
    }

    /// When these bytes may leave: after the delay, and not faster than the rate.
    fn due(&self, bytes: usize, free_at: &mut Instant) -> Instant {
        let orders = self.orders.borrow();
        let way = (self.way)(&orders.rules);
        let now = Instant::now();
        let mut due = now + way.delay;
        if let Some(rate) = way.bytes_per_second {
            let bytes = u64::try_from(bytes).expect("a chunk is small");
            let takes = Duration::from_micros(bytes * 1_000_000 / rate.max(1));
            *free_at = (*free_at).max(now) + takes;
            due = due.max(*free_at + way.delay);
        }
        due
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

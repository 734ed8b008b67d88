//! End-to-end latency at a fixed rate: from the moment a batch was due to be sent to its last byte at a reader.
//!
//! Times count from the schedule and not from the actual send, so that a stall counts against every batch it delayed
//! (no coordinated omission).

use std::{
    io, thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::load::{Load, ReadLane, StoreLane, store_lane};

/// Sends the load at `bytes_per_second` through one lane while another reads it; latencies in nanoseconds.
///
/// # Errors
/// Those of the sockets.
pub fn end_to_end(
    store: StoreLane,
    mut read: ReadLane,
    load: &Load,
    bytes_per_second: u64,
) -> io::Result<Histogram<u64>> {
    let batch_bytes = load.batch.len() as u64;
    let interval = Duration::from_nanos(batch_bytes * 1_000_000_000 / bytes_per_second);
    let start = Instant::now() + Duration::from_millis(50);
    let due = move |number: u64| start + interval * u32::try_from(number).expect("short runs");
    let reading = {
        let batches = load.batches;
        thread::spawn(move || -> io::Result<Histogram<u64>> {
            let mut latencies = Histogram::new(3).expect("three digits are allowed");
            let (mut received, mut seen) = (0, 0);
            while seen < batches {
                received += (read.received)(&mut read.stream)?;
                let now = Instant::now();
                while seen < batches && (seen + 1) * batch_bytes <= received {
                    let nanos = now.saturating_duration_since(due(seen)).as_nanos();
                    latencies
                        .record(u64::try_from(nanos).expect("short runs"))
                        .expect("the histogram resizes itself");
                    seen += 1;
                }
            }
            Ok(latencies)
        })
    };
    store_lane(store, load, |number| {
        thread::sleep(due(number).saturating_duration_since(Instant::now()));
    })?;
    reading.join().expect("the reader does not panic")
}

//! Settings of a consumer, and positions.

use std::time::Duration;

use tidemark_protocol::{Offset, TimestampMs, messages::Isolation};

/// Where to begin reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At the first record that still exists.
    Earliest,
    /// At the next record to be written.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record with this timestamp or a later one; at the end when there is none.
    Timestamp(TimestampMs),
}

/// How records come from the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The broker sends them as they become readable, within a window of bytes.
    #[default]
    Push,
    /// This client asks, and the broker answers when there is enough or it has waited enough.
    Fetch,
}

/// What to do when the position is not in the log any more, or not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// Tell the caller, who can seek.
    #[default]
    Error,
    /// Go on at the first record that still exists.
    Earliest,
    /// Go on at the next record to be written.
    Latest,
}

/// How a [`crate::Consumer`] reads.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    pub transport: Transport,
    /// Most bytes of batches read ahead of the caller, over all partitions, except that one batch per
    /// broker always fits.
    pub prefetch_bytes: u32,
    /// Most bytes of batches in one push or answer, except that one batch always fits.
    pub response_bytes: u32,
    /// Only with [`Transport::Fetch`]: how long the broker waits for `fetch_min_bytes`.
    pub fetch_wait: Duration,
    /// Only with [`Transport::Fetch`]: what the broker waits for.
    pub fetch_min_bytes: u32,
    /// Most records one poll returns.
    pub poll_records_max: usize,
    pub out_of_range: OutOfRange,
    /// Check the CRC of every batch received.
    pub verify_crc: bool,
    /// What to be given of transactions. The default is Kafka's: everything. With [`Isolation::ReadCommitted`] records of
    /// transactions that were aborted are left out, and what comes behind an open transaction waits for its end.
    pub isolation: Isolation,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            transport: Transport::Push,
            prefetch_bytes: 4 << 20,
            response_bytes: 1 << 20,
            fetch_wait: Duration::from_millis(500),
            fetch_min_bytes: 1,
            poll_records_max: 4096,
            out_of_range: OutOfRange::Error,
            verify_crc: true,
            isolation: Isolation::ReadUncommitted,
        }
    }
}

//! Settings of a producer.

use std::time::Duration;

use tidemark_protocol::{
    Compression,
    messages::{Acks, Durability},
};

/// How a [`crate::Producer`] gathers, sends and repeats.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Whom the broker waits for before it answers.
    pub acks: Acks,
    /// How durable each copy must be before it counts.
    pub durability: Durability,
    pub compression: Compression,
    /// A batch is closed when it holds this much, before compression. A larger record gets a batch of its
    /// own.
    pub batch_bytes: usize,
    /// The most a record waits for company while nothing of its partition is in flight. Zero does not mean
    /// small batches: while a request is in flight, the partition's next batch grows.
    pub linger: Duration,
    /// Most bytes of records accepted and not yet answered, over all partitions. `send` waits for room.
    pub buffer_bytes: usize,
    /// Most bytes of batches in one request, before compression, except that one batch always fits.
    pub request_bytes: usize,
    /// Most requests of this producer in flight to one broker. Never more than one per partition.
    pub max_in_flight: usize,
    /// A record that is not acknowledged this long after it was accepted has failed. Bounds all attempts.
    pub delivery_timeout: Duration,
    /// How long the broker may wait for the acknowledgements of one attempt.
    pub request_timeout: Duration,
    /// Whether brokers recognize what they have already: requests whose outcome is unknown are repeated, and every
    /// record is written once. Costs one question when the producer begins. Records with [`Acks::None`] are as without.
    pub idempotent: bool,
    /// Without `idempotent`: whether to repeat a request whose outcome is unknown (connection lost, no answer in time).
    /// `true`: records are delivered at least once, and may be written twice. `false`: at most once, and such
    /// records fail with an error whose `is_indeterminate` is true. Either way the order is kept; the documentation of the
    /// producer's module says in full what to expect when a leader fails.
    pub retry_indeterminate: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            durability: Durability::Topic,
            compression: Compression::None,
            batch_bytes: 256 << 10,
            linger: Duration::ZERO,
            buffer_bytes: 32 << 20,
            request_bytes: 4 << 20,
            max_in_flight: 5,
            delivery_timeout: Duration::from_mins(2),
            request_timeout: Duration::from_secs(30),
            idempotent: true,
            retry_indeterminate: true,
        }
    }
}

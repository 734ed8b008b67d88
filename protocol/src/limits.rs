//! Bounds on everything that comes from the network, checked before anything is allocated.
//!
//! Each bound is a protocol constant, not a setting: a peer may rely on it.

/// Largest frame, counted from `kind` to the end of the payload, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Largest MessagePack header in a frame, in bytes.
pub const HEADER_BYTES_MAX: usize = 4 << 20;
/// Largest record batch a topic may be configured to accept, in bytes, header included.
pub const BATCH_BYTES_MAX: usize = 32 << 20;
/// Most bytes the records of one batch may decompress to.
pub const BATCH_DECOMPRESSED_BYTES_MAX: usize = 128 << 20;
/// Most records in one batch.
pub const BATCH_RECORDS_MAX: u32 = 1 << 20;
/// Most headers on one record.
pub const RECORD_HEADERS_MAX: usize = 1024;
/// Longest topic name, in bytes (Kafka's limit: it must fit a directory name with a suffix).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Most partitions in one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 100_000;
/// Most partitions one request may name.
pub const REQUEST_PARTITIONS_MAX: usize = 10_000;

//! Kafka's record batch v2, byte for byte: the unit on the wire and on disk.
//!
//! A [`Batch`] is a view of bytes that somebody else owns; nothing is copied and nothing is decompressed
//! until records are asked for. This file refuses every other batch format, and to change a batch: the only
//! bytes a broker may change are outside the CRC, and [`stamp`] changes them.

mod builder;
mod header;
mod records;
mod validate;
mod varint;

use bytes::{Bytes, BytesMut};

pub use builder::BatchBuilder;
pub use header::{BatchHeader, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, TimestampType};
use header::{CONTROL_BIT, TRANSACTIONAL_BIT};
pub use records::{Record, RecordHeader, Records};

pub use crate::compression::Compression;
use crate::{ErrorCode, LeaderEpoch, Offset, compression::CompressionError};

/// Why bytes are not a batch, or not one that a broker accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("a batch needs {needed_bytes} bytes, there are {available_bytes}")]
    Truncated { needed_bytes: usize, available_bytes: usize },
    #[error("record batches have magic 2, this one has {0}")]
    UnsupportedMagic(u8),
    #[error("a batch of {batch_bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { batch_bytes: usize, limit_bytes: usize },
    #[error("batch CRC is {stored:#010x}, computed {computed:#010x}")]
    Crc { stored: u32, computed: u32 },
    #[error("batch header: {0}")]
    Header(&'static str),
    #[error("record {index} of the batch: {reason}")]
    Record { index: u32, reason: &'static str },
    #[error("after the last record: {0}")]
    Tail(&'static str),
    #[error("records: {0}")]
    Compression(#[from] CompressionError),
}

impl BatchError {
    /// The code a response carries for this error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::BatchTooLarge,
            Self::Crc { .. } => ErrorCode::DamagedBatch,
            Self::Truncated { .. }
            | Self::UnsupportedMagic(_)
            | Self::Header(_)
            | Self::Record { .. }
            | Self::Tail(_)
            | Self::Compression(_) => ErrorCode::InvalidBatch,
        }
    }
}

/// One batch: its header, parsed, and all its bytes. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// Splits one batch off the front of `bytes`; on an error `bytes` is as before. Checks bounds and the
    /// header's sanity, neither CRC nor records.
    pub fn parse(bytes: &mut Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        if bytes.len() < header.batch_bytes {
            return Err(BatchError::Truncated {
                needed_bytes: header.batch_bytes,
                available_bytes: bytes.len(),
            });
        }
        Ok(Self { header, bytes: bytes.split_to(header.batch_bytes) })
    }

    /// All bytes, from base offset to last record.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Checks everything from the attributes on against the stored CRC.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let computed = crc32c(&self.bytes[BatchHeader::CRC_FROM..]);
        if computed != self.header.crc {
            return Err(BatchError::Crc { stored: self.header.crc, computed });
        }
        Ok(())
    }

    /// The records one by one, decompressed within limits if need be. Keys and values are slices of the batch
    /// or of what it decompressed to. A batch that was compacted may hold fewer records than its offsets say.
    pub fn iter_records(&self) -> Result<Records, BatchError> {
        Records::new(self)
    }

    /// All records at once.
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        self.iter_records()?.collect()
    }

    /// What a broker checks before it accepts a batch from a producer: size, CRC, header, and that records
    /// are well-formed, contiguous and as many as the header says.
    pub fn validate_for_append(&self, max_batch_bytes: usize) -> Result<(), BatchError> {
        validate::for_append(self, max_batch_bytes)
    }

    fn record_bytes(&self) -> Bytes {
        self.bytes.slice(BatchHeader::BYTES..)
    }
}

/// The batches in `payload`, one after the other. Ends after the first error; bytes too few for a batch are
/// one.
pub fn batches(mut payload: Bytes) -> impl Iterator<Item = Result<Batch, BatchError>> {
    std::iter::from_fn(move || {
        if payload.is_empty() {
            return None;
        }
        let batch = Batch::parse(&mut payload);
        if batch.is_err() {
            payload.clear();
        }
        Some(batch)
    })
}

/// Writes base offset and leader epoch, the only bytes a broker changes. They are outside the CRC.
///
/// # Panics
/// When `batch` is shorter than a batch header.
pub fn stamp(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    assert!(batch.len() >= BatchHeader::BYTES, "not a batch: {} bytes", batch.len());
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// A batch with another producer's id, epoch and base sequence, and the CRC that goes with them. For producers, before a
/// batch was written: nobody changes these in a log.
///
/// # Panics
/// When `batch` is shorter than a batch header.
pub fn with_producer(batch: &[u8], id: i64, epoch: i16, sequence: i32) -> Bytes {
    assert!(batch.len() >= BatchHeader::BYTES, "not a batch: {} bytes", batch.len());
    let mut batch = BytesMut::from(batch);
    batch[43..51].copy_from_slice(&id.to_be_bytes());
    batch[51..53].copy_from_slice(&epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c(&batch[BatchHeader::CRC_FROM..]);
    batch[BatchHeader::CRC_AT..BatchHeader::CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    batch.freeze()
}

/// CRC-32C (Castagnoli), as record batches carry it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("a 32-bit CRC fits 32 bits")
}

#[cfg(test)]
mod tests;

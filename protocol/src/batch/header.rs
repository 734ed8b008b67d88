//! The 61 bytes in front of the records. Parsing checks bounds and nothing that needs more than these bytes.

use super::BatchError;
use crate::{Compression, LeaderEpoch, Offset, TimestampMs, limits};

/// The producer id of batches whose producer is not idempotent.
pub const NO_PRODUCER_ID: i64 = -1;
/// The producer epoch that goes with [`NO_PRODUCER_ID`].
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// The base sequence that goes with [`NO_PRODUCER_ID`].
pub const NO_SEQUENCE: i32 = -1;

const COMPRESSION_BITS: u16 = 0x07;
const TIMESTAMP_TYPE_BIT: u16 = 0x08;
pub(super) const TRANSACTIONAL_BIT: u16 = 0x10;
pub(super) const CONTROL_BIT: u16 = 0x20;

/// What a batch's timestamps mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Set by the producer, one per record.
    Create,
    /// Set by the broker: `max_timestamp` holds for every record.
    LogAppend,
}

/// A batch's header. Numbers are as on the wire; lengths and counts are known to be within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: Offset,
    /// Length of the whole batch, this header included, in bytes.
    pub batch_bytes: usize,
    /// Epoch of the leader that appended it; before that whatever the producer wrote, usually `u32::MAX`.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C from the attributes to the end.
    pub crc: u32,
    pub attributes: u16,
    /// Offset of the last record less `base_offset`, of the records before compaction.
    pub last_offset_delta: u32,
    pub base_timestamp: TimestampMs,
    pub max_timestamp: TimestampMs,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    /// At most `last_offset_delta + 1`; fewer, even none, after compaction.
    pub record_count: u32,
}

impl BatchHeader {
    /// Length of a header, in bytes.
    pub const BYTES: usize = 61;
    /// What the length field does not count: base offset and itself.
    pub(super) const LENGTH_EXCLUDES: usize = 12;
    /// Where the CRC lies.
    pub(super) const CRC_AT: usize = 17;
    /// Where what the CRC covers begins: the attributes.
    pub(super) const CRC_FROM: usize = 21;

    /// Reads a header from the front of `bytes`, which need not hold the whole batch.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(bytes) = bytes.first_chunk::<{ Self::BYTES }>() else {
            return Err(BatchError::Truncated {
                needed_bytes: Self::BYTES,
                available_bytes: bytes.len(),
            });
        };
        if bytes[16] != 2 {
            return Err(BatchError::UnsupportedMagic(bytes[16]));
        }
        let length = u32::from_be_bytes(at(bytes, 8)) as usize;
        let header = Self {
            base_offset: u64::from_be_bytes(at(bytes, 0)),
            batch_bytes: length.saturating_add(Self::LENGTH_EXCLUDES),
            leader_epoch: u32::from_be_bytes(at(bytes, 12)),
            crc: u32::from_be_bytes(at(bytes, Self::CRC_AT)),
            attributes: u16::from_be_bytes(at(bytes, 21)),
            last_offset_delta: u32::from_be_bytes(at(bytes, 23)),
            base_timestamp: i64::from_be_bytes(at(bytes, 27)),
            max_timestamp: i64::from_be_bytes(at(bytes, 35)),
            producer_id: i64::from_be_bytes(at(bytes, 43)),
            producer_epoch: i16::from_be_bytes(at(bytes, 51)),
            base_sequence: i32::from_be_bytes(at(bytes, 53)),
            record_count: u32::from_be_bytes(at(bytes, 57)),
        };
        header.check_bounds()?;
        Ok(header)
    }

    fn check_bounds(&self) -> Result<(), BatchError> {
        // The field is signed: what looks longer than 2 GiB is negative.
        if self.batch_bytes > i32::MAX.cast_unsigned() as usize + Self::LENGTH_EXCLUDES {
            return Err(BatchError::Header("its length is negative"));
        }
        if self.batch_bytes < Self::BYTES {
            return Err(BatchError::Header("its length is less than a header's"));
        }
        if self.batch_bytes > limits::BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge {
                batch_bytes: self.batch_bytes,
                limit_bytes: limits::BATCH_BYTES_MAX,
            });
        }
        if self.last_offset_delta >= i32::MAX.cast_unsigned() {
            return Err(BatchError::Header("the last offset delta is negative"));
        }
        // Offsets are signed in Kafka; the end of the batch must be one as well.
        if self.base_offset > i64::MAX.cast_unsigned() - u64::from(self.last_offset_delta) - 1 {
            return Err(BatchError::Header("the base offset is negative or too high"));
        }
        if self.record_count > limits::BATCH_RECORDS_MAX {
            return Err(BatchError::Header("more records than a batch may have"));
        }
        if codec(self.attributes).is_none() {
            return Err(BatchError::Header("the compression codec is unknown"));
        }
        if self.record_count > self.last_offset_delta + 1 {
            return Err(BatchError::Header("more records than offsets"));
        }
        Ok(())
    }

    pub(super) fn write(&self, out: &mut [u8; Self::BYTES]) {
        let length = u32::try_from(self.batch_bytes - Self::LENGTH_EXCLUDES)
            .expect("a batch is at most BATCH_BYTES_MAX long");
        out[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        out[8..12].copy_from_slice(&length.to_be_bytes());
        out[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        out[16] = 2;
        out[17..21].copy_from_slice(&self.crc.to_be_bytes());
        out[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        out[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        out[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        out[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        out[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        out[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        out[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        out[57..61].copy_from_slice(&self.record_count.to_be_bytes());
    }

    /// Offset of the last record, or of where it was before compaction.
    pub fn last_offset(&self) -> Offset {
        self.base_offset + u64::from(self.last_offset_delta)
    }

    /// Offset that follows this batch.
    pub fn next_offset(&self) -> Offset {
        self.last_offset() + 1
    }

    pub fn compression(&self) -> Compression {
        codec(self.attributes).expect("parsing has refused unknown codecs")
    }

    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & TIMESTAMP_TYPE_BIT == 0 {
            TimestampType::Create
        } else {
            TimestampType::LogAppend
        }
    }

    /// Whether the records are part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    /// Whether the record is a marker of the broker's, not for applications.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// Whether bits are set that no producer sets: reserved ones, and those only a broker may.
    pub(super) fn has_reserved_bits(&self) -> bool {
        self.attributes & !(COMPRESSION_BITS | TIMESTAMP_TYPE_BIT | TRANSACTIONAL_BIT | CONTROL_BIT)
            != 0
    }
}

fn codec(attributes: u16) -> Option<Compression> {
    Compression::from_code((attributes & COMPRESSION_BITS).to_le_bytes()[0])
}

/// `N` bytes of the header from `start`; callers pass constants inside it.
#[inline]
fn at<const N: usize>(bytes: &[u8; BatchHeader::BYTES], start: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[start..start + N]);
    out
}

//! What a broker checks before it lets a producer's batch into a log. On the hot path: one pass for the CRC,
//! one over the records' lengths.

use super::{
    Batch, BatchError, NO_PRODUCER_ID, TimestampType,
    records::{Fields, decompressed},
};
use crate::{TimestampMs, ids::NO_TIMESTAMP};

pub(super) fn for_append(batch: &Batch, max_batch_bytes: usize) -> Result<(), BatchError> {
    let header = &batch.header;
    if header.batch_bytes > max_batch_bytes {
        return Err(BatchError::TooLarge {
            batch_bytes: header.batch_bytes,
            limit_bytes: max_batch_bytes,
        });
    }
    batch.verify_crc()?;
    check_header(batch)?;
    check_records(batch)
}

fn check_header(batch: &Batch) -> Result<(), BatchError> {
    let header = &batch.header;
    if header.record_count == 0 {
        return Err(BatchError::Header("a batch has at least one record"));
    }
    if header.record_count != header.last_offset_delta + 1 {
        return Err(BatchError::Header("the record count does not match the last offset delta"));
    }
    if header.is_control() {
        return Err(BatchError::Header("control batches are the broker's to write"));
    }
    if header.timestamp_type() == TimestampType::LogAppend {
        return Err(BatchError::Header("append timestamps are the broker's to set"));
    }
    if header.has_reserved_bits() {
        return Err(BatchError::Header("reserved attribute bits are set"));
    }
    if !is_timestamp(header.base_timestamp) || !is_timestamp(header.max_timestamp) {
        return Err(BatchError::Header("a timestamp is negative"));
    }
    if header.producer_id < NO_PRODUCER_ID {
        return Err(BatchError::Header("the producer id is negative"));
    }
    let idempotent = header.producer_id != NO_PRODUCER_ID;
    if idempotent && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(BatchError::Header("a producer id needs an epoch and a sequence"));
    }
    if header.is_transactional() && !idempotent {
        return Err(BatchError::Header("a transactional batch needs a producer id"));
    }
    Ok(())
}

fn check_records(batch: &Batch) -> Result<(), BatchError> {
    let header = &batch.header;
    let bytes = decompressed(batch)?;
    let bytes = &bytes[..];
    let mut at = 0;
    let mut max_timestamp = NO_TIMESTAMP;
    for index in 0..header.record_count {
        let refused = |reason| BatchError::Record { index, reason };
        let fields = Fields::read(bytes, &mut at).map_err(refused)?;
        if fields.offset_delta != index {
            return Err(refused("its offset delta is not the next one"));
        }
        let timestamp = header
            .base_timestamp
            .checked_add(fields.timestamp_delta)
            .filter(|timestamp| is_timestamp(*timestamp))
            .ok_or_else(|| refused("its timestamp is negative or overflows"))?;
        max_timestamp = max_timestamp.max(timestamp);
    }
    if at != bytes.len() {
        return Err(BatchError::Tail("bytes are left over"));
    }
    // The time index is built from it.
    if max_timestamp != header.max_timestamp {
        return Err(BatchError::Header("the largest timestamp is not that of any record"));
    }
    Ok(())
}

fn is_timestamp(timestamp: TimestampMs) -> bool {
    timestamp >= NO_TIMESTAMP
}

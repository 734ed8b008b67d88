//! Builds a batch record by record, in one buffer and without an allocation per record.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    BatchError, BatchHeader, Compression, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE,
    RecordHeader, crc32c,
    varint::{self, VARLONG_BYTES_MAX},
};
use crate::{TimestampMs, limits};

/// Leader epoch of a batch that no leader has stamped.
const NO_LEADER_EPOCH: u32 = u32::MAX;
/// The small fields of a record before its key, each of the longest.
const RECORD_HEAD_BYTES_MAX: usize = 4 * VARLONG_BYTES_MAX + 1;

/// A batch in the making. Records get offset deltas in the order they are pushed.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    /// Room for the header, then the records, uncompressed.
    buffer: BytesMut,
    record_count: u32,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
    producer: (i64, i16, i32),
    headers_max: usize,
}

impl BatchBuilder {
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 0)
    }

    /// A builder whose buffer holds `capacity_bytes` of batch before it grows.
    pub fn with_capacity(compression: Compression, capacity_bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(capacity_bytes.max(BatchHeader::BYTES));
        buffer.put_bytes(0, BatchHeader::BYTES);
        Self {
            compression,
            buffer,
            record_count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            producer: (NO_PRODUCER_ID, NO_PRODUCER_EPOCH, NO_SEQUENCE),
            headers_max: 0,
        }
    }

    /// Makes it a batch of an idempotent producer; `sequence` is the first record's.
    #[must_use]
    pub fn with_producer(mut self, id: i64, epoch: i16, sequence: i32) -> Self {
        self.set_producer(id, epoch, sequence);
        self
    }

    /// As [`BatchBuilder::with_producer`], for whoever learns the sequence last.
    pub fn set_producer(&mut self, id: i64, epoch: i16, sequence: i32) {
        self.producer = (id, epoch, sequence);
    }

    /// Adds a record; answers its offset delta. What breaks a limit is told by [`BatchBuilder::build`].
    pub fn push(
        &mut self,
        timestamp_ms: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[RecordHeader],
    ) -> u32 {
        let delta = self.record_count;
        if delta == 0 {
            (self.base_timestamp, self.max_timestamp) = (timestamp_ms, timestamp_ms);
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        self.headers_max = self.headers_max.max(headers.len());

        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let body_bytes = 1
            + varint::encoded_bytes(timestamp_delta)
            + varint::encoded_bytes(i64::from(delta))
            + optional_bytes(key)
            + optional_bytes(value)
            + headers_bytes(headers);
        self.buffer.reserve(VARLONG_BYTES_MAX + body_bytes);

        let mut head = [0; RECORD_HEAD_BYTES_MAX];
        let mut end = varint::write(&mut head, 0, length(body_bytes));
        // One byte of attributes, none of them in use.
        end += 1;
        end = varint::write(&mut head, end, timestamp_delta);
        end = varint::write(&mut head, end, i64::from(delta));
        end = varint::write(&mut head, end, optional_length(key));
        self.buffer.put_slice(&head[..end]);
        self.buffer.put_slice(key.unwrap_or_default());
        self.put_varint(optional_length(value));
        self.buffer.put_slice(value.unwrap_or_default());
        self.put_varint(length(headers.len()));
        for header in headers {
            self.put_varint(length(header.key.len()));
            self.buffer.put_slice(header.key.as_bytes());
            let value = header.value.as_deref();
            self.put_varint(optional_length(value));
            self.buffer.put_slice(value.unwrap_or_default());
        }
        self.record_count += 1;
        delta
    }

    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Length of the batch if it were built now and not compressed, in bytes.
    pub fn estimated_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The finished batch, with base offset 0. Fails when it is empty or over a limit of [`crate::limits`].
    pub fn build(mut self) -> Result<Bytes, BatchError> {
        let Some(last_offset_delta) = self.record_count.checked_sub(1) else {
            return Err(BatchError::Header("a batch has at least one record"));
        };
        if self.record_count > limits::BATCH_RECORDS_MAX {
            return Err(BatchError::Header("more records than a batch may have"));
        }
        if self.headers_max > limits::RECORD_HEADERS_MAX {
            return Err(BatchError::Header("a record has more headers than it may have"));
        }
        let record_bytes = self.buffer.len() - BatchHeader::BYTES;
        check_bytes(record_bytes, limits::BATCH_DECOMPRESSED_BYTES_MAX)?;
        if self.compression == Compression::None {
            let mut batch = std::mem::take(&mut self.buffer);
            self.finish(&mut batch, last_offset_delta)?;
            return Ok(batch.freeze());
        }
        let mut batch = Vec::with_capacity(BatchHeader::BYTES + record_bytes / 2);
        batch.resize(BatchHeader::BYTES, 0);
        self.compression.compress(&self.buffer[BatchHeader::BYTES..], &mut batch)?;
        self.finish(&mut batch, last_offset_delta)?;
        Ok(batch.into())
    }

    /// Writes the header into the room in front of the records.
    fn finish(&self, batch: &mut [u8], last_offset_delta: u32) -> Result<(), BatchError> {
        check_bytes(batch.len(), limits::BATCH_BYTES_MAX)?;
        let (producer_id, producer_epoch, base_sequence) = self.producer;
        let header = BatchHeader {
            base_offset: 0,
            batch_bytes: batch.len(),
            leader_epoch: NO_LEADER_EPOCH,
            crc: 0,
            attributes: u16::from(self.compression.code()),
            last_offset_delta,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            record_count: self.record_count,
        };
        let room = batch.first_chunk_mut().expect("room for the header was made first");
        header.write(room);
        let crc = crc32c(&batch[BatchHeader::CRC_FROM..]);
        batch[BatchHeader::CRC_AT..BatchHeader::CRC_FROM].copy_from_slice(&crc.to_be_bytes());
        Ok(())
    }

    fn put_varint(&mut self, value: i64) {
        let mut bytes = [0; VARLONG_BYTES_MAX];
        let end = varint::write(&mut bytes, 0, value);
        self.buffer.put_slice(&bytes[..end]);
    }
}

fn check_bytes(batch_bytes: usize, limit_bytes: usize) -> Result<(), BatchError> {
    if batch_bytes > limit_bytes {
        return Err(BatchError::TooLarge { batch_bytes, limit_bytes });
    }
    Ok(())
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("no slice is longer than isize::MAX")
}

fn optional_length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| length(bytes.len()))
}

/// Length prefix and bytes.
fn optional_bytes(bytes: Option<&[u8]>) -> usize {
    varint::encoded_bytes(optional_length(bytes)) + bytes.map_or(0, <[u8]>::len)
}

fn headers_bytes(headers: &[RecordHeader]) -> usize {
    let each = headers.iter().map(|header| {
        optional_bytes(Some(header.key.as_bytes())) + optional_bytes(header.value.as_deref())
    });
    varint::encoded_bytes(length(headers.len())) + each.sum::<usize>()
}

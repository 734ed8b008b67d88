//! The records inside a batch, one by one, as slices.
//!
//! Decodes what it is given record by record and stops at the first that is malformed. Whether the batch as a
//! whole keeps the rules of appending is [`super::validate`]'s business.

use bytes::Bytes;

use super::{Batch, BatchError, Compression, TimestampType, varint};
use crate::{Offset, TimestampMs, limits};

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: Offset,
    pub timestamp_ms: TimestampMs,
    pub key: Option<Bytes>,
    /// `None` is a tombstone in compacted topics.
    pub value: Option<Bytes>,
    pub headers: Vec<RecordHeader>,
}

/// A named value beside a record. Names may repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub key: String,
    pub value: Option<Bytes>,
}

/// The records of one batch in order of offset. After an error it ends.
#[derive(Debug)]
pub struct Records {
    bytes: Bytes,
    at: usize,
    index: u32,
    left: u32,
    base_offset: Offset,
    last_offset_delta: u32,
    next_offset_delta: u32,
    base_timestamp: TimestampMs,
    /// The timestamp of all records, if the broker has set it.
    append_timestamp: Option<TimestampMs>,
}

impl Records {
    pub(super) fn new(batch: &Batch) -> Result<Self, BatchError> {
        let header = &batch.header;
        Ok(Self {
            bytes: decompressed(batch)?,
            at: 0,
            index: 0,
            left: header.record_count,
            base_offset: header.base_offset,
            last_offset_delta: header.last_offset_delta,
            next_offset_delta: 0,
            base_timestamp: header.base_timestamp,
            append_timestamp: match header.timestamp_type() {
                TimestampType::Create => None,
                TimestampType::LogAppend => Some(header.max_timestamp),
            },
        })
    }

    fn decode(&mut self) -> Result<Record, &'static str> {
        let fields = Fields::read(&self.bytes, &mut self.at)?;
        if fields.offset_delta < self.next_offset_delta
            || fields.offset_delta > self.last_offset_delta
        {
            return Err("its offset is out of order or outside the batch");
        }
        self.next_offset_delta = fields.offset_delta + 1;
        let timestamp_ms = match self.append_timestamp {
            Some(timestamp_ms) => timestamp_ms,
            None => self
                .base_timestamp
                .checked_add(fields.timestamp_delta)
                .ok_or("its timestamp overflows")?,
        };
        let slice = |span: Option<Span>| span.map(|span| self.bytes.slice(span.start..span.end));
        let mut headers = Vec::with_capacity(fields.header_count);
        let mut at = fields.headers_at;
        for _ in 0..fields.header_count {
            let (key, value) = read_header(&self.bytes, &mut at)?;
            headers.push(RecordHeader { key: key.to_owned(), value: slice(value) });
        }
        Ok(Record {
            offset: self.base_offset + u64::from(fields.offset_delta),
            timestamp_ms,
            key: slice(fields.key),
            value: slice(fields.value),
            headers,
        })
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let surplus = self.at < self.bytes.len();
            self.at = self.bytes.len();
            return surplus.then_some(Err(BatchError::Tail("bytes are left over")));
        }
        self.left -= 1;
        let index = self.index;
        self.index += 1;
        let record = self.decode().map_err(|reason| BatchError::Record { index, reason });
        if record.is_err() {
            (self.left, self.at) = (0, self.bytes.len());
        }
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A record takes seven bytes at least, whatever the count claims.
        let possible = (self.bytes.len() - self.at) / RECORD_BYTES_MIN;
        ((self.left as usize).min(possible), None)
    }
}

/// Length, attributes, two deltas, two lengths, header count: one byte each.
const RECORD_BYTES_MIN: usize = 7;

/// The records' bytes: the batch's own, or what they decompress to within limits.
pub(super) fn decompressed(batch: &Batch) -> Result<Bytes, BatchError> {
    let bytes = batch.record_bytes();
    match batch.header.compression() {
        Compression::None => Ok(bytes),
        codec => Ok(codec.decompress(&bytes, limits::BATCH_DECOMPRESSED_BYTES_MAX)?.into()),
    }
}

/// Part of the bytes being read.
#[derive(Clone, Copy)]
pub(super) struct Span {
    start: usize,
    end: usize,
}

/// Where the parts of one record lie. Its headers are known to be well-formed.
pub(super) struct Fields {
    pub(super) timestamp_delta: i64,
    pub(super) offset_delta: u32,
    key: Option<Span>,
    value: Option<Span>,
    header_count: usize,
    headers_at: usize,
}

impl Fields {
    /// Reads the record at `at` and moves past it.
    #[inline]
    pub(super) fn read(bytes: &[u8], at: &mut usize) -> Result<Self, &'static str> {
        let body_bytes = varint::read_i32(bytes, at).ok_or("its length is malformed")?;
        let body_bytes = usize::try_from(body_bytes).map_err(|_| "its length is negative")?;
        let start = *at;
        if body_bytes > bytes.len() - start {
            return Err("it is longer than the batch");
        }
        let end = start + body_bytes;
        // Nothing below reads past the record.
        let bytes = &bytes[..end];
        if bytes.len() == start {
            return Err("it is empty");
        }
        // One byte of attributes, none of them in use.
        *at += 1;
        let timestamp_delta =
            varint::read_long(bytes, at).ok_or("its timestamp delta is malformed")?;
        let offset_delta = varint::read_i32(bytes, at)
            .and_then(|delta| u32::try_from(delta).ok())
            .ok_or("its offset delta is malformed")?;
        let key = read_span(bytes, at).ok_or("its key is malformed")?;
        let value = read_span(bytes, at).ok_or("its value is malformed")?;
        let header_count = varint::read_i32(bytes, at)
            .and_then(|count| usize::try_from(count).ok())
            .ok_or("its header count is malformed")?;
        let headers_at = *at;
        if header_count > 0 {
            if header_count > limits::RECORD_HEADERS_MAX {
                return Err("it has more headers than a record may have");
            }
            for _ in 0..header_count {
                read_header(bytes, at)?;
            }
        }
        if *at != end {
            return Err("its fields do not fill its length");
        }
        Ok(Self { timestamp_delta, offset_delta, key, value, header_count, headers_at })
    }
}

/// A length and as many bytes, or -1 and none. The outer `None`: malformed.
#[inline]
#[expect(clippy::option_option, reason = "malformed, absent and present are three things")]
fn read_span(bytes: &[u8], at: &mut usize) -> Option<Option<Span>> {
    let length = varint::read_i32(bytes, at)?;
    if length < 0 {
        return (length == -1).then_some(None);
    }
    let start = *at;
    let length = usize::try_from(length).ok()?;
    if length > bytes.len() - start {
        return None;
    }
    *at = start + length;
    Some(Some(Span { start, end: start + length }))
}

fn read_header<'a>(
    bytes: &'a [u8],
    at: &mut usize,
) -> Result<(&'a str, Option<Span>), &'static str> {
    let key = read_span(bytes, at).flatten().ok_or("the key of a header is malformed")?;
    let key = std::str::from_utf8(&bytes[key.start..key.end])
        .map_err(|_| "the key of a header is not UTF-8")?;
    let value = read_span(bytes, at).ok_or("the value of a header is malformed")?;
    Ok((key, value))
}

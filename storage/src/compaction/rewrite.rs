//! One batch without the records that nobody needs any more.
//!
//! What is left keeps its offsets, timestamps, leader epoch, producer and codec. A batch never
//! disappears: emptied, it stays as a header that covers its offsets, so that the batches of a
//! segment follow each other without gaps before and after. Neighbours that are both empty become
//! one ([`merge_empty`]).
//!
//! A tombstone stays readable for a while after it did its work. When it is first seen, the moment
//! at which it may go is written into its batch as Kafka does: attribute bit 6 is set, and the base
//! timestamp, to which the records' timestamps are relative, is that moment.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use tidemark_protocol::{
    LeaderEpoch, Offset, TimestampMs,
    batch::{Batch, BatchError, BatchHeader, Record, TimestampType, crc32c},
    ids::NO_TIMESTAMP,
    limits,
};

use super::latest::LatestOffsets;

/// Attribute bit: the base timestamp is when the tombstones of this batch may go.
const DELETE_HORIZON_BIT: u16 = 0x40;

/// Transactional records of one producer that nobody may see who reads what was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortedRange {
    pub producer_id: i64,
    pub offsets: Range<Offset>,
}

/// Whether a batch is of a transaction that was aborted. A batch is of one transaction or of none.
pub(crate) fn is_aborted(aborted: &[AbortedRange], header: &BatchHeader) -> bool {
    let is_its = |one: &AbortedRange| {
        one.producer_id == header.producer_id && one.offsets.contains(&header.base_offset)
    };
    header.is_transactional() && !header.is_control() && aborted.iter().any(is_its)
}

/// What decides which records stay.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    pub latest: &'a LatestOffsets,
    /// Goes, whatever its keys are.
    pub aborted: &'a [AbortedRange],
    /// Records from here on were not looked at when `latest` was made.
    pub latest_end: Offset,
    /// Tombstones below have no older records left that they hide: they go when their time is up.
    pub cleaned_end: Offset,
    /// Tombstones from here on stay, whatever their time: somebody has yet to read them.
    pub removals_max: Offset,
    pub now_ms: TimestampMs,
    pub delete_retention_ms: TimestampMs,
}

/// A batch as it is to be stored.
#[derive(Debug)]
pub(crate) struct Rewritten {
    pub bytes: Bytes,
    pub changed: bool,
    pub tombstones: Tombstones,
}

/// What becomes of tombstones that nothing supersedes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tombstones {
    /// When the first of those may go whose time is not up.
    pub delete_horizon: Option<TimestampMs>,
    /// Behind the last one that went; 0 if none did.
    pub dropped_end: Offset,
    /// Behind the last one that stays although its time is up: all of them go at once, when they may.
    pub held_end: Option<Offset>,
}

impl Tombstones {
    /// Of both parts of a log.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            delete_horizon: self.delete_horizon.into_iter().chain(other.delete_horizon).min(),
            dropped_end: self.dropped_end.max(other.dropped_end),
            held_end: self.held_end.max(other.held_end),
        }
    }
}

/// Applies the rules to a batch.
pub(crate) fn rewrite(batch: &Batch, rules: &Rules<'_>) -> Result<Rewritten, BatchError> {
    let header = &batch.header;
    let same = |tombstones| Rewritten { bytes: batch.bytes().clone(), changed: false, tombstones };
    // Ends of transactions stay: a replica that reads the log from its start learns from them what was aborted.
    let is_kept = header.record_count == 0 || header.is_control();
    if is_kept || header.next_offset() > rules.latest_end {
        return Ok(same(Tombstones::default()));
    }
    if is_aborted(rules.aborted, header) {
        let bytes = encode(batch, &[], None)?.ok_or(BatchError::Header(TOO_LARGE))?;
        return Ok(Rewritten { bytes, changed: true, tombstones: Tombstones::default() });
    }
    let known_horizon =
        (header.attributes & DELETE_HORIZON_BIT != 0).then_some(header.base_timestamp);
    let end = header.next_offset();
    let expired =
        known_horizon.is_some_and(|horizon| horizon <= rules.now_ms) && end <= rules.cleaned_end;
    let goes = expired && end <= rules.removals_max;
    let mut kept = Vec::new();
    let mut has_tombstone = false;
    let mut dropped_end = 0;
    for record in batch.iter_records()? {
        let record = record?;
        let superseded =
            record.key.as_deref().is_some_and(|key| rules.latest.supersede(key, record.offset));
        let tombstone = record.key.is_some() && record.value.is_none();
        if superseded {
            continue;
        }
        if tombstone && goes {
            dropped_end = end;
            continue;
        }
        has_tombstone |= tombstone;
        kept.push(record);
    }
    let horizon = has_tombstone.then(|| {
        known_horizon.unwrap_or_else(|| rules.now_ms.saturating_add(rules.delete_retention_ms))
    });
    let tombstones = Tombstones {
        delete_horizon: horizon.filter(|_| !expired),
        dropped_end,
        held_end: (has_tombstone && expired).then_some(end),
    };
    let complete = kept.len() == header.record_count as usize;
    if complete && (horizon.is_none() || known_horizon.is_some()) {
        return Ok(same(tombstones));
    }
    if let Some(bytes) = encode(batch, &kept, known_horizon.or(horizon))? {
        return Ok(Rewritten { bytes, changed: true, tombstones });
    }
    // Timestamps too far from the horizon to be relative to it: its tombstones stay for good.
    if complete {
        return Ok(same(Tombstones::default()));
    }
    let bytes = encode(batch, &kept, known_horizon)?.ok_or(BatchError::Header(TOO_LARGE))?;
    Ok(Rewritten {
        bytes,
        changed: true,
        tombstones: Tombstones { delete_horizon: None, ..tombstones },
    })
}

const TOO_LARGE: &str = "without some of its records it is larger than a batch may be";

/// The batch with these records only. `None`: they do not fit a batch.
fn encode(
    batch: &Batch,
    records: &[Record],
    delete_horizon: Option<TimestampMs>,
) -> Result<Option<Bytes>, BatchError> {
    let header = &batch.header;
    let append_time = header.timestamp_type() == TimestampType::LogAppend;
    let base_timestamp = delete_horizon.unwrap_or(header.base_timestamp);
    let mut body = BytesMut::new();
    let mut max_timestamp = NO_TIMESTAMP;
    for record in records {
        max_timestamp = max_timestamp.max(record.timestamp_ms);
        let delta = if append_time {
            0
        } else {
            match record.timestamp_ms.checked_sub(base_timestamp) {
                Some(delta) => delta,
                None => return Ok(None),
            }
        };
        put_record(&mut body, record, delta, record.offset - header.base_offset);
    }
    let mut bytes = Vec::with_capacity(BatchHeader::BYTES + body.len());
    bytes.extend_from_slice(&batch.bytes()[..BatchHeader::BYTES]);
    if body.len() > limits::BATCH_DECOMPRESSED_BYTES_MAX {
        return Ok(None);
    }
    let mut attributes = header.attributes;
    if records.is_empty() {
        // No records, nothing to decompress: an empty batch is the same with every codec.
        attributes &= !CODEC_BITS;
    } else {
        header.compression().compress(&body, &mut bytes)?;
    }
    if bytes.len() > limits::BATCH_BYTES_MAX {
        return Ok(None);
    }
    if delete_horizon.is_some() {
        attributes |= DELETE_HORIZON_BIT;
    }
    let patch = Patch {
        attributes,
        last_offset_delta: header.last_offset_delta,
        base_timestamp,
        max_timestamp: if append_time { header.max_timestamp } else { max_timestamp },
        record_count: u32::try_from(records.len()).expect("no more than there were"),
    };
    patch.apply(&mut bytes);
    Ok(Some(bytes.into()))
}

const CODEC_BITS: u16 = 0x07;

/// One empty batch for two that follow each other, if both are empty and nothing else they say
/// would be lost. The producer of an emptied batch is forgotten here.
pub(crate) fn merge_empty(first: &BatchHeader, second: &BatchHeader) -> Option<Bytes> {
    let mergeable = |header: &BatchHeader| header.record_count == 0 && !header.is_control();
    let last_offset_delta =
        u32::try_from(second.last_offset().checked_sub(first.base_offset)?).ok()?;
    if !mergeable(first)
        || !mergeable(second)
        || first.leader_epoch != second.leader_epoch
        || first.next_offset() != second.base_offset
        || last_offset_delta >= i32::MAX.cast_unsigned()
    {
        return None;
    }
    Some(empty(first.base_offset, first.leader_epoch, last_offset_delta))
}

/// What is left of an empty batch from `offset` on, if that is inside it. A follower whose log ends between two batches
/// that its leader has emptied and merged meanwhile goes on with this.
pub(crate) fn cut_empty(header: &BatchHeader, offset: Offset) -> Option<Batch> {
    let is_inside = header.base_offset < offset && offset < header.next_offset();
    if header.record_count > 0 || header.is_control() || !is_inside {
        return None;
    }
    let last_offset_delta = u32::try_from(header.last_offset() - offset).ok()?;
    Batch::parse(&mut empty(offset, header.leader_epoch, last_offset_delta)).ok()
}

fn empty(base_offset: Offset, leader_epoch: LeaderEpoch, last_offset_delta: u32) -> Bytes {
    let mut bytes = vec![0; BatchHeader::BYTES];
    bytes[0..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    bytes[16] = 2;
    // No producer: -1 in all three fields.
    bytes[43..57].fill(0xff);
    let patch = Patch {
        attributes: 0,
        last_offset_delta,
        base_timestamp: NO_TIMESTAMP,
        max_timestamp: NO_TIMESTAMP,
        record_count: 0,
    };
    patch.apply(&mut bytes);
    bytes.into()
}

/// The fields of a header that change, and the two that follow from the rest.
struct Patch {
    attributes: u16,
    last_offset_delta: u32,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
    record_count: u32,
}

impl Patch {
    fn apply(&self, batch: &mut [u8]) {
        let length = u32::try_from(batch.len() - LENGTH_EXCLUDES).expect("checked before");
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        batch[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        batch[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        batch[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        batch[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        let crc = crc32c(&batch[CRC_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
}

/// What a batch's length field does not count: the base offset and itself.
const LENGTH_EXCLUDES: usize = 12;
/// Where what the CRC covers begins: the attributes.
const CRC_FROM: usize = 21;

fn put_record(out: &mut BytesMut, record: &Record, timestamp_delta: i64, offset_delta: u64) {
    let mut body = BytesMut::with_capacity(
        32 + record.key.as_ref().map_or(0, Bytes::len)
            + record.value.as_ref().map_or(0, Bytes::len),
    );
    // One byte of attributes, none of them in use.
    body.put_u8(0);
    put_varint(&mut body, timestamp_delta);
    put_varint(&mut body, offset_delta.cast_signed());
    put_optional(&mut body, record.key.as_deref());
    put_optional(&mut body, record.value.as_deref());
    put_varint(&mut body, signed(record.headers.len()));
    for header in &record.headers {
        put_optional(&mut body, Some(header.key.as_bytes()));
        put_optional(&mut body, header.value.as_deref());
    }
    put_varint(out, signed(body.len()));
    out.put_slice(&body);
}

fn put_optional(out: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |bytes| signed(bytes.len())));
    out.put_slice(bytes.unwrap_or_default());
}

/// Zigzag, then groups of seven bits, lowest first.
fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.put_u8(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest.to_le_bytes()[0]);
}

fn signed(len: usize) -> i64 {
    i64::try_from(len).expect("no slice is longer than isize::MAX")
}

#[cfg(test)]
mod tests {
    use tidemark_protocol::batch::{BatchBuilder, Compression, RecordHeader, stamp};

    use super::*;

    const NOW: TimestampMs = 1_000_000;

    /// Offsets from 100: a=1, b=2, (no key)=3, a=tombstone, c=4.
    fn batch(codec: Compression) -> Batch {
        let mut builder = BatchBuilder::new(codec).with_producer(7, 1, 50);
        let header = RecordHeader { key: "h".to_owned(), value: Some(Bytes::from_static(b"v")) };
        builder.push(10, Some(b"a"), Some(b"1"), &[]);
        builder.push(11, Some(b"b"), Some(b"2"), std::slice::from_ref(&header));
        builder.push(12, None, Some(b"3"), &[]);
        builder.push(13, Some(b"a"), None, &[]);
        builder.push(14, Some(b"c"), Some(b"4"), &[]);
        let mut bytes = builder.build().unwrap().to_vec();
        stamp(&mut bytes, 100, 3);
        parse(bytes.into())
    }

    fn parse(mut bytes: Bytes) -> Batch {
        let batch = Batch::parse(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        batch.verify_crc().unwrap();
        batch
    }

    fn rules(latest: &LatestOffsets, now_ms: TimestampMs, cleaned_end: Offset) -> Rules<'_> {
        let (latest_end, delete_retention_ms) = (1000, 500);
        let removals_max = Offset::MAX;
        Rules {
            latest,
            aborted: &[],
            latest_end,
            cleaned_end,
            removals_max,
            now_ms,
            delete_retention_ms,
        }
    }

    fn noted(keys: &[(&str, Offset)]) -> LatestOffsets {
        let mut latest = LatestOffsets::new(100);
        for (key, offset) in keys {
            assert!(latest.note(key.as_bytes(), *offset));
        }
        latest
    }

    #[test]
    fn superseded_records_go_and_the_rest_stays_as_it_was() {
        for codec in Compression::ALL {
            let original = batch(codec);
            let latest = noted(&[("a", 103), ("b", 101), ("c", 200)]);
            let out = rewrite(&original, &rules(&latest, NOW, 0)).unwrap();
            assert!(out.changed);
            assert_eq!(out.tombstones.delete_horizon, Some(NOW + 500));
            let smaller = parse(out.bytes);
            let expected: Vec<_> = original
                .records()
                .unwrap()
                .into_iter()
                .filter(|record| [101, 102, 103].contains(&record.offset))
                .collect();
            assert_eq!(smaller.records().unwrap(), expected, "{codec:?}");
            let (old, new) = (original.header, smaller.header);
            assert_eq!(new.next_offset(), old.next_offset());
            assert_eq!((new.base_offset, new.leader_epoch), (old.base_offset, old.leader_epoch));
            assert_eq!(
                (new.producer_id, new.producer_epoch, new.base_sequence),
                (old.producer_id, old.producer_epoch, old.base_sequence)
            );
            assert_eq!(new.compression(), codec);
            assert_eq!(new.max_timestamp, 13);
        }
    }

    #[test]
    fn a_tombstone_goes_after_its_horizon_and_only_where_nothing_older_is_left() {
        let latest = noted(&[]);
        let first =
            parse(rewrite(&batch(Compression::None), &rules(&latest, NOW, 0)).unwrap().bytes);
        let count = |now_ms, cleaned_end| {
            let out = rewrite(&first, &rules(&latest, now_ms, cleaned_end)).unwrap();
            parse(out.bytes).records().unwrap().len()
        };
        assert_eq!(count(NOW + 499, 1000), 5, "too early");
        assert_eq!(count(NOW + 500, 104), 5, "what is in front of it may not be clean");
        assert_eq!(count(NOW + 500, 105), 4);
        let later = rewrite(&first, &rules(&latest, NOW + 100, 0)).unwrap();
        assert!(!later.changed, "the horizon is set once");
        assert_eq!(later.tombstones.delete_horizon, Some(NOW + 500));
    }

    #[test]
    fn an_emptied_batch_covers_its_offsets_and_merges_with_its_neighbour() {
        let mut builder = BatchBuilder::new(Compression::Zstd);
        builder.push(5, Some(b"a"), Some(b"1"), &[]);
        builder.push(5, Some(b"a"), Some(b"2"), &[]);
        let mut bytes = builder.build().unwrap().to_vec();
        stamp(&mut bytes, 98, 3);
        let latest = noted(&[("a", 103), ("b", 300), ("c", 300)]);
        let out = rewrite(&parse(bytes.into()), &rules(&latest, NOW, 0)).unwrap();
        assert_eq!(out.bytes.len(), BatchHeader::BYTES);
        let empty = parse(out.bytes);
        assert_eq!(empty.records().unwrap(), []);
        assert_eq!((empty.header.base_offset, empty.header.next_offset()), (98, 100));

        let mut second = empty.bytes().to_vec();
        stamp(&mut second, 100, 3);
        let second = parse(second.into());
        let merged = parse(merge_empty(&empty.header, &second.header).unwrap());
        assert_eq!((merged.header.base_offset, merged.header.next_offset()), (98, 102));
        assert_eq!(merged.records().unwrap(), []);

        let mut other_epoch = second.bytes().to_vec();
        stamp(&mut other_epoch, 100, 4);
        assert!(merge_empty(&empty.header, &parse(other_epoch.into()).header).is_none());
        assert!(merge_empty(&empty.header, &batch(Compression::None).header).is_none());
    }

    #[test]
    fn what_was_not_looked_at_is_not_touched() {
        let latest = noted(&[("a", 300), ("b", 300), ("c", 300)]);
        let beyond = Rules { latest_end: 104, ..rules(&latest, NOW, 0) };
        let out = rewrite(&batch(Compression::None), &beyond).unwrap();
        assert!(!out.changed);
        assert_eq!(out.bytes, batch(Compression::None).bytes());
    }

    #[test]
    fn what_was_aborted_goes_and_the_end_of_its_transaction_stays() {
        let latest = LatestOffsets::new(10);
        let part = |producer_id, is_control| {
            let mut builder =
                BatchBuilder::new(Compression::None).with_producer(producer_id, 1, 50);
            builder.set_transactional();
            let mut builder = if is_control { builder.into_control() } else { builder };
            builder.push(NOW, Some(b"k"), Some(b"v"), &[]);
            Batch::parse(&mut builder.build().unwrap()).unwrap()
        };
        let aborted = [AbortedRange { producer_id: 7, offsets: 0..1 }];
        let rules = Rules { aborted: &aborted, ..rules(&latest, NOW, 0) };
        for (producer_id, is_control, records) in [(7, false, 0), (7, true, 1), (8, false, 1)] {
            let out = rewrite(&part(producer_id, is_control), &rules).unwrap();
            let out = Batch::parse(&mut out.bytes.clone()).unwrap();
            out.verify_crc().unwrap();
            assert_eq!(out.header.record_count, records);
            assert_eq!((out.header.producer_id, out.header.base_sequence), (producer_id, 50));
        }
    }
}

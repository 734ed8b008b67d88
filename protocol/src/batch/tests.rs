//! Batches: against bytes laid out by hand, round trips, and hostile bytes.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{compression::CompressionError, ids::NO_TIMESTAMP, limits};

const EPOCH_MS: i64 = 1_700_000_000_000;

fn header(key: &str, value: Option<&'static [u8]>) -> RecordHeader {
    RecordHeader { key: key.to_owned(), value: value.map(Bytes::from_static) }
}

fn three_records(compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    builder.push(EPOCH_MS, Some(b"k"), Some(b"v"), &[]);
    builder.push(EPOCH_MS - 5, None, Some(b""), &[header("h", None), header("h", Some(b"x"))]);
    builder.push(EPOCH_MS + 7, Some(b""), None, &[]);
    builder.build().unwrap()
}

fn parse(bytes: &Bytes) -> Result<Batch, BatchError> {
    Batch::parse(&mut bytes.clone())
}

/// The batch after `change`, with its CRC made right again.
fn altered(batch: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.to_vec();
    change(&mut bytes);
    let crc = crc32c(&bytes[BatchHeader::CRC_FROM..]);
    bytes[BatchHeader::CRC_AT..BatchHeader::CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

fn validated(bytes: &Bytes) -> Result<(), BatchError> {
    parse(bytes)?.validate_for_append(limits::BATCH_BYTES_MAX)
}

/// A batch whose records section is `records`, and whose count says `count`.
fn with_records(compression: Compression, records: &[u8], count: u32) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, None, &[]);
    let head = builder.build().unwrap().slice(..BatchHeader::BYTES);
    altered(&head, |bytes| {
        compression.compress(records, bytes).unwrap();
        let length = u32::try_from(bytes.len() - BatchHeader::LENGTH_EXCLUDES).unwrap();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[22] = compression.code();
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
    })
}

#[test]
fn a_batch_has_the_bytes_of_kafka_s_layout() {
    let mut builder =
        BatchBuilder::new(Compression::None).with_producer(0x0102_0304_0506_0708, 9, 10);
    builder.push(EPOCH_MS, Some(b"key"), Some(b"value"), &[header("h", Some(b"x"))]);
    builder.push(EPOCH_MS + 100, None, None, &[]);
    let batch = builder.build().unwrap();
    let mut expected = vec![0; 8];
    expected.extend(76_u32.to_be_bytes());
    expected.extend([0xff; 4]);
    expected.push(2);
    // Computed with an independent implementation of CRC-32C over what follows.
    expected.extend(0xf103_72e4_u32.to_be_bytes());
    expected.extend([0, 0]);
    expected.extend(1_u32.to_be_bytes());
    expected.extend(EPOCH_MS.to_be_bytes());
    expected.extend((EPOCH_MS + 100).to_be_bytes());
    expected.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 0, 0, 10]);
    expected.extend(2_u32.to_be_bytes());
    // length 18, attributes, deltas 0 and 0, key of 3, value of 5, 1 header
    expected.extend(b"\x24\x00\x00\x00\x06key\x0avalue\x02\x02h\x02x");
    // length 7, attributes, deltas 100 and 1, no key, no value, no headers
    expected.extend(b"\x0e\x00\xc8\x01\x02\x01\x01\x00");
    assert_eq!(batch, expected);
}

#[test]
fn the_crc_is_castagnoli_s() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(b""), 0);
}

#[test]
fn records_come_back_as_they_were_pushed_with_every_codec() {
    for compression in Compression::ALL {
        let batch = parse(&three_records(compression)).unwrap();
        batch.validate_for_append(limits::BATCH_BYTES_MAX).unwrap();
        assert_eq!(batch.header.compression(), compression);
        assert_eq!(
            (batch.header.base_timestamp, batch.header.max_timestamp),
            (EPOCH_MS, EPOCH_MS + 7)
        );
        let records = batch.records().unwrap();
        let record =
            |offset, timestamp_ms, key: Option<&'static str>, value: Option<&'static str>| Record {
                offset,
                timestamp_ms,
                key: key.map(Bytes::from),
                value: value.map(Bytes::from),
                headers: Vec::new(),
            };
        let headers = vec![header("h", None), header("h", Some(b"x"))];
        assert_eq!(
            records,
            [
                record(0, EPOCH_MS, Some("k"), Some("v")),
                Record { headers, ..record(1, EPOCH_MS - 5, None, Some("")) },
                record(2, EPOCH_MS + 7, Some(""), None),
            ]
        );
    }
}

/// Batches that kafka-python has built are among the seeds of the fuzzer.
#[test]
fn batches_of_another_implementation_are_accepted_and_read_with_every_codec() {
    for compression in Compression::ALL {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/batch");
        let bytes = std::fs::read(dir.join(format!("kafka-python-{compression}"))).unwrap();
        let batch = parse(&bytes.into()).unwrap();
        assert_eq!(batch.header.compression(), compression);
        batch.validate_for_append(limits::BATCH_BYTES_MAX).unwrap();
        let records = batch.records().unwrap();
        assert_eq!(records.len(), 50);
        let last = &records[49];
        assert_eq!((last.offset, last.timestamp_ms), (49, EPOCH_MS + 49));
        assert_eq!(last.key.as_deref(), Some(&b"key-1"[..]));
        assert!(last.value.as_ref().unwrap().ends_with(b"repeats 49"));
        assert_eq!(last.headers, [header("trace", Some(b"x"))]);
    }
}

#[test]
fn keys_and_values_of_an_uncompressed_batch_are_slices_of_it() {
    let bytes = three_records(Compression::None);
    let batch = parse(&bytes).unwrap();
    let value = batch.records().unwrap()[0].value.clone().unwrap();
    assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
}

#[test]
fn a_stamp_moves_the_records_and_leaves_the_crc_right() {
    let mut bytes = three_records(Compression::None).to_vec();
    stamp(&mut bytes, 1_000, 7);
    let batch = parse(&bytes.into()).unwrap();
    batch.verify_crc().unwrap();
    assert_eq!((batch.header.base_offset, batch.header.leader_epoch), (1_000, 7));
    assert_eq!((batch.header.last_offset(), batch.header.next_offset()), (1_002, 1_003));
    assert_eq!(batch.records().unwrap()[2].offset, 1_002);
}

#[test]
fn batches_in_a_row_are_told_apart_and_a_torn_one_ends_the_row() {
    let one = three_records(Compression::None);
    let mut row = one.to_vec();
    row.extend_from_slice(&one);
    row.extend_from_slice(&one[..one.len() - 1]);
    let seen: Vec<_> = batches(row.into()).collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[1].as_ref().unwrap().bytes(), &one);
    assert!(matches!(seen[2], Err(BatchError::Truncated { .. })), "{:?}", seen[2]);
    assert_eq!(batches(Bytes::new()).count(), 0);
}

#[test]
fn any_flipped_bit_under_the_crc_is_noticed() {
    let good = three_records(Compression::None);
    for at in BatchHeader::CRC_AT..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << bit;
            assert!(validated(&bad.into()).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_header_that_contradicts_its_records_or_itself_is_refused() {
    let good = three_records(Compression::None);
    validated(&good).unwrap();
    let set = |at: usize, bytes: &'static [u8]| {
        altered(&good, |batch| batch[at..at + bytes.len()].copy_from_slice(bytes))
    };
    for (why, bad) in [
        ("control batch", set(22, &[0x20])),
        ("append time", set(22, &[0x08])),
        ("transaction without a producer", set(22, &[0x10])),
        ("reserved bit", set(21, &[0x80])),
        ("delete horizon", set(22, &[0x40])),
        ("unknown codec", set(22, &[5])),
        ("last offset delta too low", set(23, &[0, 0, 0, 1])),
        ("last offset delta too high", set(23, &[0, 0, 0, 3])),
        ("negative last offset delta", set(23, &[0xff, 0xff, 0xff, 0xff])),
        ("negative base timestamp", set(27, &[0xff, 0, 0, 0, 0, 0, 0, 0])),
        ("largest timestamp of no record", set(35, &[0x7f])),
        ("negative producer id", set(43, &[0x80])),
        ("producer id without an epoch", set(43, &[0, 0, 0, 0, 0, 0, 0, 1])),
        ("no records", set(57, &[0, 0, 0, 0])),
        ("fewer records than there are", set(57, &[0, 0, 0, 2])),
        ("negative record count", set(57, &[0xff, 0xff, 0xff, 0xff])),
        ("magic 1", set(16, &[1])),
        ("length of less than a header", set(8, &[0, 0, 0, 48])),
        ("length beyond the end", set(8, &[0, 0, 1, 0])),
        ("negative length", set(8, &[0xff, 0xff, 0xff, 0xff])),
        ("base offset without room", set(0, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe])),
    ] {
        let refused = validated(&bad);
        assert!(
            matches!(refused, Err(ref error) if !matches!(error, BatchError::Crc { .. })),
            "{why}: {refused:?}"
        );
    }
    let error = parse(&good).unwrap().validate_for_append(good.len() - 1).unwrap_err();
    assert_eq!(error.code(), ErrorCode::BatchTooLarge);
}

#[test]
fn a_length_is_too_large_or_negative_and_each_has_its_code() {
    let code = |length: i32| {
        let mut bytes = three_records(Compression::None).to_vec();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        BatchHeader::parse(&bytes).unwrap_err().code()
    };
    assert_eq!(code(-1), ErrorCode::InvalidBatch);
    assert_eq!(code(i32::MIN), ErrorCode::InvalidBatch);
    assert_eq!(code(i32::MAX), ErrorCode::BatchTooLarge);
    assert_eq!(code(48), ErrorCode::InvalidBatch);
}

/// What Kafka's clients write, and tolerate.
#[test]
fn a_base_timestamp_of_no_record_and_record_attributes_are_accepted_and_read() {
    let odd = altered(&three_records(Compression::None), |bytes| {
        bytes[27..35].copy_from_slice(&(EPOCH_MS - 1).to_be_bytes());
        bytes[35..43].copy_from_slice(&(EPOCH_MS + 6).to_be_bytes());
        // Behind the length of the first record.
        bytes[BatchHeader::BYTES + 1] = 0xff;
    });
    validated(&odd).unwrap();
    let read = parse(&odd).unwrap().records().unwrap();
    assert_eq!(read[0].timestamp_ms, EPOCH_MS - 1);
    assert_eq!(read[2].timestamp_ms, EPOCH_MS + 6);
}

#[test]
fn a_header_may_claim_as_many_records_as_the_limit_and_no_more() {
    let claims = |count: u32| {
        let mut bytes = three_records(Compression::None).to_vec();
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        BatchHeader::parse(&bytes)
    };
    claims(limits::BATCH_RECORDS_MAX).unwrap();
    assert!(matches!(claims(limits::BATCH_RECORDS_MAX + 1), Err(BatchError::Header(_))));
}

#[test]
fn malformed_records_are_refused_whether_compressed_or_not() {
    // length, attributes, timestamp delta, offset delta, key, value, header count
    const GOOD: &[u8] = &[12, 0, 0, 0, 1, 1, 0];
    for compression in Compression::ALL {
        let judge = |records: &[u8], count| validated(&with_records(compression, records, count));
        judge(GOOD, 1).unwrap();
        for (why, records, count) in [
            ("left over", &[12, 0, 0, 0, 1, 1, 0, 0][..], 1),
            ("cut off", &GOOD[..6], 1),
            ("one too few", GOOD, 2),
            ("repeated offset", &[12, 0, 0, 0, 1, 1, 0, 12, 0, 0, 0, 1, 1, 0], 2),
            ("skipped offset", &[12, 0, 0, 2, 1, 1, 0], 1),
            ("negative length", &[11, 0, 0, 0, 1, 1, 0], 1),
            ("empty record", &[0], 1),
            ("longer than its fields", &[14, 0, 0, 0, 1, 1, 0, 0], 1),
            ("record inside a record", &[26, 0, 0, 0, 1, 1, 0, 12, 0, 0, 2, 1, 1, 0], 2),
            ("shorter than its fields", &[10, 0, 0, 0, 1, 1, 0], 1),
            ("key beyond the record", &[12, 0, 0, 0, 20, 1, 0], 1),
            ("key of length -2", &[12, 0, 0, 0, 3, 1, 0], 1),
            ("negative header count", &[12, 0, 0, 0, 1, 1, 1], 1),
            ("header without a key", &[16, 0, 0, 0, 1, 1, 2, 1, 1], 1),
            ("too many headers", &[16, 0, 0, 0, 1, 1, 0x82, 0x10, 0], 1),
            ("header key that is not UTF-8", &[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1], 1),
            ("timestamp below zero", &[12, 0, 3, 0, 1, 1, 0], 1),
        ] {
            let refused = judge(records, count);
            assert!(refused.is_err(), "{compression}: {why}");
        }
    }
}

#[test]
fn a_batch_may_say_that_it_has_no_timestamps() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(NO_TIMESTAMP, None, Some(b"v"), &[]);
    validated(&builder.build().unwrap()).unwrap();
}

#[test]
fn a_compacted_batch_keeps_its_gaps_and_may_be_empty() {
    let records = [12, 0, 0, 4, 1, 1, 0];
    let gaps = altered(&with_records(Compression::None, &records, 1), |bytes| bytes[26] = 9);
    let batch = parse(&gaps).unwrap();
    assert_eq!(batch.records().unwrap()[0].offset, 2);
    assert_eq!(batch.header.next_offset(), 10);
    assert!(batch.validate_for_append(limits::BATCH_BYTES_MAX).is_err(), "not from a producer");

    let empty = altered(&with_records(Compression::None, &[], 1), |bytes| bytes[60] = 0);
    assert_eq!(parse(&empty).unwrap().records().unwrap(), []);
}

#[test]
fn append_time_holds_for_every_record() {
    let stamped = altered(&three_records(Compression::Lz4), |bytes| bytes[22] |= 0x08);
    let records = parse(&stamped).unwrap().records().unwrap();
    assert!(records.iter().all(|record| record.timestamp_ms == EPOCH_MS + 7));
}

#[test]
fn a_builder_refuses_what_no_reader_would_accept() {
    assert!(BatchBuilder::new(Compression::None).build().is_err(), "empty");
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, Some(&vec![0; limits::BATCH_BYTES_MAX]), &[]);
    assert_eq!(builder.build().unwrap_err().code(), ErrorCode::BatchTooLarge);
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, None, &vec![header("h", None); limits::RECORD_HEADERS_MAX + 1]);
    assert!(builder.build().is_err(), "too many headers");
}

#[test]
fn a_builder_tells_its_size() {
    let mut builder = BatchBuilder::new(Compression::None);
    assert!(builder.is_empty());
    assert_eq!(builder.push(0, None, Some(b"v"), &[]), 0);
    assert_eq!(builder.push(0, None, Some(b"v"), &[]), 1);
    assert_eq!(builder.record_count(), 2);
    let estimated = builder.estimated_bytes();
    assert_eq!(builder.build().unwrap().len(), estimated);
}

#[test]
fn a_compressed_batch_that_expands_beyond_bounds_is_refused() {
    // A record of zeros, a little too long: every codec makes a small batch of it.
    let zeros = vec![0; limits::BATCH_DECOMPRESSED_BYTES_MAX + 1];
    for compression in [Compression::Gzip, Compression::Lz4, Compression::Zstd, Compression::Snappy]
    {
        let bomb = with_records(compression, &zeros, 1);
        let refused = validated(&bomb);
        assert!(
            matches!(refused, Err(BatchError::Compression(CompressionError::TooLarge { .. }))),
            "{compression}: {refused:?}"
        );
        assert!(parse(&bomb).unwrap().records().is_err());
    }
}

type Pushed = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn pushed() -> impl Strategy<Value = Pushed> {
    let bytes = || option::of(vec(any::<u8>(), 0..200));
    (0..i64::MAX / 2, bytes(), bytes(), vec((".{0,9}", bytes()), 0..4))
}

fn codec() -> impl Strategy<Value = Compression> {
    proptest::sample::select(&Compression::ALL[..])
}

fn build(compression: Compression, records: &[Pushed]) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for (timestamp, key, value, headers) in records {
        let headers: Vec<_> = headers
            .iter()
            .map(|(key, value)| RecordHeader {
                key: key.clone(),
                value: value.clone().map(Bytes::from),
            })
            .collect();
        builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build().unwrap()
}

/// Reads `bytes` in every way there is; only panics matter.
fn read_everything(bytes: &Bytes) {
    for batch in batches(bytes.clone()).flatten() {
        drop(batch.validate_for_append(limits::BATCH_BYTES_MAX));
        drop(batch.records());
    }
}

proptest! {
    #[test]
    fn whatever_is_pushed_comes_back(compression in codec(), records in vec(pushed(), 1..40)) {
        let batch = parse(&build(compression, &records)).unwrap();
        batch.validate_for_append(limits::BATCH_BYTES_MAX).unwrap();
        let read = batch.records().unwrap();
        prop_assert_eq!(read.len(), records.len());
        for (index, (read, (timestamp, key, value, headers))) in read.iter().zip(&records).enumerate() {
            prop_assert_eq!(read.offset, index as u64);
            prop_assert_eq!(read.timestamp_ms, *timestamp);
            prop_assert_eq!(read.key.as_deref(), key.as_deref());
            prop_assert_eq!(read.value.as_deref(), value.as_deref());
            let read: Vec<_> = read.headers.iter().map(|h| (h.key.clone(), h.value.as_ref().map(|v| v.to_vec()))).collect();
            prop_assert_eq!(&read, headers);
        }
    }

    #[test]
    fn random_bytes_are_refused_or_read_but_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        read_everything(&bytes.into());
    }

    #[test]
    fn mutated_batches_are_refused_or_read_but_never_panic(
        compression in codec(),
        records in vec(pushed(), 1..8),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        repair: bool,
    ) {
        let good = build(compression, &records);
        let change = |bytes: &mut Vec<u8>| {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        };
        let bad = if repair {
            altered(&good, change)
        } else {
            let mut bytes = good.to_vec();
            change(&mut bytes);
            bytes.into()
        };
        read_everything(&bad);
    }
}

#[test]
fn a_batch_with_another_producer_is_the_same_batch_otherwise() {
    let pushed = vec![(5, None, Some(b"a".to_vec()), Vec::new())];
    for compression in Compression::ALL {
        let before = build(compression, &pushed);
        let batch = parse(&with_producer(&before, 9, 2, i32::MAX)).unwrap();
        batch.validate_for_append(limits::BATCH_BYTES_MAX).unwrap();
        let header = batch.header;
        assert_eq!((header.producer_id, header.producer_epoch), (9, 2));
        assert_eq!(header.base_sequence, i32::MAX);
        assert_eq!(batch.records().unwrap(), parse(&before).unwrap().records().unwrap());
    }
}

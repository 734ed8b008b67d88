//! What hostile bytes may cost in memory, measured as the kernel counts it. One test, so that nothing else
//! runs in the process meanwhile.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;

use bytes::{Bytes, BytesMut};
use tidemark_protocol::{
    Compression, Failure,
    batch::{Batch, BatchBuilder},
    frame::FrameDecoder,
    limits, messagepack,
    messages::{
        AlterTopicRequest, FetchRequest, MetadataRequest, MetadataResponse, ProduceResponse,
    },
};

const MIB: usize = 1 << 20;

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: usize = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    kib * 1024
}

/// Runs `work`; fails when it made the process grow by more than `bytes_max` on the way.
fn costs_at_most(bytes_max: usize, what: &str, work: impl FnOnce()) {
    // Makes the kernel forget the peak so far.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status_bytes("VmRSS:");
    work();
    let grown = status_bytes("VmHWM:").saturating_sub(before);
    assert!(grown <= bytes_max, "{what}: {grown} bytes, at most {bytes_max}");
}

#[test]
fn hostile_bytes_cost_no_more_memory_than_their_bounds() {
    frames();
    headers();
    batches();
}

fn frames() {
    costs_at_most(20 * MIB, "a hundred claims of 64 MiB", || {
        let claims = (0..100).map(|_| {
            let mut buffer = BytesMut::from(&[4, 0, 0, 0][..]);
            let frame = FrameDecoder::new(limits::FRAME_BYTES_MAX).decode(&mut buffer);
            assert_eq!(frame, Ok(None));
            // Resident, not only reserved.
            buffer.resize(buffer.capacity(), 1);
            buffer
        });
        assert_eq!(claims.collect::<Vec<_>>().len(), 100);
    });
}

/// `head`, then `filler` over and over until a header is as long as it may be.
fn filled(head: &[u8], filler: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    while bytes.len() + filler.len() <= limits::HEADER_BYTES_MAX {
        bytes.extend_from_slice(filler);
    }
    bytes
}

fn headers() {
    let (few, many) = (limits::REQUEST_PARTITIONS_MAX, limits::TOPIC_PARTITIONS_MAX as usize);
    // An array of 2^32 - 1 elements, as it claims.
    let endless = [0xdd, 0xff, 0xff, 0xff, 0xff];
    let list = |filler: &[u8]| filled(&[&[0x92][..], &endless].concat(), filler);
    let empty_strings = list(&[0xa0]);
    costs_at_most(2 * MIB, "a request that is a list of empty strings", || {
        assert!(messagepack::decode::<MetadataRequest>(&empty_strings, few).is_err());
    });
    let fetches = filled(&[&[0x94, 0, 0, 0][..], &endless].concat(), &[0x94, 0x92, 0xc4, 16]);
    costs_at_most(2 * MIB, "a request that is a list of partitions cut short", || {
        assert!(messagepack::decode::<FetchRequest>(&fetches, few).is_err());
    });
    let map = filled(&[0x95, 0xa1, b'n', 0xdf, 0xff, 0xff, 0xff, 0xff], &[0xa1, b'k', 0xa1, b'v']);
    costs_at_most(4 * MIB, "a request that is a map of settings", || {
        assert!(messagepack::decode::<AlterTopicRequest>(&map, few).is_err());
    });
    let unknown = filled(&[&[0x93, 0xc0, 0x90][..], &endless].concat(), &[0x90]);
    costs_at_most(MIB, "an unknown field with millions of lists in it", || {
        assert!(messagepack::decode::<MetadataRequest>(&unknown, few).is_err());
    });
    // {"Ok": [[{"Err": [1, ""]}, …]]}
    let failure = [0x81, 0xa3, b'E', b'r', b'r', 0x92, 0x01, 0xa0];
    let failures = filled(&[&[0x81, 0xa2, b'O', b'k', 0x91][..], &endless].concat(), &failure);
    costs_at_most(32 * MIB, "an answer full of failures", || {
        let read = messagepack::decode::<Result<ProduceResponse, Failure>>(&failures, many);
        assert!(read.is_err());
    });
    // Topics without a name, each as short as it can be.
    let head = [&[0x81, 0xa2, b'O', b'k', 0x96, 0xa0, 0xc0, 1, 0, 0x90][..], &endless].concat();
    let topic = [&[0x94, 0xa0, 0xc4, 16][..], &[0; 16], &[0x90, 0x80]].concat();
    let topics = filled(&head, &topic);
    costs_at_most(48 * MIB, "an answer full of topics", || {
        let read = messagepack::decode::<Result<MetadataResponse, Failure>>(&topics, many);
        assert!(read.is_err());
    });
}

fn batches() {
    // Zeros just over the limit.
    let zeros = vec![0; limits::BATCH_DECOMPRESSED_BYTES_MAX + 1];
    for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let mut bomb = Vec::new();
        codec.compress(&zeros, &mut bomb).unwrap();
        let bomb = Bytes::from(bomb);
        // A window and a block beside what was produced.
        let bound = limits::BATCH_DECOMPRESSED_BYTES_MAX + 24 * MIB;
        costs_at_most(bound, codec.name(), || {
            let refused = codec.decompress(&bomb, limits::BATCH_DECOMPRESSED_BYTES_MAX);
            assert!(refused.is_err());
        });
    }
    drop(zeros);
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, None, None, &[]);
    let mut claims_many = builder.build().unwrap().to_vec();
    claims_many[23..27].copy_from_slice(&(limits::BATCH_RECORDS_MAX - 1).to_be_bytes());
    claims_many[57..61].copy_from_slice(&limits::BATCH_RECORDS_MAX.to_be_bytes());
    let batch = Batch::parse(&mut claims_many.into()).unwrap();
    costs_at_most(MIB, "a batch that claims a million records", || {
        assert!(batch.records().is_err());
    });
}

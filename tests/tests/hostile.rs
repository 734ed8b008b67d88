//! Bytes that no friend sends: every one gets a clear error or a closed connection, and costs nobody else anything.
//!
//! Each test ends by producing and fetching over another connection: the broker lives, and what it acknowledged is there.

use std::io::Write as _;

use anyhow::{Context, Result};
use bytes::BytesMut;
use tidemark_protocol::{
    ErrorCode, Failure, TopicPartition,
    batch::{BatchBuilder, BatchHeader, Compression, crc32c},
    frame::{FrameKind, Preface, encode_head},
    limits::FRAME_BYTES_MAX,
    message::{Api, Request},
    messages::{FetchRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest},
};
use tidemark_tests::{
    process::{Broker, BrokerConfig},
    raw::{Raw, TIMESTAMP_MS, batch, produce_request},
};

/// A broker with one topic, and the promise to check on it at the end.
struct Fixture {
    broker: Broker,
    partition: TopicPartition,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = BrokerConfig::new(dir.path())?.start()?;
        let partition = Raw::open(&broker)?.create_topic("victim", 1, &[])?[0];
        Raw::open(&broker)?.produce(partition, &batch(&[b"before"]))??;
        Ok(Self { broker, partition, _dir: dir })
    }

    fn raw(&self) -> Result<Raw> {
        Raw::open(&self.broker)
    }

    /// What was acknowledged before is there, and more can be added.
    fn check(&self) -> Result<()> {
        let mut raw = self.raw()?;
        let receipt = raw.produce(self.partition, &batch(&[b"after"]))??;
        let (fetched, payload) = raw.fetch(self.partition, 0)??;
        assert_eq!(fetched.high_watermark, receipt.base_offset + 1);
        let first = tidemark_protocol::batch::batches(payload).next().context("a batch")??;
        first.verify_crc()?;
        assert_eq!(
            first.records()?.first().and_then(|r| r.value.clone()).as_deref(),
            Some(&b"before"[..])
        );
        Ok(())
    }

    /// Sends one produce with these bytes as its batches and returns the refusal.
    fn refused(&self, batches: &[u8]) -> Result<Failure> {
        let outcome = self.raw()?.produce(self.partition, batches)?;
        outcome.err().context("the broker took it")
    }
}

/// Deterministic noise (xorshift), so that a failure repeats.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[test]
fn bytes_of_another_protocol_close_the_connection() -> Result<()> {
    let fixture = Fixture::start()?;
    for opening in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01",
        b"TIDX\0\x01\0\x01",
    ] {
        let mut raw = Raw::open_silent(&fixture.broker)?;
        raw.send(opening)?;
        raw.expect_close()?;
    }
    fixture.check()
}

#[test]
fn a_version_nobody_speaks_is_told_what_we_speak() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = Raw::open_silent(&fixture.broker)?;
    raw.send(&Preface { min: 900, max: 901 }.encode())?;
    assert_eq!(raw.read_to_close()?, Preface::OURS.encode());
    fixture.check()
}

#[test]
fn frames_that_lie_about_their_length_close_the_connection() -> Result<()> {
    let fixture = Fixture::start()?;
    let too_long = u32::try_from(FRAME_BYTES_MAX)? + 1;
    for length in [too_long, u32::MAX, 0, 15] {
        let mut raw = fixture.raw()?;
        raw.send(&length.to_be_bytes())?;
        raw.expect_close().with_context(|| format!("length {length}"))?;
    }
    // A header longer than its frame, with a CRC that is right.
    let mut head = BytesMut::from(
        &encode_head(FrameKind::Request, 20, 1, &MetadataRequest::default(), 0)?[..],
    );
    head[12..16].copy_from_slice(&10_000_u32.to_be_bytes());
    let mut raw = fixture.raw()?;
    raw.send(&head)?;
    raw.expect_close()?;
    fixture.check()
}

#[test]
fn a_frame_with_a_wrong_crc_closes_the_connection() -> Result<()> {
    let fixture = Fixture::start()?;
    let head = encode_head(FrameKind::Request, 20, 1, &MetadataRequest::default(), 0)?;
    for at in 4..head.len() {
        let mut damaged = BytesMut::from(&head[..]);
        damaged[at] ^= 0x10;
        let mut raw = fixture.raw()?;
        raw.send(&damaged)?;
        // A header length that grew may leave the broker waiting for bytes that do not come: end it from here.
        raw.finish_sending()?;
        raw.expect_close().with_context(|| format!("byte {at}"))?;
    }
    fixture.check()
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_frame_leaves_nothing_behind() -> Result<()> {
    let fixture = Fixture::start()?;
    let values = batch(&[b"torn"]);
    let request = produce_request(fixture.partition, values.len())?;
    let api = ProduceRequest::API.number();
    let mut frame = encode_head(FrameKind::Request, api, 1, &request, values.len())?.to_vec();
    frame.extend_from_slice(&values);
    for end in 0..frame.len() {
        fixture.raw()?.send(&frame[..end])?;
    }
    let (fetched, _) = fixture.raw()?.fetch(fixture.partition, 0)??;
    assert_eq!(fetched.high_watermark, 1, "only whole requests are carried out");
    fixture.check()
}

#[test]
fn random_frames_never_harm() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut noise = Noise(0x5EED_0001);
    for _ in 0..200 {
        let count = usize::try_from(noise.next() % 600)?;
        let mut raw = fixture.raw()?;
        raw.send(&noise.bytes(count))?;
        raw.finish_sending()?;
        raw.read_to_close()?;
    }
    fixture.check()
}

#[test]
fn random_headers_in_whole_frames_are_answered_and_the_connection_lives() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut noise = Noise(0x5EED_0002);
    let mut raw = fixture.raw()?;
    for round in 0..500 {
        let api = Api::ALL[round % Api::ALL.len()];
        // What has no answer by itself.
        let is_silent = matches!(api, Api::QuorumMessage | Api::ReplicaPositions);
        if api == Api::Subscribe || is_silent {
            continue;
        }
        let count = usize::try_from(noise.next() % 100)?;
        let head = frame_with_header(api.number(), &noise.bytes(count));
        raw.send(&head)?;
        let frame = raw.read_frame()?.with_context(|| format!("{api:?} closed the connection"))?;
        let outcome: Result<serde::de::IgnoredAny, Failure> = frame.message()?;
        if let Err(failure) = outcome {
            assert_eq!(failure.code, ErrorCode::InvalidRequest, "{api:?}: {failure}");
        }
    }
    fixture.check()
}

/// A request frame around arbitrary header bytes, its CRC right.
fn frame_with_header(api: u16, header: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&u32::try_from(16 + header.len()).expect("small").to_be_bytes());
    frame.extend_from_slice(&[1, 0]);
    frame.extend_from_slice(&api.to_be_bytes());
    frame.extend_from_slice(&7_u32.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(header.len()).expect("small").to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame);
    crc.update(header);
    frame.extend_from_slice(&crc.finalize().to_be_bytes());
    frame.extend_from_slice(header);
    frame
}

#[test]
fn message_pack_bombs_are_refused_and_the_connection_lives() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    let nested = vec![0x91; 60_000];
    let huge_array = [0xDD, 0xFF, 0xFF, 0xFF, 0xFF];
    let huge_string = [0x92, 0x91, 0xDB, 0xFF, 0xFF, 0xFF, 0xF0, b'x'];
    let mut many = vec![0x92, 0xC0, 0xDD, 0x00, 0x0F, 0x00, 0x00];
    many.resize(900_000, 0xC0);
    for bomb in [&nested[..], &huge_array, &huge_string, &many] {
        for api in [Api::Metadata, Api::Fetch, Api::Produce, Api::CreateTopic] {
            raw.send(&frame_with_header(api.number(), bomb))?;
            let frame = raw.read_frame()?.context("closed")?;
            let outcome: Result<serde::de::IgnoredAny, Failure> = frame.message()?;
            assert_eq!(outcome.err().map(|f| f.code), Some(ErrorCode::InvalidRequest), "{api:?}");
        }
    }
    fixture.check()
}

#[test]
fn unknown_apis_are_named_and_the_connection_lives() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    raw.request(60_000, &MetadataRequest::default(), &[])?;
    let frame = raw.read_frame()?.context("closed")?;
    let outcome: Result<(), Failure> = frame.message()?;
    let failure = outcome.err().context("refused")?;
    assert_eq!(failure.code, ErrorCode::UnsupportedApi);
    assert!(failure.message.contains("60000"), "{failure}");
    raw.call(&MetadataRequest::default(), &[])?.0?;
    fixture.check()
}

#[test]
fn a_flipped_bit_anywhere_in_a_batch_is_refused() -> Result<()> {
    let fixture = Fixture::start()?;
    let good = batch(&[b"some value", b"another"]);
    let mut raw = fixture.raw()?;
    // Base offset and leader epoch are the broker's to write; the CRC does not cover them.
    for at in (8..12).chain(16..good.len()) {
        let mut damaged = BytesMut::from(&good[..]);
        damaged[at] ^= 1;
        let outcome = raw.produce(fixture.partition, &damaged)?;
        let failure = outcome.err().with_context(|| format!("byte {at} taken"))?;
        let is_in_records = at >= BatchHeader::BYTES;
        let expected = [
            ErrorCode::DamagedBatch,
            ErrorCode::InvalidBatch,
            ErrorCode::BatchTooLarge,
            ErrorCode::InvalidRequest,
        ];
        let expected = if is_in_records { &expected[..1] } else { &expected[..] };
        assert!(expected.contains(&failure.code), "byte {at}: {failure}");
    }
    fixture.check()
}

#[test]
fn a_batch_whose_records_contradict_its_header_is_refused() -> Result<()> {
    let fixture = Fixture::start()?;
    // Record count, last offset delta, attributes: each changed with the CRC made right again.
    for (at, value) in [(60, 9), (26, 9), (22, 0x20), (22, 0x07), (22, 0x80)] {
        let mut damaged = BytesMut::from(&batch(&[b"a", b"b"])[..]);
        damaged[at] = value;
        let failure = fixture.refused(&with_right_crc(damaged))?;
        assert_eq!(failure.code, ErrorCode::InvalidBatch, "byte {at}: {failure}");
    }
    let failure = fixture.refused(&[])?;
    assert_eq!(failure.code, ErrorCode::InvalidBatch, "an empty payload: {failure}");
    fixture.check()
}

fn with_right_crc(mut batch: BytesMut) -> BytesMut {
    let crc = crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

#[test]
fn decompression_bombs_are_refused_within_bounded_memory() -> Result<()> {
    let fixture = Fixture::start()?;
    // One record of a gigabyte of zeros would be about a megabyte of gzip; half of that limit is what we send.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..512 {
        gzip.write_all(&vec![0; 1 << 20])?;
    }
    let mut bomb = BytesMut::from(&batch(&[b"x"])[..BatchHeader::BYTES]);
    bomb.extend_from_slice(&gzip.finish()?);
    bomb[22] = 1;
    let length = u32::try_from(bomb.len() - 12)?;
    bomb[8..12].copy_from_slice(&length.to_be_bytes());
    let before = resident_bytes(&fixture.broker)?;
    let failure = fixture.refused(&with_right_crc(bomb))?;
    assert_eq!(failure.code, ErrorCode::InvalidBatch, "{failure}");
    let grown = peak_bytes(&fixture.broker)?.saturating_sub(before);
    assert!(grown < 300 << 20, "the bomb cost {} MiB", grown >> 20);
    fixture.check()
}

fn resident_bytes(broker: &Broker) -> Result<u64> {
    status_kib(broker, "VmRSS:").map(|kib| kib << 10)
}

fn peak_bytes(broker: &Broker) -> Result<u64> {
    status_kib(broker, "VmHWM:").map(|kib| kib << 10)
}

fn status_kib(broker: &Broker, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

#[test]
fn batches_over_the_topics_limit_are_refused_as_too_large() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    let small = raw.create_topic("small", 1, &[("max_batch_bytes", "2048")])?[0];
    let failure = raw.produce(small, &batch(&[&[b'x'; 4096]]))?.err().context("taken")?;
    assert_eq!(failure.code, ErrorCode::BatchTooLarge, "{failure}");
    raw.produce(small, &batch(&[&[b'x'; 1024]]))??;
    fixture.check()
}

#[test]
fn unknown_topics_partitions_and_offsets_have_their_own_errors() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    let nobody = TopicPartition { topic_id: tidemark_protocol::TopicId([7; 16]), partition: 0 };
    let beyond = TopicPartition { partition: 1, ..fixture.partition };
    for partition in [nobody, beyond] {
        let produced = raw.produce(partition, &batch(&[b"x"]))?.err().context("taken")?;
        assert_eq!(produced.code, ErrorCode::UnknownTopicOrPartition);
        let fetched = raw.fetch(partition, 0)?.err().context("served")?;
        assert_eq!(fetched.code, ErrorCode::UnknownTopicOrPartition);
    }
    let past_the_end = raw.fetch(fixture.partition, 1_000)?.err().context("served")?;
    assert_eq!(past_the_end.code, ErrorCode::OffsetOutOfRange);
    fixture.check()
}

#[test]
fn a_request_for_more_partitions_than_allowed_is_refused() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    let one = tidemark_protocol::messages::ListOffsetsPartition {
        partition: fixture.partition,
        leader_epoch: None,
        query: tidemark_protocol::messages::OffsetQuery::Latest,
        timestamp_ms: 0,
    };
    let request = ListOffsetsRequest { partitions: vec![one; 10_001] };
    let failure = raw.call(&request, &[])?.0.err().context("answered")?;
    assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
    fixture.check()
}

#[test]
fn compressed_batches_of_every_codec_come_back_as_they_were() -> Result<()> {
    let fixture = Fixture::start()?;
    let mut raw = fixture.raw()?;
    let partition = raw.create_topic("codecs", 1, &[])?[0];
    let value = vec![b'v'; 10_000];
    let codecs = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];
    for codec in codecs {
        let mut builder = BatchBuilder::new(codec);
        builder.push(TIMESTAMP_MS, Some(b"k"), Some(&value), &[]);
        raw.produce(partition, &builder.build()?)??;
    }
    let (_, payload) = raw.fetch(partition, 0)??;
    let mut seen = Vec::new();
    for batch in tidemark_protocol::batch::batches(payload) {
        let batch = batch?;
        batch.verify_crc()?;
        assert_eq!(batch.records()?[0].value.as_deref(), Some(&value[..]));
        seen.push(batch.header.compression());
    }
    assert_eq!(seen, codecs);
    fixture.check()
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?
        .flag("connection-memory-bytes", "8MiB")
        .flag("max-frame-bytes", "4MiB")
        .flag("send-timeout", "2s")
        .start()?;
    let mut raw = Raw::open(&broker)?;
    let partition = raw.create_topic("big", 1, &[])?[0];
    let value = vec![b'x'; 900_000];
    for _ in 0..32 {
        raw.produce(partition, &batch(&[&value]))??;
    }
    let before = resident_bytes(&broker)?;
    let mut deaf = Raw::open(&broker)?;
    let one = tidemark_protocol::messages::FetchPartition {
        partition,
        leader_epoch: None,
        offset: 0,
        max_bytes: 32 << 20,
    };
    let request = FetchRequest {
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: 32 << 20,
        partitions: vec![one],
        isolation: tidemark_protocol::messages::Isolation::ReadUncommitted,
    };
    // Asks for gigabytes and reads nothing, until the broker hangs up; before that, the sends block.
    while deaf.request(FetchRequest::API.number(), &request, &[]).is_ok() {}
    let stalled = broker.metric("tidemark_connections_ended_total{reason=\"stalled\"}")?;
    assert_eq!(stalled, Some(1.0));
    let grown = peak_bytes(&broker)?.saturating_sub(before);
    // Pages of the log are shared and counted too: 32 of them are under 32 MiB.
    assert!(grown < 96 << 20, "a client that does not read cost {} MiB", grown >> 20);
    raw.fetch(partition, 0)??;
    Ok(())
}

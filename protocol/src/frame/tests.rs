//! Frames: bytes laid out by hand, arrival in pieces, what a claim may cost, and refusals.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    Failure,
    messages::{CreditHeader, MetadataRequest},
};

const MAX: usize = limits::FRAME_BYTES_MAX;

fn frame(payload: &[u8]) -> Vec<u8> {
    let request = MetadataRequest { topics: Some(vec!["clicks".to_owned()]), topic_ids: vec![] };
    let head = encode_head(FrameKind::Request, 20, 7, &request, payload.len()).unwrap();
    [&head, payload].concat()
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    FrameDecoder::new(MAX).decode(&mut BytesMut::from(bytes))
}

/// `frame` with bytes replaced and its CRC made right again.
fn altered(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame(b"");
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = head_crc(&frame[..CRC_AT], &frame[FRAME_PREFIX_BYTES..]);
    frame[CRC_AT..FRAME_PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
    frame
}

#[test]
fn the_preface_is_eight_bytes_and_names_a_range() {
    assert_eq!(&Preface { min: 1, max: 0x0203 }.encode(), b"TIDE\x00\x01\x02\x03");
    assert_eq!(Preface::decode(b"TIDE\0\x01\0\x02"), Ok(Preface { min: 1, max: 2 }));
    assert_eq!(Preface::decode(b"TIDF\0\x01\0\x02"), Err(FrameError::NotTidemark));
    let upside_down = Preface::decode(b"TIDE\0\x02\0\x01");
    assert_eq!(upside_down, Err(FrameError::VersionRange { min: 2, max: 1 }));
}

#[test]
fn the_highest_version_both_speak_is_chosen() {
    let range = |min, max| Preface { min, max };
    assert_eq!(range(1, 1).negotiate(range(1, 9)), Some(1));
    assert_eq!(range(1, 5).negotiate(range(3, 9)), Some(5));
    assert_eq!(range(3, 9).negotiate(range(1, 5)), Some(5));
    assert_eq!(range(1, 2).negotiate(range(3, 4)), None);
}

#[test]
fn a_frame_has_the_bytes_of_the_document() {
    let head =
        encode_head(FrameKind::Credit, 3, 0x0102_0304, &CreditHeader { bytes: 5 }, 6).unwrap();
    let in_front = b"\x00\x00\x00\x18\x04\x00\x00\x03\x01\x02\x03\x04\x00\x00\x00\x02";
    assert_eq!(&head[..16], in_front);
    assert_eq!(&head[20..], b"\x91\x05");
    assert_eq!(&head[16..20], crc32fast::hash(&[in_front, &head[20..]].concat()).to_be_bytes());
}

#[test]
fn header_and_payload_come_back_as_slices_of_what_was_read() {
    let bytes = frame(b"batches");
    let mut buffer = BytesMut::from(&[&bytes[..], &bytes[..9]].concat()[..]);
    let range = buffer.as_ptr_range();
    let read = FrameDecoder::new(MAX).decode(&mut buffer).unwrap().unwrap();
    assert_eq!((read.kind, read.api, read.correlation), (FrameKind::Request, 20, 7));
    assert_eq!(read.payload, &b"batches"[..]);
    assert_eq!(read.wire_bytes(), bytes.len());
    assert!(range.contains(&read.payload.as_ptr()) && range.contains(&read.header.as_ptr()));
    assert_eq!(read.message::<MetadataRequest>().unwrap().topics.unwrap(), ["clicks"]);
    assert_eq!(buffer, &bytes[..9], "what follows stays");
}

#[test]
fn any_flipped_bit_in_front_of_the_payload_is_noticed() {
    let good = frame(b"payload");
    for at in 0..good.len() - b"payload".len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(decode(&bad).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn what_this_version_does_not_define_is_refused() {
    assert_eq!(decode(&altered(4, &[0])), Err(FrameError::UnknownKind(0)));
    assert_eq!(decode(&altered(4, &[6])), Err(FrameError::UnknownKind(6)));
    assert_eq!(decode(&altered(5, &[1])), Err(FrameError::UnknownFlags(1)));
    assert!(decode(&altered(6, &[0xff, 0xff])).unwrap().is_some(), "APIs are the caller's");
    assert!(matches!(decode(&altered(12, &[0, 0, 0xff, 0])), Err(FrameError::TooShort { .. })));
    assert!(matches!(decode(&[0, 0, 0, 15]), Err(FrameError::TooShort { .. })));
}

#[test]
fn a_length_over_the_limit_is_refused_when_its_four_bytes_are_there() {
    let mut buffer = BytesMut::from(&[0xff; 4][..]);
    let refused = FrameDecoder::new(MAX).decode(&mut buffer).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TooLarge);
    assert!(buffer.capacity() < 100);
    assert!(matches!(
        FrameDecoder::new(1000).decode(&mut BytesMut::from(&[0, 0, 3, 0xe9][..])),
        Err(FrameError::TooLarge { claimed_bytes: 1001, limit_bytes: 1000 })
    ));
    assert_eq!(FrameDecoder::new(1000).decode(&mut BytesMut::from(&[0, 0, 3, 0xe8][..])), Ok(None));
    let header = decode(&altered(12, &[0, 0x40, 0, 1])).unwrap_err();
    assert!(matches!(header, FrameError::HeaderTooLarge { .. }), "{header:?}");
}

#[test]
fn a_claim_costs_no_more_than_what_has_arrived_or_one_step() {
    let head = encode_head(FrameKind::Request, 1, 1, &(), 60 << 20).unwrap();
    let payload = vec![7; 60 << 20];
    let whole = [&head[..], &payload].concat();
    let mut decoder = FrameDecoder::new(MAX);
    let mut buffer = BytesMut::new();
    let mut fed = 0;
    let mut next = 1;
    while fed < whole.len() {
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        let spare = buffer.capacity() - buffer.len();
        assert!(spare > 0, "room was made");
        assert!(
            buffer.capacity() <= 2 * (fed + IDLE_RESERVE_BYTES) + STEP_BYTES,
            "{} after {fed}",
            buffer.capacity()
        );
        // Small pieces first, then whatever there is room for, as a socket would.
        let take = next.min(spare).min(whole.len() - fed);
        buffer.extend_from_slice(&whole[fed..fed + take]);
        fed += take;
        next *= 3;
    }
    let read = decoder.decode(&mut buffer).unwrap().unwrap();
    assert_eq!(read.payload, payload);
}

#[test]
fn a_head_over_a_limit_is_not_encoded() {
    let too_much = encode_head(FrameKind::Response, 2, 1, &(), MAX);
    assert_eq!(too_much.unwrap_err().code(), ErrorCode::TooLarge);
    let header = "x".repeat(limits::HEADER_BYTES_MAX);
    let refused = encode_head(FrameKind::Response, 2, 1, &header, 0).unwrap_err();
    assert!(matches!(refused, FrameError::HeaderTooLarge { .. }), "{refused:?}");
}

/// A broker relies on it when it refuses a request.
#[test]
fn a_failure_fits_a_frame_whatever_it_repeats_of_a_request() {
    // A str where a list belongs, which takes more room when it is quoted.
    let hostile = ("\u{1}".repeat(limits::HEADER_BYTES_MAX - 16), ());
    let head = encode_head(FrameKind::Request, 20, 1, &hostile, 0).unwrap();
    let error = decode(&head).unwrap().unwrap().message::<MetadataRequest>().unwrap_err();
    for message in [error.to_string(), hostile.0] {
        let failure: Result<(), Failure> = Err(Failure::new(ErrorCode::InvalidRequest, message));
        encode_head(FrameKind::Response, 20, 1, &failure, 0).unwrap();
    }
}

#[test]
fn a_request_that_names_too_many_partitions_is_refused() {
    let request =
        |count| MetadataRequest { topics: Some(vec![String::new(); count]), topic_ids: vec![] };
    let read = |count| {
        let head = encode_head(FrameKind::Request, 20, 1, &request(count), 0).unwrap();
        decode(&head).unwrap().unwrap().message::<MetadataRequest>()
    };
    assert!(read(limits::REQUEST_PARTITIONS_MAX).is_ok());
    assert_eq!(
        read(limits::REQUEST_PARTITIONS_MAX + 1).unwrap_err().code(),
        ErrorCode::InvalidRequest
    );
}

proptest! {
    #[test]
    fn pieces_of_any_size_make_the_same_frames(
        payloads in vec(vec(any::<u8>(), 0..300), 1..6),
        pieces in vec(1..200_usize, 1..30),
    ) {
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
        let mut decoder = FrameDecoder::new(MAX);
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        let mut rest = &stream[..];
        for piece in pieces.into_iter().cycle() {
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                seen.push(frame.payload.to_vec());
            }
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(piece.min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
        }
        prop_assert_eq!(seen, payloads);
    }
}

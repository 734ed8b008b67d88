//! Evolution in both directions, and headers made to hurt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::*;
use crate::Failure;

/// A message as the first version had it, and the part it carries.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
    parts: Vec<OldPart>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OldPart {
    id: u32,
}

/// The same messages after both have grown.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct New {
    name: String,
    parts: Vec<NewPart>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    limits: BTreeMap<String, Vec<u32>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NewPart {
    id: u32,
    #[serde(default)]
    weight: u16,
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(value, &mut out).unwrap();
    out
}

fn old() -> Old {
    Old { name: "n".to_owned(), parts: vec![OldPart { id: 1 }, OldPart { id: 2 }] }
}

fn new(weight: u16, note: Option<&str>) -> New {
    New {
        name: "n".to_owned(),
        parts: vec![NewPart { id: 1, weight }, NewPart { id: 2, weight }],
        note: note.map(str::to_owned),
        limits: BTreeMap::new(),
    }
}

#[test]
fn an_old_reader_skips_the_fields_of_a_new_writer_at_every_depth() {
    let mut grown = new(9, Some("new"));
    grown.limits.insert("k".to_owned(), vec![1, 2, 3]);
    assert_eq!(decode::<Old>(&encoded(&grown), 100), Ok(old()));
    let answer: Result<New, Failure> = Ok(grown);
    assert_eq!(decode::<Result<Old, Failure>>(&encoded(&answer), 100), Ok(Ok(old())));
    // What makes the adapter necessary.
    assert!(rmp_serde::from_slice::<Old>(&encoded(&new(9, None))).is_err());
}

#[test]
fn a_new_reader_fills_in_what_an_old_writer_does_not_send() {
    assert_eq!(decode::<New>(&encoded(&old()), 100), Ok(new(0, None)));
    let answer: Result<Old, Failure> = Ok(old());
    assert_eq!(decode::<Result<New, Failure>>(&encoded(&answer), 100), Ok(Ok(new(0, None))));
}

#[test]
fn a_required_field_that_is_missing_is_an_error() {
    assert!(decode::<Old>(&[0x91, 0xa1, b'n'], 100).is_err());
    assert!(decode::<Old>(&[0x90], 100).is_err());
    assert!(decode::<Old>(&[], 100).is_err());
}

#[test]
fn a_structure_is_an_array_and_nothing_follows_it() {
    let map =
        [0x82, 0xa4, b'n', b'a', b'm', b'e', 0xa1, b'n', 0xa5, b'p', b'a', b'r', b't', b's', 0x90];
    assert!(rmp_serde::from_slice::<Old>(&map).is_ok(), "rmp-serde would take it");
    assert!(decode::<Old>(&map, 100).is_err());
    for trailing in [&[0xc0][..], &[0xdc], &[0xc1]] {
        let bytes = [&encoded(&old())[..], trailing].concat();
        assert_eq!(decode::<Old>(&bytes, 100), Err(MessageError::TrailingBytes), "{trailing:?}");
    }
}

#[test]
fn lists_and_maps_are_bounded_wherever_they_are() {
    let list = encoded(&vec![0_u32; 101]);
    assert!(decode::<Vec<u32>>(&list, 101).is_ok());
    assert!(decode::<Vec<u32>>(&list, 100).is_err());
    let nested: Option<Result<(Vec<u32>,), Failure>> = Some(Ok((vec![0; 101],)));
    assert!(decode::<Option<Result<(Vec<u32>,), Failure>>>(&encoded(&nested), 100).is_err());
    let map: BTreeMap<u32, u32> = (0..101).map(|key| (key, 0)).collect();
    assert!(decode::<BTreeMap<u32, u32>>(&encoded(&map), 101).is_ok());
    assert!(decode::<BTreeMap<u32, u32>>(&encoded(&map), 100).is_err());
    // A byte string is taken for a list of small numbers; that list is bounded as well.
    let bytes = encoded(&serde_bytes::ByteBuf::from(vec![0; 101]));
    assert!(decode::<Vec<u32>>(&bytes, 100).is_err());
}

#[test]
fn a_length_that_is_claimed_and_not_sent_is_an_error() {
    for claim in [0xdd_u8, 0xdf, 0xdb, 0xc6, 0xc9] {
        let bytes = [claim, 0xff, 0xff, 0xff, 0xff, 0x01, 0x01, 0x01];
        assert!(decode::<Vec<u32>>(&bytes, usize::MAX).is_err(), "{claim:#x}");
        assert!(decode::<String>(&bytes, usize::MAX).is_err(), "{claim:#x}");
        assert!(decode::<BTreeMap<u32, u32>>(&bytes, usize::MAX).is_err(), "{claim:#x}");
        // Also in a field that the reader does not know.
        let unknown = [&[0x93, 0xa1, b'n', 0x90][..], &bytes].concat();
        assert!(decode::<Old>(&unknown, usize::MAX).is_err(), "{claim:#x}");
    }
}

#[test]
fn arrays_and_maps_nest_as_deep_as_the_limit_and_no_deeper() {
    let skipped = |levels: usize| {
        // The structure is one level itself.
        let inside = [[0x91].repeat(levels - 1), vec![0x07]].concat();
        decode::<Old>(&[&[0x93, 0xa1, b'n', 0x90][..], &inside].concat(), 100)
    };
    assert_eq!(skipped(DEPTH_MAX).unwrap().name, "n");
    let error = skipped(DEPTH_MAX + 1).unwrap_err().to_string();
    assert_eq!(error, "it is nested more than 24 deep");
}

#[test]
fn of_what_is_skipped_only_the_nesting_is_bounded() {
    let skipped = [&[0x93, 0xa1, b'n', 0x90][..], &encoded(&vec![0_u32; 101])].concat();
    assert_eq!(decode::<Old>(&skipped, 100).unwrap().name, "n");
}

#[test]
fn an_error_says_where_and_what_in_words_of_the_document() {
    let old = |bytes: &[u8]| decode::<Old>(bytes, 100).unwrap_err().to_string();
    let ends = "the header ends where more is expected";
    for (bytes, message) in [
        (&[][..], ends.to_owned()),
        (&[0x92, 0xa4, b'n'], format!("`name` of Old: {ends}")),
        (&[0xc0], "Old is expected, not nil".to_owned()),
        (&[0x80], "Old is an array, not a map".to_owned()),
        (&[0xc1], "0xc1 does not begin a MessagePack value".to_owned()),
        (
            &[0x91, 0xa1, b'n'],
            "`parts` of Old: Old with 2 elements is expected, there are 1".to_owned(),
        ),
        (&[0x92, 0xa1, 0xff, 0x90], "`name` of Old: a str is not UTF-8".to_owned()),
        (&[0x92, 0x05, 0x90], "`name` of Old: a string is expected, not integer `5`".to_owned()),
        (
            &[0x92, 0xa1, b'n', 0xa1, b'x'],
            "`parts` of Old: a sequence is expected, not the str \"x\"".to_owned(),
        ),
        (
            &[0x92, 0xa1, b'n', 0x91, 0x91, 0xa1, b'x'],
            "`id` of OldPart: a number or a bool is expected, not a str".to_owned(),
        ),
        (
            &[0x92, 0xa1, b'n', 0x91, 0x91, 0xff],
            "`id` of OldPart: u32 is expected, not integer `-1`".to_owned(),
        ),
    ] {
        assert_eq!(old(bytes), message, "{bytes:x?}");
    }
}

#[test]
fn an_error_does_not_repeat_at_length_what_was_sent() {
    let long = encoded(&"\u{1}".repeat(4 << 20));
    for error in [
        decode::<Vec<u32>>(&long, 100).unwrap_err(),
        decode::<Result<Old, Failure>>(&[&[0x81][..], &long].concat(), 100).unwrap_err(),
        decode::<crate::messages::Acks>(&long, 100).unwrap_err(),
    ] {
        assert!(error.to_string().len() < 300, "{} bytes", error.to_string().len());
    }
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    for nest in [&[0x91_u8][..], &[0x81, 0x00], &[0x81, 0x90], &[0xd4, 0x01, 0x02]] {
        let mut bytes = vec![0x93, 0xa1, b'n', 0x90];
        bytes.extend(nest.repeat(1 << 20));
        assert!(decode::<Old>(&bytes, 100).is_err(), "{nest:?}");
        assert!(decode::<Old>(&bytes[4..], 100).is_err(), "{nest:?}");
        assert!(decode::<Result<Old, Failure>>(&bytes[4..], 100).is_err(), "{nest:?}");
        assert!(decode::<Vec<Vec<Vec<u32>>>>(&bytes[4..], 100).is_err(), "{nest:?}");
    }
}

//! What is wrong with a header, in the words of `docs/protocol.md` and not in those of the libraries that found it.
//!
//! It refuses to repeat at length what a peer has sent: a reason fits a log line and a failure.

use rmp_serde::decode::Error;

use super::{DEPTH_MAX, tolerant::Trace};
use crate::error::shortened;

/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// Serde's names of what was found, and MessagePack's.
const FOUND: [(&str, &str); 6] = [
    ("unit value", "nil"),
    ("sequence", "an array"),
    ("map", "a map"),
    ("byte array", "a bin"),
    ("newtype struct", "an extension value"),
    ("unit variant", "a value that is not a map"),
];

/// Where decoding stopped, and why.
pub(super) fn decoding(error: Error, trace: &Trace) -> String {
    let reason = reason(error);
    match trace.field() {
        Some((structure, field)) => format!("`{field}` of {structure}: {reason}"),
        None => reason,
    }
}

fn reason(error: Error) -> String {
    match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => {
            "the header ends where more is expected".to_owned()
        }
        Error::TypeMismatch(marker) => mismatch(marker.to_u8()),
        Error::OutOfRange => "a number is out of range".to_owned(),
        Error::LengthMismatch(_) => "an array or a map has a wrong number of elements".to_owned(),
        Error::Utf8Error(_) => "a str is not UTF-8".to_owned(),
        Error::DepthLimitExceeded => format!("it is nested more than {DEPTH_MAX} deep"),
        Error::Uncategorized(text) | Error::Syntax(text) => in_our_words(&text),
    }
}

/// Serde's "invalid type: sequence, expected struct Failure" as "Failure is expected, not an array".
fn in_our_words(text: &str) -> String {
    if let Some((length, expected)) =
        text.strip_prefix("invalid length ").and_then(|text| text.split_once(", expected "))
    {
        let expected = expected.strip_prefix("struct ").unwrap_or(expected);
        return format!("{expected} is expected, there are {length}");
    }
    let expectation = text
        .strip_prefix("invalid ")
        .and_then(|text| text.split_once(": "))
        .and_then(|(_what, text)| text.rsplit_once(", expected "));
    let Some((found, expected)) = expectation else { return shortened(text, REASON_BYTES_MAX) };
    let found = FOUND.iter().find(|(theirs, _)| *theirs == found).map_or(found, |(_, ours)| ours);
    let found = found.strip_prefix("string ").map_or_else(
        || shortened(found, REASON_BYTES_MAX / 2),
        |text| format!("the str {}", shortened(text, REASON_BYTES_MAX / 2)),
    );
    let expected = expected.strip_prefix("struct ").unwrap_or(expected);
    format!("{} is expected, not {found}", shortened(expected, REASON_BYTES_MAX / 2))
}

/// A value that begins with `marker`, where a number or a bool was to be.
fn mismatch(marker: u8) -> String {
    let found = match marker {
        0x80..=0x8f | 0xde | 0xdf => "a map",
        0x90..=0x9f | 0xdc | 0xdd => "an array",
        0xa0..=0xbf | 0xd9..=0xdb => "a str",
        0xc0 => "nil",
        0xc1 => return "0xc1 does not begin a MessagePack value".to_owned(),
        0xc4..=0xc6 => "a bin",
        0xc7..=0xc9 | 0xd4..=0xd8 => "an extension value",
        _ => "another value",
    };
    format!("a number or a bool is expected, not {found}")
}

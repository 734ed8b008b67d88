//! The format language of `consume -f`: what to print for each record, compiled once and rendered into bytes.
//!
//! Bytes of keys and values are copied as they are unless a modifier asks for an encoding; nothing is added that
//! the format does not say.

use std::{
    io::Write as _,
    iter::Peekable,
    str::{Chars, FromStr},
};

use tidemark_protocol::{Offset, PartitionIndex, TimestampMs, batch::RecordHeader};

use crate::{encoding, escape, quantity};

/// The language, for `--help`.
pub(crate) const LANGUAGE: &str =
    "  %t topic          %p partition      %o offset        %n number of the record, from 1
  %k key            %v value          %K key bytes     %V value bytes
  %T Unix ms        %d RFC 3339       %h headers k=v,k=v   %H number of headers
  %s and %S are %v and %V; %% is a percent sign
Modifiers: %v{hex} %v{base64} %v{json} %v{len}, the same for %k;
  %d{%Y-%m-%d} any strftime format; %h{%k: %v\\n} a format for each header
Escapes: \\n \\t \\r \\0 \\\\ \\xNN. Nothing is added: end the format with \\n to get lines.";

/// One record as it is printed. A missing key or value prints as nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordView<'a> {
    pub topic: &'a str,
    pub partition: PartitionIndex,
    pub offset: Offset,
    pub timestamp_ms: TimestampMs,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [RecordHeader],
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Number,
    Key(Encoding),
    Value(Encoding),
    TimestampMs,
    Rfc3339,
    Strftime(String),
    Headers,
    HeaderCount,
    EachHeader(Vec<Piece>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Raw,
    Hex,
    Base64,
    Json,
    Len,
}

impl Template {
    /// Appends what the format says about `record`, the `number`th printed.
    pub(crate) fn render(&self, record: &RecordView<'_>, number: u64, out: &mut Vec<u8>) {
        render(&self.pieces, record, number, out);
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut chars = text.chars().peekable();
        let pieces = compile(&mut chars, None)
            .map_err(|problem| format!("{problem}. The verbs of a format are\n{LANGUAGE}"))?;
        Ok(Self { pieces })
    }
}

/// Compiles up to `until`, which is consumed, or to the end.
fn compile(chars: &mut Peekable<Chars<'_>>, until: Option<char>) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    loop {
        match chars.next() {
            None if until.is_some() => return Err("a `{` that is not closed".to_owned()),
            None => break,
            c if c == until => break,
            Some('\\') => literal.push(escape::escape(chars)?),
            Some('%') if chars.next_if_eq(&'%').is_some() => literal.push(b'%'),
            Some('%') => {
                let piece = verb(chars)?;
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(piece);
            }
            Some(c) => literal.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn verb(chars: &mut Peekable<Chars<'_>>) -> Result<Piece, String> {
    Ok(match chars.next() {
        Some('t') => Piece::Topic,
        Some('p') => Piece::Partition,
        Some('o') => Piece::Offset,
        Some('n') => Piece::Number,
        Some('k') => Piece::Key(encoding(chars)?),
        Some('v' | 's') => Piece::Value(encoding(chars)?),
        Some('K') => Piece::Key(Encoding::Len),
        Some('V' | 'S') => Piece::Value(Encoding::Len),
        Some('T') => Piece::TimestampMs,
        Some('d') => match modifier(chars)? {
            None => Piece::Rfc3339,
            Some(format) => {
                // Checked here, once, so that rendering cannot fail.
                jiff::fmt::strtime::format(&format, &utc(0))
                    .map_err(|error| format!("`%d{{{format}}}`: {error}"))?;
                Piece::Strftime(format)
            }
        },
        Some('h') if chars.next_if_eq(&'{').is_some() => {
            Piece::EachHeader(compile(chars, Some('}'))?)
        }
        Some('h') => Piece::Headers,
        Some('H') => Piece::HeaderCount,
        Some(other) => return Err(format!("`%{other}` is no verb")),
        None => return Err("a `%` at the very end; write %% for a percent sign".to_owned()),
    })
}

fn modifier(chars: &mut Peekable<Chars<'_>>) -> Result<Option<String>, String> {
    if chars.next_if_eq(&'{').is_none() {
        return Ok(None);
    }
    let mut text = String::new();
    loop {
        match chars.next() {
            Some('}') => return Ok(Some(text)),
            Some(c) => text.push(c),
            None => return Err("a `{` that is not closed".to_owned()),
        }
    }
}

fn encoding(chars: &mut Peekable<Chars<'_>>) -> Result<Encoding, String> {
    Ok(match modifier(chars)?.as_deref() {
        None => Encoding::Raw,
        Some("hex") => Encoding::Hex,
        Some("base64") => Encoding::Base64,
        Some("json") => Encoding::Json,
        Some("len") => Encoding::Len,
        Some(other) => {
            return Err(format!(
                "`{{{other}}}` is no modifier; there are hex, base64, json and len"
            ));
        }
    })
}

fn render(pieces: &[Piece], record: &RecordView<'_>, number: u64, out: &mut Vec<u8>) {
    for piece in pieces {
        match piece {
            Piece::Literal(bytes) => out.extend_from_slice(bytes),
            Piece::Topic => out.extend_from_slice(record.topic.as_bytes()),
            Piece::Partition => decimal(record.partition, out),
            Piece::Offset => decimal(record.offset, out),
            Piece::Number => decimal(number, out),
            Piece::Key(encoding) => encode(record.key, *encoding, out),
            Piece::Value(encoding) => encode(record.value, *encoding, out),
            Piece::TimestampMs => decimal(record.timestamp_ms, out),
            Piece::Rfc3339 => {
                out.extend_from_slice(quantity::timestamp(record.timestamp_ms).as_bytes());
            }
            Piece::Strftime(format) => {
                let text = jiff::fmt::strtime::format(format, &utc(record.timestamp_ms));
                out.extend_from_slice(text.unwrap_or_default().as_bytes());
            }
            Piece::Headers => headers(record.headers, out),
            Piece::HeaderCount => decimal(record.headers.len(), out),
            Piece::EachHeader(pieces) => {
                for header in record.headers {
                    let inner = RecordView {
                        key: Some(header.key.as_bytes()),
                        value: header.value.as_deref(),
                        ..*record
                    };
                    render(pieces, &inner, number, out);
                }
            }
        }
    }
}

fn headers(headers: &[RecordHeader], out: &mut Vec<u8>) {
    for (at, header) in headers.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(header.key.as_bytes());
        out.push(b'=');
        out.extend_from_slice(header.value.as_deref().unwrap_or_default());
    }
}

fn encode(bytes: Option<&[u8]>, encoding: Encoding, out: &mut Vec<u8>) {
    match (encoding, bytes) {
        (Encoding::Len, bytes) => decimal(bytes.map_or(0, <[u8]>::len), out),
        (Encoding::Json, bytes) => {
            let text = bytes.map(String::from_utf8_lossy);
            serde_json::to_writer(&mut *out, &text).expect("a string into memory cannot fail");
        }
        (_, None) => {}
        (Encoding::Raw, Some(bytes)) => out.extend_from_slice(bytes),
        (Encoding::Hex, Some(bytes)) => encoding::hex(bytes, out),
        (Encoding::Base64, Some(bytes)) => encoding::base64(bytes, out),
    }
}

fn decimal(number: impl std::fmt::Display, out: &mut Vec<u8>) {
    write!(out, "{number}").expect("writing into memory cannot fail");
}

fn utc(timestamp_ms: TimestampMs) -> jiff::Zoned {
    jiff::Timestamp::from_millisecond(timestamp_ms.max(0))
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::UTC)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn rendered(format: &str) -> String {
        let headers = [
            RecordHeader { key: "a".to_owned(), value: Some(Bytes::from_static(b"1")) },
            RecordHeader { key: "b".to_owned(), value: None },
        ];
        let record = RecordView {
            topic: "orders",
            partition: 3,
            offset: 47,
            timestamp_ms: 1_644_832_800_123,
            key: Some(b"k1"),
            value: Some(b"hi \"\xe2\x82\xac\""),
            headers: &headers,
        };
        let mut out = Vec::new();
        let template: Template = format.parse().unwrap_or_else(|error| panic!("{error}"));
        template.render(&record, 1, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_verb_prints_its_part_of_the_record() {
        assert_eq!(rendered("%t/%p/%o #%n"), "orders/3/47 #1");
        assert_eq!(rendered("%k=%v"), "k1=hi \"€\"");
        assert_eq!(rendered("%K %V %S %s"), "2 8 8 hi \"€\"");
        assert_eq!(rendered("%T %d"), "1644832800123 2022-02-14T10:00:00.123Z");
        assert_eq!(rendered("%H %h"), "2 a=1,b=");
        assert_eq!(rendered("100%%"), "100%");
    }

    #[test]
    fn modifiers_encode_and_nest() {
        assert_eq!(rendered("%k{hex} %k{base64} %k{len}"), "6b31 azE= 2");
        assert_eq!(rendered("%v{json}"), r#""hi \"€\"""#);
        assert_eq!(rendered("%d{%Y/%m/%d}"), "2022/02/14");
        assert_eq!(rendered(r"%h{[%k:%v{hex}]}\n"), "[a:31][b:]\n");
    }

    #[test]
    fn escapes_and_text_are_literal() {
        assert_eq!(rendered(r"é\t\x41\\"), "é\tA\\");
    }

    #[test]
    fn a_missing_key_or_value_prints_as_nothing() {
        let tombstone = RecordView {
            topic: "t",
            partition: 0,
            offset: 0,
            timestamp_ms: -1,
            key: None,
            value: None,
            headers: &[],
        };
        let mut out = Vec::new();
        let template: Template = "[%k|%v|%V|%v{json}|%d]".parse().unwrap();
        template.render(&tombstone, 1, &mut out);
        assert_eq!(out, b"[||0|null|]");
    }

    #[test]
    fn wrong_formats_are_refused_with_the_language() {
        for wrong in ["%", "%q", "%v{rot13}", "%v{hex", "%h{%q}", r"\q", "%d{%!}"] {
            let error = wrong.parse::<Template>().expect_err(wrong);
            assert!(error.contains("%t topic"), "{error}");
        }
    }
}

//! Records into bytes on standard output, in large writes.

use std::io::{self, IsTerminal as _, StdoutLock, Write as _};

use memchr::memmem::Finder;
use serde::{Serialize, Serializer};
use tidemark_client::{ConsumedBatch, ConsumedRecord, ErrorCode};
use tidemark_protocol::{
    Offset, PartitionIndex, TimestampMs,
    batch::{BatchError, Record, RecordHeader},
};

use super::slices::Slice;
use crate::{
    encoding,
    exit::{CliError, Exit},
    template::{RecordView, Template},
};

/// Bytes gathered before they are written although more are at hand.
const BUFFER_BYTES: usize = 256 << 10;

/// How a record looks.
#[derive(Clone, Debug)]
pub(super) enum Style {
    Template(Template),
    /// One object a line: schema `tidemark/record/1`.
    Json,
    /// The same without key, value and headers, but with their sizes.
    JsonMetadata,
}

/// Which records are printed.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) key: Option<Vec<u8>>,
    pub(super) grep: Option<Finder<'static>>,
}

impl Filter {
    fn passes(&self, record: &Record) -> bool {
        let key = self.key.as_ref().is_none_or(|key| record.key.as_deref() == Some(key));
        let value = || record.value.as_deref().unwrap_or_default();
        key && self.grep.as_ref().is_none_or(|finder| finder.find(value()).is_some())
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Printed {
    More,
    /// As many as were asked for.
    Enough,
}

/// Standard output and what was put into it.
#[derive(Debug)]
pub(super) struct Printer {
    stdout: StdoutLock<'static>,
    style: Style,
    filter: Filter,
    buffer: Vec<u8>,
    terminal: bool,
    reader_is_gone: bool,
    records: u64,
    bytes: u64,
}

impl Printer {
    pub(super) fn new(style: Style, filter: Filter) -> Self {
        let stdout = io::stdout().lock();
        Self {
            terminal: stdout.is_terminal(),
            stdout,
            style,
            filter,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            reader_is_gone: false,
            records: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether whoever read standard output has closed it, as `head` does.
    pub(super) fn reader_is_gone(&self) -> bool {
        self.reader_is_gone
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Prints the records of `batch` that are in `slice` and moves the slice past the batch.
    pub(super) fn print(
        &mut self,
        batch: &ConsumedBatch,
        slice: &mut Slice,
        limit: Option<u64>,
    ) -> Result<Printed, CliError> {
        let first = slice.from.max(slice.next).max(batch.position);
        let header = &batch.batch.header;
        if !header.is_control() && header.next_offset() > first {
            let damaged = |error: BatchError| damaged(batch, &error);
            for record in batch.batch.iter_records().map_err(damaged)? {
                let record = record.map_err(damaged)?;
                if record.offset < first || !self.filter.passes(&record) {
                    continue;
                }
                if slice.to.is_some_and(|to| record.offset >= to) {
                    break;
                }
                self.records += 1;
                let place = (&*batch.topic, batch.partition);
                render(&self.style, place, &record, self.records, &mut self.buffer);
                if self.buffer.len() >= BUFFER_BYTES {
                    self.flush()?;
                }
                if Some(self.records) == limit || self.reader_is_gone {
                    return Ok(Printed::Enough);
                }
            }
        }
        slice.next = slice.next.max(header.next_offset());
        Ok(Printed::More)
    }

    /// Prints one record, if it passes the filter.
    pub(super) fn print_record(
        &mut self,
        record: ConsumedRecord,
        limit: Option<u64>,
    ) -> Result<Printed, CliError> {
        let ConsumedRecord { topic, partition, offset, timestamp_ms, key, value, headers, .. } =
            record;
        let record = Record { offset, timestamp_ms, key, value, headers };
        if self.filter.passes(&record) {
            self.records += 1;
            let place = (&*topic, partition);
            render(&self.style, place, &record, self.records, &mut self.buffer);
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush()?;
            }
        }
        let is_enough = Some(self.records) == limit || self.reader_is_gone;
        Ok(if is_enough { Printed::Enough } else { Printed::More })
    }

    /// Writes what was gathered. A reader that went away is remembered and is no error.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.stdout.write_all(&self.buffer).and_then(|()| self.stdout.flush());
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.reader_is_gone = true,
            Err(error) => {
                return Err(CliError::error(format!("cannot write to standard output: {error}")));
            }
            Ok(()) => {}
        }
        Ok(())
    }
}

fn damaged(batch: &ConsumedBatch, error: &BatchError) -> CliError {
    let next = batch.batch.header.next_offset();
    CliError::new(
        Exit::Error,
        format!(
            "{}/{}: the batch at offset {} is damaged: {error} ({})",
            batch.topic,
            batch.partition,
            batch.batch.header.base_offset,
            ErrorCode::CorruptData.name(),
        ),
    )
    .with_hint(format!("go on behind it with --offset {next}"))
}

fn render(
    style: &Style,
    (topic, partition): (&str, PartitionIndex),
    record: &Record,
    number: u64,
    out: &mut Vec<u8>,
) {
    if let Style::Template(template) = style {
        let view = RecordView {
            topic,
            partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
        };
        template.render(&view, number, out);
        return;
    }
    let place =
        Place { topic, partition, offset: record.offset, timestamp_ms: record.timestamp_ms };
    let contents = matches!(style, Style::Json);
    let written = if contents {
        serde_json::to_writer(&mut *out, &JsonRecord::new(place, record))
    } else {
        serde_json::to_writer(&mut *out, &JsonMetadata::new(place, record))
    };
    written.expect("writing into memory cannot fail");
    out.push(b'\n');
}

#[derive(Serialize)]
struct Place<'a> {
    topic: &'a str,
    partition: PartitionIndex,
    offset: Offset,
    timestamp_ms: TimestampMs,
}

/// A record as a line of JSON: what `produce --json` reads back.
#[derive(Serialize)]
struct JsonRecord<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    #[serde(flatten)]
    key: JsonKey<'a>,
    #[serde(flatten)]
    value: JsonValue<'a>,
    headers: Vec<JsonHeader<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum JsonKey<'a> {
    Key(Option<&'a str>),
    KeyBase64(Base64<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum JsonValue<'a> {
    Value(Option<&'a str>),
    ValueBase64(Base64<'a>),
}

#[derive(Serialize)]
struct JsonHeader<'a> {
    key: &'a str,
    #[serde(flatten)]
    value: JsonValue<'a>,
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Vec::new();
        encoding::base64(self.0, &mut text);
        serializer.serialize_str(std::str::from_utf8(&text).expect("base64 is ASCII"))
    }
}

impl<'a> JsonRecord<'a> {
    fn new(place: Place<'a>, record: &'a Record) -> Self {
        let key = match text(record.key.as_deref()) {
            Ok(key) => JsonKey::Key(key),
            Err(bytes) => JsonKey::KeyBase64(Base64(bytes)),
        };
        let headers = record.headers.iter().map(JsonHeader::new).collect();
        Self { place, key, value: JsonValue::new(record.value.as_deref()), headers }
    }
}

impl<'a> JsonValue<'a> {
    fn new(bytes: Option<&'a [u8]>) -> Self {
        match text(bytes) {
            Ok(value) => Self::Value(value),
            Err(bytes) => Self::ValueBase64(Base64(bytes)),
        }
    }
}

impl<'a> JsonHeader<'a> {
    fn new(header: &'a RecordHeader) -> Self {
        Self { key: &header.key, value: JsonValue::new(header.value.as_deref()) }
    }
}

/// The bytes as text, or back when they are none.
fn text(bytes: Option<&[u8]>) -> Result<Option<&str>, &[u8]> {
    bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)).transpose()
}

#[derive(Serialize)]
struct JsonMetadata<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    header_count: usize,
}

impl<'a> JsonMetadata<'a> {
    fn new(place: Place<'a>, record: &Record) -> Self {
        Self {
            place,
            key_bytes: record.key.as_ref().map(bytes::Bytes::len),
            value_bytes: record.value.as_ref().map(bytes::Bytes::len),
            header_count: record.headers.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemark_protocol::batch::{Batch, BatchBuilder, Compression, stamp};

    use super::*;
    use crate::input::{InputOptions, InputRecord, Shape, read_records};

    /// Offsets 10 to 13.
    fn batch() -> ConsumedBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        let header = RecordHeader { key: "h".to_owned(), value: Some(Bytes::from_static(b"\xff")) };
        builder.push(5, Some(b"k"), Some(b"plain"), &[]);
        builder.push(6, None, None, &[]);
        builder.push(7, Some(b"\xff\x00"), Some(b"\x80"), &[header]);
        builder.push(8, Some(b"k"), Some(b""), &[]);
        let mut bytes = builder.build().unwrap().to_vec();
        stamp(&mut bytes, 10, 1);
        ConsumedBatch {
            topic: "t".into(),
            partition: 2,
            batch: Batch::parse(&mut Bytes::from(bytes)).unwrap(),
            position: 10,
            high_watermark: 14,
        }
    }

    fn lines(style: &Style) -> String {
        let batch = batch();
        let mut out = Vec::new();
        for record in batch.batch.records().unwrap() {
            render(style, (&*batch.topic, batch.partition), &record, 1, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_json_prints_is_what_produce_reads() {
        let printed = lines(&Style::Json);
        assert!(printed.starts_with(
            r#"{"topic":"t","partition":2,"offset":10,"timestamp_ms":5,"key":"k","value":"plain","headers":[]}"#
        ), "{printed}");
        let options = InputOptions {
            shape: Shape::JsonLines,
            key_delimiter: None,
            empty_is_tombstone: false,
            record_bytes_max: 1 << 20,
        };
        let mut read: Vec<InputRecord> = Vec::new();
        read_records(printed.as_bytes(), &options, |chunk| {
            read.extend(chunk.records);
            true
        })
        .unwrap();
        let expected: Vec<InputRecord> = batch()
            .batch
            .records()
            .unwrap()
            .into_iter()
            .map(|Record { timestamp_ms, key, value, headers, .. }| InputRecord {
                key,
                value,
                headers,
                timestamp_ms: Some(timestamp_ms),
            })
            .collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn metadata_has_sizes_and_no_contents() {
        let printed = lines(&Style::JsonMetadata);
        let second = printed.lines().nth(1).unwrap();
        assert_eq!(
            second,
            r#"{"topic":"t","partition":2,"offset":11,"timestamp_ms":6,"key_bytes":null,"value_bytes":null,"header_count":0}"#
        );
        assert!(!printed.contains("plain"));
    }

    /// A printer whose output stays in its buffer.
    fn printed(filter: Filter, slice: &mut Slice, limit: Option<u64>) -> (String, Printed) {
        let style = Style::Template("%o ".parse().unwrap());
        let mut printer = Printer::new(style, filter);
        let outcome = printer.print(&batch(), slice, limit).unwrap();
        (String::from_utf8(std::mem::take(&mut printer.buffer)).unwrap(), outcome)
    }

    fn slice(from: Offset, to: Option<Offset>) -> Slice {
        Slice { from, to, next: from }
    }

    #[test]
    fn only_the_slice_is_printed_and_reading_moves_past_the_batch() {
        let mut middle = slice(11, Some(13));
        assert_eq!(printed(Filter::default(), &mut middle, None).0, "11 12 ");
        assert_eq!(middle.next, 14);
        assert!(middle.is_done());
        let mut later = slice(50, None);
        assert_eq!(printed(Filter::default(), &mut later, None).0, "");
    }

    #[test]
    fn the_limit_counts_what_passed_the_filter() {
        let key = |key: &[u8]| Filter { key: Some(key.to_vec()), grep: None };
        assert_eq!(printed(key(b"k"), &mut slice(0, None), None).0, "10 13 ");
        let (text, outcome) = printed(key(b"k"), &mut slice(0, None), Some(1));
        assert_eq!((text.as_str(), outcome), ("10 ", Printed::Enough));
        let grep = Filter { key: None, grep: Some(Finder::new("lai").into_owned()) };
        assert_eq!(printed(grep, &mut slice(0, None), None).0, "10 ");
    }
}

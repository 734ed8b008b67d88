//! From bytes to records: what `produce` reads, by delimiter, as JSON lines, or a whole file at a time.
//!
//! Values are slices of the bytes that were read; nothing is trimmed, decoded or completed, so that what is
//! written back with the same delimiter is what came in. Memory is bounded by [`CHUNK_BYTES`] and the largest
//! record.

mod json;

use std::io::{self, Read};

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memmem;
use tidemark_protocol::{TimestampMs, batch::RecordHeader};

/// Most bytes taken from the input at once.
const CHUNK_BYTES: usize = 256 << 10;
/// The buffer grows by this; what was read lives in it until the last record that points into it is gone.
const BUFFER_BYTES: usize = 1 << 20;
/// Less room than this is not worth a read.
const ROOM_BYTES_MIN: usize = 16 << 10;

/// A record before it has a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputRecord {
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<RecordHeader>,
    pub timestamp_ms: Option<TimestampMs>,
}

/// How bytes become records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Records end with these bytes; the last one may go without.
    Delimited(Vec<u8>),
    /// One JSON object a line.
    JsonLines,
    /// The whole input is one value.
    Whole,
}

/// How to read, for every input of one command.
#[derive(Clone, Debug)]
pub(crate) struct InputOptions {
    pub shape: Shape,
    /// Splits a record into key and value at its first occurrence.
    pub key_delimiter: Option<Vec<u8>>,
    /// An empty value is a tombstone instead of an empty value.
    pub empty_is_tombstone: bool,
    /// Largest record, in bytes, its delimiter not counted.
    pub record_bytes_max: usize,
}

/// What one read of the input gave.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub records: Vec<InputRecord>,
    /// Bytes read for it, delimiters and all.
    pub bytes: u64,
}

/// Why the input cannot be read on. `record` counts from 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    #[error("record {record} is over {limit} bytes")]
    TooLarge { record: u64, limit: usize },
    #[error("record {record} has no key delimiter")]
    NoKey { record: u64 },
    #[error("line {record}: {detail}")]
    Json { record: u64, detail: String },
    /// Whoever took the records wants no more.
    #[error("stopped")]
    Stopped,
}

/// Reads all of `reader` and hands the records of each read to `emit`, which may block and returns false to stop.
pub(crate) fn read_records(
    mut reader: impl Read,
    options: &InputOptions,
    mut emit: impl FnMut(Chunk) -> bool,
) -> Result<(), InputError> {
    let mut splitter = Splitter::new(options);
    loop {
        let bytes = splitter.fill(&mut reader)?;
        let mut chunk = Chunk { records: Vec::new(), bytes: bytes as u64 };
        let outcome = splitter.drain(bytes == 0, &mut chunk.records);
        // What came before a bad record is good.
        if !emit(chunk) {
            return Err(InputError::Stopped);
        }
        outcome?;
        if bytes == 0 {
            return Ok(());
        }
    }
}

struct Splitter<'a> {
    options: &'a InputOptions,
    /// `None`: the whole input is one record.
    finder: Option<memmem::Finder<'a>>,
    key_finder: Option<memmem::Finder<'a>>,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no delimiter.
    searched: usize,
    /// Records found so far.
    records: u64,
}

impl<'a> Splitter<'a> {
    fn new(options: &'a InputOptions) -> Self {
        let finder = match &options.shape {
            Shape::Delimited(delimiter) => Some(memmem::Finder::new(delimiter)),
            Shape::JsonLines => Some(memmem::Finder::new("\n")),
            Shape::Whole => None,
        };
        let key_finder = options.key_delimiter.as_deref().map(memmem::Finder::new);
        Self { options, finder, key_finder, buffer: BytesMut::new(), searched: 0, records: 0 }
    }

    /// Reads once, up to [`CHUNK_BYTES`]; 0 is the end of the input.
    fn fill(&mut self, reader: &mut impl Read) -> io::Result<usize> {
        let old = self.buffer.len();
        if self.buffer.capacity() - old < ROOM_BYTES_MIN {
            self.buffer.reserve(BUFFER_BYTES);
        }
        self.buffer.resize(self.buffer.capacity().min(old + CHUNK_BYTES), 0);
        let result = loop {
            match reader.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer.truncate(old + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// Takes every complete record out of the buffer; at the end, what is left over too.
    fn drain(&mut self, at_end: bool, records: &mut Vec<InputRecord>) -> Result<(), InputError> {
        if let Some(finder) = self.finder.clone() {
            while let Some(found) = finder.find(&self.buffer[self.searched..]) {
                let raw = self.buffer.split_to(self.searched + found).freeze();
                self.buffer.advance(finder.needle().len());
                self.searched = 0;
                self.record(raw, records)?;
            }
            // A delimiter may be cut in two by the end of what was read.
            self.searched = self.buffer.len().saturating_sub(finder.needle().len() - 1);
        }
        let whole = self.finder.is_none();
        if at_end && (!self.buffer.is_empty() || (whole && self.records == 0)) {
            let raw = self.buffer.split().freeze();
            self.record(raw, records)?;
        } else if self.buffer.len() > self.options.record_bytes_max {
            return Err(self.too_large());
        }
        Ok(())
    }

    fn too_large(&self) -> InputError {
        InputError::TooLarge { record: self.records + 1, limit: self.options.record_bytes_max }
    }

    fn record(&mut self, raw: Bytes, records: &mut Vec<InputRecord>) -> Result<(), InputError> {
        if raw.len() > self.options.record_bytes_max {
            return Err(self.too_large());
        }
        self.records += 1;
        if self.options.shape == Shape::JsonLines {
            // Blank lines separate JSON objects as well as nothing does.
            if !raw.trim_ascii().is_empty() {
                records.push(
                    json::parse(&raw)
                        .map_err(|detail| InputError::Json { record: self.records, detail })?,
                );
            }
            return Ok(());
        }
        let (key, value) = match &self.key_finder {
            None => (None, raw),
            Some(finder) => {
                let at = finder.find(&raw).ok_or(InputError::NoKey { record: self.records })?;
                (Some(raw.slice(..at)), raw.slice(at + finder.needle().len()..))
            }
        };
        let tombstone = self.options.empty_is_tombstone && value.is_empty();
        records.push(InputRecord {
            key,
            value: (!tombstone).then_some(value),
            ..InputRecord::default()
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes a few at a time, so that every boundary falls everywhere.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn options(shape: Shape) -> InputOptions {
        InputOptions {
            shape,
            key_delimiter: None,
            empty_is_tombstone: false,
            record_bytes_max: 1 << 20,
        }
    }

    fn lines() -> InputOptions {
        options(Shape::Delimited(b"\n".to_vec()))
    }

    fn read(input: &[u8], options: &InputOptions) -> Result<Vec<InputRecord>, InputError> {
        let mut expected: Option<Vec<InputRecord>> = None;
        for step in [1, 2, 3, 7, 1 << 20] {
            let mut records = Vec::new();
            read_records(Dribble(input, step), options, |chunk| {
                records.extend(chunk.records);
                true
            })?;
            if let Some(expected) = &expected {
                assert_eq!(&records, expected, "reading {step} bytes at a time differs");
            }
            expected = Some(records);
        }
        Ok(expected.expect("at least one pass"))
    }

    fn values(input: &[u8], options: &InputOptions) -> Vec<Vec<u8>> {
        let records = read(input, options).unwrap();
        records.into_iter().map(|record| record.value.expect("a value").to_vec()).collect()
    }

    #[test]
    fn every_line_is_a_record_also_empty_ones_and_a_last_one_without_its_end() {
        assert_eq!(values(b"a\n\nb\r\nlast", &lines()), [&b"a"[..], b"", b"b\r", b"last"]);
        assert_eq!(values(b"a\n", &lines()), [b"a"]);
        assert_eq!(values(b"\n", &lines()), [b""]);
        assert!(values(b"", &lines()).is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_come_through_as_they_are() {
        assert_eq!(values(b"\xff\x00\xfe\n\x80", &lines()), [&b"\xff\x00\xfe"[..], b"\x80"]);
    }

    #[test]
    fn a_delimiter_of_several_bytes_is_found_across_reads() {
        let options = options(Shape::Delimited(b"--END--".to_vec()));
        assert_eq!(
            values(b"one--END--two--EN--END--three", &options),
            [&b"one"[..], b"two--EN", b"three"]
        );
    }

    #[test]
    fn keys_are_split_at_the_first_delimiter_and_demanded() {
        let options = InputOptions { key_delimiter: Some(b":".to_vec()), ..lines() };
        let records = read(b"k:v:w\n:only value\nonly key:", &options).unwrap();
        let pairs: Vec<_> = records
            .iter()
            .map(|record| (record.key.as_deref().unwrap(), record.value.as_deref().unwrap()))
            .collect();
        assert_eq!(pairs, [(&b"k"[..], &b"v:w"[..]), (b"", b"only value"), (b"only key", b"")]);
        assert!(matches!(read(b"k:v\nbare\n", &options), Err(InputError::NoKey { record: 2 })));
    }

    #[test]
    fn empty_values_are_tombstones_only_when_asked() {
        let options = InputOptions {
            key_delimiter: Some(b"=".to_vec()),
            empty_is_tombstone: true,
            ..lines()
        };
        let records = read(b"k=\nk=v\n", &options).unwrap();
        assert_eq!(records[0].value, None);
        assert_eq!(records[1].value.as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn a_whole_input_is_one_record_also_when_it_is_empty() {
        assert_eq!(values(b"a\nb\n", &options(Shape::Whole)), [b"a\nb\n"]);
        assert_eq!(values(b"", &options(Shape::Whole)), [b""]);
    }

    #[test]
    fn json_lines_are_records_and_blank_lines_are_not() {
        let records =
            read(b"{\"value\":\"a\"}\n\n {\"value\":null}", &options(Shape::JsonLines)).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].value, None);
        let error = read(b"{\"value\":\"a\"}\nnope\n", &options(Shape::JsonLines)).unwrap_err();
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }

    #[test]
    fn a_record_over_the_limit_is_refused_before_it_is_all_read() {
        let options = InputOptions { record_bytes_max: 4, ..lines() };
        assert_eq!(values(b"1234\n", &options), [b"1234"]);
        let error = read(b"1\n12345\n", &options).unwrap_err();
        assert!(matches!(error, InputError::TooLarge { record: 2, limit: 4 }), "{error}");
        // Without any delimiter in sight, the endless input is not read to its end.
        let error = read_records(io::repeat(b'x'), &options, |_| true).unwrap_err();
        assert!(matches!(error, InputError::TooLarge { record: 1, .. }), "{error}");
    }

    #[test]
    fn records_before_a_bad_one_are_handed_over() {
        let options = InputOptions { key_delimiter: Some(b":".to_vec()), ..lines() };
        let mut records = 0;
        let outcome = read_records(&b"a:1\nb:2\nbad\nc:3\n"[..], &options, |chunk| {
            records += chunk.records.len();
            true
        });
        assert!(outcome.is_err());
        assert_eq!(records, 2);
    }

    #[test]
    fn reading_stops_when_nobody_wants_more() {
        let outcome = read_records(io::repeat(b'\n'), &lines(), |_| false);
        assert!(matches!(outcome, Err(InputError::Stopped)));
    }
}

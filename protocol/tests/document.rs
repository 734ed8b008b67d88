//! `docs/protocol.md` is what a stranger writes a client from, so it is checked: every hex block against the
//! encoder and the decoder, every table against the code.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "document/cluster.rs"]
mod cluster;
#[path = "document/example.rs"]
mod example;
#[path = "document/groups.rs"]
mod groups;
#[path = "document/samples.rs"]
mod samples;
#[path = "document/transactions.rs"]
mod transactions;

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path};

use bytes::BytesMut;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tidemark_protocol::{
    Compression, ErrorCode, Failure,
    batch::batches,
    frame::{Frame, FrameDecoder, FrameKind, Preface, encode_head},
    limits,
    message::{Api, Request},
    messagepack,
    messages::*,
    partitioner::{murmur2, partition_for_key},
};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The bytes of every fenced block tagged `hex name=…`, comments and spaces dropped.
fn hex_blocks(document: &str) -> BTreeMap<String, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    for part in document.split("```hex name=").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        let body = rest.split("```").next().unwrap();
        let digits = body.lines().map(|line| line.split('#').next().unwrap()).collect::<String>();
        let bytes = digits.split_whitespace().map(|byte| {
            u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: {byte:?}"))
        });
        assert!(blocks.insert(name.to_owned(), bytes.collect()).is_none(), "{name} is there twice");
    }
    blocks
}

/// The rows of the table whose head begins with `head`, as cells without code marks.
fn table<'a>(document: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let start = document.find(head).unwrap_or_else(|| panic!("no table begins with {head:?}"));
    rows(document[start..].trim_start())
}

/// The rows below the head and the rule of the table at the front of `text`.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
        })
        .collect()
}

fn frame(bytes: &[u8]) -> Frame {
    let mut buffer = BytesMut::from(bytes);
    let frame = FrameDecoder::new(limits::FRAME_BYTES_MAX).decode(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty(), "bytes follow the frame");
    frame
}

/// Reads the frame's header as a `T` and writes the frame again.
fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Vec<u8> {
    let frame = frame(bytes);
    let header: T = frame.message().unwrap();
    let head = encode_head(frame.kind, frame.api, frame.correlation, &header, frame.payload.len())
        .unwrap();
    [&head, &frame.payload[..]].concat()
}

fn response_again<R: Request>(bytes: &[u8]) -> Vec<u8> {
    again::<Result<R::Response, Failure>>(bytes)
}

#[test]
fn every_hex_block_is_what_the_encoder_writes() {
    let document = document();
    let mut written = hex_blocks(&document);
    for (name, bytes) in example::blocks() {
        assert_eq!(written.remove(name), Some(bytes), "{name}");
    }
    assert!(written.is_empty(), "not in the example: {:?}", written.keys());
}

#[test]
fn every_hex_block_is_understood_by_the_decoder() {
    let blocks = hex_blocks(&document());
    for (name, bytes) in &blocks {
        let written_again = match name.as_str() {
            "preface" => {
                let preface = Preface::decode(bytes.first_chunk().unwrap()).unwrap();
                assert_eq!(preface.negotiate(Preface::OURS), Some(1));
                preface.encode().to_vec()
            }
            "settings" => {
                let settings: TopicSettings =
                    messagepack::decode(bytes, limits::REQUEST_PARTITIONS_MAX).unwrap();
                samples::encoded(&settings)
            }
            "metadata-request" => again::<MetadataRequest>(bytes),
            "metadata-response" => response_again::<MetadataRequest>(bytes),
            "create-topic-request" => again::<CreateTopicRequest>(bytes),
            "create-topic-response" | "create-topic-failure" => {
                response_again::<CreateTopicRequest>(bytes)
            }
            "produce-request" => again::<ProduceRequest>(bytes),
            "produce-response" => response_again::<ProduceRequest>(bytes),
            "fetch-request" => again::<FetchRequest>(bytes),
            "fetch-response" => response_again::<FetchRequest>(bytes),
            "subscribe-request" => again::<SubscribeRequest>(bytes),
            "subscribe-response" => response_again::<SubscribeRequest>(bytes),
            "push" | "last-push" => again::<PushHeader>(bytes),
            "credit" => again::<CreditHeader>(bytes),
            "cancel" => again::<()>(bytes),
            other => panic!("what is in {other}?"),
        };
        assert_eq!(&written_again, bytes, "{name}");
    }
}

#[test]
fn the_batch_in_the_example_holds_the_record_it_says() {
    let blocks = hex_blocks(&document());
    for name in ["produce-request", "fetch-response", "push"] {
        let batch = batches(frame(&blocks[name]).payload).next().unwrap().unwrap();
        batch.validate_for_append(limits::BATCH_BYTES_MAX).unwrap();
        let records = batch.records().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].offset, records[0].timestamp_ms), (0, example::SENT_AT_MS));
        assert_eq!(records[0].key.as_deref(), Some(&b"user-7"[..]));
        assert_eq!(records[0].value.as_deref(), Some(&b"hello"[..]));
    }
}

#[test]
fn the_tables_of_apis_and_kinds_are_complete() {
    let document = document();
    let (for_clients, between_nodes) = document.split_once("\n## 13. Between nodes").unwrap();
    let head = "| number | name | request | response |";
    let apis = [table(for_clients, head), table(between_nodes, head)].concat();
    assert_eq!(apis.len(), Api::ALL.len());
    let answered: Vec<_> = samples::all().into_iter().map(|sample| sample.structure).collect();
    for (row, api) in apis.iter().zip(Api::ALL) {
        let structure = row[1].split('_').map(capitalized).collect::<String>();
        assert_eq!(row[0], api.number().to_string(), "{row:?}");
        assert_eq!(row[1], api.name(), "{row:?}");
        let link = format!("[`{structure}Request`](#{}request)", structure.to_lowercase());
        assert_eq!(row[2], link, "{row:?}");
        let response = format!("{structure}Response");
        let response = if answered.contains(&response) { &response } else { "none" };
        assert_eq!(row[3], response, "{row:?}");
    }
    let first = |apis: &str| table(apis, head)[0][0].parse::<u16>().unwrap();
    assert!(for_clients.contains(&format!("Numbers from {} on are", first(between_nodes))));
    let kinds = table(&document, "| kind | name | from |");
    assert_eq!(kinds.len(), FrameKind::ALL.len());
    for (row, kind) in kinds.iter().zip(FrameKind::ALL) {
        assert_eq!(row[..2], [kind.number().to_string(), format!("{kind:?}").to_lowercase()]);
    }
}

fn capitalized(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

#[test]
fn the_table_of_errors_is_complete() {
    let document = document();
    let rows = table(&document, "| code | name | retriable |");
    assert_eq!(rows.len(), ErrorCode::ALL.len());
    for (row, code) in rows.iter().zip(ErrorCode::ALL) {
        let retriable = if code.is_retriable() { "yes" } else { "no" };
        assert_eq!(row[..3], [&code.code().to_string(), code.name(), retriable]);
    }
}

#[test]
fn the_tables_of_enumerations_are_complete() {
    fn check<T: TryFrom<u8> + Debug>(document: &str, name: &str) {
        let rows = table(document, &format!("\n| `{name}` | "));
        let known =
            (0..=u8::MAX).filter_map(|code| T::try_from(code).ok().map(|known| (code, known)));
        let known: Vec<_> = known
            .map(|(code, known)| [code.to_string(), format!("{known:?}").to_lowercase()])
            .collect();
        let written: Vec<_> =
            rows.iter().map(|row| [row[0].to_owned(), row[1].replace(' ', "")]).collect();
        assert_eq!(written, known, "{name}");
    }
    let document = document();
    check::<Acks>(&document, "Acks");
    check::<Durability>(&document, "Durability");
    check::<OffsetQuery>(&document, "OffsetQuery");
    check::<CoordinatorKind>(&document, "CoordinatorKind");
    check::<GroupState>(&document, "GroupState");
    check::<MemberState>(&document, "MemberState");
    check::<RemovalReason>(&document, "RemovalReason");
    check::<BrokerChange>(&document, "BrokerChange");
    check::<PlanGoal>(&document, "PlanGoal");
    check::<Election>(&document, "Election");
    check::<WantedState>(&document, "WantedState");
    let codecs = table(&document, "| number | codec |");
    let written: Vec<_> = codecs.iter().map(|row| [row[0].to_owned(), row[1].to_owned()]).collect();
    assert_eq!(
        written,
        Compression::ALL.map(|codec| [codec.code().to_string(), codec.to_string()])
    );
}

#[test]
fn the_cases_of_a_refusal_are_those_of_the_table() {
    let document = document();
    let rows = table(&document, "| `ReplicaRefusal` | fields |");
    assert_eq!(rows.len(), cluster::refusals().len());
    for (row, refusal) in rows.iter().zip(cluster::refusals()) {
        // As `{:?}` has it: `Case { field: value, other: value }`.
        let text = format!("{refusal:?}");
        let (case, fields) = text.split_once(" { ").unwrap();
        let names: Vec<_> = fields.split(", ").map(|field| field.split(':').next()).collect();
        let written: Vec<_> =
            row[1].split(", ").map(|field| field.trim_matches('`').split('`').next()).collect();
        assert_eq!((row[0], &written), (case, &names));
        let wire = samples::encoded(&refusal);
        // A map with one entry, a fixstr, an array.
        assert_eq!((wire[0], usize::from(wire[1] & 0x1f)), (0x81, case.len()));
        assert_eq!(&wire[2..2 + case.len()], case.as_bytes());
        assert_eq!(usize::from(wire[2 + case.len()] & 0x0f), names.len());
    }
}

#[test]
fn keys_have_the_hashes_and_partitions_of_the_table() {
    let document = document();
    let rows = table(&document, "| key | hash as an i32 |");
    assert!(rows.len() >= 5);
    for row in rows {
        let key = row[0].as_bytes();
        assert_eq!(row[1], murmur2(key).cast_signed().to_string(), "{row:?}");
        assert_eq!(row[2], partition_for_key(key, 7).to_string(), "{row:?}");
    }
}

#[test]
fn no_message_nests_deeper_than_the_document_says() {
    fn levels(bytes: &[u8]) -> usize {
        // As deep as a decoder has to be willing to go.
        (1..=messagepack::DEPTH_MAX)
            .find(|depth| {
                let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
                decoder.set_max_depth(depth + 1);
                serde::de::IgnoredAny::deserialize(&mut decoder).is_ok()
            })
            .unwrap()
    }
    let headers = samples::all().into_iter().filter_map(|sample| sample.header);
    let deepest = headers.map(|(_, _, header)| levels(&header)).max().unwrap();
    assert!(document().contains(&format!("has more than {deepest} levels")), "{deepest}");
}

#[test]
fn the_limits_are_those_of_the_code() {
    let document = document();
    let written = table(&document, "| limit | value |")
        .into_iter()
        .map(|row| row[1].trim_end_matches(" bytes").replace(',', "").parse::<usize>().unwrap());
    let limits = [
        limits::FRAME_BYTES_MAX,
        limits::HEADER_BYTES_MAX,
        limits::REQUEST_PARTITIONS_MAX,
        limits::TOPIC_PARTITIONS_MAX as usize,
        messagepack::DEPTH_MAX,
        limits::BATCH_BYTES_MAX,
        limits::BATCH_DECOMPRESSED_BYTES_MAX,
        limits::BATCH_RECORDS_MAX as usize,
        limits::RECORD_HEADERS_MAX,
        limits::TOPIC_NAME_BYTES_MAX,
    ];
    assert_eq!(written.collect::<Vec<_>>(), limits);
}

#[test]
fn every_structure_is_there_with_its_fields_in_order() {
    let document = document();
    let mut written = BTreeMap::new();
    for part in document.split("\n#### `").skip(1) {
        let (structure, rest) = part.split_once('`').unwrap();
        let section = rest.split("\n##").next().unwrap();
        let fields: Vec<_> = match section.find("| # | field |") {
            Some(start) => rows(&section[start..])
                .iter()
                .enumerate()
                .map(|(index, row)| {
                    assert_eq!(row[0], index.to_string(), "{structure}");
                    row[1].to_owned()
                })
                .collect(),
            None => Vec::new(),
        };
        written.insert(structure.to_owned(), fields);
    }
    for sample in samples::all() {
        let fields = written.remove(&sample.structure);
        assert_eq!(fields.as_ref(), Some(&sample.fields), "{}", sample.structure);
    }
    assert!(written.is_empty(), "there is no {:?}", written.keys());
}

#[test]
fn every_sample_is_a_seed_of_the_fuzzer() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/message");
    for sample in samples::all() {
        let Some((api, kind, header)) = sample.header else { continue };
        let index = Api::ALL.iter().position(|known| *known == api).unwrap();
        let choice = index * FrameKind::ALL.len() + usize::from(kind.number()) - 1;
        let seed = [&[u8::try_from(choice).unwrap()][..], &header].concat();
        let path = corpus.join(&sample.structure);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, &seed).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(seed), "{} is out of date", path.display());
    }
}

//! One record as a JSON object: the form that `consume -o json` writes and `produce --json` reads.
//!
//! Bytes that are not UTF-8 travel as `key_base64` and `value_base64`. Fields that place a record (`topic`,
//! `partition`, `offset`) are ignored on input: a record gets a new place. Any other field is refused, since a
//! misspelt `value` would be a tombstone.

use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};
use tidemark_protocol::{TimestampMs, batch::RecordHeader};

use super::InputRecord;
use crate::encoding;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord<'a> {
    #[serde(default, rename = "topic")]
    _topic: IgnoredAny,
    #[serde(default, rename = "partition")]
    _partition: IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: IgnoredAny,
    #[serde(default)]
    key: Option<Value>,
    key_base64: Option<String>,
    /// Raw, so that a number or an object keeps its spelling.
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(default)]
    headers: JsonHeaders,
    timestamp_ms: Option<TimestampMs>,
    timestamp: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonHeaders {
    List(Vec<JsonHeader>),
    Map(serde_json::Map<String, Value>),
}

impl Default for JsonHeaders {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHeader {
    key: String,
    #[serde(default)]
    value: Option<String>,
    value_base64: Option<String>,
}

/// Parses one line. The error says what is wrong with it.
pub(super) fn parse(line: &[u8]) -> Result<InputRecord, String> {
    let record: JsonRecord<'_> =
        serde_json::from_slice(line).map_err(|error| format!("not a JSON record: {error}"))?;
    let key = match (record.key, record.key_base64) {
        (_, Some(encoded)) => Some(decode(&encoded, "key_base64")?),
        (None | Some(Value::Null), None) => None,
        (Some(key), None) => Some(text_of(key)),
    };
    let value = match (record.value, record.value_base64) {
        (_, Some(encoded)) => Some(decode(&encoded, "value_base64")?),
        (None, None) => None,
        (Some(raw), None) => match serde_json::from_str::<Option<String>>(raw.get()) {
            Ok(text) => text.map(Bytes::from),
            Err(_) => Some(Bytes::copy_from_slice(raw.get().as_bytes())),
        },
    };
    let timestamp_ms = match (record.timestamp_ms, record.timestamp) {
        (None, Some(text)) => Some(
            text.parse::<jiff::Timestamp>()
                .map_err(|error| format!("timestamp {text:?}: {error}"))?
                .as_millisecond(),
        ),
        (timestamp_ms, _) => timestamp_ms,
    };
    // "No timestamp", as `consume -o json` writes it.
    let timestamp_ms = timestamp_ms.filter(|timestamp_ms| *timestamp_ms >= 0);
    Ok(InputRecord { key, value, headers: headers(record.headers)?, timestamp_ms })
}

fn headers(headers: JsonHeaders) -> Result<Vec<RecordHeader>, String> {
    match headers {
        JsonHeaders::List(list) => list
            .into_iter()
            .map(|header| {
                let value = match header.value_base64 {
                    Some(encoded) => Some(decode(&encoded, "value_base64 of a header")?),
                    None => header.value.map(Bytes::from),
                };
                Ok(RecordHeader { key: header.key, value })
            })
            .collect(),
        JsonHeaders::Map(map) => Ok(map
            .into_iter()
            .map(|(key, value)| RecordHeader {
                key,
                value: (!value.is_null()).then(|| text_of(value)),
            })
            .collect()),
    }
}

fn text_of(value: Value) -> Bytes {
    match value {
        Value::String(text) => Bytes::from(text),
        other => Bytes::from(other.to_string()),
    }
}

fn decode(encoded: &str, field: &str) -> Result<Bytes, String> {
    encoding::from_base64(encoded).map(Bytes::from).ok_or_else(|| format!("{field} is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> InputRecord {
        parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn a_record_has_key_value_headers_and_time() {
        let record = parsed(
            r#"{"key":"k","value":"v\n","headers":[{"key":"h","value":"1"},{"key":"h"}],"timestamp_ms":7,"topic":"t","partition":0,"offset":9}"#,
        );
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"v\n"[..]));
        assert_eq!(record.headers.len(), 2);
        assert_eq!(record.headers[1].value, None);
        assert_eq!(record.timestamp_ms, Some(7));
    }

    #[test]
    fn values_that_are_no_strings_are_kept_as_they_are_spelled() {
        assert_eq!(
            parsed(r#"{"value":{"b": 1.50, "a":[]}}"#).value.as_deref(),
            Some(&br#"{"b": 1.50, "a":[]}"#[..])
        );
        assert_eq!(parsed(r#"{"value":12}"#).value.as_deref(), Some(&b"12"[..]));
    }

    #[test]
    fn null_and_absent_are_tombstones_and_base64_is_bytes() {
        assert_eq!(parsed(r#"{"key":"k","value":null}"#).value, None);
        assert_eq!(parsed(r#"{"key":"k"}"#).value, None);
        assert_eq!(parsed(r#"{"value_base64":"/wA="}"#).value.as_deref(), Some(&b"\xff\x00"[..]));
    }

    #[test]
    fn headers_may_be_an_object_and_times_may_be_text() {
        let record =
            parsed(r#"{"value":"v","headers":{"a":"1","n":2},"timestamp":"1970-01-01T00:00:01Z"}"#);
        assert_eq!(record.headers[1].value.as_deref(), Some(&b"2"[..]));
        assert_eq!(record.timestamp_ms, Some(1_000));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in [
            "",
            "[]",
            "{\"value\":",
            r#"{"value_base64":"!"}"#,
            r#"{"timestamp":"noon"}"#,
            r#"{"headers":7}"#,
            r#"{"key":"k","valeu":"v"}"#,
        ] {
            parse(wrong.as_bytes()).expect_err(wrong);
        }
    }
}

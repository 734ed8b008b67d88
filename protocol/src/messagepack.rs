//! MessagePack headers: encoding, and decoding that survives newer peers and hostile ones.
//!
//! `rmp-serde` does the work. This file adds what it does not do: elements past the end of a known structure
//! are skipped (it would call them a length mismatch), lists are bounded, nesting is bounded, and bytes after
//! the value are an error. It refuses structures encoded as maps.

use serde::{Deserializer as _, Serialize, de::DeserializeOwned};

mod tolerant;

/// Deepest nesting of a header. The deepest message there is needs eight.
pub const DEPTH_MAX: usize = 24;

/// Why a header could not be decoded, or encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("{0}")]
    Malformed(String),
    #[error("bytes follow the end of the value")]
    TrailingBytes,
}

/// Appends `value` to `out`: structures as arrays in field order.
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), MessageError> {
    value
        .serialize(&mut rmp_serde::Serializer::new(out))
        .map_err(|error| MessageError::Malformed(error.to_string()))
}

/// The value that fills `bytes` exactly, in which no list or map has more than `list_elements_max` elements.
/// Allocates at most a small multiple of `bytes`.
pub fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    list_elements_max: usize,
) -> Result<T, MessageError> {
    let malformed = |error: rmp_serde::decode::Error| MessageError::Malformed(error.to_string());
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(tolerant::Tolerant::new(&mut decoder, list_elements_max))
        .map_err(malformed)?;
    // Only the end of the input keeps a marker from being read.
    match decoder.deserialize_ignored_any(serde::de::IgnoredAny) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(MessageError::TrailingBytes),
    }
}

#[cfg(test)]
mod tests;

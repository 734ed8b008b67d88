//! MessagePack headers: encoding, and decoding that survives newer peers and hostile ones.
//!
//! `rmp-serde` does the work. This file adds what it does not do: elements past the end of a known structure
//! are skipped (it would call them a length mismatch), lists are bounded, nesting is bounded, bytes after
//! the value are an error, and errors name the field they are in. It refuses structures encoded as maps.

use serde::{Deserializer as _, Serialize, de::DeserializeOwned};

use self::tolerant::{Tolerant, Trace};

mod explain;
mod tolerant;

/// Most arrays, maps and extension values inside one another, the outermost among them. The deepest message of
/// version 1 needs seven.
pub const DEPTH_MAX: usize = 24;

/// Why a header could not be decoded, or encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// For a person, and short whatever was sent: where it is wrong, and how.
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
    let trace = Trace::default();
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    // It refuses the level at which its count is used up.
    decoder.set_max_depth(DEPTH_MAX + 1);
    let value = T::deserialize(Tolerant::new(&mut decoder, list_elements_max, &trace))
        .map_err(|error| MessageError::Malformed(explain::decoding(error, &trace)))?;
    // Only the end of the input keeps a marker from being read.
    match decoder.deserialize_ignored_any(serde::de::IgnoredAny) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(MessageError::TrailingBytes),
    }
}

#[cfg(test)]
mod tests;

//! Small state files: versioned, checksummed, replaced whole.
//!
//! `"TDMK" | u16 format version | u16 kind | u32 payload bytes | payload (MessagePack) | u32 CRC-32`
//! (big-endian, the CRC over everything in front of it). A reader gets the value, or a reason why
//! not; it never guesses.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    disk::{Disk, DiskError},
    error::OpenError,
};

const MAGIC: [u8; 4] = *b"TDMK";
const HEAD_BYTES: usize = 12;
const CRC_BYTES: usize = 4;

/// What a state file is about; a file that was renamed to another's place is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    Format = 1,
    Checkpoint = 2,
    CleanMarker = 3,
    PartitionMeta = 4,
    Epochs = 5,
    Quarantine = 6,
    Truncations = 7,
    LogStart = 8,
    Index = 9,
    Compacted = 10,
    Controller = 11,
    Summary = 12,
    Removals = 13,
}

/// The version this program writes; it reads every one up to it.
const VERSION: u16 = 1;

/// Why bytes are not a state file of the expected kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum StateFileError {
    #[error("{0}")]
    Damaged(String),
    #[error("format version {0}")]
    Newer(u16),
}

/// Encodes a value with its frame.
pub(crate) fn encode<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let payload = rmp_serde::to_vec(value).expect("plain structs of numbers always serialise");
    let length = u32::try_from(payload.len()).expect("state files are far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len() + CRC_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&(kind as u16).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&payload);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

/// Decodes what [`encode`] wrote.
pub(crate) fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, StateFileError> {
    let damaged = |reason: &str| StateFileError::Damaged(reason.to_owned());
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(damaged("it is too short"));
    };
    if head[..4] != MAGIC {
        return Err(damaged("it does not start with the magic number"));
    }
    let Some((payload, crc)) = rest.split_last_chunk::<CRC_BYTES>() else {
        return Err(damaged("it is too short"));
    };
    if crc32fast::hash(&bytes[..bytes.len() - CRC_BYTES]) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum does not match"));
    }
    // Only a file whose checksum holds may claim to be newer: everything else is damage.
    let version = u16::from_be_bytes([head[4], head[5]]);
    if version > VERSION {
        return Err(StateFileError::Newer(version));
    }
    if u16::from_be_bytes([head[6], head[7]]) != kind as u16 {
        return Err(damaged("it is a state file of another kind"));
    }
    let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    if usize::try_from(length) != Ok(payload.len()) {
        return Err(damaged("its length does not match"));
    }
    rmp_serde::from_slice(payload).map_err(|error| StateFileError::Damaged(error.to_string()))
}

/// Replaces the file durably.
pub(crate) fn write<D: Disk, T: Serialize>(
    disk: &D,
    path: &Path,
    kind: Kind,
    value: &T,
) -> Result<(), DiskError> {
    disk.write_file(path, &encode(kind, value))
}

/// Reads a file that must be intact if it exists.
pub(crate) fn read<D: Disk, T: DeserializeOwned>(
    disk: &D,
    path: &Path,
    kind: Kind,
    max_bytes: usize,
) -> Result<Option<T>, OpenError> {
    let Some(bytes) = disk.read_file(path, max_bytes)? else { return Ok(None) };
    decode(kind, &bytes).map(Some).map_err(|error| match error {
        StateFileError::Damaged(reason) => OpenError::Damaged { path: path.to_owned(), reason },
        StateFileError::Newer(found) => {
            OpenError::NewerFormat { path: path.to_owned(), found, supported: VERSION }
        }
    })
}

/// Reads a file that is only a shortcut: anything but an intact one counts as absent.
pub(crate) fn read_cache<D: Disk, T: DeserializeOwned>(
    disk: &D,
    path: &Path,
    kind: Kind,
    max_bytes: usize,
) -> Option<T> {
    match read(disk, path, kind, max_bytes) {
        Ok(value) => value,
        Err(error) => {
            tracing::warn!(%error, "ignoring a file that can be rebuilt");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = encode(Kind::Epochs, &vec![(1_u32, 2_u64)]);
        assert_eq!(decode::<Vec<(u32, u64)>>(Kind::Epochs, &bytes), Ok(vec![(1, 2)]));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(Kind::Epochs, &vec![(1_u32, 2_u64), (3, 4)]);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<(u32, u64)>>(Kind::Epochs, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_kind_and_a_newer_version_are_refused() {
        let bytes = encode(Kind::Epochs, &1_u8);
        assert!(decode::<u8>(Kind::Quarantine, &bytes).is_err());
        let mut newer = bytes[..bytes.len() - CRC_BYTES].to_vec();
        newer[5] = 9;
        newer.extend_from_slice(&crc32fast::hash(&newer).to_be_bytes());
        assert_eq!(decode::<u8>(Kind::Epochs, &newer), Err(StateFileError::Newer(9)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(decode::<Vec<u64>>(Kind::Index, &bytes).is_err());
        }
    }
}

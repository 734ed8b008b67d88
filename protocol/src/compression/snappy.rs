//! Snappy as Kafka clients write it: raw, or in the framing of `xerial/snappy-java`.
//!
//! That framing is a 16-byte header (8 bytes of magic, two version numbers), then blocks, each a big-endian
//! u32 length and that many bytes of raw snappy.

use std::{fmt::Display, io};

use super::{Compression, CompressionError};

const MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const HEADER_BYTES: usize = 16;
/// Uncompressed bytes per block, as the Java library writes them.
const BLOCK_BYTES: usize = 32 << 10;
/// Three bytes of raw snappy make at most 64: nothing expands further than this.
const EXPANSION_MAX: usize = 22;

pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in input.chunks(BLOCK_BYTES) {
        let start = out.len() + 4;
        out.resize(start + snap::raw::max_compress_len(block.len()), 0);
        let written = encoder.compress(block, &mut out[start..])?;
        out.truncate(start + written);
        let length =
            u32::try_from(written).expect("a block of 32 KiB compresses to less than 4 GiB");
        out[start - 4..start].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

pub(super) fn decompress(input: &[u8], limit_bytes: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    if !input.starts_with(MAGIC) {
        append_block(input, &mut out, limit_bytes)?;
        return Ok(out);
    }
    let mut rest = input.get(HEADER_BYTES..).ok_or_else(|| malformed("truncated header"))?;
    while !rest.is_empty() {
        let (length, after) =
            rest.split_first_chunk::<4>().ok_or_else(|| malformed("truncated block length"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| malformed("truncated block"))?;
        append_block(block, &mut out, limit_bytes)?;
        rest = &after[length..];
    }
    Ok(out)
}

fn append_block(
    block: &[u8],
    out: &mut Vec<u8>,
    limit_bytes: usize,
) -> Result<(), CompressionError> {
    let declared = snap::raw::decompress_len(block).map_err(|error| malformed(&error))?;
    let start = out.len();
    if declared > limit_bytes - start {
        return Err(CompressionError::TooLarge { codec: Compression::Snappy, limit_bytes });
    }
    if declared > block.len().saturating_mul(EXPANSION_MAX) {
        return Err(malformed("declares more bytes than it can hold"));
    }
    out.resize(start + declared, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(|error| malformed(&error))?;
    Ok(())
}

fn malformed(detail: &(impl Display + ?Sized)) -> CompressionError {
    CompressionError::Malformed { codec: Compression::Snappy, detail: detail.to_string() }
}

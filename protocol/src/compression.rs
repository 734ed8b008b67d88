//! The four codecs of record batches, and bounds on what they may expand to.
//!
//! A declared size is never trusted: output grows as it is produced and stops at the caller's limit. This
//! file knows bytes only; what is compressed is [`crate::batch`]'s business.

mod snappy;

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

use crate::limits;

/// How the records of a batch are compressed. The number is the one in the batch's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    #[default]
    None,
    /// RFC 1952; several members may follow each other.
    Gzip,
    /// Written in the framing of `xerial/snappy-java`, as Kafka's Java client does; read with it or without.
    Snappy,
    /// The LZ4 frame format, independent blocks.
    Lz4,
    /// RFC 8878, without dictionaries.
    Zstd,
}

/// Why bytes could not be compressed or decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("{codec} data expands to more than {limit_bytes} bytes")]
    TooLarge { codec: Compression, limit_bytes: usize },
    #[error("malformed {codec} data: {detail}")]
    Malformed { codec: Compression, detail: String },
}

impl Compression {
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The number in the lowest three bits of a batch's attributes.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec of that number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Appends the compressed form of `input` to `out`.
    pub fn compress(self, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        let done = match self {
            Self::None => out.write_all(input),
            Self::Gzip => gzip(input, out),
            Self::Snappy => snappy::compress(input, out),
            Self::Lz4 => lz4(input, out),
            Self::Zstd => zstd::stream::copy_encode(input, out, zstd::DEFAULT_COMPRESSION_LEVEL),
        };
        done.map_err(|error| self.malformed(&error))
    }

    /// The bytes that `input` is the compressed form of, if they are at most `limit_bytes`. Memory use is
    /// proportional to what was produced so far, plus the codec's window (zstd: at most 128 MiB, touched only
    /// as it fills).
    pub fn decompress(self, input: &[u8], limit_bytes: usize) -> Result<Vec<u8>, CompressionError> {
        match self {
            Self::None if input.len() > limit_bytes => {
                Err(CompressionError::TooLarge { codec: self, limit_bytes })
            }
            Self::None => Ok(input.to_vec()),
            Self::Gzip => {
                self.read_bounded(flate2::read::MultiGzDecoder::new(input), input, limit_bytes)
            }
            Self::Snappy => snappy::decompress(input, limit_bytes),
            Self::Lz4 => {
                self.read_bounded(lz4_flex::frame::FrameDecoder::new(input), input, limit_bytes)
            }
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                    .map_err(|error| self.malformed(&error))?;
                decoder
                    .window_log_max(limits::BATCH_DECOMPRESSED_BYTES_MAX.ilog2())
                    .map_err(|error| self.malformed(&error))?;
                self.read_bounded(decoder, input, limit_bytes)
            }
        }
    }

    fn read_bounded(
        self,
        mut decoder: impl Read,
        input: &[u8],
        limit_bytes: usize,
    ) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::with_capacity(input.len().saturating_mul(2).min(limit_bytes));
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let read = match decoder.read(&mut chunk) {
                Ok(0) => return Ok(out),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.malformed(&error)),
            };
            let len = out.len() + read;
            if len > limit_bytes {
                return Err(CompressionError::TooLarge { codec: self, limit_bytes });
            }
            if len > out.capacity() {
                // Doubling, but never past the limit.
                let capacity = (out.capacity() * 2).clamp(len, limit_bytes);
                out.reserve_exact(capacity - out.len());
            }
            out.extend_from_slice(&chunk[..read]);
        }
    }

    fn malformed(self, error: &impl fmt::Display) -> CompressionError {
        CompressionError::Malformed { codec: self, detail: error.to_string() }
    }
}

/// What a decoder hands over at a time: on the stack, small enough for a thread's smallest.
const CHUNK_BYTES: usize = 16 << 10;

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// The text names no codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression `{0}`: expected none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompression(pub String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| UnknownCompression(text.to_owned()))
    }
}

fn gzip(input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    encoder.write_all(input)?;
    encoder.finish().map(drop)
}

fn lz4(input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // What Kafka's Java client writes: 64 KiB blocks that do not refer to each other, no content checksum.
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(input)?;
    encoder.finish().map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;

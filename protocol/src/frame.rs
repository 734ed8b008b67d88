//! The preface and the frames of the native protocol, without I/O.
//!
//! Bytes in, frames out. A length is checked against its bound before memory is reserved for it, and memory is
//! reserved in steps as bytes arrive, so that a claim costs nothing. After any error the stream has no
//! frame boundary left to find: the connection must be closed.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    ErrorCode, limits,
    messagepack::{self, MessageError},
};

/// Length of a [`Preface`], in bytes.
pub const PREFACE_BYTES: usize = 8;
/// Lowest protocol version this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Highest protocol version this build speaks.
pub const VERSION_MAX: u16 = 1;
/// From `length` to `crc32`, in bytes: what precedes the header of a frame.
pub const FRAME_PREFIX_BYTES: usize = 20;

const MAGIC: &[u8; 4] = b"TIDE";
/// What of the prefix the CRC covers.
const CRC_AT: usize = 16;
/// `length` does not count itself.
const LENGTH_FIELD_BYTES: usize = 4;
/// Least that is reserved at a time: what an idle connection costs.
const IDLE_RESERVE_BYTES: usize = 8 << 10;
/// Reserved for the rest of a frame whatever has arrived of it, unless the rest is shorter.
const STEP_BYTES: usize = 64 << 10;
/// A peer that has sent a frame of some size is trusted to send another, up to this.
const FAMILIAR_BYTES_MAX: usize = 4 << 20;

/// Why bytes are not a preface, frame or message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the connection does not begin with `TIDE`")]
    NotTidemark,
    #[error("the preface's lowest version {min} is above its highest {max}")]
    VersionRange { min: u16, max: u16 },
    #[error("a frame of {claimed_bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { claimed_bytes: usize, limit_bytes: usize },
    #[error("a frame header of {claimed_bytes} bytes is over the limit of {limit_bytes}")]
    HeaderTooLarge { claimed_bytes: usize, limit_bytes: usize },
    #[error(
        "a frame of {claimed_bytes} bytes cannot hold its prefix and a header of {header_bytes} bytes"
    )]
    TooShort { claimed_bytes: usize, header_bytes: usize },
    #[error("no frame kind has number {0}")]
    UnknownKind(u8),
    #[error("frame flags {0:#04x} are not defined in this version")]
    UnknownFlags(u8),
    #[error("frame CRC is {stored:#010x}, computed {computed:#010x}")]
    Crc { stored: u32, computed: u32 },
    #[error("frame header: {0}")]
    Message(#[from] MessageError),
}

impl FrameError {
    /// The code a response carries for this error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } | Self::HeaderTooLarge { .. } => ErrorCode::TooLarge,
            Self::NotTidemark
            | Self::VersionRange { .. }
            | Self::TooShort { .. }
            | Self::UnknownKind(_)
            | Self::UnknownFlags(_)
            | Self::Crc { .. }
            | Self::Message(_) => ErrorCode::InvalidRequest,
        }
    }
}

/// The versions one side speaks, both ends included. Both sides send theirs first thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    pub min: u16,
    pub max: u16,
}

impl Preface {
    /// What this build speaks.
    pub const OURS: Self = Self { min: VERSION_MIN, max: VERSION_MAX };

    pub fn encode(self) -> [u8; PREFACE_BYTES] {
        let [a, b] = self.min.to_be_bytes();
        let [c, d] = self.max.to_be_bytes();
        [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], a, b, c, d]
    }

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "what `first_chunk` and `read_exact` give"
    )]
    pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, a, b, c, d] = *bytes;
        if [m0, m1, m2, m3] != *MAGIC {
            return Err(FrameError::NotTidemark);
        }
        let (min, max) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        if min > max {
            return Err(FrameError::VersionRange { min, max });
        }
        Ok(Self { min, max })
    }

    /// The highest version both speak; `None` when there is none.
    pub fn negotiate(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A question; the sender chooses the correlation.
    Request = 1,
    /// The answer to the request of that correlation.
    Response = 2,
    /// Batches for the subscription of that correlation.
    Push = 3,
    /// More room for pushes to the subscription of that correlation.
    Credit = 4,
    /// The request or subscription of that correlation is no longer wanted.
    Cancel = 5,
}

impl FrameKind {
    pub const ALL: [Self; 5] =
        [Self::Request, Self::Response, Self::Push, Self::Credit, Self::Cancel];

    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Push),
            4 => Some(Self::Credit),
            5 => Some(Self::Cancel),
            _ => None,
        }
    }

    /// Most elements in a list of a header: a request names partitions, an answer may describe a whole topic.
    const fn list_elements_max(self) -> usize {
        match self {
            Self::Request | Self::Credit | Self::Cancel => limits::REQUEST_PARTITIONS_MAX,
            Self::Response | Self::Push => limits::TOPIC_PARTITIONS_MAX as usize,
        }
    }
}

/// A frame whose lengths, flags and CRC have been checked. Header and payload are slices of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub flags: u8,
    /// [`crate::message::Api`] by number; unknown ones are the caller's to answer.
    pub api: u16,
    pub correlation: u32,
    pub header: Bytes,
    /// Not covered by the frame's CRC: batches carry their own.
    pub payload: Bytes,
}

impl Frame {
    /// The header as a message. Responses are always `Result<R::Response, Failure>`.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        Ok(messagepack::decode(&self.header, self.kind.list_elements_max())?)
    }

    /// Bytes this frame took on the wire.
    pub fn wire_bytes(&self) -> usize {
        FRAME_PREFIX_BYTES + self.header.len() + self.payload.len()
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    max_frame_bytes: usize,
    /// The prefix at the front of the buffer, once its header's CRC has been verified.
    verified: Option<Prefix>,
    /// Wire length of the frame before, at most [`FAMILIAR_BYTES_MAX`].
    familiar_bytes: usize,
}

impl FrameDecoder {
    /// Refuses frames whose `length` is above `max_frame_bytes`, or above [`limits::FRAME_BYTES_MAX`].
    pub fn new(max_frame_bytes: usize) -> Self {
        let max_frame_bytes = max_frame_bytes.min(limits::FRAME_BYTES_MAX);
        Self { max_frame_bytes, verified: None, familiar_bytes: 0 }
    }

    /// The frame at the front of `buffer`, split off without copying. `None`: more bytes are needed, and
    /// `buffer` has spare capacity for some of them. About as much as has arrived, 64 KiB or the length of
    /// the frame before is reserved beyond what is there, whatever a frame claims.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let prefix = match self.verified {
            Some(prefix) => prefix,
            None => match self.verify_prefix(buffer)? {
                Some(prefix) => prefix,
                None => return Ok(None),
            },
        };
        let frame_bytes = prefix.wire_bytes();
        if buffer.len() < frame_bytes {
            self.verified = Some(prefix);
            self.reserve(buffer, frame_bytes);
            return Ok(None);
        }
        self.verified = None;
        self.familiar_bytes = frame_bytes.min(FAMILIAR_BYTES_MAX);
        let mut bytes = buffer.split_to(frame_bytes).freeze();
        bytes.advance(FRAME_PREFIX_BYTES);
        let header = bytes.split_to(prefix.header_bytes);
        let Prefix { kind, api, correlation, .. } = prefix;
        Ok(Some(Frame { kind, flags: 0, api, correlation, header, payload: bytes }))
    }

    fn verify_prefix(&self, buffer: &mut BytesMut) -> Result<Option<Prefix>, FrameError> {
        // Refused as soon as it is known.
        if let Some(length) = buffer.first_chunk::<LENGTH_FIELD_BYTES>() {
            self.check_length(u32::from_be_bytes(*length) as usize)?;
        }
        let Some(bytes) = buffer.first_chunk::<FRAME_PREFIX_BYTES>() else {
            let wanted = if buffer.is_empty() { IDLE_RESERVE_BYTES } else { STEP_BYTES };
            self.reserve(buffer, wanted);
            return Ok(None);
        };
        let prefix = Prefix::parse(bytes)?;
        let head_bytes = FRAME_PREFIX_BYTES + prefix.header_bytes;
        let Some(header) = buffer.get(FRAME_PREFIX_BYTES..head_bytes) else {
            self.reserve(buffer, prefix.wire_bytes());
            return Ok(None);
        };
        let computed = head_crc(&buffer[..CRC_AT], header);
        if computed != prefix.crc {
            return Err(FrameError::Crc { stored: prefix.crc, computed });
        }
        Ok(Some(prefix))
    }

    fn check_length(&self, claimed_bytes: usize) -> Result<(), FrameError> {
        if claimed_bytes > self.max_frame_bytes {
            let limit_bytes = self.max_frame_bytes;
            return Err(FrameError::TooLarge { claimed_bytes, limit_bytes });
        }
        if claimed_bytes < FRAME_PREFIX_BYTES - LENGTH_FIELD_BYTES {
            return Err(FrameError::TooShort { claimed_bytes, header_bytes: 0 });
        }
        Ok(())
    }

    /// Makes room for the next bytes of a frame of `frame_bytes`, when little is left.
    fn reserve(&self, buffer: &mut BytesMut, frame_bytes: usize) {
        let missing = frame_bytes.saturating_sub(buffer.len());
        if buffer.capacity() - buffer.len() < missing.min(IDLE_RESERVE_BYTES) {
            let step = STEP_BYTES.max(buffer.len()).max(self.familiar_bytes);
            buffer.reserve(missing.clamp(IDLE_RESERVE_BYTES, step));
        }
    }
}

/// The 20 bytes in front of a header.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    length: usize,
    kind: FrameKind,
    api: u16,
    correlation: u32,
    header_bytes: usize,
    crc: u32,
}

impl Prefix {
    fn parse(bytes: &[u8; FRAME_PREFIX_BYTES]) -> Result<Self, FrameError> {
        let mut rest = &bytes[..];
        let length = rest.get_u32() as usize;
        let (kind, flags) = (rest.get_u8(), rest.get_u8());
        let (api, correlation) = (rest.get_u16(), rest.get_u32());
        let header_bytes = rest.get_u32() as usize;
        let crc = rest.get_u32();
        let kind = FrameKind::from_number(kind).ok_or(FrameError::UnknownKind(kind))?;
        if flags != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        check_header_bytes(header_bytes)?;
        if FRAME_PREFIX_BYTES - LENGTH_FIELD_BYTES + header_bytes > length {
            return Err(FrameError::TooShort { claimed_bytes: length, header_bytes });
        }
        Ok(Self { length, kind, api, correlation, header_bytes, crc })
    }

    fn wire_bytes(&self) -> usize {
        LENGTH_FIELD_BYTES + self.length
    }
}

fn check_header_bytes(claimed_bytes: usize) -> Result<(), FrameError> {
    let limit_bytes = limits::HEADER_BYTES_MAX;
    if claimed_bytes > limit_bytes {
        return Err(FrameError::HeaderTooLarge { claimed_bytes, limit_bytes });
    }
    Ok(())
}

fn head_crc(in_front: &[u8], header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(in_front);
    hasher.update(header);
    hasher.finalize()
}

/// Prefix and header of a frame whose payload of `payload_bytes` the caller sends after it, as is.
///
/// Errors when header or frame are over their limits: an answer with too much in it is the caller's to
/// replace by a failure.
pub fn encode_head<T: Serialize>(
    kind: FrameKind,
    api: u16,
    correlation: u32,
    header: &T,
    payload_bytes: usize,
) -> Result<Bytes, FrameError> {
    let mut head = Vec::with_capacity(256);
    head.resize(FRAME_PREFIX_BYTES, 0);
    messagepack::encode(header, &mut head)?;
    let header_bytes = head.len() - FRAME_PREFIX_BYTES;
    check_header_bytes(header_bytes)?;
    let claimed_bytes = (head.len() - LENGTH_FIELD_BYTES).saturating_add(payload_bytes);
    let limit_bytes = limits::FRAME_BYTES_MAX;
    if claimed_bytes > limit_bytes {
        return Err(FrameError::TooLarge { claimed_bytes, limit_bytes });
    }
    let as_u32 =
        |bytes: usize| u32::try_from(bytes).expect("frames are shorter than 4 GiB").to_be_bytes();
    head[0..4].copy_from_slice(&as_u32(claimed_bytes));
    head[4] = kind.number();
    head[6..8].copy_from_slice(&api.to_be_bytes());
    head[8..12].copy_from_slice(&correlation.to_be_bytes());
    head[12..16].copy_from_slice(&as_u32(header_bytes));
    let crc = head_crc(&head[..CRC_AT], &head[FRAME_PREFIX_BYTES..]);
    head[CRC_AT..FRAME_PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
    Ok(head.into())
}

#[cfg(test)]
mod tests;

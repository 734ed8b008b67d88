//! Bytes that arrive otherwise than they were sent: what the checksum of TCP lets through now and then. Only record batches are
//! changed. The rest of a frame has a checksum of its own, and a frame in which it is wrong ends its connection, which is
//! another fault.

use bytes::{Bytes, BytesMut};
use tidemark_protocol::batch::batches;

use super::{
    core::Core,
    message::{Message, Request},
};

/// Where a batch says which leader appended it. No checksum covers that, and not every wrong one contradicts the rest.
const LEADER_EPOCH_AT: usize = 12;
const LEADER_EPOCH_BYTES: usize = 4;

/// Flips a bit of the batches in a message. Says whether there are any.
pub(super) fn corrupt(message: &mut Message, core: &mut Core) -> bool {
    let pieces = match message {
        Message::Request(_, request) => match &mut **request {
            Request::Produce { batches, .. } => std::slice::from_mut(batches),
            _ => return false,
        },
        Message::Push { payload, .. } => payload.as_mut_slice(),
        _ => return false,
    };
    let mut filled: Vec<_> = pieces.iter_mut().filter(|bytes| !bytes.is_empty()).collect();
    if filled.is_empty() {
        return false;
    }
    let piece = pick(filled.len(), core);
    flip(filled.swap_remove(piece), core);
    true
}

fn flip(piece: &mut Bytes, core: &mut Core) {
    let lengths: Vec<_> = batches(piece.clone())
        .map_while(Result::ok)
        .map(|batch| batch.header.batch_bytes)
        .collect();
    let which = pick(lengths.len(), core);
    let begins: usize = lengths[..which].iter().sum();
    let mut at = pick(lengths[which] - LEADER_EPOCH_BYTES, core);
    if at >= LEADER_EPOCH_AT {
        at += LEADER_EPOCH_BYTES;
    }
    let mut bytes = BytesMut::from(&piece[..]);
    bytes[begins + at] ^= 1 << pick(8, core);
    *piece = bytes.freeze();
}

/// One of so many.
fn pick(count: usize, core: &mut Core) -> usize {
    usize::try_from(core.draw(0, count as u64 - 1)).expect("less than what was counted")
}

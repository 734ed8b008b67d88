//! A leader's snapshot on its way to another controller: in pieces, each asked for by the answer to the one before.
//!
//! A snapshot may be tens of megabytes, and a connection's queue is shared with heartbeats. Lost pieces are sent
//! again; a transfer that gets nowhere is given up, and the library begins another. Nothing that arrives is believed
//! before it is whole and its checksums hold.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    snapshots::SNAPSHOT_BYTES_MAX,
    wire::{Got, Part},
};

/// Bytes of a snapshot in one message.
const PART_BYTES: usize = 1 << 20;
/// Ticks without an answer after which a piece is sent again.
const RESEND_TICKS: u32 = 10;
/// Ticks without an answer after which a transfer is given up.
const GIVE_UP_TICKS: u32 = 10 * RESEND_TICKS;

/// Snapshots on their way out, by the library's number of the receiver.
#[derive(Debug, Default)]
pub(super) struct Outgoing(BTreeMap<u64, Sending>);

#[derive(Debug)]
struct Sending {
    end: u64,
    bytes: Bytes,
    /// What has arrived.
    at: u64,
    ticks_since_answer: u32,
}

/// What became of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Send this next.
    Send(Part),
    Done,
    GivenUp,
}

impl Outgoing {
    /// Begins a transfer, in place of any other to the same controller.
    pub(super) fn begin(&mut self, to: u64, end: u64, bytes: Bytes) -> Part {
        let sending = Sending { end, bytes, at: 0, ticks_since_answer: 0 };
        let part = sending.part();
        self.0.insert(to, sending);
        part
    }

    pub(super) fn answered(&mut self, from: u64, got: Got) -> Option<Progress> {
        let sending = self.0.get_mut(&from).filter(|sending| sending.end == got.end)?;
        if got.bytes == sending.bytes.len() as u64 {
            self.0.remove(&from);
            return Some(Progress::Done);
        }
        // An answer that came twice, or late, asks for what is on its way already.
        let is_new = got.bytes > sending.at || (got.bytes == 0 && sending.at > 0);
        if !is_new || got.bytes > sending.bytes.len() as u64 {
            return None;
        }
        sending.at = got.bytes;
        sending.ticks_since_answer = 0;
        Some(Progress::Send(sending.part()))
    }

    /// Time passes: what is to be sent again, and what is given up.
    pub(super) fn tick(&mut self) -> Vec<(u64, Progress)> {
        let mut due = Vec::new();
        for (to, sending) in &mut self.0 {
            sending.ticks_since_answer += 1;
            if sending.ticks_since_answer >= GIVE_UP_TICKS {
                due.push((*to, Progress::GivenUp));
            } else if sending.ticks_since_answer.is_multiple_of(RESEND_TICKS) {
                due.push((*to, Progress::Send(sending.part())));
            }
        }
        self.0.retain(|_, sending| sending.ticks_since_answer < GIVE_UP_TICKS);
        due
    }

    pub(super) fn receivers(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    pub(super) fn stop(&mut self, to: u64) -> bool {
        self.0.remove(&to).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Sending {
    fn part(&self) -> Part {
        let at = usize::try_from(self.at).expect("no more than there is");
        let until = self.bytes.len().min(at + PART_BYTES);
        Part {
            end: self.end,
            total_bytes: self.bytes.len() as u64,
            at: self.at,
            bytes: self.bytes[at..until].to_vec(),
        }
    }
}

/// A snapshot that is arriving.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Sender, term, end and length of the snapshot.
    which: Option<(u64, u64, u64, u64)>,
    bytes: Vec<u8>,
}

impl Incoming {
    /// Takes a piece. The answer for its sender, and all of the snapshot once it is whole.
    pub(super) fn take(&mut self, from: u64, term: u64, part: &Part) -> (Got, Option<Bytes>) {
        let which = (from, term, part.end, part.total_bytes);
        if self.which != Some(which) {
            self.clear();
            // A beginning is needed, and an end that can be reached.
            if part.at != 0 || part.total_bytes > SNAPSHOT_BYTES_MAX as u64 {
                return (Got { end: part.end, bytes: 0 }, None);
            }
            self.which = Some(which);
        }
        let room = part.total_bytes - self.bytes.len() as u64;
        if part.at == self.bytes.len() as u64 && part.bytes.len() as u64 <= room {
            self.bytes.extend_from_slice(&part.bytes);
        }
        let got = Got { end: part.end, bytes: self.bytes.len() as u64 };
        if got.bytes < part.total_bytes {
            return (got, None);
        }
        let whole = std::mem::take(&mut self.bytes);
        self.clear();
        (got, Some(whole.into()))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

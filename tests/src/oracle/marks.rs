//! The content of a log as the oracles compare it: one mark for each record, and nothing for what cannot be read. Judges
//! nothing: whether a log may have holes is for its caller to say.

use std::collections::VecDeque;

use bytes::Bytes;
use tidemark_protocol::{
    Offset,
    batch::{BatchHeader, batches},
};

use super::Mark;

/// The records between two offsets.
#[derive(Debug)]
pub(super) struct Held {
    /// One for each offset; `None`: it cannot be read.
    pub(super) marks: VecDeque<Option<Mark>>,
    /// The first thing that is wrong with them, if something is.
    pub(super) fault: Option<String>,
}

impl Held {
    /// What consecutive batches hold of the records from `from` to `to`. The first may begin earlier.
    pub(super) fn read(bytes: Bytes, (from, to): (Offset, Offset)) -> Self {
        let mut held = Self { marks: VecDeque::new(), fault: None };
        for batch in batches(bytes) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    held.note(format!("a log holds no batches: {error}"));
                    break;
                }
            };
            let header = &batch.header;
            let next = from + held.marks.len() as u64;
            if header.next_offset() <= next || header.base_offset >= to {
                held.note(format!("a log has {} where {next} should be", header.base_offset));
                break;
            }
            if header.base_offset > next {
                held.note(format!("a log has {} where {next} should be", header.base_offset));
                held.resize(header.base_offset - from);
            }
            let is_sound = batch.verify_crc().is_ok();
            if !is_sound {
                held.note(format!(
                    "a log has a batch with a wrong checksum at {}",
                    header.base_offset
                ));
            }
            held.take(header, is_sound, (header.base_offset.max(next), to));
        }
        let (has, wanted) = (held.marks.len() as u64, to - from);
        if has < wanted {
            held.note(format!("the last {} of {wanted} records cannot be read", wanted - has));
            held.resize(wanted);
        }
        held
    }

    /// Takes what compaction has left out, or written anew, for what is known to have been there: `truth` from the first offset
    /// of all on, while these begin at `from`. What some other leader wrote is what it is: compaction keeps the epoch.
    pub(super) fn trust(&mut self, from: Offset, truth: impl Iterator<Item = Option<Mark>>) {
        let from = usize::try_from(from).expect("a log in memory");
        for (mark, known) in self.marks.iter_mut().zip(truth.skip(from)) {
            let is_anew = |held: Mark| known.is_some_and(|known| known.epoch == held.epoch);
            if mark.is_none_or(is_anew) {
                *mark = known;
            }
        }
        if self.marks.iter().all(Option::is_some) {
            self.fault = None;
        }
    }

    /// The records before the first that cannot be read.
    pub(super) fn readable(&self) -> u64 {
        self.marks.iter().take_while(|mark| mark.is_some()).count() as u64
    }

    fn take(&mut self, header: &BatchHeader, is_sound: bool, (from, to): (Offset, Offset)) {
        for offset in from..header.next_offset().min(to) {
            let hash = u64::from(header.crc) << 32 | (offset - header.base_offset);
            self.marks.push_back(is_sound.then_some(Mark { epoch: header.leader_epoch, hash }));
        }
    }

    fn note(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    fn resize(&mut self, count: u64) {
        self.marks.resize(usize::try_from(count).expect("a log in memory"), None);
    }
}

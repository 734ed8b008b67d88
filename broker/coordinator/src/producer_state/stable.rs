//! How far `read_committed` may read, and what it skips.

use std::{collections::VecDeque, ops::Range};

use tidemark_protocol::{Offset, TimestampMs, bug};

use super::{AbortedTransaction, ProducerStates};
use crate::ProducerId;

impl ProducerStates {
    /// The first offset that may yet turn out to be aborted, or whose end may yet be lost; at most the high
    /// watermark, which is one value for the whole question (KAFKA-9807).
    pub fn last_stable_offset(&self, high_watermark: Offset) -> Offset {
        let open = self.log.open.keys().next().copied();
        let watermark_of_ends = if bug::is_put_back("lso-reads-watermark-twice") {
            // The second look comes later.
            self.log.next_offset
        } else {
            high_watermark
        };
        let mut ended = self.log.ended.iter();
        let undecided =
            ended.find(|(_, marker)| **marker >= watermark_of_ends).map(|(first, _)| *first);
        [open, undecided].into_iter().flatten().fold(high_watermark, Offset::min)
    }

    /// Ends that are committed hold nothing back any more. To be told now and then, so that they are forgotten.
    pub fn high_watermark_reached(&mut self, high_watermark: Offset) {
        self.log.ended.retain(|_, marker| *marker >= high_watermark);
    }

    /// The aborted transactions with offsets in the range, by their markers' offsets.
    pub fn aborted(&self, offsets: Range<Offset>) -> Vec<AbortedTransaction> {
        let aborted = &self.log.aborted;
        let first = aborted.partition_point(|one| one.last_offset < offsets.start);
        let mut found = Vec::new();
        for one in aborted.iter().skip(first) {
            if one.first_offset < offsets.end {
                found.push(*one);
            }
            // Whatever was open then begins there or later.
            if one.last_stable_offset >= offsets.end {
                break;
            }
        }
        found
    }

    /// All of them, by their markers' offsets.
    pub fn all_aborted(&self) -> &VecDeque<AbortedTransaction> {
        &self.log.aborted
    }

    /// The log has no offsets below any more.
    pub fn log_start_reached(&mut self, log_start_offset: Offset) {
        while self.log.aborted.front().is_some_and(|one| one.last_offset < log_start_offset) {
            self.log.aborted.pop_front();
        }
        self.log.ended.retain(|_, marker| *marker >= log_start_offset);
    }

    /// Open transactions by their first offsets, and when they began: those that are open for longer than any may
    /// have been left behind.
    pub fn open_transactions(&self) -> impl Iterator<Item = (ProducerId, Offset, TimestampMs)> {
        self.log.open.iter().map(|(first_offset, id)| {
            (*id, *first_offset, self.log.producers[id].transaction_start_ms)
        })
    }
}

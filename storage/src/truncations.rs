//! `truncations`: what a log has taken back, so that nothing older can contradict it.
//!
//! A checkpoint says "this much is durable", and less than that in the log is corruption - unless
//! the log was truncated since. The file counts truncations and remembers, for every earlier count,
//! how far back the log has gone since then. Its `pending` mark makes an interrupted truncation
//! finish at the next open, before anything is read.

use serde::{Deserialize, Serialize};
use tidemark_protocol::Offset;

pub(crate) const TRUNCATIONS_FILE: &str = "truncations";
pub(crate) const TRUNCATIONS_BYTES_MAX: usize = 64 << 10;
/// More steps than this are merged into coarser ones, which only makes recovery read more.
const STEPS_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Truncations {
    count: u64,
    /// The last truncation may not be complete.
    pub pending: Option<Offset>,
    /// `(count after it, offset)`, both strictly increasing: later truncations that went back
    /// further have replaced earlier ones.
    steps: Vec<(u64, Offset)>,
    /// The log is starting over; not complete.
    #[serde(default)]
    pub restart: Option<Restart>,
}

/// A log that starts over: whatever is on the disk is of an earlier life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restart {
    pub offset: Offset,
    /// Of the life that begins.
    pub incarnation: u64,
}

impl Truncations {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Notes a truncation to `offset`, not carried out yet.
    pub(crate) fn begin(&mut self, offset: Offset) {
        self.count += 1;
        self.steps.retain(|&(_, step)| step < offset);
        self.steps.push((self.count, offset));
        if self.steps.len() > STEPS_MAX {
            // The lower offset now also answers for the younger count: too far back, never too little.
            let (_, lowest) = self.steps.remove(0);
            self.steps[0].1 = lowest;
        }
        self.pending = Some(offset);
    }

    /// Notes that everything is dropped, which is not carried out yet.
    pub(crate) fn begin_restart(&mut self, restart: Restart) {
        self.begin(0);
        self.pending = None;
        self.restart = Some(restart);
    }

    /// How far back the log has gone since there were `count` truncations; `None`: not at all.
    pub(crate) fn lowest_since(&self, count: u64) -> Option<Offset> {
        self.steps.iter().find(|&&(step, _)| step > count).map(|&(_, offset)| offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_offset_since_any_count_is_known() {
        let mut log = Truncations::default();
        for offset in [100, 50, 70, 60, 90] {
            log.begin(offset);
        }
        assert_eq!(log.count(), 5);
        assert_eq!(log.lowest_since(0), Some(50));
        assert_eq!(log.lowest_since(1), Some(50));
        assert_eq!(log.lowest_since(2), Some(60));
        assert_eq!(log.lowest_since(4), Some(90));
        assert_eq!(log.lowest_since(5), None);
    }

    #[test]
    fn many_truncations_stay_bounded_and_on_the_safe_side() {
        let mut log = Truncations::default();
        for offset in 0..1000 {
            log.begin(offset);
        }
        assert!(log.steps.len() <= STEPS_MAX);
        for count in 0..1000 {
            assert!(log.lowest_since(count).unwrap() <= count, "count {count}");
        }
    }
}

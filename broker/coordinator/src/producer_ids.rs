//! Producer ids a broker may give out: blocks that the controller has handed to it and to nobody else. What is left of
//! a block when the process ends is never used.

use std::{collections::VecDeque, ops::Range};

use crate::ProducerId;

/// The ids that are left.
#[derive(Clone, Debug, Default)]
pub struct ProducerIds {
    blocks: VecDeque<Range<ProducerId>>,
}

impl ProducerIds {
    /// Adds a block.
    ///
    /// # Panics
    /// When the block is not of ids.
    pub fn add(&mut self, block: Range<ProducerId>) {
        assert!(0 <= block.start && block.start <= block.end, "not a block of ids: {block:?}");
        self.blocks.push_back(block);
    }

    /// An id that was never given out before.
    pub fn take(&mut self) -> Option<ProducerId> {
        while let Some(block) = self.blocks.front_mut() {
            if let Some(id) = block.next() {
                return Some(id);
            }
            self.blocks.pop_front();
        }
        None
    }

    /// How many are left.
    pub fn left(&self) -> u64 {
        self.blocks.iter().map(|block| (block.end - block.start).cast_unsigned()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_once_each_and_end() {
        let mut ids = ProducerIds::default();
        ids.add(5..7);
        ids.add(9..9);
        ids.add(20..21);
        assert_eq!(ids.left(), 3);
        let all: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!((all, ids.left()), (vec![5, 6, 20], 0));
    }
}

//! Duplicates: a value stands at more than one offset. Who repeats blindly is not promised otherwise.

use std::collections::HashMap;

use super::{Findings, Kind, index::Index};
use crate::history::Repeats;

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    // Looked up, never iterated.
    let mut places = HashMap::new();
    for (partition, versions) in &index.partitions {
        for sighting in &versions.sightings {
            let (value, offset) = (sighting.read.value, sighting.read.offset);
            let first = *places.entry(value).or_insert((partition, offset));
            let may_repeat =
                index.writer(value).is_some_and(|(_, _, send)| send.repeats == Repeats::Blindly);
            if first != (partition, offset) && !may_repeat {
                findings.add(Kind::Duplicate, || {
                    format!("{value} at {partition} {offset} and at {} {}", first.0, first.1)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Repeats, Send},
    };

    #[test]
    fn a_value_was_read_at_two_offsets() {
        let story = Story::default().info(1, 10).ok(1, 11, 1);
        story.poll(2, &[(0, 10), (1, 11), (2, 10)]).finds(&[Kind::Duplicate]);
    }

    #[test]
    fn a_value_was_read_elsewhere_than_acknowledged() {
        let story = Story::default().ok(1, 10, 0);
        story.poll(2, &[(1, 10)]).finds(&[Kind::Duplicate]);
    }

    #[test]
    fn two_readers_of_one_record_are_no_duplicate() {
        Story::default().ok(1, 10, 0).poll(2, &[(0, 10)]).poll(3, &[(0, 10)]).is_clean();
    }

    #[test]
    fn who_repeats_blindly_may_write_twice() {
        let blind = Send { repeats: Repeats::Blindly, ..sent(10) };
        let story = Story::default().acknowledged(1, blind, 1);
        story.poll(2, &[(0, 10), (1, 10)]).is_clean();
    }
}

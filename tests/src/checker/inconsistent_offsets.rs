//! Inconsistent offsets: one offset of a partition has two values, told by acknowledgements or reads.
//!
//! Something that was committed was replaced: the worst a log can do.

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (partition, versions) in &index.partitions {
        for same in versions.sightings.chunk_by(|a, b| a.read.offset == b.read.offset) {
            let first = same[0];
            if let Some(other) = same.iter().find(|other| other.read.value != first.read.value) {
                findings.add(Kind::InconsistentOffsets, || {
                    let word = |acknowledged| if acknowledged { "acknowledged" } else { "read" };
                    format!(
                        "{partition} at {}: {} {} in operation {}, {} {} in operation {}",
                        first.read.offset,
                        first.read.value,
                        word(first.acknowledged),
                        first.by,
                        other.read.value,
                        word(other.acknowledged),
                        other.by,
                    )
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Partition, Repeats, Send},
    };

    #[test]
    fn two_values_were_read_at_one_offset() {
        let story = Story::default().info(1, 10).info(1, 11).poll(2, &[(0, 10)]);
        story.poll(3, &[(0, 11)]).finds(&[Kind::InconsistentOffsets]);
    }

    #[test]
    fn another_value_was_read_than_was_acknowledged() {
        let story = Story::default().info(1, 11).ok(1, 10, 0);
        story.poll(2, &[(0, 11)]).finds_among_others(Kind::InconsistentOffsets);
    }

    #[test]
    fn the_same_offset_of_two_partitions_is_not_the_same() {
        let mut send = Send::durable(Partition::new("t", 1), 11, Repeats::Never);
        send.acknowledged = Some((0, 1));
        let story = Story::default().ok(1, 10, 0).did(1, Action::Send(send), Outcome::Ok);
        story.poll(2, &[(0, 10)]).is_clean();
    }

    #[test]
    fn what_was_acknowledged_weakly_may_be_replaced() {
        let weak = Send { survives: false, ..sent(10) };
        let story = Story::default().acknowledged(1, weak, 0).ok(1, 11, 0);
        story.poll(2, &[(0, 11)]).is_clean();
    }
}

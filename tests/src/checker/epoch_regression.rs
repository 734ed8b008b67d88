//! Epoch regressions: along a partition the epochs of leaders never go down, and an offset is written in one epoch only.

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (partition, versions) in &index.partitions {
        let mut read = versions.sightings.iter().filter(|sighting| !sighting.acknowledged);
        let Some(mut before) = read.next() else { continue };
        for next in read {
            let same_offset = before.read.offset == next.read.offset;
            let rewritten = same_offset && before.read.epoch != next.read.epoch;
            if next.read.epoch < before.read.epoch || rewritten {
                findings.add(Kind::EpochRegression, || {
                    let (a, b) = (before.read, next.read);
                    format!(
                        "{partition}: epoch {} at {} (operation {}), epoch {} at {} (operation {})",
                        a.epoch, a.offset, before.by, b.epoch, b.offset, next.by
                    )
                });
            }
            before = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Poll, Read},
    };

    fn poll(records: &[(u64, u32)]) -> Action {
        let read =
            |(offset, epoch): &(u64, u32)| Read { offset: *offset, value: *offset, epoch: *epoch };
        let reads = records.iter().map(read).collect();
        Action::Poll(Poll { records: vec![(partition(), reads)], ..Poll::default() })
    }

    fn story() -> Story {
        Story::default().info(1, 0).info(1, 1).info(1, 2)
    }

    #[test]
    fn epochs_go_down_along_the_log() {
        let story = story().did(2, poll(&[(0, 1), (1, 3), (2, 2)]), Outcome::Ok);
        story.finds(&[Kind::EpochRegression]);
    }

    #[test]
    fn one_offset_was_written_twice() {
        let story =
            story().did(2, poll(&[(0, 1)]), Outcome::Ok).did(3, poll(&[(0, 2)]), Outcome::Ok);
        story.finds(&[Kind::EpochRegression]);
    }

    #[test]
    fn epochs_that_grow_or_stay_are_as_they_should_be() {
        let story = story().did(2, poll(&[(0, 1), (1, 1), (2, 4)]), Outcome::Ok);
        story.did(3, poll(&[(1, 1)]), Outcome::Ok).is_clean();
    }
}

//! Lost writes: a value that must be there was read by nobody, although somebody read that far or farther.
//!
//! It counts on every partition being read from its start by somebody, as a final read does.

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for missing in index.missing() {
        let read_max = index.partitions[missing.partition].read_max;
        if let Some(offset) = missing.offset
            && read_max.is_some_and(|max| offset <= max)
        {
            findings.add(Kind::LostWrite, || {
                format!(
                    "{} at {offset}: {} of operation {} was never read; others read up to {}",
                    missing.partition,
                    missing.value,
                    missing.op,
                    read_max.unwrap_or_default(),
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Send},
    };

    #[test]
    fn an_acknowledged_value_is_missing_below_one_that_was_read() {
        let story = Story::default().ok(1, 10, 0).ok(1, 11, 1).ok(1, 12, 2);
        story.poll(2, &[(0, 10), (2, 12)]).finds(&[Kind::LostWrite, Kind::PollSkip]);
    }

    #[test]
    fn one_reader_may_be_behind_another() {
        let story = Story::default().ok(1, 10, 0).ok(1, 11, 1);
        story.poll(2, &[(0, 10)]).poll(3, &[(0, 10), (1, 11)]).is_clean();
    }

    #[test]
    fn what_was_not_acknowledged_for_good_may_be_missing() {
        let weak = Send { survives: false, ..sent(11) };
        let story = Story::default().ok(1, 10, 0).acknowledged(1, weak, 1).info(1, 12).ok(1, 13, 2);
        story.poll(2, &[(0, 10), (2, 13)]).is_clean();
    }

    #[test]
    fn a_batch_of_which_one_value_was_read_must_be_there_as_a_whole() {
        let batch = || Action::Send(Send { values: vec![11, 12], ..sent(11) });
        let story = || Story::default().ok(1, 10, 0).did(1, batch(), Outcome::Info);
        story().poll(2, &[(0, 10), (2, 12)]).finds(&[Kind::LostWrite]);
        story().poll(2, &[(0, 10)]).is_clean();
    }

    #[test]
    fn deleted_records_are_not_lost() {
        let before = Action::DeleteRecords { partition: partition(), before: 1 };
        let story = Story::default().ok(1, 10, 0).ok(1, 11, 1).did(3, before, Outcome::Ok);
        story.poll(2, &[(1, 11)]).is_clean();
    }
}

//! Skips and steps back: a consumer steps over what must be there, or reads backwards, within one poll or from one to the next.
//!
//! Only what somebody else saw there, or was acknowledged there, counts as skipped: offsets without a record are common.
//! An assignment is a fresh start at a known place.

use std::collections::BTreeMap;

use tidemark_protocol::Offset;

use super::{Findings, Kind, index::Index};
use crate::history::{Action, OpId, Outcome, Partition, Poll, ProcessId};

/// Where each consumer goes on, by partition.
type Positions<'a> = BTreeMap<ProcessId, BTreeMap<&'a Partition, Offset>>;

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    let mut positions = Positions::new();
    for (op, operation) in index.history.operations.iter().enumerate() {
        let position = positions.entry(operation.process).or_default();
        match &operation.action {
            Action::Assign(assigned) if operation.outcome == Outcome::Ok => {
                *position = assigned.iter().map(|(partition, at)| (partition, *at)).collect();
            }
            Action::Poll(poll) => follow(index, (op, poll), position, findings),
            _ => {}
        }
    }
}

fn follow<'a>(
    index: &Index<'a>,
    (op, poll): (OpId, &'a Poll),
    positions: &mut BTreeMap<&'a Partition, Offset>,
    findings: &mut Findings,
) {
    for (partition, reads) in &poll.records {
        for read in reads {
            let at = read.offset;
            let next = positions.insert(partition, at + 1).unwrap_or(at);
            if at < next {
                findings.add(Kind::NonmonotonicPoll, || {
                    format!("{partition}: operation {op} read {at} again, having been at {next}")
                });
            } else if let Some(skipped) = index.partitions[partition].firm_between(next, at) {
                findings.add(Kind::PollSkip, || {
                    format!("{partition}: operation {op} went from {next} to {at}, over {skipped}")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::checker::{Kind, story::*};

    #[test]
    fn a_poll_skips_what_another_consumer_read() {
        let story = Story::default().info(1, 10).info(1, 11).info(1, 12);
        let story = story.poll(2, &[(0, 10), (1, 11), (2, 12)]);
        story.poll(3, &[(0, 10), (2, 12)]).finds(&[Kind::PollSkip]);
    }

    #[test]
    fn the_next_poll_skips_or_an_assignment_does() {
        let story =
            || Story::default().ok(1, 10, 0).ok(1, 11, 1).ok(1, 12, 2).poll(2, &[(0, 10), (1, 11)]);
        story().poll(3, &[(0, 10)]).poll(3, &[(2, 12)]).finds(&[Kind::PollSkip]);
        story().assign(3, 1).poll(3, &[(2, 12)]).finds(&[Kind::PollSkip]);
    }

    #[test]
    fn offsets_where_nobody_saw_anything_may_be_skipped() {
        let story = Story::default().ok(1, 10, 0).ok(1, 12, 2);
        story.assign(2, 0).poll(2, &[(0, 10), (2, 12)]).is_clean();
    }

    #[test]
    fn a_consumer_reads_backwards() {
        let story = || Story::default().ok(1, 10, 0).ok(1, 11, 1);
        story().poll(2, &[(0, 10), (1, 11)]).poll(2, &[(1, 11)]).finds(&[Kind::NonmonotonicPoll]);
        story().poll(2, &[(1, 11), (0, 10)]).finds(&[Kind::NonmonotonicPoll]);
    }

    #[test]
    fn who_seeks_may_read_again_and_leave_out() {
        let story = Story::default().ok(1, 10, 0).ok(1, 11, 1).ok(1, 12, 2);
        let story = story.assign(2, 0).poll(2, &[(0, 10), (1, 11)]).assign(2, 0);
        story.poll(2, &[(0, 10)]).assign(2, 2).poll(2, &[(2, 12)]).is_clean();
    }
}

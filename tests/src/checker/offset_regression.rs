//! Offset regressions: the readable end of a partition goes back, or a consumer is told that a position does not exist
//! which somebody had reached by reading.
//!
//! What is readable under one leader is committed, and later leaders have all of it: an end told in a later epoch is at or
//! past every end, and every acknowledgement, of an earlier one, whenever they were asked for. Within one epoch it grows in
//! real time. That a leader which was replaced and does not know it yet tells an older end than its successor is no anomaly.

use std::collections::BTreeMap;

use tidemark_protocol::{LeaderEpoch, Offset};

use super::{Findings, Kind, index::Index};
use crate::history::{Action, OpId, Outcome, Partition, TimeNs};

/// Somebody was told that the partition goes at least this far.
struct Told {
    op: OpId,
    epoch: LeaderEpoch,
    /// Exclusive.
    end: Offset,
    invoked_ns: TimeNs,
    completed_ns: TimeNs,
    /// The end exactly, and not only at least.
    exact: bool,
}

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (partition, mut told) in ends(index) {
        told.sort_by_key(|told| (told.epoch, told.completed_ns));
        let mut furthest_before: Option<(Offset, OpId)> = None;
        for epoch in told.chunk_by(|a, b| a.epoch == b.epoch) {
            for told in epoch.iter().filter(|told| told.exact) {
                if let Some((end, op)) = furthest_before.filter(|(end, _)| *end > told.end) {
                    report(partition, (op, end), told, findings);
                }
            }
            within_epoch(partition, epoch, findings);
            let furthest = epoch.iter().map(|told| (told.end, told.op)).max();
            furthest_before = furthest_before.max(furthest);
        }
    }
    out_of_range(index, findings);
}

fn ends<'a>(index: &Index<'a>) -> BTreeMap<&'a Partition, Vec<Told>> {
    let mut ends: BTreeMap<&Partition, Vec<Told>> = BTreeMap::new();
    for (op, operation) in index.history.operations.iter().enumerate() {
        let (partition, end, epoch, exact) = match &operation.action {
            Action::ReadEnd { partition, end: Some((end, epoch)) } => {
                (partition, *end, *epoch, true)
            }
            Action::Send(send) if send.survives => match send.acknowledged {
                Some((base, epoch)) => {
                    (&send.partition, base + send.values.len() as u64, epoch, false)
                }
                None => continue,
            },
            _ => continue,
        };
        if operation.outcome == Outcome::Ok
            && let Some(completed_ns) = operation.completed_ns
        {
            let invoked_ns = operation.invoked_ns;
            let told = Told { op, epoch, end, invoked_ns, completed_ns, exact };
            ends.entry(partition).or_default().push(told);
        }
    }
    ends
}

/// `epoch` in order of completion.
fn within_epoch(partition: &Partition, epoch: &[Told], findings: &mut Findings) {
    let mut by_invocation: Vec<_> = epoch.iter().collect();
    by_invocation.sort_by_key(|told| told.invoked_ns);
    let mut over = epoch.iter().peekable();
    let mut furthest: Option<&Told> = None;
    for told in by_invocation {
        while let Some(done) = over.next_if(|done| done.completed_ns < told.invoked_ns) {
            furthest = furthest.filter(|furthest| furthest.end >= done.end).or(Some(done));
        }
        if let Some(before) = furthest.filter(|before| told.exact && before.end > told.end) {
            report(partition, (before.op, before.end), told, findings);
        }
    }
}

fn report(partition: &Partition, (op, end): (OpId, Offset), told: &Told, findings: &mut Findings) {
    findings.add(Kind::OffsetRegression, || {
        format!(
            "{partition}: operation {op} was told it goes up to {end}, operation {} that it ends at {} (epoch {})",
            told.op, told.end, told.epoch,
        )
    });
}

fn out_of_range(index: &Index<'_>, findings: &mut Findings) {
    // How far each partition had been read by anybody, at this point of the history.
    let mut reached: BTreeMap<&Partition, Offset> = BTreeMap::new();
    for (op, operation) in index.history.operations.iter().enumerate() {
        match &operation.action {
            Action::Poll(poll) => {
                for (partition, reads) in &poll.records {
                    for read in reads {
                        let end = reached.entry(partition).or_default();
                        *end = (*end).max(read.offset + 1);
                    }
                }
            }
            Action::OutOfRange { partition, position } => {
                let start = index.partitions.get(partition).map_or(0, |known| known.log_start);
                let end = reached.get(partition).copied().unwrap_or(0);
                if (start..=end).contains(position) {
                    findings.add(Kind::OffsetRegression, || {
                        format!("{partition}: operation {op} was told that {position} does not exist; it had been read up to {end}")
                    });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome},
    };

    fn end(offset: u64, epoch: u32) -> Action {
        Action::ReadEnd { partition: partition(), end: Some((offset, epoch)) }
    }

    #[test]
    fn the_end_goes_back_under_one_leader() {
        let story = Story::default().did(2, end(5, 1), Outcome::Ok).did(3, end(4, 1), Outcome::Ok);
        story.finds(&[Kind::OffsetRegression]);
    }

    #[test]
    fn a_later_leader_ends_before_an_earlier_one_whoever_was_asked_first() {
        let story = Story::default().did(2, end(4, 2), Outcome::Ok).did(3, end(5, 1), Outcome::Ok);
        story.finds(&[Kind::OffsetRegression]);
    }

    #[test]
    fn the_end_is_before_what_was_acknowledged() {
        let story = Story::default().ok(1, 10, 4);
        story.did(2, end(4, 1), Outcome::Ok).finds(&[Kind::OffsetRegression]);
    }

    #[test]
    fn a_replaced_leader_may_still_tell_its_old_end() {
        let story = Story::default().did(2, end(5, 2), Outcome::Ok).did(3, end(4, 1), Outcome::Ok);
        story.is_clean();
    }

    #[test]
    fn answers_that_overlap_may_come_in_any_order() {
        let mut story = Story::default();
        let ops = [end(5, 1), end(4, 1)].map(|action| story.history.invoke(2, 1, action));
        for op in ops {
            story.history.complete(op, 9, Outcome::Ok);
        }
        story.is_clean();
    }

    #[test]
    fn a_position_that_was_reached_is_out_of_range() {
        let story = |position| {
            let out = Action::OutOfRange { partition: partition(), position };
            Story::default().ok(1, 10, 0).poll(2, &[(0, 10)]).did(3, out, Outcome::Ok)
        };
        story(1).finds(&[Kind::OffsetRegression]);
        story(7).is_clean();
    }
}

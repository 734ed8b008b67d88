//! Sends out of order: a process's values land in another order than it sent them, or a value that was acknowledged before
//! another was sent comes behind it.
//!
//! What was acknowledged is held to its acknowledged offset. What was not may land late, since bytes of a connection that
//! was given up may still be read; unless it was sent under a sequence number.

use std::collections::BTreeMap;

use tidemark_protocol::Offset;

use super::{Findings, Kind, index::Index};
use crate::history::{OpId, Operation, Outcome, Partition, ProcessId, Repeats, Send};

/// A send of which it is known where it landed.
struct Landed {
    op: OpId,
    process: ProcessId,
    invoked_ns: u64,
    /// Only of what was acknowledged.
    completed_ns: Option<u64>,
    first: Offset,
    last: Offset,
    /// Nothing that was sent later may come before it.
    ordered: bool,
}

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    let mut by_partition: BTreeMap<&Partition, Vec<Landed>> = BTreeMap::new();
    for (op, operation, send) in index.sends() {
        if let Some(landed) = landed(index, op, operation, send) {
            by_partition.entry(&send.partition).or_default().push(landed);
        }
    }
    for (partition, landed) in by_partition {
        within_processes(partition, &landed, findings);
        across_processes(partition, &landed, findings);
    }
}

fn landed(index: &Index<'_>, op: OpId, operation: &Operation, send: &Send) -> Option<Landed> {
    let acknowledged = operation.outcome == Outcome::Ok;
    if acknowledged && !send.survives || operation.outcome == Outcome::Fail {
        return None;
    }
    let first = index.base_of(send)?;
    Some(Landed {
        op,
        process: operation.process,
        invoked_ns: operation.invoked_ns,
        completed_ns: operation.completed_ns.filter(|_| acknowledged),
        first,
        last: first + (send.values.len() as u64).saturating_sub(1),
        ordered: acknowledged || send.repeats == Repeats::Numbered,
    })
}

/// In the order in which each process sent, however they overlapped.
fn within_processes(partition: &Partition, landed: &[Landed], findings: &mut Findings) {
    let mut furthest: BTreeMap<ProcessId, &Landed> = BTreeMap::new();
    for send in landed {
        let before = furthest.get(&send.process).copied();
        if let Some(before) = before.filter(|before| before.last >= send.first) {
            report(partition, before, send, findings);
        }
        if send.ordered && before.is_none_or(|before| before.last < send.last) {
            furthest.insert(send.process, send);
        }
    }
}

/// Over processes, of what did not overlap in time.
fn across_processes(partition: &Partition, landed: &[Landed], findings: &mut Findings) {
    let mut acknowledged: Vec<_> =
        landed.iter().filter_map(|send| Some((send.completed_ns?, send))).collect();
    acknowledged.sort_by_key(|(completed_ns, _)| *completed_ns);
    let mut by_invocation: Vec<_> = landed.iter().collect();
    by_invocation.sort_by_key(|send| send.invoked_ns);
    let mut over = acknowledged.into_iter().peekable();
    let mut furthest: Option<&Landed> = None;
    for send in by_invocation {
        while let Some((_, done)) =
            over.next_if(|(completed_ns, _)| *completed_ns < send.invoked_ns)
        {
            if furthest.is_none_or(|furthest| furthest.last < done.last) {
                furthest = Some(done);
            }
        }
        if let Some(before) =
            furthest.filter(|before| before.last >= send.first && before.process != send.process)
        {
            report(partition, before, send, findings);
        }
    }
}

fn report(partition: &Partition, before: &Landed, after: &Landed, findings: &mut Findings) {
    findings.add(Kind::NonmonotonicSend, || {
        format!(
            "{partition}: operation {} of process {} landed at {}, operation {} of process {}, later, at {}",
            before.op, before.process, before.last, after.op, after.process, after.first,
        )
    });
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Repeats, Send},
    };

    #[test]
    fn the_second_of_a_process_lands_first() {
        Story::default().ok(1, 10, 1).ok(1, 11, 0).finds(&[Kind::NonmonotonicSend]);
    }

    #[test]
    fn sends_that_overlap_are_ordered_too_if_one_process_sent_them() {
        let mut story = Story::default();
        let ops = [10, 11].map(|value| story.history.invoke(1, value, Action::Send(sent(value))));
        story.history.acknowledge(ops[0], 20, 1, 1);
        story.history.acknowledge(ops[1], 20, 0, 1);
        story.finds(&[Kind::NonmonotonicSend]);
    }

    #[test]
    fn sends_of_two_processes_are_ordered_only_if_they_do_not_overlap() {
        let mut story = Story::default();
        let ops = [10, 11].map(|value| {
            let process = u32::try_from(value).unwrap();
            story.history.invoke(process, value, Action::Send(sent(value)))
        });
        story.history.acknowledge(ops[0], 20, 1, 1);
        story.history.acknowledge(ops[1], 20, 0, 1);
        story.is_clean();
        Story::default().ok(1, 10, 1).ok(2, 11, 0).finds(&[Kind::NonmonotonicSend]);
    }

    #[test]
    fn what_was_not_acknowledged_may_land_late_unless_it_has_a_number() {
        let story = |repeats| {
            let late = Send { repeats, ..sent(10) };
            let story = Story::default().did(1, Action::Send(late), Outcome::Info);
            story.ok(1, 11, 0).poll(2, &[(0, 11), (1, 10)])
        };
        story(Repeats::Never).is_clean();
        story(Repeats::Numbered).finds(&[Kind::NonmonotonicSend]);
    }

    #[test]
    fn what_was_not_acknowledged_may_not_land_before_what_was() {
        let story = Story::default().ok(1, 10, 1).info(1, 11);
        story.poll(2, &[(0, 11), (1, 10)]).finds(&[Kind::NonmonotonicSend]);
    }
}

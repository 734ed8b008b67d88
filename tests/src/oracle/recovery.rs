//! S26, recovery invents nothing: what a log holds after a restart was appended there with that offset and epoch, and
//! nothing is missing that was durable, unless the disk was damaged or replaced.

use std::collections::VecDeque;

use tidemark_protocol::Offset;

use super::{Mark, Observed, ReplicaKey, Verdict, ghost::Shadow, require, single_leader::Leaders};

pub(super) fn check(
    leaders: &Leaders,
    (node, partition): ReplicaKey,
    before: &Shadow,
    seen: &Observed,
    marks: &VecDeque<Option<Mark>>,
) -> Verdict {
    for (mark, offset) in marks.iter().zip(seen.log_start_offset..) {
        let Some(mark) = mark else { continue };
        // One that nobody has seen was being appended when the process was killed.
        let was_appended = before.mark(offset) == Some(*mark)
            || leaders.knows(partition, offset, *mark).unwrap_or(offset >= before.end());
        require(was_appended, "S26", || {
            format!(
                "node {node} recovers {mark:?} at {offset} of {partition}, where it had {:?}",
                before.mark(offset)
            )
        })?;
    }
    Ok(())
}

/// Whether everything that was durable, and committed, is there again. What was not committed may have been about to be cut,
/// and what a truncation had begun to take back is gone: whether it might is for S5.
pub(super) fn is_whole(before: &Shadow, seen: &Observed, committed: Offset) -> bool {
    let owed = before.flushed.min(before.agrees_to).min(committed);
    seen.log_end_offset >= before.cut.map_or(owed, |cut| cut.min(owed))
}

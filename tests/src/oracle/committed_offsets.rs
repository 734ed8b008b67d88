//! S23, committed offsets last: who asks for a group's offset is told the last one that was acknowledged before, or one whose
//! commit nobody can order behind or before it.
//!
//! A commit whose answer was lost may take effect at any time, or never.

use std::collections::BTreeMap;

use tidemark_protocol::Offset;

use super::{Verdict, group_fencing::OfGroup, require};
use crate::sim::core::Micros;

#[derive(Debug)]
struct Commit {
    offset: Offset,
    sent_us: Micros,
    /// `None`: the answer was lost.
    acknowledged_us: Option<Micros>,
}

/// What was committed.
#[derive(Debug, Default)]
pub struct CommittedOffsets {
    commits: BTreeMap<OfGroup, Vec<Commit>>,
}

impl CommittedOffsets {
    pub fn committed(
        &mut self,
        of: OfGroup,
        offset: Offset,
        sent_us: Micros,
        acknowledged_us: Option<Micros>,
    ) {
        self.commits.entry(of).or_default().push(Commit { offset, sent_us, acknowledged_us });
    }

    /// `offset` was the answer to a question that was sent then. Commits under way are known to `pending`.
    pub fn fetched(
        &self,
        of: &OfGroup,
        offset: Option<Offset>,
        sent_us: Micros,
        pending: &[Offset],
    ) -> Verdict {
        let empty = Vec::new();
        let commits = self.commits.get(of).unwrap_or(&empty);
        // Acknowledged before the question was asked, and nothing was sent after that was.
        let is_before = |commit: &&Commit| commit.acknowledged_us.is_some_and(|at| at <= sent_us);
        let superseded_before_us =
            commits.iter().filter(is_before).map(|commit| commit.sent_us).max();
        let may_be = |commit: &Commit| {
            let is_superseded = |at_us| superseded_before_us.is_some_and(|sent| at_us < sent);
            commit.acknowledged_us.is_none_or(|at_us| !is_superseded(at_us))
        };
        let holds = match offset {
            None => superseded_before_us.is_none(),
            Some(offset) => {
                pending.contains(&offset)
                    || commits.iter().any(|commit| commit.offset == offset && may_be(commit))
            }
        };
        require(holds, "S23", || {
            let last: Vec<_> = commits.iter().rev().take(4).collect();
            format!("{of:?} is at {offset:?} for a question of {sent_us}; committed: {last:?}")
        })
    }
}

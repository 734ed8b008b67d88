//! Commit regressions: a group's committed offset is not what it was last set to.
//!
//! An answer must be an offset that some commit set and that no later acknowledged commit had certainly replaced. Commits of
//! unknown outcome may have taken effect at any time after they were sent.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_protocol::Offset;

use super::{Findings, Kind, index::Index};
use crate::history::{Action, OpId, Operation, Outcome, Partition};

/// Commits and answers of one group and partition.
#[derive(Default)]
struct Register<'a> {
    commits: Vec<(&'a Operation, Offset)>,
    answers: Vec<(OpId, &'a Operation, Option<Offset>)>,
}

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    let mut registers: BTreeMap<(&Arc<str>, &Partition), Register<'_>> = BTreeMap::new();
    for (op, operation) in index.history.operations.iter().enumerate() {
        match &operation.action {
            Action::CommitOffset { group, partition, offset }
                if operation.outcome != Outcome::Fail =>
            {
                registers.entry((group, partition)).or_default().commits.push((operation, *offset));
            }
            Action::FetchOffset { group, partition, offset }
                if operation.outcome == Outcome::Ok =>
            {
                let register = registers.entry((group, partition)).or_default();
                register.answers.push((op, operation, *offset));
            }
            _ => {}
        }
    }
    for ((group, partition), register) in registers {
        for (op, operation, answer) in &register.answers {
            if !register.allows(operation, *answer) {
                findings.add(Kind::CommitRegression, || {
                    format!("group {group}, {partition}: operation {op} was told {answer:?}")
                });
            }
        }
    }
}

impl Register<'_> {
    fn allows(&self, asked: &Operation, answer: Option<Offset>) -> bool {
        // The latest begin of a commit that was certainly over: whatever had ended before it was replaced.
        let over = self.commits.iter().filter(|(commit, _)| {
            commit.outcome == Outcome::Ok
                && commit.completed_ns.is_some_and(|at| at < asked.invoked_ns)
        });
        let replaced_before = over.map(|(commit, _)| commit.invoked_ns).max();
        let Some(answer) = answer else { return replaced_before.is_none() };
        self.commits.iter().any(|(commit, offset)| {
            let ended_ns = commit.completed_ns.filter(|_| commit.outcome == Outcome::Ok);
            let replaced = ended_ns.zip(replaced_before).is_some_and(|(end, begin)| end < begin);
            let begun = asked.completed_ns.is_none_or(|at| commit.invoked_ns < at);
            *offset == answer && begun && !replaced
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome},
    };

    fn commit(offset: u64) -> Action {
        Action::CommitOffset { group: "g".into(), partition: partition(), offset }
    }

    fn fetch(offset: Option<u64>) -> Action {
        Action::FetchOffset { group: "g".into(), partition: partition(), offset }
    }

    fn after(last: Outcome, answer: Option<u64>) -> Story {
        let story = Story::default().did(1, commit(5), Outcome::Ok).did(1, commit(9), last);
        story.did(2, fetch(answer), Outcome::Ok)
    }

    #[test]
    fn an_acknowledged_commit_is_forgotten() {
        after(Outcome::Ok, Some(5)).finds(&[Kind::CommitRegression]);
        after(Outcome::Ok, None).finds(&[Kind::CommitRegression]);
    }

    #[test]
    fn an_offset_that_nobody_committed() {
        after(Outcome::Ok, Some(6)).finds(&[Kind::CommitRegression]);
        after(Outcome::Fail, Some(9)).finds(&[Kind::CommitRegression]);
    }

    #[test]
    fn what_is_open_may_have_taken_effect_or_not() {
        after(Outcome::Ok, Some(9)).is_clean();
        after(Outcome::Info, Some(9)).is_clean();
        after(Outcome::Info, Some(5)).is_clean();
    }

    #[test]
    fn going_back_on_purpose_is_no_regression() {
        let story = Story::default().did(1, commit(9), Outcome::Ok).did(1, commit(5), Outcome::Ok);
        story.did(2, fetch(Some(5)), Outcome::Ok).is_clean();
    }
}

//! Aborted reads: a value was read although its sender was told, for certain, that it was not written; or although its
//! transaction was aborted and the reader asked for committed records only.

use super::{Findings, Kind, index::Index};
use crate::history::Outcome;

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (op, _, poll) in index.polls() {
        for (partition, reads) in &poll.records {
            for read in reads {
                let Some((writer, operation, send)) = index.writer(read.value) else { continue };
                let end = send.transaction.as_ref().and_then(|id| index.ends.get(id));
                let aborted = !poll.uncommitted
                    && matches!(end, Some((false, Outcome::Ok) | (true, Outcome::Fail)));
                if operation.outcome == Outcome::Fail || aborted {
                    findings.add(Kind::AbortedRead, || {
                        let (value, offset, sent) = (read.value, read.offset, writer);
                        format!("{partition} at {offset}: operation {op} read {value}, which operation {sent} failed to write or aborted")
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Poll, Send, TransactionId},
    };

    fn in_transaction(value: u64) -> Send {
        Send { transaction: Some(TransactionId { producer: "p".into(), number: 1 }), ..sent(value) }
    }

    fn end(commit: bool) -> Action {
        let transaction = TransactionId { producer: "p".into(), number: 1 };
        Action::EndTransaction { transaction, commit }
    }

    #[test]
    fn a_refused_value_was_read() {
        Story::default().fail(1, 10).poll(2, &[(0, 10)]).finds(&[Kind::AbortedRead]);
    }

    #[test]
    fn a_value_of_unknown_outcome_may_be_read() {
        Story::default().info(1, 10).poll(2, &[(0, 10)]).is_clean();
    }

    #[test]
    fn a_value_of_an_aborted_transaction_was_read() {
        let story = Story::default().acknowledged(1, in_transaction(10), 0);
        let story = story.did(1, end(false), Outcome::Ok);
        story.poll(2, &[(0, 10)]).finds(&[Kind::AbortedRead]);
    }

    #[test]
    fn who_asks_for_uncommitted_records_may_read_them_and_others_what_was_committed() {
        let story = Story::default().acknowledged(1, in_transaction(10), 0);
        let records = vec![(partition(), reads(&[(0, 10)]))];
        let poll = Poll { records, uncommitted: true, ..Poll::default() };
        let story = story.did(2, Action::Poll(poll), Outcome::Ok);
        story.did(1, end(false), Outcome::Ok).is_clean();
        let story = Story::default().acknowledged(1, in_transaction(10), 0);
        story.did(1, end(true), Outcome::Ok).poll(2, &[(0, 10)]).is_clean();
    }
}

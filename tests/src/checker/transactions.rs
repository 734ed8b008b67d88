//! Transactions: what a transaction wrote is read by others, as a whole, and by nobody whose producer was fenced before.
//!
//! What was read of an aborted transaction is an aborted read, see `aborted_read`.

use std::collections::BTreeMap;

use super::{Findings, Kind, index::Index};
use crate::history::{Outcome, TransactionId};

/// Precommitted reads, and torn transactions: some of it was read, and something else of it, that was acknowledged, was not
/// where others have read farther.
pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (op, _, poll) in index.polls() {
        let Some(transaction) = &poll.transaction else { continue };
        for read in poll.records.iter().flat_map(|(_, reads)| reads) {
            let written_by =
                index.writer(read.value).and_then(|(_, _, send)| send.transaction.as_ref());
            if written_by == Some(transaction) {
                findings.add(Kind::PrecommittedRead, || {
                    format!(
                        "operation {op} read {} within the transaction that wrote it",
                        read.value
                    )
                });
            }
        }
    }
    find_torn(index, findings);
}

fn find_torn(index: &Index<'_>, findings: &mut Findings) {
    let mut parts: BTreeMap<&TransactionId, Parts> = BTreeMap::new();
    for (op, operation, send) in index.sends() {
        let Some(transaction) = &send.transaction else { continue };
        let parts = parts.entry(transaction).or_default();
        let read_max = index.partitions[&send.partition].read_max;
        for (place, value) in (0..).zip(&send.values) {
            let offset = index.base_of(send).map(|base| base + place);
            if index.is_committed(*value) {
                parts.read.get_or_insert(*value);
            } else if operation.outcome == Outcome::Ok && offset.is_some() && offset <= read_max {
                parts.unread.get_or_insert((*value, op));
            }
        }
    }
    for (transaction, parts) in parts {
        if let (Some(read), Some((unread, op))) = (parts.read, parts.unread) {
            findings.add(Kind::TornTransaction, || {
                let TransactionId { producer, number } = transaction;
                format!("transaction {number} of {producer}: {read} was read, {unread} of operation {op} was not")
            });
        }
    }
}

#[derive(Default)]
struct Parts {
    read: Option<u64>,
    unread: Option<(u64, usize)>,
}

/// Zombie writes: behind a record of a producer's later epoch stands one of an earlier epoch.
pub(super) fn find_zombies(index: &Index<'_>, findings: &mut Findings) {
    for (partition, versions) in &index.partitions {
        let mut epochs = BTreeMap::new();
        for sighting in &versions.sightings {
            let read = sighting.read;
            let Some((_, _, send)) = index.writer(read.value) else { continue };
            let Some(producer) = &send.producer else { continue };
            let epoch = epochs.entry(&producer.producer).or_insert(producer.epoch);
            if producer.epoch < *epoch {
                findings.add(Kind::ZombieWrite, || {
                    let name = &producer.producer;
                    format!(
                        "{partition} at {}: {} by {name} in epoch {}, after epoch {epoch}",
                        read.offset, read.value, producer.epoch
                    )
                });
            }
            *epoch = (*epoch).max(producer.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Outcome, Poll, ProducerEpoch, Send, TransactionId},
    };

    fn transaction() -> TransactionId {
        TransactionId { producer: "p".into(), number: 1 }
    }

    fn in_transaction(value: u64) -> Send {
        Send { transaction: Some(transaction()), ..sent(value) }
    }

    #[test]
    fn a_transaction_reads_its_own() {
        let records = vec![(partition(), reads(&[(0, 10)]))];
        let poll = |transaction| {
            Action::Poll(Poll { records: records.clone(), transaction, ..Poll::default() })
        };
        let story = || Story::default().acknowledged(1, in_transaction(10), 0);
        story().did(1, poll(Some(transaction())), Outcome::Ok).finds(&[Kind::PrecommittedRead]);
        story().did(1, poll(None), Outcome::Ok).is_clean();
    }

    #[test]
    fn a_part_of_a_transaction_was_read() {
        let story = || {
            let story = Story::default().acknowledged(1, in_transaction(10), 0);
            story.acknowledged(1, in_transaction(11), 1).ok(3, 12, 5)
        };
        story().poll(2, &[(0, 10), (5, 12)]).finds(&[Kind::TornTransaction]);
        story().poll(2, &[(0, 10), (1, 11), (5, 12)]).is_clean();
        story().poll(2, &[(0, 10)]).is_clean();
    }

    #[test]
    fn an_aborted_transaction_is_read_by_nobody_and_not_torn() {
        let story = Story::default().acknowledged(1, in_transaction(10), 0).ok(3, 12, 5);
        story.poll(2, &[(5, 12)]).is_clean();
    }

    #[test]
    fn a_fenced_producer_wrote() {
        let by = |value, epoch| {
            let producer = Some(ProducerEpoch { producer: "p".into(), epoch });
            Send { producer, ..sent(value) }
        };
        let story =
            |last| Story::default().acknowledged(1, by(10, 2), 0).acknowledged(2, by(11, last), 1);
        story(1).finds(&[Kind::ZombieWrite]);
        story(3).is_clean();
    }
}

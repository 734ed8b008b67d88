//! Invented values: read and sent by nobody, or sent to another partition.

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    for (op, _, poll) in index.polls() {
        for (partition, reads) in &poll.records {
            for read in reads {
                let sent_to = index.writer(read.value).map(|(_, _, send)| &send.partition);
                if sent_to != Some(partition) {
                    findings.add(Kind::InventedValue, || {
                        let to = sent_to.map_or("nowhere".to_owned(), ToString::to_string);
                        let (value, offset) = (read.value, read.offset);
                        format!(
                            "{partition} at {offset}: operation {op} read {value}, sent to {to}"
                        )
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
        history::{Action, Outcome, Partition, Repeats, Send},
    };

    #[test]
    fn nobody_sent_it() {
        Story::default().ok(1, 10, 0).poll(2, &[(0, 10), (1, 99)]).finds(&[Kind::InventedValue]);
    }

    #[test]
    fn it_was_sent_to_another_partition() {
        let send = Send::durable(Partition::new("t", 1), 10, Repeats::Never);
        let story = Story::default().did(1, Action::Send(send), Outcome::Info);
        story.poll(2, &[(0, 10)]).finds(&[Kind::InventedValue]);
    }

    #[test]
    fn a_value_may_be_read_before_its_sender_hears_of_it() {
        let mut story = Story::default();
        let op = story.history.invoke(1, 1, Action::Send(sent(10)));
        let mut story = story.poll(2, &[(0, 10)]);
        story.history.acknowledge(op, 1_000, 0, 1);
        story.is_clean();
    }
}

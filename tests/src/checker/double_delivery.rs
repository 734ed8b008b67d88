//! Double delivery: within one generation of a group two members were handed records of the same partition.

use std::collections::BTreeMap;

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    let mut owners = BTreeMap::new();
    for (op, _, poll) in index.polls() {
        let Some(member) = &poll.member else { continue };
        for (partition, _) in poll.records.iter().filter(|(_, reads)| !reads.is_empty()) {
            let key = (&member.group, member.generation, partition);
            let (owner, first) = *owners.entry(key).or_insert((&member.id, op));
            if *owner != member.id {
                findings.add(Kind::DoubleDelivery, || {
                    format!(
                        "{partition} in generation {} of group {}: {owner} in operation {first}, {} in operation {op}",
                        member.generation, member.group, member.id,
                    )
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        checker::{Kind, story::*},
        history::{Action, Member, Outcome, Poll},
    };

    fn poll(member: &str, generation: u64) -> Action {
        let member = Some(Member { group: "g".into(), generation, id: member.into() });
        let records = vec![(partition(), reads(&[(0, 10)]))];
        Action::Poll(Poll { records, member, ..Poll::default() })
    }

    #[test]
    fn two_members_read_a_partition_in_one_generation() {
        let story = Story::default().ok(1, 10, 0).did(2, poll("a", 3), Outcome::Ok);
        story.did(3, poll("b", 3), Outcome::Ok).finds(&[Kind::DoubleDelivery]);
    }

    #[test]
    fn the_next_generation_may_read_again() {
        let story = Story::default().ok(1, 10, 0).did(2, poll("a", 3), Outcome::Ok);
        story.did(3, poll("b", 4), Outcome::Ok).is_clean();
    }
}

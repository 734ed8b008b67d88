//! Unseen values: they must be there, everything was up again and somebody read to the end, and nobody ever saw them.
//!
//! What is missing in the middle is a lost write instead.

use super::{Findings, Kind, index::Index};

pub(super) fn find(index: &Index<'_>, findings: &mut Findings) {
    if index.history.healed_ns.is_none() {
        return;
    }
    for missing in index.missing() {
        let read_max = index.partitions[missing.partition].read_max;
        if missing.offset.is_none_or(|offset| read_max.is_none_or(|max| offset > max)) {
            findings.add(Kind::Unseen, || {
                let at = missing.offset.map_or("somewhere".to_owned(), |at| at.to_string());
                format!(
                    "{} at {at}: {} of operation {}",
                    missing.partition, missing.value, missing.op
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::checker::{Kind, story::*};

    #[test]
    fn the_last_acknowledged_values_were_never_read() {
        let story = Story::default().ok(1, 10, 0).ok(1, 11, 1).healed();
        story.poll(2, &[(0, 10)]).finds(&[Kind::Unseen]);
    }

    #[test]
    fn without_a_final_read_nobody_need_have_seen_them() {
        Story::default().ok(1, 10, 0).ok(1, 11, 1).poll(2, &[(0, 10)]).is_clean();
    }

    #[test]
    fn what_failed_or_is_open_need_not_be_seen() {
        let story = Story::default().ok(1, 10, 0).fail(1, 11).info(1, 12).healed();
        story.poll(2, &[(0, 10)]).is_clean();
    }
}

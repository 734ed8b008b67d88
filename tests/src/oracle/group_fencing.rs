//! S21, group fencing: at no time may two members of a group consume a partition; and a commit is accepted only from whoever
//! was the last to be told that it has the partition, when it sent it.
//!
//! A member has a partition from the answer that told it so until it has dropped it, or its session is over by its own count.

use std::collections::BTreeMap;

use tidemark_protocol::TopicPartition;

use super::{Verdict, require};
use crate::sim::core::Micros;

/// A partition of a group.
pub type OfGroup = (String, TopicPartition);

#[derive(Debug)]
struct Claim {
    member: String,
    since_us: Micros,
    /// Dropped, or over.
    until_us: Micros,
}

/// Who has had which partition, and when.
#[derive(Debug, Default)]
pub struct Claims {
    claims: BTreeMap<OfGroup, Vec<Claim>>,
}

impl Claims {
    /// A member was told that it has a partition, until then if nothing else is heard.
    pub fn claimed(
        &mut self,
        of: &OfGroup,
        member: &str,
        now_us: Micros,
        until_us: Micros,
    ) -> Verdict {
        let claims = self.claims.entry(of.clone()).or_default();
        let other = claims.iter().find(|it| it.member != member && it.until_us > now_us);
        require(other.is_none(), "S21", || {
            format!("{of:?} is given to {member} at {now_us} while {other:?} has it")
        })?;
        match claims.last_mut() {
            Some(last) if last.member == member && last.until_us >= now_us => {
                last.until_us = last.until_us.max(until_us);
            }
            _ => claims.push(Claim { member: member.to_owned(), since_us: now_us, until_us }),
        }
        Ok(())
    }

    /// A member consumes a partition no more: none of those whose names begin so.
    pub fn dropped(&mut self, of: &OfGroup, member: &str, now_us: Micros) {
        let claims = self.claims.get_mut(of).into_iter().flatten();
        for claim in claims.filter(|claim| claim.member.starts_with(member)) {
            claim.until_us = claim.until_us.min(now_us);
        }
    }

    /// A commit that a member sent then was accepted.
    pub fn accepted(&self, of: &OfGroup, member: &str, sent_us: Micros) -> Verdict {
        let mut claims = self.claims.get(of).into_iter().flatten();
        let last = claims.rfind(|claim| claim.since_us < sent_us);
        require(last.is_none_or(|claim| claim.member == member), "S21", || {
            format!("a commit of {member} for {of:?}, sent at {sent_us}, is accepted: {last:?}")
        })
    }
}

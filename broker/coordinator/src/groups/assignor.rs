//! Who is to read which partition: a pure function of members, subscriptions, topics, and what was before.
//!
//! All assignors give every partition that somebody is subscribed to to exactly one subscriber, and the same input
//! gives the same output. They know nothing of epochs: how a group gets to its target is `reconcile`'s business.

mod balance;
mod range;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use tidemark_protocol::{TopicId, TopicPartition};

use crate::topics::Topics;

/// How the partitions of a group are spread over its members.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Assignor {
    /// Evenly over all topics, and as little moved as possible. Of members that could have a partition, those in a
    /// rack that holds a replica come first; a rack moves nothing by itself and never unbalances.
    #[default]
    Sticky,
    /// Evenly over all topics, whatever was before: the same members always get the same. Racks as for sticky.
    Uniform,
    /// Of each topic the first partitions to the first member and so on, so that topics with the same number of
    /// partitions go together. Racks do not count.
    Range,
}

impl Assignor {
    pub const ALL: &[Self] = &[Self::Sticky, Self::Uniform, Self::Range];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|assignor| assignor.name() == name)
    }

    /// The partitions of each of `members`, in their order.
    pub fn assign(
        self,
        members: &[Candidate<'_>],
        topics: &Topics,
    ) -> Vec<BTreeSet<TopicPartition>> {
        match self {
            Self::Sticky => balance::assign(members, topics, balance::Past::Kept),
            Self::Uniform => balance::assign(members, topics, balance::Past::Forgotten),
            Self::Range => range::assign(members, topics),
        }
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A member as an assignor sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// What members are ordered by: the instance of a static member, so that a restart changes nothing.
    pub order: &'a str,
    pub rack: Option<&'a str>,
    /// What it is subscribed to, of the topics that exist.
    pub topics: BTreeSet<TopicId>,
    /// Its target until now.
    pub before: &'a BTreeSet<TopicPartition>,
}

/// The members subscribed to each topic, by index, in the members' order.
fn subscribers(members: &[Candidate<'_>]) -> BTreeMap<TopicId, Vec<usize>> {
    let mut ordered: Vec<usize> = (0..members.len()).collect();
    ordered.sort_by_key(|index| members[*index].order);
    let mut subscribers: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
    for index in ordered {
        for topic in &members[index].topics {
            subscribers.entry(*topic).or_default().push(index);
        }
    }
    subscribers
}

#[cfg(test)]
mod tests;

//! Even numbers of partitions, with or without regard to what was before.
//!
//! First everybody keeps what he had and may still have; then what has no owner goes to whoever has least; then
//! single partitions move from whoever has most to those who have two less or fewer. Every move makes the
//! numbers more even, so it ends. With equal subscriptions nothing moves that need not: a member gives up only what
//! it has above its share.
//!
//! Members with the same subscription form a class, in order of load, so that "who has least" is a look at the first
//! of each class.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use tidemark_protocol::{TopicId, TopicPartition};

use super::{Candidate, subscribers};
use crate::topics::{Topic, Topics};

/// Whether the assignment until now counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    Kept,
    Forgotten,
}

pub(super) fn assign(
    members: &[Candidate<'_>],
    topics: &Topics,
    past: Past,
) -> Vec<BTreeSet<TopicPartition>> {
    let nothing = BTreeSet::new();
    let mut balance = Balance::new(members, topics);
    balance.before = match past {
        Past::Kept => members.iter().map(|member| member.before).collect(),
        Past::Forgotten => vec![&nothing; members.len()],
    };
    balance.keep();
    balance.fill();
    while balance.even_out() {}
    balance.assigned
}

/// An assignment in the making.
struct Balance<'a> {
    members: &'a [Candidate<'a>],
    topics: Vec<&'a Topic>,
    /// Place among the members in their order: breaks ties.
    rank: Vec<usize>,
    class_of: Vec<usize>,
    /// Members of a class by load.
    classes: Vec<BTreeSet<(usize, usize)>>,
    /// The classes subscribed to a topic.
    classes_of: BTreeMap<TopicId, Vec<usize>>,
    by_rank: Vec<usize>,
    /// What each member had, as far as that counts.
    before: Vec<&'a BTreeSet<TopicPartition>>,
    assigned: Vec<BTreeSet<TopicPartition>>,
}

impl<'a> Balance<'a> {
    fn new(members: &'a [Candidate<'a>], topics: &'a Topics) -> Self {
        let mut by_rank: Vec<usize> = (0..members.len()).collect();
        by_rank.sort_by_key(|member| members[*member].order);
        let mut rank = vec![0; members.len()];
        for (place, member) in by_rank.iter().enumerate() {
            rank[*member] = place;
        }
        let mut known: BTreeMap<&BTreeSet<TopicId>, usize> = BTreeMap::new();
        let mut classes: Vec<BTreeSet<(usize, usize)>> = Vec::new();
        let mut classes_of: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
        let mut class_of = vec![0; members.len()];
        for member in by_rank.iter().copied() {
            let class = *known.entry(&members[member].topics).or_insert_with(|| {
                for topic in &members[member].topics {
                    classes_of.entry(*topic).or_default().push(classes.len());
                }
                classes.push(BTreeSet::new());
                classes.len() - 1
            });
            class_of[member] = class;
            classes[class].insert((0, rank[member]));
        }
        let topics =
            subscribers(members).keys().filter_map(|id| topics.get(*id)).collect::<Vec<_>>();
        let assigned = vec![BTreeSet::new(); members.len()];
        let before = Vec::new();
        Self { members, topics, rank, class_of, classes, classes_of, by_rank, before, assigned }
    }

    fn give(&mut self, partition: TopicPartition, to: usize) {
        self.reload(to, |assigned| assigned.insert(partition));
    }

    fn take(&mut self, partition: &TopicPartition, from: usize) {
        self.reload(from, |assigned| assigned.remove(partition));
    }

    /// Changes what a member has, and its place in its class with it.
    fn reload(
        &mut self,
        member: usize,
        change: impl FnOnce(&mut BTreeSet<TopicPartition>) -> bool,
    ) {
        let (class, rank) = (self.class_of[member], self.rank[member]);
        self.classes[class].remove(&(self.assigned[member].len(), rank));
        let changed = change(&mut self.assigned[member]);
        assert!(changed, "a partition has one owner");
        self.classes[class].insert((self.assigned[member].len(), rank));
    }

    /// Leaves everybody what he had, as far as it exists and he is subscribed to it.
    fn keep(&mut self) {
        let mut taken = BTreeSet::new();
        for member in self.by_rank.clone() {
            for partition in self.before[member] {
                let subscribed = self.members[member].topics.contains(&partition.topic_id);
                let exists = self
                    .topics
                    .binary_search_by_key(&partition.topic_id, |topic| topic.id)
                    .is_ok_and(|at| partition.partition < self.topics[at].partitions);
                if subscribed && exists && taken.insert(*partition) {
                    self.give(*partition, member);
                }
            }
        }
    }

    /// Gives what nobody has to those who have least: first what can go to a member in a rack of its own, as long
    /// as that member does not get more than its share.
    fn fill(&mut self) {
        let taken: BTreeSet<TopicPartition> = self.assigned.iter().flatten().copied().collect();
        let topics = self.topics.clone();
        let free = topics.iter().flat_map(|topic| {
            topic.iter_partitions().filter(|one| !taken.contains(one)).map(move |one| (*topic, one))
        });
        let mut free: Vec<_> = free.collect();
        if self.members.iter().any(|member| member.rack.is_some()) {
            let total: usize = topics.iter().map(|topic| topic.partitions as usize).sum();
            let share = total.div_ceil(self.members.len());
            free.retain(|(topic, partition)| match self.least_in_rack(topic, *partition, share) {
                Some(member) => {
                    self.give(*partition, member);
                    false
                }
                None => true,
            });
        }
        for (topic, partition) in free {
            let member = self.least_of(topic.id).expect("topics have subscribers here");
            self.give(partition, member);
        }
    }

    /// The subscriber that has least, and less than `share`, in a rack with a replica of the partition.
    fn least_in_rack(
        &self,
        topic: &Topic,
        partition: TopicPartition,
        share: usize,
    ) -> Option<usize> {
        let classes = self.classes_of[&topic.id].iter();
        let in_rack = classes.filter_map(|class| {
            self.classes[*class].iter().take_while(|(load, _)| *load < share).find(|(_, rank)| {
                let rack = self.members[self.by_rank[*rank]].rack;
                rack.is_some_and(|rack| topic.is_in_rack(partition.partition, rack))
            })
        });
        in_rack.min().map(|(_, rank)| self.by_rank[*rank])
    }

    fn least_of(&self, topic: TopicId) -> Option<usize> {
        let classes = self.classes_of.get(&topic)?.iter();
        let least = classes.filter_map(|class| self.classes[*class].first()).min()?;
        Some(self.by_rank[least.1])
    }

    /// Moves one partition, from whoever has most of those that have one too many. Whether there was one.
    fn even_out(&mut self) -> bool {
        let mut by_load: Vec<_> = self.classes.iter().map(|class| class.iter().rev()).collect();
        let mut heads: BinaryHeap<_> = by_load
            .iter_mut()
            .enumerate()
            .filter_map(|(class, members)| Some((*members.next()?, class)))
            .collect();
        let mut found = None;
        while let Some(((load, rank), class)) = heads.pop() {
            let member = self.by_rank[rank];
            found = self.surplus(member).map(|(partition, to)| (member, partition, to));
            if found.is_some() || load < 2 {
                break;
            }
            heads.extend(by_load[class].next().map(|next| (*next, class)));
        }
        let Some((from, partition, to)) = found else { return false };
        self.take(&partition, from);
        self.give(partition, to);
        true
    }

    /// A partition of the member that another should have, and that other, who has least of all that could. What the
    /// member did not have before goes first, then what is far from it and near to the other, then the last.
    fn surplus(&self, member: usize) -> Option<(TopicPartition, usize)> {
        let load = self.assigned[member].len();
        let Candidate { topics, rack, .. } = &self.members[member];
        let before = self.before[member];
        let takers: Vec<(TopicId, usize)> = topics
            .iter()
            .filter_map(|topic| Some((*topic, self.least_of(*topic)?)))
            .filter(|(topic, taker)| {
                self.assigned[*taker].len() + 1 < load
                    && self.of_topic(member, *topic).next().is_some()
            })
            .collect();
        let least = takers.iter().map(|(_, taker)| self.assigned[*taker].len()).min()?;
        let best = takers.into_iter().filter(|(_, taker)| self.assigned[*taker].len() == least);
        let moves = best.flat_map(|(topic, taker)| {
            self.of_topic(member, topic).map(move |partition| (*partition, taker))
        });
        moves.max_by_key(|(partition, taker)| {
            let is_near =
                |rack: Option<&str>| rack.is_some_and(|rack| self.is_near(partition, rack));
            let taker_rack = self.members[*taker].rack;
            (!before.contains(partition), !is_near(*rack), is_near(taker_rack), *partition)
        })
    }

    fn is_near(&self, partition: &TopicPartition, rack: &str) -> bool {
        let at = self.topics.binary_search_by_key(&partition.topic_id, |topic| topic.id);
        at.is_ok_and(|at| self.topics[at].is_in_rack(partition.partition, rack))
    }

    fn of_topic(&self, member: usize, topic_id: TopicId) -> impl Iterator<Item = &TopicPartition> {
        let first = TopicPartition { topic_id, partition: 0 };
        let last = TopicPartition { topic_id, partition: u32::MAX };
        self.assigned[member].range(first..=last)
    }
}

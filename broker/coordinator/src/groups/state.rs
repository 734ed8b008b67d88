//! What a group coordinator's log says, as maps: the last value of every key. It decides nothing.
//!
//! Besides the values there are two indexes, which are functions of them. While a compacted log is read they may be
//! wrong for a while (keys come in another order than they were written), so they are checked when it has been read
//! to its end.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_protocol::{Offset, TopicId, TopicPartition};

use super::record::{
    Change, ClassicGeneration, Current, Epochs, Member, OffsetValue, ProducerFence, Seek,
    SubscribedTopics, Target,
};
use crate::{ProducerId, record::LoadError};

/// A committed offset and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub value: OffsetValue,
    /// Offset of the record that committed it. Of two commits the one further on counts.
    pub position: Offset,
}

/// One group, of whichever protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    pub epochs: Option<Epochs>,
    pub topics: Option<SubscribedTopics>,
    pub members: BTreeMap<String, Member>,
    pub targets: BTreeMap<String, Target>,
    pub currents: BTreeMap<String, Current>,
    pub classic: Option<ClassicGeneration>,
    pub offsets: BTreeMap<TopicPartition, Committed>,
    /// Offsets committed in transactions that have not ended.
    pub pending: BTreeMap<TopicPartition, BTreeMap<ProducerId, Committed>>,
    pub seeks: BTreeMap<u64, Seek>,
    /// Who may be consuming a partition: an index over `currents`.
    holders: BTreeMap<TopicPartition, String>,
}

/// Everything the log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    groups: BTreeMap<String, Group>,
    producers: BTreeMap<ProducerId, ProducerFence>,
    /// What each producer has pending: an index over `Group::pending`.
    pending: BTreeSet<(ProducerId, String, TopicPartition)>,
}

impl Group {
    /// The member that may be consuming the partition.
    pub fn holder(&self, partition: &TopicPartition) -> Option<&str> {
        self.holders.get(partition).map(String::as_str)
    }

    /// Whether some member of either protocol is in it.
    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
            || self.classic.as_ref().is_some_and(|classic| !classic.members.is_empty())
    }

    /// The static member of that name.
    pub fn instance(&self, instance: &str) -> Option<&str> {
        let is_it = |member: &Member| member.instance.as_deref() == Some(instance);
        self.members.iter().find(|(_, member)| is_it(member)).map(|(id, _)| id.as_str())
    }

    fn is_gone(&self) -> bool {
        *self == Self::default()
    }

    fn set_current(&mut self, member: String, current: Option<Current>) {
        if let Some(before) = self.currents.remove(&member) {
            for partition in before.held() {
                if self.holders.get(partition) == Some(&member) {
                    self.holders.remove(partition);
                }
            }
        }
        let Some(current) = current else { return };
        for partition in current.held() {
            self.holders.insert(*partition, member.clone());
        }
        self.currents.insert(member, current);
    }

    /// The index made anew, and what no log of ours would say.
    fn check(&mut self) -> Result<(), String> {
        self.holders.clear();
        for (member, current) in &self.currents {
            if !self.members.contains_key(member) {
                return Err(format!("member {member:?} has an assignment and nothing else"));
            }
            for partition in current.held() {
                if let Some(other) = self.holders.insert(*partition, member.clone()) {
                    return Err(format!("{partition} is held by {other:?} and by {member:?}"));
                }
            }
        }
        for member in self.members.keys() {
            if !self.currents.contains_key(member) || !self.targets.contains_key(member) {
                return Err(format!("member {member:?} has no assignment"));
            }
        }
        if let Some(member) = self.targets.keys().find(|id| !self.members.contains_key(*id)) {
            return Err(format!("member {member:?} has a target and nothing else"));
        }
        let Some(epochs) = self.epochs else {
            let complete = self.members.is_empty() && self.topics.is_none();
            return if complete { Ok(()) } else { Err("it has members and no epoch".to_owned()) };
        };
        let ahead = self.currents.iter().find(|(_, current)| current.epoch > epochs.assignment);
        match ahead {
            _ if epochs.assignment > epochs.epoch => Err(format!("{epochs:?}")),
            Some((member, _)) => Err(format!("member {member:?} is ahead of {epochs:?}")),
            None => Ok(()),
        }
    }
}

impl State {
    pub fn group(&self, group: &str) -> Option<&Group> {
        self.groups.get(group)
    }

    /// By name.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (&str, &Group)> {
        self.groups.iter().map(|(name, group)| (name.as_str(), group))
    }

    pub fn producer(&self, producer_id: ProducerId) -> Option<&ProducerFence> {
        self.producers.get(&producer_id)
    }

    pub(super) fn producers(&self) -> impl Iterator<Item = (ProducerId, &ProducerFence)> {
        self.producers.iter().map(|(id, fence)| (*id, fence))
    }

    /// What the producer has pending, by group and partition.
    pub(super) fn pending_of(&self, producer_id: ProducerId) -> Vec<(String, TopicPartition)> {
        let least = TopicPartition { topic_id: TopicId::ZERO, partition: 0 };
        self.pending
            .range((producer_id, String::new(), least)..)
            .take_while(|(id, _, _)| *id == producer_id)
            .map(|(_, group, partition)| (group.clone(), *partition))
            .collect()
    }

    /// Puts the value in place of the key's last one. The only way in which the state changes.
    pub(super) fn apply(&mut self, offset: Offset, change: Change) {
        let name = match change {
            Change::Producer(producer_id, fence) => {
                put(&mut self.producers, producer_id, fence);
                return;
            }
            Change::Pending(name, producer_id, partition, value) => {
                self.apply_pending(
                    &name,
                    producer_id,
                    partition,
                    value.map(|v| committed(offset, v)),
                );
                name
            }
            Change::Epochs(name, value) => self.edit(name, |group| group.epochs = value),
            Change::Topics(name, value) => self.edit(name, |group| group.topics = value),
            Change::Member(name, id, value) => {
                self.edit(name, |group| put(&mut group.members, id, value))
            }
            Change::Target(name, id, value) => {
                self.edit(name, |group| put(&mut group.targets, id, value))
            }
            Change::Current(name, id, value) => {
                self.edit(name, |group| group.set_current(id, value))
            }
            Change::Classic(name, value) => self.edit(name, |group| group.classic = value),
            Change::Offset(name, partition, value) => {
                let value = value.map(|value| committed(offset, value));
                self.edit(name, |group| put(&mut group.offsets, partition, value))
            }
            Change::Seek(name, id, value) => {
                self.edit(name, |group| put(&mut group.seeks, id, value))
            }
        };
        if self.groups.get(&name).is_some_and(Group::is_gone) {
            self.groups.remove(&name);
        }
    }

    /// To be called when a log has been read to its end.
    pub(super) fn check(&mut self) -> Result<(), LoadError> {
        for (name, group) in &mut self.groups {
            group.check().map_err(|problem| {
                LoadError::Contradiction(format!("group {name:?}: {problem}"))
            })?;
        }
        let is_open = |id| self.producers.get(id).is_some_and(|fence| fence.is_open);
        match self.pending.iter().find(|(id, _, _)| !is_open(id)) {
            Some((id, group, _)) => Err(LoadError::Contradiction(format!(
                "group {group:?}: producer {id} has offsets pending and no transaction"
            ))),
            None => Ok(()),
        }
    }

    fn edit(&mut self, name: String, edit: impl FnOnce(&mut Group)) -> String {
        if !self.groups.contains_key(&name) {
            self.groups.insert(name.clone(), Group::default());
        }
        edit(self.groups.get_mut(&name).expect("it was put there"));
        name
    }

    fn apply_pending(
        &mut self,
        name: &str,
        producer_id: ProducerId,
        partition: TopicPartition,
        value: Option<Committed>,
    ) {
        let entry = (producer_id, name.to_owned(), partition);
        if value.is_some() {
            self.pending.insert(entry)
        } else {
            self.pending.remove(&entry)
        };
        let group = self.groups.entry(name.to_owned()).or_default();
        let of_partition = group.pending.entry(partition).or_default();
        put(of_partition, producer_id, value);
        if of_partition.is_empty() {
            group.pending.remove(&partition);
        }
    }
}

fn committed(offset: Offset, value: OffsetValue) -> Committed {
    Committed { position: value.position.unwrap_or(offset), value }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

//! Reading and removing committed offsets, and removing groups.

use tidemark_protocol::{ErrorCode, Failure, TopicId, TopicPartition, bug};

use super::{
    GroupCoordinator, GroupEffect,
    commit::Within,
    record::Change,
    request::{CommittedOffset, DeleteOffsets, FetchOffsets, FetchedOffset},
    state::{Committed, Group},
    unknown_group, unknown_member,
};

impl GroupCoordinator {
    pub(super) fn fetch_offsets(
        &self,
        fetch: &FetchOffsets,
    ) -> Result<Vec<FetchedOffset>, Failure> {
        let group = self.state.group(&fetch.group);
        if let Some((member, epoch)) = &fetch.member {
            self.check_reader(&fetch.group, member, *epoch)?;
        }
        let Some(group) = group else {
            let partitions = fetch.partitions.iter().flatten();
            let nothing = |one: &_| FetchedOffset { partition: *one, outcome: Ok(None) };
            return Ok(partitions.map(nothing).collect());
        };
        let one = |partition: &TopicPartition| {
            let is_unstable = fetch.require_stable && group.pending.contains_key(partition);
            let committed = || group.offsets.get(partition).map(show);
            let outcome =
                if is_unstable { Err(ErrorCode::UnstableOffset) } else { Ok(committed()) };
            FetchedOffset { partition: *partition, outcome }
        };
        Ok(match &fetch.partitions {
            Some(partitions) => partitions.iter().map(one).collect(),
            None => group.offsets.keys().map(one).collect(),
        })
    }

    /// A member that is not up to date would start where it should not.
    fn check_reader(&self, name: &str, member: &str, epoch: i32) -> Result<(), Failure> {
        let group = self.state.group(name).ok_or_else(|| unknown_member(name, member))?;
        if group.epochs.is_none() {
            return self.check_classic_commit(name, member, epoch, None, Within::Nothing);
        }
        let current = group.currents.get(member).ok_or_else(|| unknown_member(name, member))?;
        if epoch == current.epoch {
            return Ok(());
        }
        let message = format!("member {member:?} is at epoch {}, not {epoch}", current.epoch);
        Err(Failure::new(ErrorCode::StaleMemberEpoch, message))
    }

    pub(super) fn delete_offsets(
        &mut self,
        delete: &DeleteOffsets,
    ) -> Result<Vec<Result<(), ErrorCode>>, Failure> {
        let name = &delete.group;
        let group = self.state.group(name).ok_or_else(|| unknown_group(name))?;
        if group.epochs.is_none() {
            self.check_empty(name)?;
        }
        let is_read = |group: &Group, topic: TopicId| {
            group.topics.as_ref().is_some_and(|topics| topics.partitions.contains_key(&topic))
        };
        let check = |one: &TopicPartition| {
            if is_read(group, one.topic_id) { Err(ErrorCode::GroupNotEmpty) } else { Ok(()) }
        };
        let results: Vec<_> = delete.partitions.iter().map(check).collect();
        for (partition, result) in delete.partitions.iter().zip(&results) {
            if result.is_ok() {
                self.drop_offset(name, *partition);
            }
        }
        Ok(results)
    }

    pub(super) fn delete_group(&mut self, name: &str) -> Result<(), Failure> {
        self.state.group(name).ok_or_else(|| unknown_group(name))?;
        self.check_empty(name)?;
        self.erase_group(name);
        Ok(())
    }

    /// Writes a tombstone for everything there is of a group without members.
    pub(super) fn erase_group(&mut self, name: &str) {
        let group = self.state.group(name).expect("the caller found it");
        let partitions: Vec<_> =
            group.offsets.keys().chain(group.pending.keys()).copied().collect();
        let seeks: Vec<u64> = group.seeks.keys().copied().collect();
        let (has_topics, has_epochs) = (group.topics.is_some(), group.epochs.is_some());
        let has_classic = group.classic.is_some();
        for partition in partitions {
            self.drop_offset(name, partition);
        }
        for id in seeks {
            self.write(Change::Seek(name.to_owned(), id, None));
        }
        if has_topics {
            self.write(Change::Topics(name.to_owned(), None));
        }
        if has_epochs {
            self.write(Change::Epochs(name.to_owned(), None));
        }
        if has_classic {
            self.end_classic(name);
        }
        self.live.remove(name);
    }

    /// Removes a committed offset, and those that transactions would put in its place.
    pub(super) fn drop_offset(&mut self, name: &str, partition: TopicPartition) {
        let Some(group) = self.state.group(name) else { return };
        let has_offset = group.offsets.contains_key(&partition);
        let pending = group.pending.get(&partition).into_iter().flatten();
        let producers: Vec<_> = pending.map(|(id, _)| *id).collect();
        if has_offset {
            self.write(Change::Offset(name.to_owned(), partition, None));
        }
        if bug::is_put_back("tombstone-leaves-pending") {
            return;
        }
        for producer_id in producers {
            self.write(Change::Pending(name.to_owned(), producer_id, partition, None));
        }
    }

    pub(super) fn drop_offsets_of_deleted_topics(&mut self) {
        let mut gone: Vec<(String, TopicPartition)> = Vec::new();
        for (name, group) in self.state.groups() {
            let partitions = group.offsets.keys().chain(group.pending.keys());
            let of_deleted = partitions.filter(|one| self.topics.get(one.topic_id).is_none());
            gone.extend(of_deleted.map(|one| (name.to_owned(), *one)));
        }
        let mut told = None;
        for (group, partition) in gone {
            if self.out.is_full() {
                self.sweep_soon();
                return;
            }
            self.drop_offset(&group, partition);
            let topic_id = partition.topic_id;
            if told != Some((group.clone(), topic_id)) {
                told = Some((group.clone(), topic_id));
                self.effect(GroupEffect::OffsetsDropped { group, topic_id });
            }
        }
    }
}

fn show(committed: &Committed) -> CommittedOffset {
    let value = &committed.value;
    CommittedOffset {
        offset: value.offset,
        leader_epoch: value.leader_epoch,
        metadata: value.metadata.clone(),
        committed_ms: value.committed_ms,
    }
}

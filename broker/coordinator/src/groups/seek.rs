//! An administrator's changes of offsets, and taking them back. Every change keeps what was there before.

use tidemark_protocol::{ErrorCode, Failure, Offset, TopicPartition};

use super::{
    GroupCoordinator, check_name,
    record::{Change, OffsetValue, Seek, SeekChange},
    request::{SeekOffsets, UndoSeek},
    unknown_group,
};
use crate::{
    decision::Now,
    limits::{GROUP_OFFSETS_MAX, GROUPS_MAX, METADATA_BYTES_MAX, SEEKS_KEPT},
};

impl GroupCoordinator {
    pub(super) fn seek_offsets(&mut self, now: Now, seek: &SeekOffsets) -> Result<Seek, Failure> {
        let SeekOffsets { group, by, offsets, dry_run } = seek;
        self.check_seek(group, by)?;
        if self.state.group(group).is_none() && self.state.groups().len() >= GROUPS_MAX {
            let message = format!("this coordinator has {GROUPS_MAX} groups and takes no more");
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        for (partition, _) in offsets {
            if !self.topics.contains(partition) {
                let message = format!("there is no partition {partition}");
                return Err(Failure::new(ErrorCode::UnknownTopicOrPartition, message));
            }
        }
        let known = self.state.group(group).map_or(0, |group| group.offsets.len());
        if known + offsets.len() > GROUP_OFFSETS_MAX {
            let message = format!("a group has at most {GROUP_OFFSETS_MAX} offsets");
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        let changes = offsets
            .iter()
            .map(|(partition, offset)| self.change(group, *partition, Some(*offset)))
            .collect();
        let seek = Seek { at_ms: now.wall_ms, by: by.clone(), undo_of: None, changes };
        check_size(&seek)?;
        if !dry_run {
            self.carry_out(now, group, &seek, |_| String::new());
        }
        Ok(seek)
    }

    pub(super) fn undo_seek(&mut self, now: Now, undo: &UndoSeek) -> Result<Seek, Failure> {
        let UndoSeek { group, by, id } = undo;
        self.check_seek(group, by)?;
        let found = self.state.group(group).ok_or_else(|| unknown_group(group))?;
        let taken_back = match id {
            Some(id) => found.seeks.get_key_value(id),
            None => found.seeks.last_key_value(),
        };
        let Some((id, taken_back)) = taken_back.map(|(id, seek)| (*id, seek.clone())) else {
            let message = format!("group {group:?} remembers no such change of offsets");
            return Err(Failure::new(ErrorCode::UnknownSeek, message));
        };
        // A topic that has been deleted since takes its part of the change with it.
        let exists = taken_back.changes.iter().filter(|one| self.topics.contains(&one.partition));
        let changes: Vec<SeekChange> =
            exists.map(|one| self.change(group, one.partition, one.before)).collect();
        if changes.is_empty() {
            let message = "the topics of that change have been deleted".to_owned();
            return Err(Failure::new(ErrorCode::UnknownSeek, message));
        }
        let seek = Seek { at_ms: now.wall_ms, by: by.clone(), undo_of: Some(id), changes };
        check_size(&seek)?;
        self.carry_out(now, group, &seek, |partition| {
            let before = taken_back.changes.iter().find(|one| one.partition == *partition);
            before.map(|one| one.before_metadata.clone()).unwrap_or_default()
        });
        Ok(seek)
    }

    /// The changes that can be taken back, oldest first.
    pub(super) fn seek_history(&self, group: &str) -> Result<Vec<(u64, Seek)>, Failure> {
        let found = self.state.group(group).ok_or_else(|| unknown_group(group))?;
        Ok(found.seeks.iter().map(|(id, seek)| (*id, seek.clone())).collect())
    }

    fn check_seek(&self, group: &str, by: &str) -> Result<(), Failure> {
        check_name("group", group)?;
        check_name("name of who asks", by)?;
        self.check_empty(group)
    }

    fn change(&self, group: &str, partition: TopicPartition, after: Option<Offset>) -> SeekChange {
        let found = self.state.group(group).and_then(|group| group.offsets.get(&partition));
        let before = found.map(|committed| committed.value.offset);
        let metadata = found.map(|committed| committed.value.metadata.clone());
        SeekChange { partition, before, before_metadata: metadata.unwrap_or_default(), after }
    }

    fn carry_out(
        &mut self,
        now: Now,
        group: &str,
        seek: &Seek,
        metadata: impl Fn(&TopicPartition) -> String,
    ) {
        let seeks = self.state.group(group).map(|group| &group.seeks);
        let ids: Vec<u64> = seeks.map(|seeks| seeks.keys().copied().collect()).unwrap_or_default();
        let id = ids.last().map_or(1, |last| last + 1);
        let too_many = (ids.len() + 1).saturating_sub(SEEKS_KEPT);
        for oldest in &ids[..too_many] {
            self.write(Change::Seek(group.to_owned(), *oldest, None));
        }
        self.write(Change::Seek(group.to_owned(), id, Some(seek.clone())));
        for change in &seek.changes {
            let partition = change.partition;
            let Some(offset) = change.after else {
                self.drop_offset(group, partition);
                continue;
            };
            let value = OffsetValue {
                offset,
                leader_epoch: None,
                metadata: metadata(&partition),
                committed_ms: now.wall_ms,
                position: None,
            };
            self.write(Change::Offset(group.to_owned(), partition, Some(value)));
        }
    }
}

/// What was there before has to fit one record.
fn check_size(seek: &Seek) -> Result<(), Failure> {
    let bytes: usize = seek.changes.iter().map(|change| change.before_metadata.len()).sum();
    if bytes <= METADATA_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "the metadata of these offsets has {bytes} bytes, and at most {METADATA_BYTES_MAX} can be kept: change \
         fewer at a time"
    );
    Err(Failure::new(ErrorCode::TooLarge, message))
}

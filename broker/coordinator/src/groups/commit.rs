//! Committing offsets, and who may.

use tidemark_protocol::{ErrorCode, Failure, TopicPartition, bug};

use super::{
    GroupCoordinator, check_name,
    record::{Change, Current, OffsetValue},
    request::{CommitOffsets, Committer, OffsetToCommit},
    state::Group,
};
use crate::{
    decision::Now,
    limits::{GROUP_OFFSETS_MAX, GROUPS_MAX, OFFSET_METADATA_BYTES_MAX},
};

/// What somebody may commit for who has been found to be a member, or an outsider.
#[derive(Clone, Copy, Debug)]
pub(super) enum Permit<'a> {
    Everything,
    /// What the member holds; `is_behind` if it does not know its present epoch yet.
    Held {
        current: &'a Current,
        is_behind: bool,
    },
}

/// What a commit is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    Nothing,
    Transaction,
}

impl Permit<'_> {
    /// Whether it covers the partition. What a member was told to give up it may commit for until it has.
    pub(super) fn check(&self, partition: &TopicPartition) -> Result<(), ErrorCode> {
        match self {
            _ if bug::is_put_back("stale-commit-accepted") => Ok(()),
            Self::Held { current, is_behind } if !current.holds(partition) => {
                let stale = ErrorCode::StaleMemberEpoch;
                Err(if *is_behind { stale } else { ErrorCode::NotAssigned })
            }
            Self::Everything | Self::Held { .. } => Ok(()),
        }
    }
}

impl GroupCoordinator {
    pub(super) fn commit_offsets(
        &mut self,
        now: Now,
        commit: CommitOffsets,
    ) -> Result<Vec<Result<(), ErrorCode>>, Failure> {
        let CommitOffsets { group, committer, offsets } = commit;
        let permit = self.permit(&group, &committer, Within::Nothing)?;
        let checked: Vec<_> = offsets
            .iter()
            .map(|one| permit.check(&one.partition).and_then(|()| self.value(now, one)))
            .collect();
        self.touch_committer(now, &group, &committer);
        let mut results = Vec::with_capacity(offsets.len());
        for (one, checked) in offsets.iter().zip(checked) {
            let room = checked.and_then(|value| self.check_room(&group, one).map(|()| value));
            results.push(room.map(|value| {
                self.write(Change::Offset(group.clone(), one.partition, Some(value)));
            }));
        }
        Ok(results)
    }

    /// Whether the committer may commit in this group at all.
    pub(super) fn permit(
        &self,
        name: &str,
        committer: &Committer,
        within: Within,
    ) -> Result<Permit<'_>, Failure> {
        check_name("group", name)?;
        let group = self.state.group(name);
        if group.is_none() && self.state.groups().len() >= GROUPS_MAX {
            let message = format!("this coordinator has {GROUPS_MAX} groups and takes no more");
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        match committer {
            Committer::Outside => self.check_empty(name).map(|()| Permit::Everything),
            Committer::Member { member, epoch, instance } => match group {
                Some(found) if found.epochs.is_some() => {
                    self.require_member(name, member, instance.as_deref())?;
                    permit_of_member(found, member, *epoch)
                }
                _ => self
                    .check_classic_commit(name, member, *epoch, instance.as_deref(), within)
                    .map(|()| Permit::Everything),
            },
        }
    }

    /// Refuses unless the group has no members of either protocol, joining ones included.
    pub(super) fn check_empty(&self, name: &str) -> Result<(), Failure> {
        let has_members = self.state.group(name).is_some_and(Group::has_members);
        if has_members || self.has_classic_members(name) {
            let message = format!("group {name:?} has members: stop them first");
            return Err(Failure::new(ErrorCode::GroupNotEmpty, message));
        }
        Ok(())
    }

    /// The value to be written for an offset that may be committed.
    pub(super) fn value(
        &self,
        now: Now,
        commit: &OffsetToCommit,
    ) -> Result<OffsetValue, ErrorCode> {
        if !self.topics.contains(&commit.partition) {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        if commit.metadata.len() > OFFSET_METADATA_BYTES_MAX {
            return Err(ErrorCode::OffsetMetadataTooLarge);
        }
        Ok(OffsetValue {
            offset: commit.offset,
            leader_epoch: commit.leader_epoch,
            metadata: commit.metadata.clone(),
            committed_ms: now.wall_ms,
            position: None,
        })
    }

    pub(super) fn check_room(&self, name: &str, commit: &OffsetToCommit) -> Result<(), ErrorCode> {
        let Some(group) = self.state.group(name) else { return Ok(()) };
        let known = group.offsets.contains_key(&commit.partition)
            || group.pending.contains_key(&commit.partition);
        let count = group.offsets.len() + group.pending.len();
        if known || count < GROUP_OFFSETS_MAX { Ok(()) } else { Err(ErrorCode::GroupFull) }
    }

    /// A member that commits is alive; Kafka's clients count on it in classic groups.
    fn touch_committer(&mut self, now: Now, group: &str, committer: &Committer) {
        if let Committer::Member { member, .. } = committer {
            self.touch_classic(now, group, member);
        }
    }
}

/// The present epoch, or the one before for a member that holds the partition: its commit and the answer that told it
/// the new epoch have crossed.
fn permit_of_member<'a>(group: &'a Group, member: &str, epoch: i32) -> Result<Permit<'a>, Failure> {
    let current = &group.currents[member];
    let is_behind = epoch == current.previous_epoch && epoch < current.epoch;
    if epoch > 0 && (epoch == current.epoch || is_behind) {
        return Ok(Permit::Held { current, is_behind });
    }
    if bug::is_put_back("stale-commit-accepted") {
        return Ok(Permit::Everything);
    }
    let message = format!("member {member:?} is at epoch {}, not {epoch}", current.epoch);
    let code = if epoch < current.epoch {
        ErrorCode::StaleMemberEpoch
    } else {
        ErrorCode::FencedMemberEpoch
    };
    Err(Failure::new(code, message))
}

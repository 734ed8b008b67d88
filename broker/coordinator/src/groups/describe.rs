//! What an operator is shown of groups.

use std::collections::BTreeSet;

use tidemark_protocol::{Failure, TopicPartition};

use super::{
    GroupCoordinator, LEAVE_STATIC_EPOCH, Timer,
    record::MemberState,
    request::{MemberName, Removal, RemovalReason, RemoveMember},
    state::Group,
    target::Cause,
    unknown_group, unknown_member,
};
use crate::decision::Now;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// No members; perhaps offsets.
    Empty,
    /// Members are on their way to their targets.
    Reconciling,
    Stable,
    /// Classic: members are being waited for.
    PreparingRebalance,
    /// Classic: the leader's assignment is being waited for.
    CompletingRebalance,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    pub group: String,
    pub state: GroupState,
    pub is_classic: bool,
    pub members: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    pub group: String,
    pub state: GroupState,
    pub is_classic: bool,
    /// Group epoch, or generation of a classic group.
    pub epoch: i32,
    /// The assignor of a classic group's leader.
    pub protocol: Option<String>,
    pub members: Vec<MemberDescription>,
    /// Who is no longer there and why, oldest first; since this coordinator began.
    pub removals: Vec<Removal>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    pub member: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub epoch: i32,
    pub state: MemberState,
    /// A static member that left and keeps its place.
    pub is_away: bool,
    pub assigned: BTreeSet<TopicPartition>,
    /// What it was told to give up.
    pub revoking: BTreeSet<TopicPartition>,
    pub target: BTreeSet<TopicPartition>,
    /// What the leader of a classic group assigned; opaque.
    pub classic_assignment: Vec<u8>,
    /// When it is put out unless it is heard of, on the monotonic clock.
    pub session_deadline_ms: Option<u64>,
    /// When it is put out unless it has given up what it was told to.
    pub revocation_deadline_ms: Option<u64>,
}

impl GroupCoordinator {
    /// Every group, by name. What is decided and not committed yet counts.
    pub fn list_groups(&self) -> Vec<GroupListing> {
        let mut names: BTreeSet<&str> = self.state.groups().map(|(name, _)| name).collect();
        names
            .extend(self.live.iter().filter(|(_, l)| l.classic.is_some()).map(|(n, _)| n.as_str()));
        let listing = |name: &str| GroupListing {
            group: name.to_owned(),
            state: self.group_state(name),
            is_classic: self.is_classic(name),
            members: self.member_count(name),
        };
        names.into_iter().map(listing).collect()
    }

    pub(super) fn describe_group(&self, name: &str) -> Result<GroupDescription, Failure> {
        let is_classic = self.is_classic(name);
        let group = self.state.group(name);
        if group.is_none() && !is_classic {
            return Err(unknown_group(name));
        }
        let removals = self.live.get(name).map(|live| live.removals.iter().cloned().collect());
        let mut description = GroupDescription {
            group: name.to_owned(),
            state: self.group_state(name),
            is_classic,
            epoch: group.and_then(|group| group.epochs).map_or(0, |epochs| epochs.epoch),
            protocol: None,
            members: Vec::new(),
            removals: removals.unwrap_or_default(),
        };
        if is_classic {
            self.describe_classic(name, &mut description);
        } else if let Some(group) = group {
            description.members =
                group.members.keys().map(|id| self.describe_member(name, group, id)).collect();
        }
        Ok(description)
    }

    fn describe_member(&self, name: &str, group: &Group, id: &str) -> MemberDescription {
        let (member, current) = (&group.members[id], &group.currents[id]);
        let named = || (name.to_owned(), id.to_owned());
        let (group_name, member_id) = named();
        let session = Timer::Session { group: group_name, member: member_id };
        let (group_name, member_id) = named();
        let revocation = Timer::Revocation { group: group_name, member: member_id };
        MemberDescription {
            member: id.to_owned(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            host: member.host.clone(),
            epoch: current.epoch,
            state: current.state,
            is_away: current.epoch == LEAVE_STATIC_EPOCH,
            assigned: current.assigned.clone(),
            revoking: current.revoking.clone(),
            target: group.targets[id].partitions.clone(),
            classic_assignment: Vec::new(),
            session_deadline_ms: self.deadlines.get(&session),
            revocation_deadline_ms: self.deadlines.get(&revocation),
        }
    }

    pub(super) fn remove_member(&mut self, now: Now, remove: &RemoveMember) -> Result<(), Failure> {
        let RemoveMember { group: name, member } = remove;
        if self.is_classic(name) {
            return self.remove_classic_member(now, name, member);
        }
        let group = self.state.group(name).ok_or_else(|| unknown_group(name))?;
        let id = match member {
            MemberName::Id(id) => group.members.contains_key(id).then_some(id.as_str()),
            MemberName::Instance(instance) => group.instance(instance),
        };
        let said = match member {
            MemberName::Id(name) | MemberName::Instance(name) => name,
        };
        let id = id.ok_or_else(|| unknown_member(name, said))?.to_owned();
        self.remove(now, name, &id, RemovalReason::Kicked);
        self.retarget(name, Cause::Members);
        Ok(())
    }

    fn group_state(&self, name: &str) -> GroupState {
        if let Some(state) = self.classic_state(name) {
            return state;
        }
        let Some(group) = self.state.group(name) else { return GroupState::Empty };
        if group.members.is_empty() {
            return GroupState::Empty;
        }
        let assignment = group.epochs.map_or(0, |epochs| epochs.assignment);
        let is_settled = group.currents.values().all(|current| {
            current.epoch == LEAVE_STATIC_EPOCH
                || (current.state == MemberState::Stable && current.epoch == assignment)
        });
        if is_settled { GroupState::Stable } else { GroupState::Reconciling }
    }
}

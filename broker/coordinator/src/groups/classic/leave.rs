//! Heartbeats of classic members, and leaving.

use tidemark_protocol::{ErrorCode, Failure};

use super::rebalance_in_progress;
use crate::{
    decision::Now,
    groups::{GroupCoordinator, MemberName, RemovalReason, Timer, unknown_group, unknown_member},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicHeartbeat {
    pub group: String,
    pub member: String,
    pub instance: Option<String>,
    pub generation: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaveGroup {
    pub group: String,
    pub members: Vec<LeavingMember>,
}

/// Named by its id, its instance, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeavingMember {
    /// Empty: whoever has the instance's place.
    pub member: String,
    pub instance: Option<String>,
}

impl GroupCoordinator {
    pub(in crate::groups) fn classic_heartbeat(
        &mut self,
        now: Now,
        heartbeat: &ClassicHeartbeat,
    ) -> Result<(), Failure> {
        let ClassicHeartbeat { group: name, member, instance, generation } = heartbeat;
        let classic = self.classic(name).ok_or_else(|| unknown_member(name, member))?;
        classic.require(name, member, instance.as_deref())?;
        classic.require_generation(*generation)?;
        let is_preparing = classic.is_preparing();
        self.touch_classic(now, name, member);
        if is_preparing { Err(rebalance_in_progress(name)) } else { Ok(()) }
    }

    pub(in crate::groups) fn leave_group(
        &mut self,
        now: Now,
        leave: &LeaveGroup,
    ) -> Result<Vec<Result<(), ErrorCode>>, Failure> {
        let name = &leave.group;
        if !self.is_classic(name) {
            return Err(unknown_group(name));
        }
        let members_before = self.member_count(name);
        let results =
            leave.members.iter().map(|one| self.leave_one(now, name, one)).collect::<Vec<_>>();
        if self.member_count(name) < members_before {
            self.rebalance(now, name);
        } else if !self.drop_unused(name) {
            // An id that was given back is no change of the group; but it may have been all that was waited for.
            self.complete_if_all_joined(now, name);
        }
        Ok(results)
    }

    fn leave_one(
        &mut self,
        now: Now,
        name: &str,
        leaving: &LeavingMember,
    ) -> Result<(), ErrorCode> {
        let LeavingMember { member, instance } = leaving;
        let classic = self.classic_mut(name);
        if classic.promised.remove(member) {
            let timer = Timer::PendingJoin { group: name.to_owned(), member: member.clone() };
            self.deadlines.cancel(&timer);
            return Ok(());
        }
        let id = match instance.as_deref() {
            Some(instance) => match classic.instance(instance) {
                Some(holder) if member.is_empty() || holder == member => holder.to_owned(),
                Some(_) => return Err(ErrorCode::FencedInstance),
                None => return Err(ErrorCode::UnknownMember),
            },
            None if classic.members.contains_key(member) => member.clone(),
            None => return Err(ErrorCode::UnknownMember),
        };
        self.take_out(now, name, &id, RemovalReason::Left);
        Ok(())
    }

    pub(in crate::groups) fn remove_classic_member(
        &mut self,
        now: Now,
        name: &str,
        member: &MemberName,
    ) -> Result<(), Failure> {
        let classic = self.classic(name).ok_or_else(|| unknown_group(name))?;
        let (said, id) = match member {
            MemberName::Id(id) => (id, classic.members.contains_key(id).then(|| id.clone())),
            MemberName::Instance(instance) => {
                (instance, classic.instance(instance).map(str::to_owned))
            }
        };
        let id = id.ok_or_else(|| unknown_member(name, said))?;
        self.take_out(now, name, &id, RemovalReason::Kicked);
        self.rebalance(now, name);
        Ok(())
    }
}

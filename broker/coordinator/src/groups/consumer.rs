//! The heartbeat of members of groups with server-side assignment (KIP-848): join, stay, leave.

use std::collections::BTreeSet;

use tidemark_protocol::{ErrorCode, Failure, TopicPartition, bug};

use super::{
    Assignor, GroupCoordinator, Heartbeat, HeartbeatResponse, JOIN_EPOCH, LEAVE_EPOCH,
    LEAVE_STATIC_EPOCH, RemovalReason, Timer, check_name,
    reconcile::{Goal, reconcile},
    record::{Change, Current, Epochs, Member, MemberState},
    state::Group,
    subscription,
    target::Cause,
    unknown_member,
};
use crate::{decision::Now, limits::GROUPS_MAX};

impl GroupCoordinator {
    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        heartbeat: &Heartbeat,
    ) -> Result<HeartbeatResponse, Failure> {
        self.check_heartbeat(heartbeat)?;
        match heartbeat.epoch {
            JOIN_EPOCH => self.join(now, heartbeat)?,
            LEAVE_EPOCH | LEAVE_STATIC_EPOCH => {
                self.leave(now, heartbeat)?;
                return Ok(self.farewell(heartbeat.epoch));
            }
            _ => self.stay(heartbeat)?,
        }
        let Heartbeat { group, member, sequence, epoch, .. } = heartbeat;
        self.touch(now, group, member);
        if let Some(sequence) = sequence {
            self.live(group).sequences.insert(member.clone(), *sequence);
        }
        // Who joins has nothing: whatever it had under this id is over.
        let nothing = BTreeSet::new();
        let owned = if *epoch == JOIN_EPOCH { Some(&nothing) } else { heartbeat.owned.as_ref() };
        self.reconcile(now, group, member, owned);
        // It is told right now.
        self.out.nudges.remove(&(group.clone(), member.clone()));
        Ok(self.answer(group, member, owned))
    }

    /// What is wrong whatever state the group is in, and requests that a later one overtook.
    fn check_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(ErrorCode::InvalidRequest, message));
        check_name("group", &heartbeat.group)?;
        check_name("member id", &heartbeat.member)?;
        for (what, name) in [("instance", &heartbeat.instance), ("rack", &heartbeat.rack)] {
            name.as_deref().map_or(Ok(()), |name| check_name(what, name))?;
        }
        for (what, name) in [("client id", &heartbeat.client_id), ("host", &heartbeat.host)] {
            if !name.is_empty() {
                check_name(what, name)?;
            }
        }
        if let Some(subscription) = &heartbeat.subscription {
            subscription::check(subscription)?;
        }
        if let Some(name) = &heartbeat.assignor
            && Assignor::by_name(name).is_none()
        {
            let message =
                format!("there is no assignor {name:?}; there are sticky, uniform, range");
            return Err(Failure::new(ErrorCode::UnknownAssignor, message));
        }
        let limit_ms = self.config.rebalance_timeout_ms_max;
        if heartbeat.rebalance_timeout_ms.is_some_and(|ms| !(1..=limit_ms).contains(&ms)) {
            return refuse(format!("a rebalance timeout is 1 to {limit_ms} ms"));
        }
        if heartbeat.epoch < LEAVE_STATIC_EPOCH {
            return refuse(format!("there is no member epoch {}", heartbeat.epoch));
        }
        let live = self.live.get(&heartbeat.group);
        let last = live.and_then(|live| live.sequences.get(&heartbeat.member));
        match (heartbeat.sequence, last) {
            (Some(sequence), Some(last))
                if sequence <= *last && !bug::is_put_back("overtaken-heartbeat-accepted") =>
            {
                let message = format!("request {sequence} was overtaken by request {last}");
                Err(Failure::new(ErrorCode::StaleRequest, message))
            }
            _ => Ok(()),
        }
    }

    fn join(&mut self, now: Now, heartbeat: &Heartbeat) -> Result<(), Failure> {
        let Heartbeat { group: name, member: id, .. } = heartbeat;
        let place = self.place_of_joining(now, heartbeat)?;
        let before = match &place {
            Place::Own | Place::Vacated(_) => {
                let group = self.state.group(name).expect("the place is in it");
                let old = if let Place::Vacated(old) = &place { old } else { id };
                Some(group.members[old].clone())
            }
            Place::New => None,
        };
        let member = updated(before.as_ref(), heartbeat)?;
        self.take_over_group(name);
        match place {
            Place::Own if before.as_ref() == Some(&member) => return Ok(()),
            Place::Vacated(old) => {
                let same = before.is_some_and(|before| is_same_for_targets(&before, &member));
                self.replace_member(now, name, (&old, id), member);
                if same {
                    return Ok(());
                }
            }
            Place::Own | Place::New => {
                self.write(Change::Member(name.clone(), id.clone(), Some(member)));
            }
        }
        self.retarget(name, Cause::Members);
        Ok(())
    }

    /// Where a member that joins belongs, or why it cannot.
    fn place_of_joining(&self, now: Now, heartbeat: &Heartbeat) -> Result<Place, Failure> {
        let Heartbeat { group: name, member: id, .. } = heartbeat;
        // Not a question to the log: it does not have a first generation that is being made.
        if self.has_classic_members(name) {
            let message = format!("the members of group {name:?} speak the classic protocol");
            return Err(Failure::new(ErrorCode::GroupProtocolMismatch, message));
        }
        let Some(group) = self.state.group(name) else {
            if self.state.groups().len() >= GROUPS_MAX {
                let message = format!("this coordinator has {GROUPS_MAX} groups and takes no more");
                return Err(Failure::new(ErrorCode::GroupFull, message));
            }
            return Ok(Place::New);
        };
        if let Some(member) = group.members.get(id)
            && member.instance != heartbeat.instance
        {
            let message = format!("member {id:?} has joined as another instance");
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        let held_by = heartbeat.instance.as_deref().and_then(|instance| group.instance(instance));
        match held_by {
            Some(holder) if holder == id => return Ok(Place::Own),
            Some(holder) if group.currents[holder].epoch == LEAVE_STATIC_EPOCH => {
                return Ok(Place::Vacated(holder.to_owned()));
            }
            Some(holder) => {
                return Err(self.unreleased(now, name, holder));
            }
            None => {}
        }
        if group.members.contains_key(id) {
            return Ok(Place::Own);
        }
        let members_max = self.config.members_max;
        if group.members.len() >= members_max {
            let message = format!("group {name:?} has {members_max} members and takes no more");
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        Ok(Place::New)
    }

    /// Who joins under a name that is taken is to know whom to stop, or how long it waits.
    fn unreleased(&self, now: Now, name: &str, holder: &str) -> Failure {
        let host = self.state.group(name).map_or("", |group| group.members[holder].host.as_str());
        let at = if host.is_empty() { String::new() } else { format!(" at {host}") };
        let timer = Timer::Session { group: name.to_owned(), member: holder.to_owned() };
        let session_ends_ms = self.deadlines.get(&timer).unwrap_or(now.mono_ms);
        let left_ms = session_ends_ms.saturating_sub(now.mono_ms);
        let message = format!(
            "member {holder:?}{at} has the place of this instance, for {left_ms} ms more unless it is heard of again"
        );
        Failure::new(ErrorCode::UnreleasedInstance, message)
    }

    /// Makes the group one with server-side assignment. Its epoch goes on from a classic group's generation, so that
    /// no old member has a number of the new ones.
    fn take_over_group(&mut self, name: &str) {
        let group = self.state.group(name);
        if group.is_some_and(|group| group.epochs.is_some()) {
            return;
        }
        let generation = self.end_classic(name);
        if generation > 0 {
            let epochs = Epochs { epoch: generation, assignment: generation };
            self.write(Change::Epochs(name.to_owned(), Some(epochs)));
        }
    }

    fn stay(&mut self, heartbeat: &Heartbeat) -> Result<(), Failure> {
        let Heartbeat { group: name, member: id, .. } = heartbeat;
        let (group, member) = self.require_member(name, id, heartbeat.instance.as_deref())?;
        check_epoch(&group.currents[id], heartbeat)?;
        let changed = updated(Some(member), heartbeat)?;
        if changed == *member {
            return Ok(());
        }
        let same = is_same_for_targets(member, &changed);
        self.write(Change::Member(name.clone(), id.clone(), Some(changed)));
        if !same {
            self.retarget(name, Cause::Members);
        }
        Ok(())
    }

    fn leave(&mut self, now: Now, heartbeat: &Heartbeat) -> Result<(), Failure> {
        let Heartbeat { group, member, .. } = heartbeat;
        let (_, found) = self.require_member(group, member, heartbeat.instance.as_deref())?;
        if heartbeat.epoch == LEAVE_STATIC_EPOCH {
            if found.instance.is_none() {
                let message = "only a static member can leave and keep its place".to_owned();
                return Err(Failure::new(ErrorCode::InvalidRequest, message));
            }
            self.vacate(group, member);
            self.touch(now, group, member);
            return Ok(());
        }
        let reason = if heartbeat.missed_processing_deadline {
            RemovalReason::MissedProcessingDeadline
        } else {
            RemovalReason::Left
        };
        self.remove(now, group, member, reason);
        self.retarget(group, Cause::Members);
        Ok(())
    }

    /// The group and its member, which must be the process that holds its instance's place.
    pub(super) fn require_member(
        &self,
        name: &str,
        id: &str,
        instance: Option<&str>,
    ) -> Result<(&Group, &Member), Failure> {
        let group = self.state.group(name).ok_or_else(|| unknown_member(name, id))?;
        if let Some(holder) = instance.and_then(|instance| group.instance(instance))
            && holder != id
        {
            let message = format!("member {holder:?} has taken over this instance's place");
            return Err(Failure::new(ErrorCode::FencedInstance, message));
        }
        let member = group.members.get(id).ok_or_else(|| unknown_member(name, id))?;
        Ok((group, member))
    }

    /// Takes a member a step towards its target, given what it says to own.
    fn reconcile(
        &mut self,
        now: Now,
        name: &str,
        id: &str,
        owned: Option<&BTreeSet<TopicPartition>>,
    ) {
        let group = self.state.group(name).expect("it has this member");
        let epochs = group.epochs.expect("whoever has members has an epoch");
        let goal = Goal { epoch: epochs.assignment, partitions: &group.targets[id].partitions };
        let known = group.currents.get(id);
        let current = known.cloned().unwrap_or_else(Current::new);
        let is_free = |partition: &_| group.holder(partition).is_none_or(|holder| holder == id);
        let next = reconcile(&current, goal, owned, is_free);
        if known == Some(&next) {
            return;
        }
        assert!(next.epoch <= goal.epoch, "{id:?} is ahead of its group: {next:?}");
        let lets_go = current.held().any(|partition| !next.holds(partition));
        self.write(Change::Current(name.to_owned(), id.to_owned(), Some(next)));
        self.watch_revocation(now, name, id);
        if lets_go {
            self.nudge_waiting(name);
        }
    }

    fn answer(
        &self,
        name: &str,
        id: &str,
        owned: Option<&BTreeSet<TopicPartition>>,
    ) -> HeartbeatResponse {
        let group = self.state.group(name).expect("it has this member");
        let current = &group.currents[id];
        let known = owned == Some(&current.assigned);
        let settled = current.state == MemberState::Stable && (known || owned.is_none());
        HeartbeatResponse {
            epoch: current.epoch,
            heartbeat_interval_ms: if settled {
                self.config.heartbeat_interval_ms
            } else {
                self.config.reconcile_interval_ms
            },
            session_timeout_ms: self.config.session_timeout_ms,
            assignment: (!known).then(|| current.assigned.clone()),
        }
    }

    fn farewell(&self, epoch: i32) -> HeartbeatResponse {
        HeartbeatResponse {
            epoch,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            session_timeout_ms: self.config.session_timeout_ms,
            assignment: None,
        }
    }
}

/// Where a member that joins belongs.
enum Place {
    New,
    /// It is there already: its first request was lost, or it starts over.
    Own,
    /// The place of a static member that left for a while, under this id.
    Vacated(String),
}

/// The member as the heartbeat describes it.
fn updated(before: Option<&Member>, heartbeat: &Heartbeat) -> Result<Member, Failure> {
    let needed = |what: &str| {
        let message = format!("a member joins with its {what}");
        Failure::new(ErrorCode::InvalidRequest, message)
    };
    let (topics, regex) = match (&heartbeat.subscription, before) {
        (Some(subscription), _) => (subscription.topics.clone(), subscription.regex.clone()),
        (None, Some(before)) if heartbeat.epoch != JOIN_EPOCH => {
            (before.topics.clone(), before.regex.clone())
        }
        _ => return Err(needed("subscription")),
    };
    let before_ms = before.filter(|_| heartbeat.epoch != JOIN_EPOCH);
    let rebalance_timeout_ms = heartbeat
        .rebalance_timeout_ms
        .or(before_ms.map(|before| before.rebalance_timeout_ms))
        .ok_or_else(|| needed("rebalance timeout"))?;
    let or_before = |said: &str, before: Option<&String>| match before {
        Some(before) if said.is_empty() => before.clone(),
        _ => said.to_owned(),
    };
    Ok(Member {
        instance: heartbeat.instance.clone().or_else(|| before.and_then(|b| b.instance.clone())),
        rack: heartbeat.rack.clone().or_else(|| before.and_then(|b| b.rack.clone())),
        client_id: or_before(&heartbeat.client_id, before.map(|before| &before.client_id)),
        host: or_before(&heartbeat.host, before.map(|before| &before.host)),
        topics,
        regex,
        rebalance_timeout_ms,
        assignor: match &heartbeat.assignor {
            Some(name) => Assignor::by_name(name),
            None => before.and_then(|before| before.assignor),
        },
    })
}

/// Whether targets computed with one are right with the other.
fn is_same_for_targets(a: &Member, b: &Member) -> bool {
    (&a.topics, &a.regex, &a.rack, &a.instance, a.assignor)
        == (&b.topics, &b.regex, &b.rack, &b.instance, b.assignor)
}

/// An epoch other than the present one can only be the one before, from a member that has not had the answer which
/// told it the present one.
fn check_epoch(current: &Current, heartbeat: &Heartbeat) -> Result<(), Failure> {
    let owns_only_assigned =
        heartbeat.owned.as_ref().is_some_and(|owned| owned.is_subset(&current.assigned));
    let missed_the_answer = heartbeat.epoch == current.previous_epoch && owns_only_assigned;
    if heartbeat.epoch == current.epoch || (heartbeat.epoch < current.epoch && missed_the_answer) {
        return Ok(());
    }
    let message = format!(
        "member {:?} is at epoch {}, not {}: drop all partitions and join again",
        heartbeat.member, current.epoch, heartbeat.epoch
    );
    Err(Failure::new(ErrorCode::FencedMemberEpoch, message))
}

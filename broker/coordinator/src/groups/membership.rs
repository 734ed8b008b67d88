//! Members of groups with server-side assignment come into being, pass on their place and cease to be. When they do
//! is decided elsewhere.

use super::{
    GroupCoordinator, LEAVE_STATIC_EPOCH, Timer,
    record::{Change, Current, Member, MemberState},
    request::{Removal, RemovalReason},
    target::Cause,
};
use crate::decision::Now;

impl GroupCoordinator {
    /// Soft state for what the log says: every member has been heard of just now.
    pub(super) fn revive(&mut self, now: Now) {
        let mut sessions = Vec::new();
        let mut revocations = Vec::new();
        let mut classic = Vec::new();
        for (name, group) in self.state.groups() {
            for (id, current) in &group.currents {
                sessions.push((name.to_owned(), id.clone()));
                if current.state == MemberState::Unrevoked {
                    revocations.push((name.to_owned(), id.clone()));
                }
            }
            if group.classic.is_some() {
                classic.push(name.to_owned());
            }
        }
        for (group, member) in sessions {
            self.touch(now, &group, &member);
        }
        for (group, member) in revocations {
            self.watch_revocation(now, &group, &member);
        }
        for group in classic {
            self.revive_classic(now, &group);
        }
        self.schedule_expiry(now);
    }

    /// The member lives: its session starts anew.
    pub(super) fn touch(&mut self, now: Now, group: &str, member: &str) {
        let at_ms = now.mono_ms + self.config.session_timeout_ms;
        let (group, member) = (group.to_owned(), member.to_owned());
        self.deadlines.set(Timer::Session { group, member }, at_ms);
    }

    /// Begins or ends the deadline for giving up partitions. To be called when the member's state has changed, and
    /// only then: a member that keeps asking gets no more time.
    pub(super) fn watch_revocation(&mut self, now: Now, group: &str, member: &str) {
        let timer = Timer::Revocation { group: group.to_owned(), member: member.to_owned() };
        let found = self.state.group(group).and_then(|group| {
            Some((group.members.get(member)?.rebalance_timeout_ms, group.currents.get(member)?))
        });
        match found {
            Some((timeout_ms, current)) if current.state == MemberState::Unrevoked => {
                // The member may have missed the first answer that told it, and counts from a later one; without
                // any answer it stops when its session ends. So nobody is given its partitions while it may still
                // be at them.
                let patience_ms = u64::from(timeout_ms) + self.config.session_timeout_ms;
                self.deadlines.set(timer, now.mono_ms + patience_ms);
            }
            _ => self.deadlines.cancel(&timer),
        }
    }

    /// A static member is back under another id: it takes the place over, and nobody else notices. Where it is on its
    /// way to its target is for the caller to say.
    pub(super) fn replace_member(
        &mut self,
        now: Now,
        group: &str,
        (old, new): (&str, &str),
        member: Member,
    ) {
        let found = self.state.group(group).expect("the caller found the member in it");
        let target = found.targets.get(old).cloned().unwrap_or_default();
        self.forget(group, old);
        self.note_removal(now, group, old, RemovalReason::Replaced);
        self.erase(group, old);
        let (group, new) = (group.to_owned(), new.to_owned());
        self.write(Change::Member(group.clone(), new.clone(), Some(member)));
        self.write(Change::Target(group, new, Some(target)));
    }

    /// A static member stops, and its place stays as it is until its session ends. What it held is free.
    pub(super) fn vacate(&mut self, group: &str, member: &str) {
        let away = Current { epoch: LEAVE_STATIC_EPOCH, ..Current::new() };
        self.cancel_revocation(group, member);
        self.nudge_waiting(group);
        self.write(Change::Current(group.to_owned(), member.to_owned(), Some(away)));
    }

    /// Takes a member out, with everything it has. The group's targets are for the caller to look at.
    pub(super) fn remove(&mut self, now: Now, group: &str, member: &str, reason: RemovalReason) {
        self.forget(group, member);
        self.note_removal(now, group, member, reason);
        self.nudge_waiting(group);
        self.erase(group, member);
    }

    pub(super) fn session_expired(&mut self, now: Now, group: &str, member: &str) {
        let found = self.state.group(group);
        if found.is_some_and(|group| group.members.contains_key(member)) {
            self.remove(now, group, member, RemovalReason::SessionTimedOut);
            // Many members may be gone at once: their group is looked at when all are known.
            self.unsettled.insert(group.to_owned(), Cause::Members);
        } else {
            self.classic_session_expired(now, group, member);
        }
    }

    pub(super) fn revocation_expired(&mut self, now: Now, group: &str, member: &str) {
        let found = self.state.group(group).and_then(|group| group.currents.get(member));
        if found.is_some_and(|current| current.state == MemberState::Unrevoked) {
            self.remove(now, group, member, RemovalReason::MissedRebalanceDeadline);
            self.unsettled.insert(group.to_owned(), Cause::Members);
        }
    }

    /// Asks those who wait for partitions to come and see: somebody has let go of some.
    pub(super) fn nudge_waiting(&mut self, group: &str) {
        let Some(found) = self.state.group(group) else { return };
        let waiting =
            found.currents.iter().filter(|(_, current)| current.state == MemberState::Unreleased);
        let waiting: Vec<String> = waiting.map(|(id, _)| id.clone()).collect();
        for member in waiting {
            self.nudge(group, &member);
        }
    }

    fn erase(&mut self, group: &str, member: &str) {
        let (group, member) = (group.to_owned(), member.to_owned());
        self.write(Change::Current(group.clone(), member.clone(), None));
        self.write(Change::Target(group.clone(), member.clone(), None));
        self.write(Change::Member(group, member, None));
    }

    fn forget(&mut self, group: &str, member: &str) {
        self.live(group).sequences.remove(member);
        self.cancel_revocation(group, member);
        let (group, member) = (group.to_owned(), member.to_owned());
        self.deadlines.cancel(&Timer::Session { group, member });
    }

    fn cancel_revocation(&mut self, group: &str, member: &str) {
        let (group, member) = (group.to_owned(), member.to_owned());
        self.deadlines.cancel(&Timer::Revocation { group, member });
    }

    fn note_removal(&mut self, now: Now, group: &str, id: &str, reason: RemovalReason) {
        let Some(found) = self.state.group(group) else { return };
        let Some(member) = found.members.get(id) else { return };
        let removal = Removal {
            member: id.to_owned(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            host: member.host.clone(),
            reason,
            at_ms: now.wall_ms,
        };
        self.remember_removal(group, removal);
    }
}

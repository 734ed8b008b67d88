//! From one generation of a classic group to the next, and what happens when members do not come along.

use tidemark_protocol::bug;

use super::{Phase, Rebalance, rebalance_in_progress};
use crate::{
    decision::Now,
    groups::{
        GroupCoordinator, GroupResponse, RemovalReason, Timer, record::Change, request::Removal,
    },
};

impl GroupCoordinator {
    /// Members are to join anew, or are joining already; ends the waiting if all have come.
    pub(super) fn rebalance(&mut self, now: Now, name: &str) {
        let delay_ms = self.config.initial_rebalance_delay_ms;
        let classic = self.classic_mut(name);
        if !matches!(classic.phase, Phase::Preparing { .. }) {
            let is_first = classic.phase == Phase::Empty && delay_ms > 0;
            let timeout_ms = classic.rebalance_timeout_ms();
            let deadline_ms = now.mono_ms + timeout_ms;
            classic.phase = Phase::Preparing { is_first, has_grown: false, deadline_ms };
            classic.unsynced.clear();
            let wait_ms = if is_first { delay_ms.min(timeout_ms) } else { timeout_ms };
            let parked: Vec<_> =
                classic.members.values_mut().filter_map(|peer| peer.sync.take()).collect();
            for token in parked {
                self.reply(token, Err(rebalance_in_progress(name)));
            }
            self.deadlines.cancel(&Timer::Sync { group: name.to_owned() });
            self.deadlines.set(Timer::Join { group: name.to_owned() }, now.mono_ms + wait_ms);
        }
        self.complete_if_all_joined(now, name);
    }

    pub(super) fn complete_if_all_joined(&mut self, now: Now, name: &str) {
        let classic = self.classic_mut(name);
        let Phase::Preparing { is_first, .. } = classic.phase else { return };
        let all = classic.members.values().all(|peer| peer.join.is_some());
        let nobody = classic.members.is_empty();
        if nobody || (all && classic.promised.is_empty() && !is_first) {
            self.complete_join(now, name);
        }
    }

    pub(in crate::groups) fn join_expired(&mut self, now: Now, name: &str) {
        let delay_ms = self.config.initial_rebalance_delay_ms;
        let Some(classic) = self.live.get_mut(name).and_then(|live| live.classic.as_mut()) else {
            return;
        };
        let Phase::Preparing { is_first, has_grown, deadline_ms } = classic.phase else { return };
        if is_first && has_grown && now.mono_ms < deadline_ms {
            // More keep coming: better one generation with all than one for each.
            classic.phase = Phase::Preparing { is_first, has_grown: false, deadline_ms };
            let at_ms = deadline_ms.min(now.mono_ms + delay_ms);
            self.deadlines.set(Timer::Join { group: name.to_owned() }, at_ms);
            return;
        }
        self.complete_join(now, name);
    }

    /// Begins the next generation with those who have come. Dynamic members that have not are put out; static ones
    /// keep their place until their session ends.
    fn complete_join(&mut self, now: Now, name: &str) {
        let is_late = |peer: &super::Peer| peer.join.is_none() && peer.instance.is_none();
        let classic = self.classic_mut(name);
        let late: Vec<String> = classic
            .members
            .iter()
            .filter(|(_, peer)| is_late(peer))
            .map(|(id, _)| id.clone())
            .collect();
        for member in late {
            self.take_out(now, name, &member, RemovalReason::MissedRebalanceDeadline);
        }
        let classic = self.classic_mut(name);
        let has_come = |id: &String| classic.members.get(id).is_some_and(|p| p.join.is_some());
        let leader = classic.leader.clone().filter(&has_come);
        let leader = leader.or_else(|| classic.members.keys().find(|id| has_come(id)).cloned());
        if leader.is_none() && !classic.members.is_empty() {
            // Only static members, and none is here: wait for one to come or for their sessions to end.
            let at_ms = now.mono_ms + classic.rebalance_timeout_ms();
            self.deadlines.set(Timer::Join { group: name.to_owned() }, at_ms);
            return;
        }
        self.deadlines.cancel(&Timer::Join { group: name.to_owned() });
        let classic = self.classic_mut(name);
        classic.generation = next_generation(classic.generation);
        classic.leader = leader;
        classic.protocol = classic.vote();
        if classic.members.is_empty() {
            classic.phase = Phase::Empty;
            classic.protocol_type = None;
            self.write_generation(name);
            return;
        }
        classic.phase = Phase::Completing;
        self.announce(now, name);
    }

    /// Tells the members that have come about the generation, and waits for them to ask for their assignment.
    fn announce(&mut self, now: Now, name: &str) {
        let classic = self.classic_mut(name);
        let mut parked = Vec::new();
        for (id, peer) in &mut classic.members {
            peer.assignment.clear();
            if let Some(token) = peer.join.take() {
                parked.push((id.clone(), token));
            }
        }
        classic.unsynced = parked.iter().map(|(id, _)| id.clone()).collect();
        let timeout_ms = classic.rebalance_timeout_ms();
        for (id, token) in parked {
            let joined = self.classic_mut(name).joined(&id);
            self.reply(token, Ok(GroupResponse::JoinGroup(joined)));
            self.touch_classic(now, name, &id);
        }
        self.deadlines.set(Timer::Sync { group: name.to_owned() }, now.mono_ms + timeout_ms);
    }

    pub(in crate::groups) fn sync_expired(&mut self, now: Now, name: &str) {
        if !self.is_classic(name) {
            return;
        }
        let late: Vec<String> = self.classic_mut(name).unsynced.iter().cloned().collect();
        for member in &late {
            self.take_out(now, name, member, RemovalReason::MissedRebalanceDeadline);
        }
        if !late.is_empty() {
            self.rebalance(now, name);
        }
    }

    pub(in crate::groups) fn pending_join_expired(&mut self, now: Now, name: &str, member: &str) {
        if !self.is_classic(name) {
            return;
        }
        self.classic_mut(name).promised.remove(member);
        if !self.drop_unused(name) {
            self.complete_if_all_joined(now, name);
        }
    }

    /// Forgets a group of which there is nothing but that somebody was to join; says whether it was one.
    pub(super) fn drop_unused(&mut self, name: &str) -> bool {
        let classic = self.classic_mut(name);
        let is_unused = classic.phase == Phase::Empty && classic.promised.is_empty();
        let is_unused = is_unused && self.state.group(name).is_none();
        if is_unused {
            self.live.remove(name);
        }
        is_unused
    }

    pub(in crate::groups) fn classic_session_expired(
        &mut self,
        now: Now,
        name: &str,
        member: &str,
    ) {
        let peer = self.classic(name).and_then(|classic| classic.members.get(member));
        let Some(peer) = peer else { return };
        if peer.join.is_some() || peer.sync.is_some() {
            // It cannot send a heartbeat while it waits for us.
            self.touch_classic(now, name, member);
            return;
        }
        self.take_out(now, name, member, RemovalReason::SessionTimedOut);
        self.rebalance(now, name);
    }

    /// Takes a member out of the group. Whether the others must join anew is the caller's business.
    pub(super) fn take_out(&mut self, now: Now, name: &str, id: &str, reason: RemovalReason) {
        let timer = Timer::Session { group: name.to_owned(), member: id.to_owned() };
        self.deadlines.cancel(&timer);
        let classic = self.classic_mut(name);
        classic.unsynced.remove(id);
        if classic.leader.as_deref() == Some(id) {
            classic.leader = None;
        }
        let Some(peer) = classic.members.remove(id) else { return };
        for token in peer.join.into_iter().chain(peer.sync) {
            self.reply(token, Err(crate::groups::unknown_member(name, id)));
        }
        let removal = Removal {
            member: id.to_owned(),
            instance: peer.instance,
            client_id: peer.client_id,
            host: peer.host,
            reason,
            at_ms: now.wall_ms,
        };
        self.remember_removal(name, removal);
    }

    pub(super) fn write_generation(&mut self, name: &str) {
        let generation = self.classic_mut(name).to_log();
        self.write(Change::Classic(name.to_owned(), Some(generation)));
    }
}

/// After the last generation comes the first, as in Kafka; members of both are 2^31 rebalances apart.
fn next_generation(generation: i32) -> i32 {
    if bug::is_put_back("classic-generation-stays") {
        return generation;
    }
    generation.checked_add(1).unwrap_or(1)
}

impl Rebalance {
    pub(super) fn is_preparing(&self) -> bool {
        matches!(self.phase, Phase::Preparing { .. })
    }
}

//! `JoinGroup`: who comes is told when all have come.

use tidemark_protocol::{ErrorCode, Failure};

use super::{Peer, Phase, Rebalance};
use crate::{
    decision::{Now, Token},
    groups::{GroupCoordinator, GroupResponse, Outcome, Timer, check_name, unknown_member},
    limits::{CLASSIC_MEMBER_BYTES_MAX, CLASSIC_PROTOCOLS_MAX, GROUPS_MAX},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinGroup {
    pub group: String,
    /// Empty for a member that has no id yet.
    pub member: String,
    /// What such a member is to be called: random, made by the caller.
    pub new_member: String,
    /// Send members without an id away with one, to come back: if their connection breaks nothing is left behind.
    pub require_known_member: bool,
    pub instance: Option<String>,
    pub client_id: String,
    pub host: String,
    pub session_timeout_ms: u32,
    pub rebalance_timeout_ms: u32,
    pub protocol_type: String,
    /// What the member can do, best first, each with its metadata.
    pub protocols: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedGroup {
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader: String,
    pub member: String,
    /// For the leader: all members. For others nothing.
    pub members: Vec<JoinedMember>,
    /// The leader is back after a restart, and the assignment stands. Clients that do not know of this must be told
    /// that somebody else leads.
    pub skip_assignment: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    pub member: String,
    pub instance: Option<String>,
    pub metadata: Vec<u8>,
}

impl GroupCoordinator {
    pub(in crate::groups) fn join_group(
        &mut self,
        now: Now,
        token: Token,
        join: JoinGroup,
    ) -> Outcome {
        self.check_join(&join)?;
        let name = join.group.clone();
        let is_member = |classic: &Rebalance| classic.members.contains_key(&join.member);
        if self.classic(&name).is_some_and(is_member) {
            return self.rejoin(now, token, join);
        }
        if let Some(holder) = self.check_newcomer(&join)? {
            self.begin_classic(&name);
            return Ok(self.replace_peer(now, token, &holder, join));
        }
        self.begin_classic(&name);
        if join.member.is_empty() && join.require_known_member && join.instance.is_none() {
            return Ok(Some(self.promise(now, &join)));
        }
        let id = if join.member.is_empty() { join.new_member.clone() } else { join.member.clone() };
        self.deadlines.cancel(&Timer::PendingJoin { group: name.clone(), member: id.clone() });
        let classic = self.classic_mut(&name);
        classic.promised.remove(&id);
        classic.protocol_type = Some(join.protocol_type.clone());
        classic.members.insert(id.clone(), peer(join, Some(token)));
        if let Phase::Preparing { has_grown, .. } = &mut classic.phase {
            *has_grown = true;
        }
        self.touch_classic(now, &name, &id);
        self.rebalance(now, &name);
        Ok(None)
    }

    fn check_join(&self, join: &JoinGroup) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(ErrorCode::InvalidRequest, message));
        check_name("group", &join.group)?;
        check_name(
            "member id",
            if join.member.is_empty() { &join.new_member } else { &join.member },
        )?;
        check_name("protocol type", &join.protocol_type)?;
        join.instance.as_deref().map_or(Ok(()), |instance| check_name("instance", instance))?;
        for (what, name) in [("client id", &join.client_id), ("host", &join.host)] {
            if !name.is_empty() {
                check_name(what, name)?;
            }
        }
        let (least_ms, most_ms) = self.config.classic_session_timeout_ms;
        if !(least_ms..=most_ms).contains(&join.session_timeout_ms) {
            return refuse(format!("a session timeout is {least_ms} to {most_ms} ms"));
        }
        let limit_ms = self.config.rebalance_timeout_ms_max;
        if !(1..=limit_ms).contains(&join.rebalance_timeout_ms) {
            return refuse(format!("a rebalance timeout is 1 to {limit_ms} ms"));
        }
        if !(1..=CLASSIC_PROTOCOLS_MAX).contains(&join.protocols.len()) {
            return refuse(format!("a member offers 1 to {CLASSIC_PROTOCOLS_MAX} protocols"));
        }
        for (name, _) in &join.protocols {
            check_name("protocol", name)?;
        }
        let bytes: usize = join.protocols.iter().map(|(_, metadata)| metadata.len()).sum();
        if bytes > CLASSIC_MEMBER_BYTES_MAX {
            let message = format!("a member brings at most {CLASSIC_MEMBER_BYTES_MAX} bytes");
            return Err(Failure::new(ErrorCode::TooLarge, message));
        }
        if self.state.group(&join.group).is_some_and(|group| !group.members.is_empty()) {
            let message = format!("the members of group {:?} do not assign themselves", join.group);
            return Err(Failure::new(ErrorCode::GroupProtocolMismatch, message));
        }
        self.check_protocols(join)
    }

    /// A member must be of the group's type, and have a protocol in common with all others.
    fn check_protocols(&self, join: &JoinGroup) -> Result<(), Failure> {
        let Some(classic) = self.classic(&join.group) else { return Ok(()) };
        let others = || {
            let is_other = |id: &str, peer: &Peer| {
                id != join.member && (join.instance.is_none() || peer.instance != join.instance)
            };
            classic.members.iter().filter(move |(id, peer)| is_other(id, peer)).map(|(_, p)| p)
        };
        let refuse = |message| Err(Failure::new(ErrorCode::GroupProtocolMismatch, message));
        // Also one without others: its answer tells the type that the group has.
        let same_type = classic.protocol_type.as_deref() == Some(&join.protocol_type);
        if !same_type && !classic.members.is_empty() {
            let known = classic.protocol_type.as_deref().unwrap_or_default();
            let message = format!(
                "the group's members are of the type {known:?}, not {:?}",
                join.protocol_type
            );
            return refuse(message);
        }
        let in_common =
            |(name, _): &(String, Vec<u8>)| others().all(|p| p.metadata(name).is_some());
        if join.protocols.iter().any(in_common) {
            return Ok(());
        }
        refuse("the member has no protocol in common with all others of the group".to_owned())
    }

    /// Whether somebody who is no member may become one: in place of another, if it is a static member.
    fn check_newcomer(&self, join: &JoinGroup) -> Result<Option<String>, Failure> {
        let JoinGroup { group: name, member, instance, .. } = join;
        let classic = self.classic(name);
        if member.is_empty() && classic.is_some_and(|c| c.members.contains_key(&join.new_member)) {
            let message = "the id for the new member is taken".to_owned();
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        let holder = instance.as_deref().and_then(|instance| classic?.instance(instance));
        match holder {
            Some(holder) if member.is_empty() => return Ok(Some(holder.to_owned())),
            Some(holder) => {
                let message = format!("member {holder:?} has taken over this instance's place");
                return Err(Failure::new(ErrorCode::FencedInstance, message));
            }
            None => {}
        }
        let is_promised = classic.is_some_and(|classic| classic.promised.contains(member));
        if !member.is_empty() && !is_promised {
            return Err(unknown_member(name, member));
        }
        let is_known = classic.is_some() || self.state.group(name).is_some();
        let has_room = is_known || self.live.len().max(self.state.groups().len()) < GROUPS_MAX;
        let promised = classic.map_or(0, |classic| classic.promised.len());
        let coming = self.member_count(name) + promised - usize::from(is_promised);
        if !has_room || coming >= self.config.members_max {
            let message = format!("group {name:?} takes no more members");
            return Err(Failure::new(ErrorCode::GroupFull, message));
        }
        Ok(None)
    }

    fn promise(&mut self, now: Now, join: &JoinGroup) -> GroupResponse {
        let member = join.new_member.clone();
        self.classic_mut(&join.group).promised.insert(member.clone());
        let timer = Timer::PendingJoin { group: join.group.clone(), member: member.clone() };
        self.deadlines.set(timer, now.mono_ms + u64::from(join.session_timeout_ms));
        GroupResponse::MemberIdRequired { member }
    }

    /// A member that is known joins: anew, or because it has not had the answer.
    fn rejoin(&mut self, now: Now, token: Token, join: JoinGroup) -> Outcome {
        let (name, id) = (join.group.clone(), join.member.clone());
        let classic = self.classic(&name).expect("the caller found it");
        let peer = classic.require(&name, &id, join.instance.as_deref())?;
        let is_same = peer.protocols == join.protocols
            || classic.protocol.as_deref().is_some_and(|protocol| {
                // After a failover only the metadata of the group's protocol is known.
                let offered = join.protocols.iter().find(|(name, _)| name == protocol);
                offered.map(|(_, metadata)| metadata.as_slice()) == peer.metadata(protocol)
                    && peer.protocols.len() == 1
            });
        let is_leader = classic.leader.as_deref() == Some(&id);
        self.touch_classic(now, &name, &id);
        let answer_again = match self.classic_mut(&name).phase {
            Phase::Completing => is_same,
            // A leader that joins wants to assign anew.
            Phase::Stable => is_same && !is_leader,
            Phase::Empty | Phase::Preparing { .. } => false,
        };
        if answer_again {
            let classic = self.classic_mut(&name);
            return Ok(Some(GroupResponse::JoinGroup(classic.joined(&id))));
        }
        self.update_peer(&id, join, token);
        self.rebalance(now, &name);
        Ok(None)
    }

    fn update_peer(&mut self, id: &str, join: JoinGroup, token: Token) {
        let name = join.group.clone();
        let peer = self.classic_mut(&name).members.get_mut(id).expect("the caller found it");
        peer.protocols = join.protocols;
        peer.session_timeout_ms = join.session_timeout_ms;
        peer.rebalance_timeout_ms = join.rebalance_timeout_ms;
        // A request that is sent again takes the place of the one before.
        if let Some(before) = peer.join.replace(token) {
            let message = "the member has sent the request again".to_owned();
            self.reply(before, Err(Failure::new(ErrorCode::StaleRequest, message)));
        }
    }

    /// A static member is back under a new id. As long as it wants what it wanted, nobody else notices.
    fn replace_peer(
        &mut self,
        now: Now,
        token: Token,
        old: &str,
        join: JoinGroup,
    ) -> Option<GroupResponse> {
        let (name, id) = (join.group.clone(), join.new_member.clone());
        self.deadlines.cancel(&Timer::Session { group: name.clone(), member: old.to_owned() });
        self.fence_parked(&name, old);
        let classic = self.classic_mut(&name);
        let before = classic.members.remove(old).expect("the caller found it");
        classic.unsynced.remove(old);
        if classic.leader.as_deref() == Some(old) {
            classic.leader = Some(id.clone());
        }
        let protocol = classic.protocol.clone().unwrap_or_default();
        let mut replacement = peer(join, None);
        replacement.assignment.clone_from(&before.assignment);
        let wants_the_same = before.metadata(&protocol) == replacement.metadata(&protocol);
        classic.members.insert(id.clone(), replacement);
        let stays = wants_the_same && classic.vote().as_deref() == Some(&protocol);
        let is_stable = classic.phase == Phase::Stable;
        self.touch_classic(now, &name, &id);
        if is_stable && stays {
            self.write_generation(&name);
            let mut joined = self.classic_mut(&name).joined(&id);
            joined.skip_assignment = joined.leader == joined.member;
            return Some(GroupResponse::JoinGroup(joined));
        }
        let peer = self.classic_mut(&name).members.get_mut(&id).expect("it was put there");
        peer.join = Some(token);
        self.rebalance(now, &name);
        None
    }

    fn fence_parked(&mut self, name: &str, member: &str) {
        let peer = self.classic_mut(name).members.get_mut(member).expect("the caller found it");
        let parked: Vec<Token> = peer.join.take().into_iter().chain(peer.sync.take()).collect();
        for token in parked {
            let message = "another process has taken over this instance's place".to_owned();
            self.reply(token, Err(Failure::new(ErrorCode::FencedInstance, message)));
        }
    }
}

impl Rebalance {
    /// What a member of the present generation is told.
    pub(super) fn joined(&self, id: &str) -> JoinedGroup {
        let protocol = self.protocol.clone().unwrap_or_default();
        let leader = self.leader.clone().unwrap_or_default();
        let member = |(id, peer): (&String, &Peer)| JoinedMember {
            member: id.clone(),
            instance: peer.instance.clone(),
            metadata: peer.metadata(&protocol).unwrap_or_default().to_vec(),
        };
        let members =
            if leader == id { self.members.iter().map(member).collect() } else { Vec::new() };
        JoinedGroup {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol,
            leader,
            member: id.to_owned(),
            members,
            skip_assignment: false,
        }
    }
}

fn peer(join: JoinGroup, token: Option<Token>) -> Peer {
    Peer {
        instance: join.instance,
        client_id: join.client_id,
        host: join.host,
        session_timeout_ms: join.session_timeout_ms,
        rebalance_timeout_ms: join.rebalance_timeout_ms,
        protocols: join.protocols,
        assignment: Vec::new(),
        join: token,
        sync: None,
    }
}

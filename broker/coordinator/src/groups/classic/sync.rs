//! `SyncGroup`: the leader says who gets what, and everybody is told.

use std::collections::BTreeMap;

use tidemark_protocol::{ErrorCode, Failure};

use super::{Phase, Rebalance, rebalance_in_progress};
use crate::{
    decision::{Now, Token},
    groups::{GroupCoordinator, GroupResponse, Outcome, Timer, unknown_member},
    limits::CLASSIC_GROUP_BYTES_MAX,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncGroup {
    pub group: String,
    pub member: String,
    pub instance: Option<String>,
    pub generation: i32,
    /// Checked when given.
    pub protocol_type: Option<String>,
    /// Checked when given.
    pub protocol: Option<String>,
    /// From the leader: what each member gets. Whoever is not named gets nothing.
    pub assignments: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncedGroup {
    pub protocol_type: String,
    pub protocol: String,
    pub assignment: Vec<u8>,
}

impl GroupCoordinator {
    pub(in crate::groups) fn sync_group(
        &mut self,
        now: Now,
        token: Token,
        sync: SyncGroup,
    ) -> Outcome {
        let (name, id) = (sync.group.clone(), sync.member.clone());
        let classic = self.classic(&name).ok_or_else(|| unknown_member(&name, &id))?;
        classic.require(&name, &id, sync.instance.as_deref())?;
        classic.require_generation(sync.generation)?;
        classic.check_protocol(&sync)?;
        if classic.is_preparing() {
            return Err(rebalance_in_progress(&name));
        }
        let assigns = classic.phase == Phase::Completing && classic.leader.as_deref() == Some(&id);
        if assigns {
            classic.check_size(&sync.assignments)?;
        }
        self.touch_classic(now, &name, &id);
        let classic = self.classic_mut(&name);
        classic.unsynced.remove(&id);
        if classic.phase == Phase::Stable {
            let synced = classic.synced(&id);
            self.end_sync(&name);
            return Ok(Some(GroupResponse::SyncGroup(synced)));
        }
        let peer = classic.members.get_mut(&id).expect("it was found above");
        if let Some(before) = peer.sync.replace(token) {
            let message = "the member has sent the request again".to_owned();
            self.reply(before, Err(Failure::new(ErrorCode::StaleRequest, message)));
        }
        if assigns {
            self.assign(now, &name, sync.assignments);
        }
        Ok(None)
    }

    fn assign(&mut self, now: Now, name: &str, mut assignments: BTreeMap<String, Vec<u8>>) {
        let classic = self.classic_mut(name);
        classic.phase = Phase::Stable;
        let mut parked = Vec::new();
        for (id, peer) in &mut classic.members {
            peer.assignment = assignments.remove(id).unwrap_or_default();
            parked.extend(peer.sync.take().map(|token| (id.clone(), token)));
        }
        self.write_generation(name);
        for (id, token) in parked {
            let synced = self.classic_mut(name).synced(&id);
            self.reply(token, Ok(GroupResponse::SyncGroup(synced)));
            self.touch_classic(now, name, &id);
        }
        self.end_sync(name);
    }

    /// The last member that has asked for its assignment ends the waiting.
    fn end_sync(&mut self, name: &str) {
        if self.classic_mut(name).unsynced.is_empty() {
            self.deadlines.cancel(&Timer::Sync { group: name.to_owned() });
        }
    }
}

impl Rebalance {
    fn synced(&self, id: &str) -> SyncedGroup {
        SyncedGroup {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members[id].assignment.clone(),
        }
    }

    fn check_protocol(&self, sync: &SyncGroup) -> Result<(), Failure> {
        let fits = |said: &Option<String>, is: &Option<String>| said.is_none() || said == is;
        if fits(&sync.protocol_type, &self.protocol_type) && fits(&sync.protocol, &self.protocol) {
            return Ok(());
        }
        let [of_type, protocol] =
            [&self.protocol_type, &self.protocol].map(|it| it.as_deref().unwrap_or_default());
        let message =
            format!("this generation's protocol is {protocol:?}, of the type {of_type:?}");
        Err(Failure::new(ErrorCode::GroupProtocolMismatch, message))
    }

    /// All members have to fit one record.
    fn check_size(&self, assignments: &BTreeMap<String, Vec<u8>>) -> Result<(), Failure> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let metadata = self.members.values().map(|p| p.metadata(protocol).map_or(0, <[u8]>::len));
        let bytes = metadata.sum::<usize>() + assignments.values().map(Vec::len).sum::<usize>();
        if bytes <= CLASSIC_GROUP_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "the members' metadata and assignments have {bytes} bytes; at most \
             {CLASSIC_GROUP_BYTES_MAX} fit a record"
        );
        Err(Failure::new(ErrorCode::TooLarge, message))
    }
}

//! Brokers that are heard: what each wants, what it may do, and when it may stop.

use tidemark_protocol::{
    BrokerId, Failure,
    messages::{HeartbeatRequest, HeartbeatResponse, WantedState},
};

use super::{
    ControllerMachine,
    event::{ConnectionId, ControllerEffect, Token},
    pending::Waiting,
    refusal::not_controller,
};
use crate::{
    command::{BrokerRun, Command},
    image::Broker,
    quorum::Quorum,
};

impl<Q: Quorum> ControllerMachine<Q> {
    pub(super) fn take_heartbeat(
        &mut self,
        now_ms: u64,
        (token, connection): (Token, ConnectionId),
        request: &HeartbeatRequest,
        effects: &mut Vec<ControllerEffect>,
    ) {
        match self.hear(now_ms, connection, request) {
            // Told only when it is so.
            Ok(true) => {
                let broker_id = request.broker_id;
                self.tell(Waiting::Heartbeat { token, broker_id }, effects);
            }
            Ok(false) => {
                let outcome = self.heartbeat_outcome(request.broker_id);
                effects.push(ControllerEffect::HeartbeatAnswer { token, outcome });
            }
            Err(failure) => {
                effects.push(ControllerEffect::HeartbeatAnswer { token, outcome: Err(failure) });
            }
        }
    }

    /// Whether something was decided because of it.
    fn hear(
        &mut self,
        now_ms: u64,
        connection: ConnectionId,
        request: &HeartbeatRequest,
    ) -> Result<bool, Failure> {
        self.require_active()?;
        let active = self.active.as_mut().expect("just required");
        let HeartbeatRequest { broker_id, broker_epoch, metadata_index, wanted } = *request;
        let broker = active.image.require_run(broker_id, broker_epoch)?;
        let wanted_change = change(broker, metadata_index, wanted);
        let next_index = active.image.metadata_index();
        let run = (broker_id, broker_epoch);
        let session = active.sessions.heartbeat(run, now_ms, connection, metadata_index);
        if wanted == WantedState::ShutDown && wanted_change.is_none() {
            // It was decided by an earlier controller, or when the broker had been fenced before.
            session.shutdown_index.get_or_insert(next_index);
        }
        let Some(command) = wanted_change else { return Ok(false) };
        self.decide(&command)?;
        let active = self.active.as_mut().expect("it has decided");
        let next_index = active.image.metadata_index();
        if wanted == WantedState::ShutDown {
            let session = active.sessions.heard(broker_id, broker_epoch, now_ms);
            session.shutdown_index = Some(next_index);
        }
        Ok(true)
    }

    /// What a broker is told: what is committed.
    pub(super) fn heartbeat_outcome(&self, id: BrokerId) -> Result<HeartbeatResponse, Failure> {
        let active = self.active.as_ref().ok_or_else(|| not_controller(self.leader))?;
        let image = &self.committed;
        let broker = image.require_broker(id)?;
        let shutdown_index = active.sessions.get(id).and_then(|session| session.shutdown_index);
        let may_shut_down = shutdown_index.is_some_and(|index| {
            !broker.is_eligible()
                && image.metadata_index() >= index
                && active.sessions.all_have_followed(image, index)
                && !image.partitions().any(|(_, _, partition)| partition.leader == Some(id))
        });
        Ok(HeartbeatResponse { fenced: broker.fenced, may_shut_down })
    }
}

/// What has to be decided so that the broker is what it wants to be. It comes into play when it has followed the
/// metadata past its own registration: before that it does not know what it holds.
fn change(broker: &Broker, metadata_index: u64, wanted: WantedState) -> Option<Command> {
    let run = BrokerRun { broker_id: broker.id, broker_epoch: broker.epoch };
    let has_followed = metadata_index > broker.epoch;
    match wanted {
        WantedState::Fenced if !broker.fenced => Some(Command::FenceBroker(run)),
        WantedState::Active if broker.fenced && has_followed && !broker.in_controlled_shutdown => {
            Some(Command::UnfenceBroker(run))
        }
        WantedState::ShutDown if !broker.in_controlled_shutdown => {
            Some(Command::BeginControlledShutdown(run))
        }
        _ => None,
    }
}

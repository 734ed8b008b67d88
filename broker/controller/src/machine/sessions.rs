//! Who has been heard, when, and over which connection. Soft state of one active controller: the next one begins
//! anew and gives everybody as much time as a heartbeat that has just come, but those of whom it has seen the
//! connection close: often they are why there is a new one.

use std::collections::BTreeMap;

use tidemark_protocol::{BrokerEpoch, BrokerId};

use super::event::ConnectionId;
use crate::image::{Broker, Image};

/// How long a broker has to be heard when its node's connection to this one closed before this one was active.
const LOST_PEER_GRACE_MS: u64 = 100;

#[derive(Clone, Debug)]
pub(super) struct Sessions {
    timeout_ms: u64,
    by_broker: BTreeMap<BrokerId, Session>,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    broker_epoch: BrokerEpoch,
    /// When it is over, unless the broker is heard before.
    end_ms: u64,
    /// Its last heartbeat came over this one.
    connection: Option<ConnectionId>,
    /// The connection is closed, and nothing has been heard since.
    is_lost: bool,
    /// How far it has followed the metadata (exclusive).
    pub(super) metadata_index: u64,
    /// Everybody has to have followed this far before it may stop.
    pub(super) shutdown_index: Option<u64>,
}

impl Session {
    fn new(broker_epoch: BrokerEpoch, end_ms: u64) -> Self {
        Self {
            broker_epoch,
            end_ms,
            connection: None,
            is_lost: false,
            metadata_index: 0,
            shutdown_index: None,
        }
    }
}

impl Sessions {
    pub(super) fn fresh(image: &Image, now_ms: u64, timeout_ms: u64) -> Self {
        let end_ms = now_ms.saturating_add(timeout_ms);
        let session = |broker: &Broker| (broker.id, Session::new(broker.epoch, end_ms));
        Self { timeout_ms, by_broker: image.brokers().map(session).collect() }
    }

    /// The session of one run of a broker, which has just been heard.
    pub(super) fn heard(&mut self, id: BrokerId, epoch: BrokerEpoch, now_ms: u64) -> &mut Session {
        let end_ms = now_ms.saturating_add(self.timeout_ms);
        let session = self.by_broker.entry(id).or_insert_with(|| Session::new(epoch, end_ms));
        if session.broker_epoch != epoch {
            *session = Session::new(epoch, end_ms);
        }
        session.end_ms = end_ms;
        session
    }

    pub(super) fn heartbeat(
        &mut self,
        (id, epoch): (BrokerId, BrokerEpoch),
        now_ms: u64,
        connection: ConnectionId,
        metadata_index: u64,
    ) -> &mut Session {
        let session = self.heard(id, epoch, now_ms);
        session.connection = Some(connection);
        session.is_lost = false;
        session.metadata_index = session.metadata_index.max(metadata_index);
        session
    }

    pub(super) fn close(&mut self, connection: ConnectionId) {
        for session in self.by_broker.values_mut().filter(|one| one.connection == Some(connection))
        {
            session.connection = None;
            session.is_lost = true;
        }
    }

    /// The node of a broker is not connected any more. If no heartbeat has come yet, none may.
    pub(super) fn suspect(&mut self, id: BrokerId, now_ms: u64) {
        let session = self.by_broker.get_mut(&id).filter(|one| one.connection.is_none());
        if let Some(session) = session {
            session.end_ms = session.end_ms.min(now_ms.saturating_add(LOST_PEER_GRACE_MS));
        }
    }

    /// The node of a broker has said something, to the quorum at least.
    pub(super) fn clear(&mut self, id: BrokerId, now_ms: u64) {
        if let Some(session) = self.by_broker.get_mut(&id) {
            session.end_ms = session.end_ms.max(now_ms.saturating_add(self.timeout_ms));
        }
    }

    /// Whether that run of the broker has to be fenced.
    pub(super) fn is_over(&self, id: BrokerId, epoch: BrokerEpoch, now_ms: u64) -> bool {
        let session = self.by_broker.get(&id).filter(|session| session.broker_epoch == epoch);
        session.is_none_or(|session| session.is_lost || now_ms >= session.end_ms)
    }

    /// Time in which this controller could not listen is not held against anybody.
    pub(super) fn excuse(&mut self, stall_ms: u64) {
        for session in self.by_broker.values_mut() {
            session.end_ms = session.end_ms.saturating_add(stall_ms);
        }
    }

    pub(super) fn get(&self, id: BrokerId) -> Option<&Session> {
        self.by_broker.get(&id)
    }

    /// Whether every broker that may lead has followed the metadata up to `index` (exclusive).
    pub(super) fn all_have_followed(&self, image: &Image, index: u64) -> bool {
        let has =
            |id| self.by_broker.get(&id).is_some_and(|session| session.metadata_index >= index);
        image.live_brokers().all(|broker| has(broker.id))
    }

    pub(super) fn retain_registered(&mut self, image: &Image) {
        self.by_broker.retain(|id, _| image.broker(*id).is_some());
    }
}

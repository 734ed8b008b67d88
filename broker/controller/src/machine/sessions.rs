//! Who has been heard, when, and over which connection. Soft state of one active controller: the next one begins
//! anew and gives everybody as much time as a heartbeat that has just come.

use std::collections::BTreeMap;

use tidemark_protocol::{BrokerEpoch, BrokerId};

use super::event::ConnectionId;
use crate::image::Image;

#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(BTreeMap<BrokerId, Session>);

#[derive(Clone, Debug)]
pub(super) struct Session {
    broker_epoch: BrokerEpoch,
    heard_ms: u64,
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
    fn new(broker_epoch: BrokerEpoch, now_ms: u64) -> Self {
        Self {
            broker_epoch,
            heard_ms: now_ms,
            connection: None,
            is_lost: false,
            metadata_index: 0,
            shutdown_index: None,
        }
    }
}

impl Sessions {
    pub(super) fn fresh(image: &Image, now_ms: u64) -> Self {
        let session =
            |broker: &crate::image::Broker| (broker.id, Session::new(broker.epoch, now_ms));
        Self(image.brokers().map(session).collect())
    }

    /// The session of one run of a broker, which has just been heard.
    pub(super) fn heard(&mut self, id: BrokerId, epoch: BrokerEpoch, now_ms: u64) -> &mut Session {
        let session = self.0.entry(id).or_insert_with(|| Session::new(epoch, now_ms));
        if session.broker_epoch != epoch {
            *session = Session::new(epoch, now_ms);
        }
        session.heard_ms = now_ms;
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
        for session in self.0.values_mut().filter(|one| one.connection == Some(connection)) {
            session.connection = None;
            session.is_lost = true;
        }
    }

    /// Whether that run of the broker has to be fenced.
    pub(super) fn is_over(
        &self,
        id: BrokerId,
        epoch: BrokerEpoch,
        now_ms: u64,
        timeout_ms: u64,
    ) -> bool {
        self.0.get(&id).filter(|session| session.broker_epoch == epoch).is_none_or(|session| {
            session.is_lost || now_ms.saturating_sub(session.heard_ms) >= timeout_ms
        })
    }

    /// Time in which this controller could not listen is not held against anybody.
    pub(super) fn excuse(&mut self, stall_ms: u64) {
        for session in self.0.values_mut() {
            session.heard_ms = session.heard_ms.saturating_add(stall_ms);
        }
    }

    pub(super) fn get(&self, id: BrokerId) -> Option<&Session> {
        self.0.get(&id)
    }

    /// Whether every broker that may lead has followed the metadata up to `index` (exclusive).
    pub(super) fn all_have_followed(&self, image: &Image, index: u64) -> bool {
        let has = |id| self.0.get(&id).is_some_and(|session| session.metadata_index >= index);
        image.live_brokers().all(|broker| has(broker.id))
    }

    pub(super) fn retain_registered(&mut self, image: &Image) {
        self.0.retain(|id, _| image.broker(*id).is_some());
    }
}

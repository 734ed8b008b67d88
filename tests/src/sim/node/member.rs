//! This broker as a member of its cluster: it registers, says that it is alive over a connection of its own, and leaves
//! in order.

use tidemark_protocol::{
    BrokerEpoch, ErrorCode, Failure, NodeId,
    messages::{HeartbeatRequest, HeartbeatResponse, WantedState},
};

use super::{
    Io, NodeTimer,
    peers::{Peers, Purpose, pause_us},
};
use crate::sim::{
    core::{MS, Micros},
    message::Request,
    network::ConnectionId,
};

/// Heartbeats in one session timeout.
const HEARTBEATS_PER_SESSION: u64 = 4;

/// Where the next heartbeat goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nowhere: it is under way, or there is nobody.
    None,
    /// This broker has to register first.
    Register,
    /// To the controller of this node.
    Local(HeartbeatRequest),
}

#[derive(Debug)]
struct Link {
    leader: NodeId,
    connection: ConnectionId,
    is_open: bool,
}

/// The broker's standing.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) epoch: Option<BrokerEpoch>,
    pub(super) wanted: WantedState,
    pub(super) is_active: bool,
    pub(super) may_shut_down: bool,
    is_registering: bool,
    is_asked: bool,
    link: Option<Link>,
    failures: u32,
    /// The timer that counts; older ones do nothing.
    next_beat_us: Micros,
}

impl Member {
    pub(super) fn new() -> Self {
        Self {
            epoch: None,
            wanted: WantedState::Active,
            is_active: false,
            may_shut_down: false,
            is_registering: false,
            is_asked: false,
            link: None,
            failures: 0,
            next_beat_us: 0,
        }
    }

    /// Registration has begun.
    pub(super) fn registering(&mut self) {
        self.is_registering = true;
    }

    pub(super) fn registered(&mut self, outcome: Result<BrokerEpoch, Failure>, io: &mut Io<'_>) {
        self.is_registering = false;
        match outcome {
            Ok(epoch) => {
                io.note("registered", [epoch, 0], || format!("broker epoch {epoch}"));
                self.epoch = Some(epoch);
                self.failures = 0;
                self.beat_in(0, io);
            }
            Err(_failure) => self.failed(io),
        }
    }

    /// Something has happened that the next heartbeat should not wait for.
    pub(super) fn beat_in(&mut self, delay_us: Micros, io: &mut Io<'_>) {
        self.next_beat_us = io.core.now_us() + delay_us;
        io.timer(delay_us, NodeTimer::Beat);
    }

    /// It is time for a heartbeat, or for what has to come before one.
    pub(super) fn beat(
        &mut self,
        leader: Option<NodeId>,
        metadata_index: u64,
        disk_failed: bool,
        peers: &mut Peers,
        io: &mut Io<'_>,
    ) -> Beat {
        if io.core.now_us() < self.next_beat_us || self.is_asked || self.is_registering {
            return Beat::None;
        }
        let Some(broker_epoch) = self.epoch else { return Beat::Register };
        let Some(leader) = leader else {
            self.failed(io);
            return Beat::None;
        };
        let wanted = match self.wanted {
            // A broker whose disk takes no writes is of no use as a leader.
            WantedState::Active if disk_failed => WantedState::Fenced,
            wanted => wanted,
        };
        let broker_id = io.node();
        let request = HeartbeatRequest { broker_id, broker_epoch, metadata_index, wanted };
        let wait_us = io.shape.session_timeout_ms * MS / 2;
        if leader == broker_id {
            self.drop_link(io);
            self.is_asked = true;
            return Beat::Local(request);
        }
        match &self.link {
            Some(link) if link.leader == leader && link.is_open => {
                self.is_asked = true;
                let connection = link.connection;
                peers.ask_on(connection, Request::Heartbeat(request), Purpose::Beat, wait_us, io);
            }
            Some(link) if link.leader == leader => {}
            _ => {
                self.drop_link(io);
                let connection = io.dial(leader);
                self.link = Some(Link { leader, connection, is_open: false });
            }
        }
        Beat::None
    }

    /// What heartbeats go over.
    pub(super) fn connection(&self) -> Option<ConnectionId> {
        self.link.as_ref().map(|link| link.connection)
    }

    fn drop_link(&mut self, io: &mut Io<'_>) {
        if let Some(link) = self.link.take() {
            io.close(link.connection);
        }
    }

    /// A dialled connection stands. Says whether it is this one.
    pub(super) fn accepted(&mut self, connection: ConnectionId, io: &mut Io<'_>) -> bool {
        let Some(link) = self.link.as_mut().filter(|link| link.connection == connection) else {
            return false;
        };
        link.is_open = true;
        self.beat_in(0, io);
        true
    }

    pub(super) fn closed(&mut self, connection: ConnectionId, io: &mut Io<'_>) {
        if self.link.as_ref().is_some_and(|link| link.connection == connection) {
            self.link = None;
            if !self.is_asked {
                self.failed(io);
            }
        }
    }

    /// Draws the consequences of an answer.
    pub(super) fn answered(
        &mut self,
        outcome: Result<HeartbeatResponse, Failure>,
        io: &mut Io<'_>,
    ) {
        self.is_asked = false;
        match outcome {
            Ok(HeartbeatResponse { fenced, may_shut_down }) => {
                self.failures = 0;
                self.is_active = !fenced;
                self.may_shut_down = may_shut_down;
                let pause_us = io.shape.session_timeout_ms * MS / HEARTBEATS_PER_SESSION;
                self.beat_in(pause_us, io);
            }
            Err(failure) => {
                if let ErrorCode::StaleBrokerEpoch | ErrorCode::UnknownBroker = failure.code {
                    // Registered over, or forgotten: what this broker leads it must prove anew.
                    self.epoch = None;
                    self.is_active = false;
                }
                if failure.code == ErrorCode::Timeout {
                    // An answer that comes after all must not be taken for the next one's.
                    self.drop_link(io);
                }
                self.failed(io);
            }
        }
    }

    fn failed(&mut self, io: &mut Io<'_>) {
        self.failures = self.failures.saturating_add(1);
        let longest_us = io.shape.session_timeout_ms * MS / HEARTBEATS_PER_SESSION;
        self.beat_in(pause_us(self.failures).min(longest_us), io);
    }
}

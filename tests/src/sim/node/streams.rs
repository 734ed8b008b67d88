//! The follower's side: one stream to each broker that leads something we hold. It sends our positions as they change,
//! and hands the leader's answers to the shards. One that breaks is opened again, and every partition begins anew.

use std::collections::BTreeMap;

use tidemark_broker::steered::Steered;
use tidemark_protocol::{
    BrokerEpoch, BrokerId, Failure, TopicPartition,
    messages::{Position, ReplicaPosition, ReplicaPushHeader},
};

use super::{
    Io, NodeTimer,
    peers::{Peers, Purpose, pause_us},
};
use crate::sim::{
    core::{MS, Micros, SECOND},
    message::{Message, Request, Response},
    network::ConnectionId,
};

/// How often a stream asks for a sign of life, and how long it does without.
pub(super) const PING_US: Micros = 500 * MS;
const SILENCE_US: Micros = 2 * SECOND;
/// How long a leader may take to accept a stream.
const OPEN_US: Micros = 2 * SECOND;
/// Positions that come together within this time travel together.
const GATHER_US: Micros = 500;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// No connection. It is opened when there is something to say.
    #[default]
    Idle,
    Dialing(ConnectionId),
    Opening(ConnectionId),
    Following(ConnectionId),
    /// It failed; the next attempt comes with a timer.
    Pausing,
}

#[derive(Debug, Default)]
struct Stream {
    standing: Standing,
    /// Newest position per partition, until it is sent.
    outbox: BTreeMap<TopicPartition, Position>,
    failures: u32,
    heard_us: Micros,
    is_sending: bool,
}

/// All streams, by leader.
#[derive(Debug, Default)]
pub(super) struct Streams {
    by_leader: BTreeMap<BrokerId, Stream>,
}

impl Streams {
    /// Sends a position to its leader, as soon as there is a stream.
    pub(super) fn position(
        &mut self,
        leader: BrokerId,
        partition: TopicPartition,
        position: Position,
        io: &mut Io<'_>,
    ) {
        let stream = self.by_leader.entry(leader).or_default();
        stream.outbox.insert(partition, position);
        match stream.standing {
            Standing::Idle => stream.dial(leader, io),
            Standing::Following(_) => stream.send_soon(leader, io),
            Standing::Dialing(_) | Standing::Opening(_) | Standing::Pausing => {}
        }
    }

    /// A dialled connection stands. Says whether it is one of these.
    pub(super) fn accepted(
        &mut self,
        connection: ConnectionId,
        broker_epoch: Option<BrokerEpoch>,
        peers: &mut Peers,
        io: &mut Io<'_>,
    ) -> bool {
        let mine = self.by_leader.iter_mut();
        let mine = mine.map(|(leader, stream)| (*leader, stream));
        let Some((leader, stream)) =
            mine.into_iter().find(|(_, stream)| stream.standing == Standing::Dialing(connection))
        else {
            return false;
        };
        let Some(broker_epoch) = broker_epoch else {
            io.close(connection);
            stream.fail(leader, io);
            return true;
        };
        stream.standing = Standing::Opening(connection);
        let request = Request::Replicate { broker_id: io.node(), broker_epoch, leader_id: leader };
        peers.ask_on(connection, request, Purpose::OpenStream { leader }, OPEN_US, io);
        true
    }

    /// The leader has accepted the stream, or not.
    pub(super) fn opened(
        &mut self,
        leader: BrokerId,
        outcome: Result<Response, Failure>,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let Some(stream) = self.by_leader.get_mut(&leader) else { return };
        let Standing::Opening(connection) = stream.standing else { return };
        if outcome.is_err() {
            io.close(connection);
            stream.fail(leader, io);
            return;
        }
        stream.standing = Standing::Following(connection);
        stream.failures = 0;
        stream.heard_us = io.core.now_us();
        // What was meant for the connection before: every partition says anew where it is.
        stream.outbox.clear();
        broker.leader_connected(leader);
    }

    pub(super) fn closed(
        &mut self,
        connection: ConnectionId,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        for (leader, stream) in &mut self.by_leader {
            let (Standing::Dialing(its) | Standing::Opening(its) | Standing::Following(its)) =
                stream.standing
            else {
                continue;
            };
            if its == connection {
                stream.lost(*leader, broker, io);
            }
        }
    }

    /// The pause after a failure is over.
    pub(super) fn again(&mut self, leader: BrokerId, io: &mut Io<'_>) {
        let Some(stream) = self.by_leader.get_mut(&leader) else { return };
        if stream.standing == Standing::Pausing {
            stream.standing = Standing::Idle;
            if !stream.outbox.is_empty() {
                stream.dial(leader, io);
            }
        }
    }

    /// Sends the positions that have come together.
    pub(super) fn send(&mut self, leader: BrokerId, io: &mut Io<'_>) {
        let Some(stream) = self.by_leader.get_mut(&leader) else { return };
        stream.is_sending = false;
        let Standing::Following(connection) = stream.standing else { return };
        let positions = std::mem::take(&mut stream.outbox)
            .into_iter()
            .map(|(partition, position)| ReplicaPosition { partition, position });
        io.send(connection, Message::Positions(positions.collect()));
    }

    /// Asks every leader for a sign of life, and gives up on those that have given none for too long.
    pub(super) fn ping(&mut self, broker: &mut Steered, io: &mut Io<'_>) {
        for (leader, stream) in &mut self.by_leader {
            let Standing::Following(connection) = stream.standing else { continue };
            if io.core.now_us() - stream.heard_us > SILENCE_US {
                io.close(connection);
                stream.lost(*leader, broker, io);
            } else {
                io.send(connection, Message::Positions(Vec::new()));
            }
        }
    }

    /// Deals a push out to the partitions.
    pub(super) fn pushed(
        &mut self,
        connection: ConnectionId,
        header: &ReplicaPushHeader,
        payload: Vec<bytes::Bytes>,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let following = |stream: &&mut Stream| stream.standing == Standing::Following(connection);
        let mut streams = self.by_leader.iter_mut().map(|(leader, stream)| (*leader, stream));
        let Some((leader, stream)) = streams.find(|(_, stream)| following(stream)) else { return };
        stream.heard_us = io.core.now_us();
        for (push, bytes) in header.partitions.iter().zip(payload) {
            if io.is_dead() {
                return;
            }
            broker.leader_answer(leader, *push, bytes);
            // One answer per wake, so that the oracles see each change of a log by itself.
            broker.wake();
        }
    }

    /// The broker is registered anew: what it says in its former run counts for nothing, and every stream is of that one.
    pub(super) fn superseded(&mut self, broker: &mut Steered, io: &mut Io<'_>) {
        for (leader, stream) in &mut self.by_leader {
            if let Standing::Opening(connection) | Standing::Following(connection) = stream.standing
            {
                io.close(connection);
                stream.lost(*leader, broker, io);
            }
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.by_leader.values().map(|stream| stream.outbox.len()).sum()
    }
}

impl Stream {
    fn dial(&mut self, leader: BrokerId, io: &mut Io<'_>) {
        self.standing = Standing::Dialing(io.dial(leader));
    }

    /// What was sent over it may be lost, and whoever waits for an answer says nothing by itself.
    fn lost(&mut self, leader: BrokerId, broker: &mut Steered, io: &mut Io<'_>) {
        if matches!(self.standing, Standing::Following(_)) {
            broker.leader_connected(leader);
        }
        self.fail(leader, io);
    }

    fn fail(&mut self, leader: BrokerId, io: &mut Io<'_>) {
        self.failures += 1;
        self.standing = Standing::Pausing;
        io.timer(pause_us(self.failures), NodeTimer::Follow { leader });
    }

    fn send_soon(&mut self, leader: BrokerId, io: &mut Io<'_>) {
        if !std::mem::replace(&mut self.is_sending, true) {
            let gather_us = io.core.draw(0, GATHER_US);
            io.timer(gather_us, NodeTimer::SendPositions { leader });
        }
    }
}

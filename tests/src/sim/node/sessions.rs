//! The leader's side: one session per follower, which sends what the leaders among our partitions have for it, newest
//! state per partition.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_broker::steered::{PortEffect, Steered};
use tidemark_protocol::{
    BrokerId, ErrorCode, Failure, LeaderEpoch, Offset, TopicPartition,
    messages::{ReplicaPosition, ReplicaPush, ReplicaPushHeader, ReplicaRefusal},
};
use tidemark_replication::{AnswerTo, ReplicaId};

use super::{Io, NodeTimer};
use crate::sim::{core::Micros, message::Message, network::ConnectionId};

/// Answers that come together within this time travel together.
const GATHER_US: Micros = 300;
/// Partitions in one push.
const PARTITIONS_PER_PUSH_MAX: usize = 64;

/// What is due to a follower in one partition.
#[derive(Clone, Copy, Debug)]
enum Due {
    Batches {
        leader_epoch: LeaderEpoch,
        round: u64,
        offset: Offset,
    },
    Refusal {
        leader_epoch: LeaderEpoch,
        round: u64,
        refusal: ReplicaRefusal,
    },
    /// The watermark or the log start has moved; the last round stays open.
    Watermark {
        leader_epoch: LeaderEpoch,
    },
}

impl Due {
    /// Leader epoch and round of the question that this answers.
    fn question(&self) -> Option<(LeaderEpoch, u64)> {
        match *self {
            Self::Batches { leader_epoch, round, .. }
            | Self::Refusal { leader_epoch, round, .. } => Some((leader_epoch, round)),
            Self::Watermark { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Session {
    connection: ConnectionId,
    follower: ReplicaId,
    due: BTreeMap<TopicPartition, Due>,
    /// Leader epoch and round of the last position in each partition.
    positions: BTreeMap<TopicPartition, (LeaderEpoch, u64)>,
    is_pinged: bool,
    is_pushing: bool,
}

/// All followers of the partitions led here.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_follower: BTreeMap<BrokerId, Session>,
}

impl Sessions {
    /// Begins a session, in place of an older one of the same follower.
    pub(super) fn begin(
        &mut self,
        connection: ConnectionId,
        follower: ReplicaId,
        broker: &mut Steered,
    ) {
        let session = Session {
            connection,
            follower,
            due: BTreeMap::new(),
            positions: BTreeMap::new(),
            is_pinged: false,
            is_pushing: false,
        };
        if let Some(older) = self.by_follower.insert(follower.broker_id, session) {
            older.end(broker);
        }
    }

    pub(super) fn closed(&mut self, connection: ConnectionId, broker: &mut Steered) {
        let mut sessions = self.by_follower.iter();
        let ended = sessions.find(|(_, session)| session.connection == connection);
        if let Some(follower) = ended.map(|(follower, _)| *follower) {
            let session = self.by_follower.remove(&follower).expect("it was just found");
            session.end(broker);
        }
    }

    /// Takes in a follower's new positions; none at all asks for a sign of life.
    pub(super) fn positions(
        &mut self,
        connection: ConnectionId,
        positions: Vec<ReplicaPosition>,
        broker: &mut Steered,
        io: &mut Io<'_>,
    ) {
        let mut sessions = self.by_follower.values_mut();
        let Some(session) = sessions.find(|session| session.connection == connection) else {
            return;
        };
        if positions.is_empty() {
            session.is_pinged = true;
            session.push_soon(io);
        }
        for ReplicaPosition { partition, position } in positions {
            if io.is_dead() {
                return;
            }
            let at = (position.leader_epoch, position.round);
            session.positions.insert(partition, at);
            if broker.follower_position(partition, session.follower, position) {
                broker.wake();
            } else {
                let code = ErrorCode::UnknownTopicOrPartition;
                let refusal = ReplicaRefusal::Error { code };
                let due = Due::Refusal { leader_epoch: at.0, round: at.1, refusal };
                session.due.insert(partition, due);
                session.push_soon(io);
            }
        }
    }

    /// Notes what a leader has for a follower. Without a session it is dropped.
    pub(super) fn due(&mut self, effect: PortEffect, io: &mut Io<'_>) {
        let (to, partition, due) = match effect {
            PortEffect::Serve { partition, to, offset } => {
                let AnswerTo { leader_epoch, round, .. } = to;
                (to, partition, Due::Batches { leader_epoch, round, offset })
            }
            PortEffect::Refuse { partition, to, refusal } => {
                let AnswerTo { leader_epoch, round, .. } = to;
                (to, partition, Due::Refusal { leader_epoch, round, refusal })
            }
            PortEffect::ShareWatermark { partition, to, .. } => {
                (to, partition, Due::Watermark { leader_epoch: to.leader_epoch })
            }
            PortEffect::Position { .. } | PortEffect::AlterIsr { .. } => return,
        };
        // What is for a former run of the follower is dropped, too.
        let session = self.by_follower.get_mut(&to.follower.broker_id);
        let Some(session) = session.filter(|session| session.follower == to.follower) else {
            return;
        };
        if matches!(due, Due::Watermark { .. }) {
            // It goes along with whatever answer is due already.
            session.due.entry(partition).or_insert(due);
        } else if session.due.get(&partition).is_none_or(|older| older.question() <= due.question())
        {
            // Whoever has refused a question of an epoch that it has not heard of yet may still answer the one before.
            session.due.insert(partition, due);
        }
        session.push_soon(io);
    }

    /// Sends what is due to a follower.
    pub(super) fn push(&mut self, follower: BrokerId, broker: &mut Steered, io: &mut Io<'_>) {
        let Some(session) = self.by_follower.get_mut(&follower) else { return };
        session.is_pushing = false;
        let mut header = ReplicaPushHeader::default();
        let mut payload = Vec::new();
        while header.partitions.len() < PARTITIONS_PER_PUSH_MAX {
            let Some((partition, due)) = session.due.pop_first() else { break };
            if let Some((push, bytes)) = session.answer(partition, due, broker, io) {
                header.partitions.push(push);
                payload.push(bytes);
            }
        }
        if std::mem::take(&mut session.is_pinged) || !header.partitions.is_empty() {
            io.send(session.connection, Message::Push { header, payload });
        }
        if !session.due.is_empty() {
            session.push_soon(io);
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.by_follower.values().map(|session| session.due.len()).sum()
    }
}

impl Session {
    fn end(self, broker: &mut Steered) {
        for partition in self.positions.into_keys() {
            broker.follower_lost(partition, self.follower);
        }
    }

    fn push_soon(&mut self, io: &mut Io<'_>) {
        if !std::mem::replace(&mut self.is_pushing, true) {
            let gather_us = io.core.draw(0, GATHER_US);
            io.timer(gather_us, NodeTimer::Push { follower: self.follower.broker_id });
        }
    }

    /// What to send for a partition; `None`: there is nobody to send it to any more.
    fn answer(
        &self,
        partition: TopicPartition,
        due: Due,
        broker: &mut Steered,
        io: &Io<'_>,
    ) -> Option<(ReplicaPush, Bytes)> {
        let known = self.positions.get(&partition).copied();
        let (leader_epoch, round) = match due {
            Due::Watermark { leader_epoch } => known.filter(|(epoch, _)| *epoch == leader_epoch)?,
            _ => due.question()?,
        };
        let ends = broker.log_ends(partition);
        let mut push = ReplicaPush {
            partition,
            leader_epoch,
            round,
            // Before the read.
            high_watermark: ends.map_or(0, |ends| ends.high_watermark),
            log_start_offset: ends.map_or(0, |ends| ends.log_start_offset),
            removals_end: 0,
            batch_bytes: 0,
            refusal: None,
        };
        let mut bytes = Bytes::new();
        match due {
            Due::Refusal { refusal, .. } => push.refusal = Some(refusal),
            Due::Watermark { .. } => {}
            Due::Batches { offset, .. } => {
                let max_bytes = io.shape.push_bytes;
                match broker.read_for_replica(partition, leader_epoch, offset, max_bytes) {
                    Ok(read) => {
                        bytes = read.bytes;
                        push.removals_end = ends.map_or(0, |ends| ends.removals_end);
                    }
                    Err(failure) => push.refusal = Some(refusal(&failure, partition, broker)),
                }
            }
        }
        push.batch_bytes = u32::try_from(bytes.len()).expect("a segment is shorter than 4 GiB");
        Some((push, bytes))
    }
}

fn refusal(failure: &Failure, partition: TopicPartition, broker: &Steered) -> ReplicaRefusal {
    match (failure.code, broker.log_ends(partition)) {
        (ErrorCode::OffsetOutOfRange, Some(ends)) => ReplicaRefusal::OutOfRange {
            log_start_offset: ends.log_start_offset,
            log_end_offset: ends.log_end_offset,
        },
        (code, _) => ReplicaRefusal::Error { code },
    }
}

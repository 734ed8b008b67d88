//! Connections of a process to other nodes, one to each for whoever has something to ask or to tell, and the questions
//! that wait for answers. A message without an answer is dropped while there is no connection.

use std::collections::BTreeMap;

use tidemark_protocol::{ErrorCode, Failure, NodeId};

use super::{CommandId, Io, NodeTimer, coordination::JobId};
use crate::sim::{
    core::{MS, Micros},
    message::{Correlation, Message, Request, Response},
    network::ConnectionId,
};

/// Pause after the first failure to connect to a node, and the longest.
const PAUSE_MIN_US: Micros = 20 * MS;
const PAUSE_MAX_US: Micros = 500 * MS;

/// How long to leave a node alone after so many failures in a row.
pub(super) fn pause_us(failures: u32) -> Micros {
    (PAUSE_MIN_US << failures.saturating_sub(1).min(8)).min(PAUSE_MAX_US)
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Command(CommandId),
    Beat,
    OpenStream {
        leader: NodeId,
    },
    Feed,
    /// A partition becomes part of a transaction.
    Join(JobId),
    /// Ends of transactions, to one leader.
    Markers(JobId),
}

/// The answer to a question, or what became of it.
pub(super) type Answered = (Purpose, Result<Response, Failure>);

#[derive(Debug, Default)]
struct Link {
    connection: Option<ConnectionId>,
    is_open: bool,
    failures: u32,
    not_before_us: Micros,
    /// Asked before the connection stood.
    waiting: Vec<(Correlation, Request)>,
}

/// The shared connections, and all questions.
#[derive(Debug, Default)]
pub(super) struct Peers {
    links: BTreeMap<NodeId, Link>,
    next_correlation: Correlation,
    asked: BTreeMap<(ConnectionId, Correlation), Purpose>,
}

impl Peers {
    /// Sends a message that has no answer, or drops it.
    pub(super) fn post(&mut self, to: NodeId, message: Message, io: &mut Io<'_>) {
        let link = self.links.entry(to).or_default();
        match link.connection {
            Some(connection) if link.is_open => io.send(connection, message),
            Some(_dialing) => {}
            None if io.core.now_us() < link.not_before_us => {}
            None => link.connection = Some(io.dial(to)),
        }
    }

    /// Asks on the shared connection, which is made now if need be.
    pub(super) fn ask(
        &mut self,
        to: NodeId,
        request: Request,
        purpose: Purpose,
        wait_us: Micros,
        io: &mut Io<'_>,
    ) {
        let link = self.links.entry(to).or_default();
        let connection = *link.connection.get_or_insert_with(|| io.dial(to));
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        self.asked.insert((connection, correlation), purpose);
        io.timer(wait_us, NodeTimer::AskTimeout { connection, correlation });
        if link.is_open {
            io.send(connection, Message::Request(correlation, Box::new(request)));
        } else {
            link.waiting.push((correlation, request));
        }
    }

    /// Asks on a connection of the caller's own, which stands.
    pub(super) fn ask_on(
        &mut self,
        connection: ConnectionId,
        request: Request,
        purpose: Purpose,
        wait_us: Micros,
        io: &mut Io<'_>,
    ) {
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        self.asked.insert((connection, correlation), purpose);
        io.send(connection, Message::Request(correlation, Box::new(request)));
        io.timer(wait_us, NodeTimer::AskTimeout { connection, correlation });
    }

    /// A dialled connection stands. Says whether it is one of these.
    pub(super) fn accepted(&mut self, connection: ConnectionId, io: &mut Io<'_>) -> bool {
        let mine = self.links.values_mut().find(|link| link.connection == Some(connection));
        let Some(link) = mine else { return false };
        (link.is_open, link.failures) = (true, 0);
        for (correlation, request) in std::mem::take(&mut link.waiting) {
            io.send(connection, Message::Request(correlation, Box::new(request)));
        }
        true
    }

    /// A connection is gone: who waits on it is told, and which node it led to if it was one of these and stood.
    pub(super) fn closed(
        &mut self,
        connection: ConnectionId,
        io: &mut Io<'_>,
    ) -> (Option<NodeId>, Vec<Answered>) {
        let mut lost = None;
        for (node, link) in &mut self.links {
            if link.connection != Some(connection) {
                continue;
            }
            if link.is_open {
                lost = Some(*node);
            } else {
                link.failures += 1;
                link.not_before_us = io.core.now_us() + pause_us(link.failures);
            }
            (link.connection, link.is_open) = (None, false);
            link.waiting.clear();
        }
        let waiting = self.asked.range((connection, 0)..=(connection, Correlation::MAX));
        let keys: Vec<_> = waiting.map(|(key, _)| *key).collect();
        let failure = || Failure::new(ErrorCode::NotReady, "the connection was lost");
        let failed = keys.iter().filter_map(|key| self.asked.remove(key));
        (lost, failed.map(|purpose| (purpose, Err(failure()))).collect())
    }

    pub(super) fn answered(
        &mut self,
        connection: ConnectionId,
        correlation: Correlation,
        outcome: Result<Response, Failure>,
    ) -> Option<Answered> {
        let purpose = self.asked.remove(&(connection, correlation))?;
        Some((purpose, outcome))
    }

    pub(super) fn timed_out(
        &mut self,
        connection: ConnectionId,
        correlation: Correlation,
    ) -> Option<Answered> {
        let purpose = self.asked.remove(&(connection, correlation))?;
        Some((purpose, Err(Failure::new(ErrorCode::Timeout, "no answer in time"))))
    }

    /// Questions and messages that wait, for the oracle that wants queues to stay short.
    pub(super) fn waiting(&self) -> usize {
        self.asked.len() + self.links.values().map(|link| link.waiting.len()).sum::<usize>()
    }
}

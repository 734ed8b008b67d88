//! The controller of a node: the machine over the Raft quorum on the node's disk, what it wants done, and who waits for
//! its answers.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use tidemark_controller::{
    Command, ControllerConfig, ControllerEffect, ControllerEvent, ControllerMachine, Image, Quorum,
    QuorumConfig, QuorumError, QuorumEvent, QuorumStatus, RaftQuorum, VoterChange, encode_entry,
    quorum::Committed as Entry,
};
use tidemark_protocol::{
    Failure, NodeId,
    messages::{
        FetchMetadataRequest, FetchMetadataResponse, HeartbeatRequest, HeartbeatResponse,
        MetadataEntry, MetadataSnapshot, VoterId,
    },
};
use tidemark_storage::disk::SimDisk;

use super::{CommandId, Io, NodeTimer, metadata::METADATA_WAIT_US};
use crate::sim::{
    core::{MS, Micros},
    message::{Committed, Correlation, Message, Response},
    network::ConnectionId,
};

/// How often the machine is told that time has passed.
pub(super) const TICK_US: Micros = 20 * MS;
/// The connection number of the broker in the same process: it never closes.
const LOCAL_CONNECTION: u64 = 0;
/// Most bytes of entries in one answer to those who follow.
const FOLLOW_BYTES_MAX: usize = 4 << 10;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Remote(ConnectionId, Correlation),
    LocalCommand(CommandId),
    LocalBeat,
}

/// What a step of the controller means for its own process.
#[derive(Debug)]
pub(super) enum Local {
    Command(CommandId, Result<Committed, Failure>),
    Beat(Result<HeartbeatResponse, Failure>),
    Image(Arc<Image>),
    Leader(Option<NodeId>),
    Post(NodeId, Message),
}

/// What the oracles are told, as it happens.
#[derive(Clone, Debug)]
pub enum Seen {
    /// An entry was delivered as committed.
    Committed(Entry),
    /// A leader's snapshot replaced what was applied before.
    Restored(Arc<Image>),
}

/// Somebody who waits for news.
#[derive(Debug)]
struct Follower {
    connection: ConnectionId,
    correlation: Correlation,
    request: FetchMetadataRequest,
    until_us: Micros,
}

/// The controller of one process.
#[derive(Debug)]
pub(super) struct Controller {
    me: VoterId,
    machine: ControllerMachine<RaftQuorum<SimDisk>>,
    askers: BTreeMap<u64, Asker>,
    next_token: u64,
    followers: Vec<Follower>,
    is_flushing: bool,
    image: Arc<Image>,
    has_failed: bool,
    pub(super) seen: Vec<Seen>,
    pub(super) local: Vec<Local>,
}

impl Controller {
    /// Recovers what the disk knows. `bootstrap`: the voters to begin a cluster with, if the disk has no part in one.
    pub(super) fn open(
        disk: &SimDisk,
        dir: &Path,
        me: VoterId,
        bootstrap: Option<&[VoterId]>,
        io: &mut Io<'_>,
    ) -> Result<(Self, Arc<Image>), QuorumError> {
        if let Some(voters) = bootstrap
            && !RaftQuorum::is_bootstrapped(disk, dir)?
        {
            RaftQuorum::bootstrap(disk.clone(), dir, me, voters)?;
        }
        let config = QuorumConfig {
            tick_ms: TICK_US / MS,
            seed: io.core.random.next_u64(),
            snapshot_every_bytes: io.shape.snapshot_every * 100,
            ..QuorumConfig::default()
        };
        let (quorum, image) = RaftQuorum::open(disk.clone(), dir, me, config)?;
        let config = ControllerConfig {
            broker_session_timeout_ms: io.shape.session_timeout_ms,
            leader_balance_interval_ms: io.core.draw(1_000, 20_000),
        };
        let recovered = Arc::new(image.clone());
        let seen = recovery(&quorum);
        let machine = ControllerMachine::new(quorum, image, config);
        let controller = Self {
            me,
            machine,
            askers: BTreeMap::new(),
            next_token: 0,
            followers: Vec::new(),
            is_flushing: false,
            image: Arc::clone(&recovered),
            has_failed: false,
            seen,
            local: Vec::new(),
        };
        io.timer(TICK_US, NodeTimer::Tick);
        Ok((controller, recovered))
    }

    pub(super) fn status(&self) -> QuorumStatus {
        self.machine.quorum().status()
    }

    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    pub(super) fn tick(&mut self, now_ms: u64, io: &mut Io<'_>) {
        io.timer(TICK_US, NodeTimer::Tick);
        self.step(now_ms, ControllerEvent::Tick, io);
        self.flush(now_ms, io);
        self.serve_followers(io);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Has what was decided persisted and sent.
    pub(super) fn flush(&mut self, now_ms: u64, io: &mut Io<'_>) {
        self.is_flushing = false;
        self.step(now_ms, ControllerEvent::Quorum(QuorumEvent::Flush), io);
    }

    fn flush_soon(&mut self, io: &mut Io<'_>) {
        if self.machine.wants_flush() && !std::mem::replace(&mut self.is_flushing, true) {
            let delay_us = io.flush_takes_us();
            io.timer(delay_us, NodeTimer::FlushQuorum);
        }
    }

    pub(super) fn received(
        &mut self,
        now_ms: u64,
        from: VoterId,
        to: VoterId,
        message: Bytes,
        io: &mut Io<'_>,
    ) {
        if to == self.me {
            let event = QuorumEvent::Received { from, message };
            self.step(now_ms, ControllerEvent::Quorum(event), io);
            self.flush(now_ms, io);
        }
    }

    pub(super) fn peer_lost(&mut self, now_ms: u64, node: NodeId, io: &mut Io<'_>) {
        let event = QuorumEvent::PeerLost { node };
        self.step(now_ms, ControllerEvent::Quorum(event), io);
        self.flush(now_ms, io);
    }

    pub(super) fn connection_closed(
        &mut self,
        now_ms: u64,
        connection: ConnectionId,
        io: &mut Io<'_>,
    ) {
        self.followers.retain(|follower| follower.connection != connection);
        self.step(now_ms, ControllerEvent::ConnectionClosed { connection }, io);
        self.flush_soon(io);
    }

    pub(super) fn change_voters(&mut self, now_ms: u64, change: VoterChange, io: &mut Io<'_>) {
        self.step(now_ms, ControllerEvent::Quorum(QuorumEvent::ChangeVoters(change)), io);
        self.flush(now_ms, io);
    }

    pub(super) fn transfer_leadership(&mut self, now_ms: u64, io: &mut Io<'_>) {
        let event = QuorumEvent::TransferLeadership { to: None };
        self.step(now_ms, ControllerEvent::Quorum(event), io);
        self.flush(now_ms, io);
    }

    pub(super) fn remote_command(
        &mut self,
        now_ms: u64,
        command: Command,
        (connection, correlation): (ConnectionId, Correlation),
        io: &mut Io<'_>,
    ) {
        self.command(now_ms, command, Asker::Remote(connection, correlation), io);
    }

    pub(super) fn local_command(
        &mut self,
        now_ms: u64,
        command: Command,
        id: CommandId,
        io: &mut Io<'_>,
    ) {
        self.command(now_ms, command, Asker::LocalCommand(id), io);
    }

    fn command(&mut self, now_ms: u64, command: Command, asker: Asker, io: &mut Io<'_>) {
        let token = self.token(asker);
        self.step(now_ms, ControllerEvent::Command { token, command }, io);
        self.flush_soon(io);
    }

    pub(super) fn remote_heartbeat(
        &mut self,
        now_ms: u64,
        request: HeartbeatRequest,
        (connection, correlation): (ConnectionId, Correlation),
        io: &mut Io<'_>,
    ) {
        let token = self.token(Asker::Remote(connection, correlation));
        self.step(now_ms, ControllerEvent::Heartbeat { token, connection, request }, io);
        self.flush_soon(io);
    }

    pub(super) fn local_heartbeat(
        &mut self,
        now_ms: u64,
        request: HeartbeatRequest,
        io: &mut Io<'_>,
    ) {
        let token = self.token(Asker::LocalBeat);
        let event = ControllerEvent::Heartbeat { token, connection: LOCAL_CONNECTION, request };
        self.step(now_ms, event, io);
        self.flush_soon(io);
    }

    fn token(&mut self, asker: Asker) -> u64 {
        self.next_token += 1;
        self.askers.insert(self.next_token, asker);
        self.next_token
    }

    fn step(&mut self, now_ms: u64, event: ControllerEvent, io: &mut Io<'_>) {
        let mut effects = Vec::new();
        self.machine.step(now_ms, event, &mut effects);
        for effect in effects {
            self.carry_out(effect, io);
        }
    }

    fn carry_out(&mut self, effect: ControllerEffect, io: &mut Io<'_>) {
        match effect {
            ControllerEffect::Send { to, message } => {
                let message = Message::Quorum { from: self.me, to, message };
                self.local.push(Local::Post(to.node, message));
            }
            ControllerEffect::Answer { token, outcome } => {
                let outcome = outcome.map(|committed| Committed {
                    answer: committed.answer,
                    metadata_index: committed.metadata_index,
                });
                self.answer(token, outcome, io);
            }
            ControllerEffect::HeartbeatAnswer { token, outcome } => {
                match self.askers.remove(&token) {
                    Some(Asker::Remote(connection, correlation)) => {
                        let outcome = outcome.map(Response::Heartbeat);
                        io.send(connection, Message::Answer(correlation, Box::new(outcome)));
                    }
                    Some(Asker::LocalBeat) => self.local.push(Local::Beat(outcome)),
                    Some(Asker::LocalCommand(_)) | None => {}
                }
            }
            ControllerEffect::Published { image, entries } => {
                if entries.is_empty() {
                    self.seen.push(Seen::Restored(Arc::clone(&image)));
                }
                self.seen.extend(entries.into_iter().map(Seen::Committed));
                self.image = Arc::clone(&image);
                self.local.push(Local::Image(image));
                self.serve_followers(io);
            }
            ControllerEffect::Role { term, leader, is_active } => {
                io.note("role", [term, u64::from(is_active)], || {
                    format!("term {term}: {leader:?} leads the quorum; active {is_active}")
                });
                self.local.push(Local::Leader(leader));
            }
            ControllerEffect::Audit(election) => {
                io.note("audit", [0, 0], || format!("{election:?}"));
                io.core.figures.happened("audit records");
            }
            ControllerEffect::Failed { message } => {
                io.note("failed", [0, 0], || message);
                self.has_failed = true;
            }
        }
    }

    fn answer(&mut self, token: u64, outcome: Result<Committed, Failure>, io: &mut Io<'_>) {
        match self.askers.remove(&token) {
            Some(Asker::Remote(connection, correlation)) => {
                let outcome = outcome.map(Response::Command);
                io.send(connection, Message::Answer(correlation, Box::new(outcome)));
            }
            Some(Asker::LocalCommand(id)) => self.local.push(Local::Command(id, outcome)),
            Some(Asker::LocalBeat) | None => {}
        }
    }

    /// Somebody wants to follow: answered now if there is news, later if not.
    pub(super) fn follow(
        &mut self,
        connection: ConnectionId,
        correlation: Correlation,
        request: FetchMetadataRequest,
        io: &mut Io<'_>,
    ) {
        let until_us = io.core.now_us() + METADATA_WAIT_US;
        self.followers.push(Follower { connection, correlation, request, until_us });
        self.serve_followers(io);
    }

    fn serve_followers(&mut self, io: &mut Io<'_>) {
        let now_us = io.core.now_us();
        let mut followers = std::mem::take(&mut self.followers);
        followers.retain(|follower| {
            let (response, snapshot) = self.followed(&follower.request);
            let is_empty = response.entries.is_empty() && response.snapshot.is_none();
            if is_empty && now_us < follower.until_us {
                return true;
            }
            let response = Response::FetchMetadata { response, snapshot };
            let message = Message::Answer(follower.correlation, Box::new(Ok(response)));
            io.send(follower.connection, message);
            false
        });
        self.followers = followers;
    }

    fn followed(&self, request: &FetchMetadataRequest) -> (FetchMetadataResponse, Bytes) {
        let quorum = self.machine.quorum();
        let status = quorum.status();
        let entries =
            quorum.committed_entries(request.from_index, request.previous_term, FOLLOW_BYTES_MAX);
        let snapshot = if entries.is_none() { quorum.latest_snapshot() } else { None };
        let mut response = FetchMetadataResponse {
            cluster_id: super::process::CLUSTER_ID.to_owned(),
            leader: status.leader,
            term: status.term,
            committed_index: status.committed_index,
            entries: Vec::new(),
            snapshot: None,
            // Nobody asks for it: only batches are corrupted on their way here.
            payload_crc: 0,
        };
        if let Some(snapshot) = snapshot {
            response.snapshot =
                Some(MetadataSnapshot { index: snapshot.index, term: snapshot.term });
            return (response, snapshot.bytes);
        }
        let mut payload = BytesMut::new();
        for Entry { index, term, records } in entries.unwrap_or_default() {
            let bytes = encode_entry(&records);
            let record_bytes = u32::try_from(bytes.len()).expect("entries are small");
            payload.extend_from_slice(&bytes);
            response.entries.push(MetadataEntry { index, term, record_bytes });
        }
        (response, payload.freeze())
    }

    /// Questions that wait, for the oracle that wants queues to stay short.
    pub(super) fn waiting(&self) -> usize {
        self.askers.len() + self.followers.len()
    }
}

/// What the disk says was committed, for the oracles: the newest snapshot, and the entries behind it.
fn recovery(quorum: &RaftQuorum<SimDisk>) -> Vec<Seen> {
    if let Some(entries) = quorum.committed_entries(0, 0, usize::MAX) {
        return entries.into_iter().map(Seen::Committed).collect();
    }
    let Some(snapshot) = quorum.latest_snapshot() else { return Vec::new() };
    let image = Image::from_snapshot(&snapshot.bytes).expect("it was read before");
    let entries = quorum.committed_entries(snapshot.index, snapshot.term, usize::MAX);
    let entries = entries.unwrap_or_default().into_iter().map(Seen::Committed);
    std::iter::once(Seen::Restored(Arc::new(image))).chain(entries).collect()
}

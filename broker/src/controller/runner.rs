//! The thread of the controller: machine, quorum and time, and where its effects go.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use tidemark_controller::{
    ControllerConfig, ControllerEffect, ControllerEvent, ControllerMachine, Image, Quorum,
    QuorumConfig, QuorumError, QuorumEvent, RaftQuorum, UncleanElection,
};
use tidemark_protocol::{
    Failure, NodeId,
    messages::{HeartbeatResponse, QuorumMessageRequest, VoterId},
};
use tokio::sync::{oneshot, watch};

use super::{ControllerHandle, Followed, INBOX_MAX, Message};
use crate::{
    clock::Clock,
    control::Committed,
    disk::Disk,
    health::{Health, Reason},
    metadata_feed::publish,
    metrics::{Metrics, cluster::QuorumState},
    peers::Peers,
};

/// Ticks of the quorum in one election timeout.
const TICKS_PER_ELECTION: u32 = 15;
/// Heartbeats of the active controller in one election timeout.
const HEARTBEATS_PER_ELECTION: u64 = 5;
/// Messages taken in before what came of them is flushed.
const MESSAGES_PER_FLUSH_MAX: usize = 1_024;
/// Most bytes of entries for a node that follows, in one answer.
const FOLLOWED_BYTES_MAX: usize = 4 << 20;

/// What the controller is made with.
#[derive(Clone, Debug)]
pub(crate) struct RunnerConfig {
    pub(crate) me: VoterId,
    pub(crate) cluster_id: String,
    pub(crate) broker_session_timeout: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) leader_balance_interval: Duration,
}

/// Everything the thread owns.
pub(crate) struct Runner {
    config: RunnerConfig,
    machine: ControllerMachine<RaftQuorum<Disk>>,
    inbox: Receiver<Message>,
    clock: Clock,
    metrics: Metrics,
    health: Health,
    images: watch::Sender<Arc<Image>>,
    leader: watch::Sender<Option<NodeId>>,
    peers: Peers,
    commands: HashMap<u64, oneshot::Sender<Result<Committed, Failure>>>,
    heartbeats: HashMap<u64, oneshot::Sender<Result<HeartbeatResponse, Failure>>>,
    next_token: u64,
    effects: Vec<ControllerEffect>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Runner").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Images and leaders as they come, and the way to the other controllers.
type Outlets = (watch::Sender<Arc<Image>>, watch::Sender<Option<NodeId>>, Peers);

impl Runner {
    /// Recovers what the disk knows. Nothing is decided before [`Runner::run`].
    pub(crate) fn open(
        disk: Disk,
        dir: &Path,
        config: RunnerConfig,
        (clock, metrics, health): (Clock, Metrics, Health),
        (images, leader, peers): Outlets,
    ) -> Result<(Self, ControllerHandle), QuorumError> {
        let tick = config.election_timeout / TICKS_PER_ELECTION;
        let quorum = QuorumConfig {
            tick_ms: millis(tick).max(1),
            heartbeat_ms: millis(config.election_timeout) / HEARTBEATS_PER_ELECTION,
            election_timeout_ms: millis(config.election_timeout),
            lost_leader_pause_ms: millis(config.election_timeout) / HEARTBEATS_PER_ELECTION,
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            ..QuorumConfig::default()
        };
        let (quorum, image) = RaftQuorum::open(disk, dir, config.me, quorum)?;
        let machine = ControllerConfig {
            broker_session_timeout_ms: millis(config.broker_session_timeout),
            leader_balance_interval_ms: millis(config.leader_balance_interval),
        };
        images.send_replace(Arc::new(image.clone()));
        let machine = ControllerMachine::new(quorum, image, machine);
        let (sender, inbox) = sync_channel(INBOX_MAX);
        let handle = ControllerHandle {
            inbox: sender,
            images: images.subscribe(),
            leader: leader.subscribe(),
        };
        let runner = Self {
            config,
            machine,
            inbox,
            clock,
            metrics,
            health,
            images,
            leader,
            peers,
            commands: HashMap::new(),
            heartbeats: HashMap::new(),
            next_token: 0,
            effects: Vec::new(),
        };
        Ok((runner, handle))
    }

    /// Serves until told to close, or until every handle is gone.
    pub(crate) fn run(mut self) {
        let tick =
            (self.config.election_timeout / TICKS_PER_ELECTION).max(Duration::from_millis(1));
        let mut next_tick = self.clock.now() + tick;
        loop {
            let now = self.clock.now();
            let mut next = match self.inbox.recv_timeout(next_tick.saturating_duration_since(now)) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut taken = 0;
            while let Some(message) = next.take() {
                if let Message::Close = message {
                    return;
                }
                self.take_in(message);
                taken += 1;
                if taken < MESSAGES_PER_FLUSH_MAX {
                    next = self.inbox.try_recv().ok();
                }
            }
            if self.clock.now() >= next_tick {
                next_tick = self.clock.now() + tick;
                self.step(ControllerEvent::Tick);
                self.keep_connected();
            }
            if self.machine.wants_flush() {
                self.step(ControllerEvent::Quorum(QuorumEvent::Flush));
            }
            self.show_quorum();
        }
    }

    fn take_in(&mut self, message: Message) {
        match message {
            Message::Command { command, reply } => {
                let token = self.token();
                self.commands.insert(token, reply);
                self.step(ControllerEvent::Command { token, command });
            }
            Message::Heartbeat { connection, request, reply } => {
                let token = self.token();
                self.heartbeats.insert(token, reply);
                self.step(ControllerEvent::Heartbeat { token, connection, request });
            }
            Message::ConnectionClosed { connection } => {
                self.step(ControllerEvent::ConnectionClosed { connection });
            }
            Message::FromPeer { from, message } => {
                self.step(ControllerEvent::Quorum(QuorumEvent::Received { from, message }));
            }
            Message::PeerLost { node } => {
                self.step(ControllerEvent::Quorum(QuorumEvent::PeerLost { node }));
            }
            Message::Followed { from_index, previous_term, reply } => {
                // Whoever asked may have given up; the same holds below.
                drop(reply.send(self.followed(from_index, previous_term)));
            }
            Message::Status { reply } => drop(reply.send(self.machine.quorum().status())),
            Message::ChangeVoters { change, reply } => {
                self.step(ControllerEvent::Quorum(QuorumEvent::ChangeVoters(change)));
                reply.send(()).ok();
            }
            Message::TransferLeadership { reply } => {
                let to = None;
                self.step(ControllerEvent::Quorum(QuorumEvent::TransferLeadership { to }));
                reply.send(()).ok();
            }
            Message::Close => unreachable!("the loop deals with it"),
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn followed(&self, from_index: u64, previous_term: u64) -> Followed {
        let quorum = self.machine.quorum();
        let status = quorum.status();
        let entries = quorum.committed_entries(from_index, previous_term, FOLLOWED_BYTES_MAX);
        let snapshot = if entries.is_none() { quorum.latest_snapshot() } else { None };
        Followed {
            leader: status.leader,
            term: status.term,
            committed_index: status.committed_index,
            entries: entries.unwrap_or_default(),
            snapshot,
        }
    }

    fn step(&mut self, event: ControllerEvent) {
        let now_ms = self.clock.monotonic_ms();
        let mut effects = std::mem::take(&mut self.effects);
        self.machine.step(now_ms, event, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: ControllerEffect) {
        match effect {
            ControllerEffect::Send { to, message } => self.send(to, message),
            ControllerEffect::Answer { token, outcome } => {
                if let Some(reply) = self.commands.remove(&token) {
                    drop(reply.send(outcome.map(|committed| Committed {
                        answer: committed.answer,
                        metadata_index: committed.metadata_index,
                    })));
                }
            }
            ControllerEffect::HeartbeatAnswer { token, outcome } => {
                if let Some(reply) = self.heartbeats.remove(&token) {
                    drop(reply.send(outcome));
                }
            }
            ControllerEffect::Published { image, .. } => {
                publish(&self.images, image);
            }
            ControllerEffect::Role { term, leader, is_active } => {
                self.led_by(term, leader, is_active);
            }
            ControllerEffect::Audit(election) => {
                self.metrics.cluster().unclean_election();
                let UncleanElection { topic, id, leader, leader_epoch, passed_over } = election;
                tracing::warn!(
                    target: "audit", %topic, partition = id.partition, leader, leader_epoch, ?passed_over,
                    "a replica that was not in sync leads now: committed records may be lost"
                );
            }
            ControllerEffect::Failed { message } => {
                tracing::error!(
                    message,
                    "the metadata log failed; this node is no controller until it is restarted"
                );
                self.health.raise(Reason::Controller, message);
            }
        }
    }

    fn led_by(&self, term: u64, leader: Option<NodeId>, is_active: bool) {
        let changed = self.leader.send_if_modified(|known| {
            // A leader of the quorum that is not active yet refuses commands, which are tried again.
            std::mem::replace(known, leader) != leader
        });
        if changed {
            tracing::info!(term, ?leader, "the active controller, as far as is known, has changed");
            self.metrics.cluster().quorum_elected();
        } else if is_active {
            tracing::debug!(term, "this controller is active");
        }
    }

    fn show_quorum(&self) {
        let status = self.machine.quorum().status();
        self.metrics.cluster().set_quorum(&QuorumState {
            term: status.term,
            leader: status.leader,
            is_leader: status.is_leader,
            committed_index: status.committed_index,
            log_end_index: status.log_end_index,
        });
    }

    /// Whoever stands for election has to reach the others at once. Followers have nothing to say to each other until then.
    fn keep_connected(&self) {
        let status = self.machine.quorum().status();
        for voter in status.voters.iter().filter(|voter| voter.id != status.me) {
            self.peers.keep(voter.id.node);
        }
    }

    fn send(&self, to: VoterId, message: Bytes) {
        let request = QuorumMessageRequest {
            cluster_id: self.config.cluster_id.clone(),
            from: self.config.me,
            to,
        };
        self.peers.post(to.node, &request, message);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

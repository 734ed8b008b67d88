//! This broker as a member of its cluster: it registers, says that it is alive, and leaves in order.
//!
//! Heartbeats go over a connection of their own to the active controller: when this process ends the connection
//! closes, and the controller need not wait to notice. It decides nothing about partitions.

use std::{sync::Arc, time::Duration};

use tidemark_controller::{Answer, Command, RegisterBroker};
use tidemark_protocol::{
    BrokerEpoch, ErrorCode, Failure, NodeId,
    messages::{HeartbeatRequest, HeartbeatResponse, WantedState},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    broker::Broker, controller::LOCAL_CONNECTION, health::Reason, peer::Peer, peers::pause,
    tasks::Shutdown,
};

/// Heartbeats in one session timeout.
const HEARTBEATS_PER_SESSION: u32 = 4;
/// How long one attempt to register may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the controller thinks of this broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// `None`: not registered yet.
    pub(crate) epoch: Option<BrokerEpoch>,
    /// Whether it takes part: registered and not fenced.
    pub(crate) active: bool,
    pub(crate) may_shut_down: bool,
}

/// The task that keeps this broker in its cluster.
pub(crate) struct Member {
    broker: Arc<Broker>,
    registration: RegisterBroker,
    standing: watch::Sender<Standing>,
    wanted: watch::Receiver<WantedState>,
    link: Option<(NodeId, Peer)>,
    heard: Instant,
    failures: u32,
}

impl Member {
    pub(crate) fn new(
        broker: Arc<Broker>,
        registration: RegisterBroker,
        standing: watch::Sender<Standing>,
        wanted: watch::Receiver<WantedState>,
    ) -> Self {
        let heard = Instant::now();
        Self { broker, registration, standing, wanted, link: None, heard, failures: 0 }
    }

    /// Registers and sends heartbeats until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        shutdown.or_stop(self.take_part()).await;
    }

    async fn take_part(&mut self) {
        let mut assigned = self.broker.assigned.clone();
        let mut leader = self.broker.control.leader_changes();
        loop {
            let Some(epoch) = self.registered().await else { continue };
            let outcome = self.heartbeat(epoch).await;
            let is_fenced = self.take_in(epoch, outcome);
            let session = self.broker.config.broker_session_timeout;
            let wait = match self.failures {
                0 => session / HEARTBEATS_PER_SESSION,
                failures => pause(failures).min(session / HEARTBEATS_PER_SESSION),
            };
            tokio::select! {
                () = sleep(wait) => {}
                _ = leader.changed() => {}
                _ = self.wanted.changed() => {}
                // A fenced broker waits for nothing but this.
                _ = assigned.changed(), if is_fenced => {}
            }
        }
    }

    /// The epoch this broker is registered with, once it is.
    async fn registered(&mut self) -> Option<BrokerEpoch> {
        if let Some(epoch) = self.standing.borrow().epoch {
            return Some(epoch);
        }
        let command = Command::RegisterBroker(self.registration.clone());
        match self.broker.control.command(command, REGISTER_TIMEOUT).await {
            Ok(committed) => {
                let Answer::BrokerRegistered { broker_epoch } = committed.answer else {
                    tracing::error!(answer = ?committed.answer, "a registration was answered otherwise");
                    return None;
                };
                tracing::info!(broker_epoch, "registered");
                self.standing.send_modify(|standing| standing.epoch = Some(broker_epoch));
                Some(broker_epoch)
            }
            Err(failure) => {
                self.failed(&failure);
                sleep(pause(self.failures)).await;
                None
            }
        }
    }

    async fn heartbeat(&mut self, broker_epoch: BrokerEpoch) -> Result<HeartbeatResponse, Failure> {
        let broker = Arc::clone(&self.broker);
        let request = HeartbeatRequest {
            broker_id: broker.id,
            broker_epoch,
            metadata_index: *broker.assigned.borrow(),
            wanted: self.wanted(),
        };
        let Some(leader) = broker.control.leader() else {
            return Err(Failure::new(ErrorCode::NotController, "there is no active controller"));
        };
        let wait = broker.config.broker_session_timeout / 2;
        if leader == broker.id {
            self.link = None;
            let local = broker.control.local().ok_or_else(|| {
                Failure::new(ErrorCode::NotController, "the active controller is not here")
            })?;
            let answer = local.heartbeat(LOCAL_CONNECTION, request);
            return timeout(wait, answer).await.unwrap_or_else(|_elapsed| {
                Err(Failure::new(ErrorCode::Timeout, "the controller here does not answer"))
            });
        }
        let peer = match &self.link {
            Some((node, peer)) if *node == leader && !peer.is_closed() => peer.clone(),
            _ => {
                self.link = None;
                let (peer, _pushes) = broker.connect_to(leader).await?;
                self.link = Some((leader, peer.clone()));
                peer
            }
        };
        peer.ask(&request, wait).await.map(|(response, _payload)| response)
    }

    /// A broker whose disk takes no writes is of no use as a leader, unless there is nobody else: then what it holds
    /// can still be read.
    fn wanted(&self) -> WantedState {
        let has_failed = self.broker.disk_watch.failure().is_some();
        let others = || self.broker.image().live_brokers().any(|other| other.id != self.broker.id);
        match *self.wanted.borrow() {
            WantedState::Active if has_failed && others() => WantedState::Fenced,
            wanted => wanted,
        }
    }

    /// Draws the consequences of an answer. Says whether this broker is fenced.
    fn take_in(&mut self, epoch: BrokerEpoch, outcome: Result<HeartbeatResponse, Failure>) -> bool {
        match outcome {
            Ok(HeartbeatResponse { fenced, may_shut_down }) => {
                self.heard = Instant::now();
                self.failures = 0;
                self.broker.health.clear(Reason::Controller);
                let standing = Standing { epoch: Some(epoch), active: !fenced, may_shut_down };
                self.standing.send_if_modified(|known| {
                    let is_new = *known != standing;
                    *known = standing;
                    is_new
                });
                if fenced {
                    self.broker
                        .health
                        .raise(Reason::Fenced, "the controller has not let this broker in");
                } else {
                    self.broker.health.clear(Reason::Fenced);
                }
                fenced
            }
            Err(failure) => {
                if let ErrorCode::StaleBrokerEpoch | ErrorCode::UnknownBroker = failure.code {
                    // Registered over, or forgotten: what this broker leads it must prove anew.
                    tracing::warn!(%failure, "registering again");
                    self.standing.send_replace(Standing::default());
                }
                self.failed(&failure);
                true
            }
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.failures = self.failures.saturating_add(1);
        if failure.code == ErrorCode::Timeout && self.failures >= HEARTBEATS_PER_SESSION {
            // Something swallows what is sent. By now the session is over in any case.
            self.link = None;
        }
        tracing::debug!(%failure, "not heard by the controller");
        if self.heard.elapsed() > self.broker.config.broker_session_timeout {
            let message = format!("the active controller cannot be reached: {}", failure.message);
            self.broker.health.raise(Reason::Controller, message);
        }
    }
}

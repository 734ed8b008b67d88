//! Committed metadata on a node that has no vote in the quorum: fetched from one that has, applied in order, published.
//! A node that could become a controller, or whose disk was replaced, follows this way until it is one.
//!
//! It applies what was committed, checks that each entry follows the one before by index and term, and begins anew from
//! a snapshot when the controller's history is another than its own. It refuses to guess: what does not apply ends the
//! process's trust in its image, and everything is fetched again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tidemark_controller::{Image, decode_entry};
use tidemark_protocol::{
    NodeId,
    messages::{FetchMetadataRequest, FetchMetadataResponse, QuorumHelloRequest, VoterId},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    controller::ControllerHandle,
    peer::Peer,
    peers::{Addresses, pause},
    service::cluster::METADATA_WAIT,
    tasks::{Shutdown, Tasks},
};

/// How often a node that votes is looked at, in case it does no more.
const VOTE_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks after which a node that votes and knows no leader asks whether it has been removed.
const LEADERLESS_LOOKS: u32 = 3;
/// How long a controller may take to say who the voters are.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How much longer than the controller waits for news its answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The task that follows the metadata.
pub(crate) struct MetadataFeed {
    me: VoterId,
    cluster_id: String,
    tasks: Tasks,
    addresses: Addresses,
    /// The controller of this node, which may come to vote.
    local: Option<ControllerHandle>,
    /// Looks in a row that found no leader.
    leaderless: u32,
    /// This node takes itself for a voter, and the others do not.
    is_removed: bool,
    image: Image,
    /// Term of the last entry applied.
    term: u64,
    images: watch::Sender<Arc<Image>>,
    leader: watch::Sender<Option<NodeId>>,
}

impl MetadataFeed {
    /// What it learns goes to `images` and `leader`.
    pub(crate) fn new(
        me: VoterId,
        cluster_id: String,
        (tasks, addresses): (Tasks, Addresses),
        local: Option<ControllerHandle>,
        (images, leader): (watch::Sender<Arc<Image>>, watch::Sender<Option<NodeId>>),
    ) -> Self {
        let image = Image::default();
        let (leaderless, is_removed) = (0, false);
        Self {
            me,
            cluster_id,
            tasks,
            addresses,
            local,
            leaderless,
            is_removed,
            image,
            term: 0,
            images,
            leader,
        }
    }

    /// Follows until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        shutdown.or_stop(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut failures: u32 = 0;
        loop {
            // Also when there is nobody to ask: a cluster of one node names no controllers.
            while self.has_vote().await || self.addresses.controllers().next().is_none() {
                sleep(VOTE_LOOK_INTERVAL).await;
            }
            let controllers: Vec<NodeId> = self.addresses.controllers().collect();
            for controller in controllers {
                let Some(address) = self.addresses.of(controller) else { continue };
                match self.follow_one(&address).await {
                    Ok(()) => failures = 0,
                    Err(problem) => {
                        tracing::debug!(controller, problem, "metadata cannot be followed here");
                        failures = failures.saturating_add(1);
                    }
                }
                sleep(pause(failures.max(1))).await;
            }
        }
    }

    /// Whether the quorum of this node hears of everything itself.
    ///
    /// A voter that is removed while it is away never hears of it: nobody talks to it any more. It would know no leader
    /// for good, and its broker would take no part; so it asks the others, and follows them like any other node.
    async fn has_vote(&mut self) -> bool {
        let Some(local) = &self.local else { return false };
        let Ok(status) = local.status().await else { return false };
        let votes = status.voters.iter().any(|voter| voter.id == self.me);
        if !votes || status.leader.is_some() {
            (self.leaderless, self.is_removed) = (0, false);
            return votes;
        }
        if !self.is_removed {
            self.leaderless += 1;
            self.is_removed = self.leaderless >= LEADERLESS_LOOKS && self.was_removed().await;
            if self.is_removed {
                tracing::warn!(
                    "the controllers do not count this node among them any more; it goes on without a vote"
                );
            }
        }
        !self.is_removed
    }

    /// Whether other controllers answer, and all that do name voters without this node.
    async fn was_removed(&self) -> bool {
        let request = QuorumHelloRequest {
            node: self.me.node,
            directory: self.me.directory,
            cluster_id: self.cluster_id.clone(),
            controllers: self.addresses.controllers().collect(),
        };
        let others = self.addresses.controllers().filter(|node| *node != self.me.node);
        let addresses = others.filter_map(|node| self.addresses.of(node));
        let asked = addresses.map(|address| ask_voters(&self.tasks, address, &request));
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        !answers.is_empty() && answers.iter().all(|voters| !voters.contains(&self.me))
    }

    /// Follows one controller for as long as it answers. `Ok`: it answered at least once.
    async fn follow_one(&mut self, address: &str) -> Result<(), String> {
        let connected = Peer::connect(&self.tasks, address).await;
        let (peer, _pushes) = connected.map_err(|error| error.to_string())?;
        let mut answered = false;
        loop {
            if self.has_vote().await {
                return Ok(());
            }
            let wait_ms = u32::try_from(METADATA_WAIT.as_millis()).unwrap_or(u32::MAX);
            let request = FetchMetadataRequest {
                node: self.me.node,
                from_index: self.image.metadata_index(),
                previous_term: self.term,
                max_wait_ms: wait_ms,
            };
            match peer.ask(&request, METADATA_WAIT + ANSWER_TIMEOUT).await {
                Ok((response, payload)) => self.take_in(&response, payload)?,
                Err(failure) if answered => {
                    tracing::debug!(%failure, "metadata is followed elsewhere");
                    return Ok(());
                }
                Err(failure) => return Err(failure.message),
            }
            answered = true;
        }
    }

    fn take_in(&mut self, response: &FetchMetadataResponse, payload: Bytes) -> Result<(), String> {
        if response.cluster_id != self.cluster_id {
            return Err(format!("it belongs to cluster {}", response.cluster_id));
        }
        if !response.is_of(&payload) {
            return Err("its payload was damaged on the way".to_owned());
        }
        if response.leader.is_none() {
            return Err("it knows no active controller".to_owned());
        }
        let applied = match response.snapshot {
            Some(snapshot) if snapshot.index < self.image.metadata_index() => Ok(false),
            Some(snapshot) => {
                Image::from_snapshot(&payload).map_err(|error| error.to_string()).map(|image| {
                    (self.image, self.term) = (image, snapshot.term);
                    true
                })
            }
            None => self.apply(response, payload),
        };
        match applied {
            Ok(true) => {
                publish(&self.images, Arc::new(self.image.clone()));
            }
            Ok(false) => {}
            Err(problem) => {
                tracing::error!(
                    problem,
                    "metadata does not apply; it is fetched from the beginning"
                );
                (self.image, self.term) = (Image::default(), 0);
                return Err(problem);
            }
        }
        self.leader.send_if_modified(|known| {
            let is_new = *known != response.leader;
            *known = response.leader;
            is_new
        });
        Ok(())
    }

    fn apply(
        &mut self,
        response: &FetchMetadataResponse,
        mut payload: Bytes,
    ) -> Result<bool, String> {
        for entry in &response.entries {
            let record_bytes = entry.record_bytes as usize;
            if record_bytes > payload.len() || entry.term < self.term {
                return Err(format!("entry {} contradicts the one before", entry.index));
            }
            let records =
                decode_entry(&payload.split_to(record_bytes)).map_err(|error| error.to_string())?;
            self.image.apply(entry.index, &records).map_err(|error| error.to_string())?;
            self.term = entry.term;
        }
        Ok(!response.entries.is_empty())
    }
}

/// The voters as a controller of this cluster knows them.
async fn ask_voters(
    tasks: &Tasks,
    address: String,
    request: &QuorumHelloRequest,
) -> Option<Vec<VoterId>> {
    let (peer, _pushes) = Peer::connect(tasks, &address).await.ok()?;
    let (answer, _payload) = peer.ask(request, HELLO_TIMEOUT).await.ok()?;
    answer.voters.filter(|_| answer.cluster_id == request.cluster_id)
}

/// Shows an image, unless a newer one is shown already: metadata is followed forwards only, wherever it comes from.
pub(crate) fn publish(images: &watch::Sender<Arc<Image>>, image: Arc<Image>) {
    images.send_if_modified(|shown| {
        let is_newer = image.metadata_index() > shown.metadata_index();
        if is_newer {
            *shown = image;
        }
        is_newer
    });
}

//! Committed metadata on a node that has no vote in the quorum: fetched from one that has, applied in order, published.
//! A node that could become a controller, or whose disk was replaced, follows this way until it is one.
//!
//! It applies what was committed, checks that each entry follows the one before by index and term, and begins anew from
//! a snapshot when the controller's history is another than its own. It refuses to guess: what does not apply ends the
//! process's trust in its image, and everything is fetched again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tidemark_controller::{Image, decode_entry};
use tidemark_protocol::{
    NodeId,
    messages::{FetchMetadataRequest, FetchMetadataResponse, VoterId},
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
        Self { me, cluster_id, tasks, addresses, local, image, term: 0, images, leader }
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
    async fn has_vote(&self) -> bool {
        let Some(local) = &self.local else { return false };
        let status = local.status().await;
        status.is_ok_and(|status| status.voters.iter().any(|voter| voter.id == self.me))
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

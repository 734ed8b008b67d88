//! Committed metadata on its way to the broker: from the controller of the same node, or fetched from another one. It
//! arrives late, and several changes may arrive as one.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_controller::Image;
use tidemark_protocol::{
    Failure, NodeId,
    messages::{FetchMetadataRequest, FetchMetadataResponse},
};

use super::{
    Io, NodeTimer,
    peers::{Peers, Purpose, pause_us},
};
use crate::sim::{
    core::{MS, Micros},
    message::{Request, Response},
    network::ConnectionId,
    shape::FaultClass,
};

/// How long a controller waits for news before it answers that there are none.
pub(super) const METADATA_WAIT_US: Micros = 500 * MS;
/// How much longer than that its answer is waited for.
const ANSWER_US: Micros = 1_000 * MS;

/// What the broker is going to follow.
#[derive(Debug)]
pub(super) struct Metadata {
    newest: Arc<Image>,
    is_due: bool,
    /// Nothing arrives before this.
    pub(super) held_until_us: Micros,
    pub(super) feed: Option<Feed>,
}

impl Metadata {
    pub(super) fn new(image: Arc<Image>, feed: Option<Feed>) -> Self {
        Self { newest: image, is_due: false, held_until_us: 0, feed }
    }

    /// There is a newer image. The broker gets it, or one that is newer still, after a while.
    pub(super) fn publish(&mut self, image: Arc<Image>, io: &mut Io<'_>) {
        self.newest = image;
        if !std::mem::replace(&mut self.is_due, true) {
            let lags = io.shape.has(FaultClass::MetadataLag) && io.core.chance(200);
            if lags {
                io.core.figures.fault("metadata delayed");
            }
            let lag_us = if lags { io.shape.metadata_lag_us } else { MS };
            let held_us = self.held_until_us.saturating_sub(io.core.now_us());
            let lag_us = io.core.draw(0, lag_us).max(held_us);
            io.timer(lag_us, NodeTimer::Image);
        } else {
            io.core.figures.fault("metadata coalesced");
        }
    }

    /// The newest image, now that it has arrived.
    pub(super) fn arrived(&mut self) -> Arc<Image> {
        self.is_due = false;
        Arc::clone(&self.newest)
    }
}

/// Follows the metadata from a node that has no controller.
#[derive(Debug)]
pub(super) struct Feed {
    image: Image,
    /// Term of the last entry applied.
    term: u64,
    controllers: Vec<NodeId>,
    at: usize,
    connection: Option<ConnectionId>,
    failures: u32,
}

/// What a feed has learned.
#[derive(Debug)]
pub(super) struct News {
    pub(super) leader: Option<NodeId>,
    pub(super) image: Option<Arc<Image>>,
}

impl Feed {
    pub(super) fn new(controllers: Vec<NodeId>) -> Self {
        Self { image: Image::default(), term: 0, controllers, at: 0, connection: None, failures: 0 }
    }

    /// Connects to the next controller.
    pub(super) fn go_on(&mut self, io: &mut Io<'_>) {
        if self.connection.is_none() {
            let controller = self.controllers[self.at % self.controllers.len()];
            self.at += 1;
            self.connection = Some(io.dial(controller));
        }
    }

    /// A dialled connection stands. Says whether it is this one.
    pub(super) fn accepted(
        &mut self,
        connection: ConnectionId,
        peers: &mut Peers,
        io: &mut Io<'_>,
    ) -> bool {
        if self.connection != Some(connection) {
            return false;
        }
        self.ask(connection, peers, io);
        true
    }

    fn ask(&self, connection: ConnectionId, peers: &mut Peers, io: &mut Io<'_>) {
        let request = FetchMetadataRequest {
            node: io.node(),
            from_index: self.image.metadata_index(),
            previous_term: self.term,
            max_wait_ms: u32::try_from(METADATA_WAIT_US / MS).expect("half a second"),
        };
        let request = Request::FetchMetadata(request);
        peers.ask_on(connection, request, Purpose::Feed, METADATA_WAIT_US + ANSWER_US, io);
    }

    pub(super) fn closed(&mut self, connection: ConnectionId, io: &mut Io<'_>) {
        if self.connection == Some(connection) {
            self.fail(io);
        }
    }

    fn fail(&mut self, io: &mut Io<'_>) {
        if let Some(connection) = self.connection.take() {
            io.close(connection);
        }
        self.failures += 1;
        io.timer(pause_us(self.failures), NodeTimer::Feed);
    }

    pub(super) fn answered(
        &mut self,
        outcome: Result<Response, Failure>,
        peers: &mut Peers,
        io: &mut Io<'_>,
    ) -> Option<News> {
        let connection = self.connection?;
        let Ok(Response::FetchMetadata { response, snapshot }) = outcome else {
            self.fail(io);
            return None;
        };
        let is_new = match self.take_in(&response, &snapshot) {
            Ok(is_new) => is_new,
            Err(problem) => {
                io.note("metadata", [0, 0], || format!("does not apply: {problem}"));
                (self.image, self.term) = (Image::default(), 0);
                self.fail(io);
                return None;
            }
        };
        self.failures = 0;
        self.ask(connection, peers, io);
        let image = is_new.then(|| Arc::new(self.image.clone()));
        Some(News { leader: response.leader, image })
    }

    fn take_in(
        &mut self,
        response: &FetchMetadataResponse,
        payload: &Bytes,
    ) -> Result<bool, String> {
        match response.snapshot {
            Some(snapshot) if snapshot.index < self.image.metadata_index() => Ok(false),
            Some(snapshot) => {
                let image = Image::from_snapshot(payload).map_err(|error| error.to_string())?;
                (self.image, self.term) = (image, snapshot.term);
                Ok(true)
            }
            None => self.apply(response, payload.clone()),
        }
    }

    fn apply(
        &mut self,
        response: &FetchMetadataResponse,
        mut payload: Bytes,
    ) -> Result<bool, String> {
        for entry in &response.entries {
            let bytes = payload.split_to((entry.record_bytes as usize).min(payload.len()));
            if entry.term < self.term {
                return Err(format!("entry {} contradicts the one before", entry.index));
            }
            let records =
                tidemark_controller::decode_entry(&bytes).map_err(|error| error.to_string())?;
            self.image.apply(entry.index, &records).map_err(|error| error.to_string())?;
            self.term = entry.term;
        }
        Ok(!response.entries.is_empty())
    }
}

//! The controller of a node: the machine over the Raft quorum on the node's disk, what it wants done, and who waits for
//! its answers.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_controller::{
    Command, ControllerConfig, ControllerEffect, ControllerEvent, ControllerMachine, Image, Quorum,
    QuorumEvent, QuorumStatus, RaftQuorum,
    machine::HeartbeatOutcome,
    quorum::Committed as Entry,
};
use tidemark_protocol::{
    Failure, NodeId,
    messages::{FetchMetadataRequest, FetchMetadataResponse, HeartbeatRequest, MetadataEntry, MetadataSnapshot},
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

/// An answer for this process itself.
#[derive(Debug)]
pub(super) enum Local {
    Command(CommandId, Result<Committed, Failure>),
    Beat(HeartbeatOutcome),
    Image(Arc<Image>),
    Leader(Option<NodeId>),
    Send(NodeId, Message),
}

/// What the oracles are told, as it happens.
#[derive(Clone, Debug)]
pub enum Seen {
    /// An entry was delivered as committed.
    Committed(Entry),
    /// A leader's snapshot replaced what was applied before.
    Restored(Arc<Image>),
    /// Leadership of the quorum, as far as this node knows.
    Role { term: u64, leader: Option<NodeId>, is_leader: bool },
    /// The metadata log takes no more.
    Failed(String),
}

//! Between the nodes of a cluster: the quorum of controllers, commands to the active controller, heartbeats of brokers and
//! committed metadata.
//!
//! What only the controller's own crate can read travels as bytes, in that crate's encoding.

use serde::{Deserialize, Serialize};

use super::data::wire_enum;
use crate::{
    BrokerEpoch, BrokerId, DirectoryId, NodeId,
    message::{Api, Request},
};

/// A controller, as long as it has its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VoterId {
    pub node: NodeId,
    pub directory: DirectoryId,
}

/// One message of the quorum, to one controller: the frame's payload. There is no response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumMessageRequest {
    pub cluster_id: String,
    pub from: VoterId,
    pub to: VoterId,
}

impl Request for QuorumMessageRequest {
    const API: Api = Api::QuorumMessage;
    type Response = ();
}

/// Asks a controller who it is, when a cluster starts for the first time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumHelloRequest {
    pub node: NodeId,
    pub directory: DirectoryId,
    /// The name this node would give the cluster; that of the lowest node id counts.
    pub cluster_id: String,
    /// The controllers this node is configured with, in order of node id.
    pub controllers: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumHelloResponse {
    pub node: NodeId,
    pub directory: DirectoryId,
    pub cluster_id: String,
    /// The controllers this node is configured with, in order of node id.
    pub controllers: Vec<NodeId>,
    /// The voters, when this node belongs to a cluster that has begun; `cluster_id` is that of the cluster then.
    pub voters: Option<Vec<VoterId>>,
}

impl Request for QuorumHelloRequest {
    const API: Api = Api::QuorumHello;
    type Response = QuorumHelloResponse;
}

/// A command for the active controller; any other node answers `NotController`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerCommandRequest {
    #[serde(with = "serde_bytes")]
    pub command: Vec<u8>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerCommandResponse {
    #[serde(with = "serde_bytes")]
    pub answer: Vec<u8>,
    /// Whoever has applied the metadata up to this index (exclusive) sees what the command did.
    pub metadata_index: u64,
}

impl Request for ControllerCommandRequest {
    const API: Api = Api::ControllerCommand;
    type Response = ControllerCommandResponse;
}

/// What a broker wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum WantedState {
    /// Still recovering, or its disk has failed: lead nothing.
    Fenced,
    /// Lead and follow.
    Active,
    /// Stop, once it leads nothing.
    ShutDown,
}

wire_enum!(WantedState { Fenced = 0, Active = 1, ShutDown = 2 });

/// A broker is alive. The connection it came over counts, too: when it closes, the broker is fenced at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    pub broker_id: BrokerId,
    pub broker_epoch: BrokerEpoch,
    /// How far the broker has followed the metadata (exclusive).
    pub metadata_index: u64,
    pub wanted: WantedState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    pub fenced: bool,
    /// It leads nothing any more and everybody knows: it may stop.
    pub may_shut_down: bool,
}

impl Request for HeartbeatRequest {
    const API: Api = Api::Heartbeat;
    type Response = HeartbeatResponse;
}

/// Committed metadata from an index on; waits for some. Any controller answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchMetadataRequest {
    pub node: NodeId,
    /// The first entry wanted.
    pub from_index: u64,
    /// Term of the entry before it, 0 for none: a controller with another history answers with a snapshot.
    pub previous_term: u64,
    pub max_wait_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchMetadataResponse {
    pub cluster_id: String,
    /// The active controller as far as this one knows, and its term.
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Exclusive end of what is committed.
    pub committed_index: u64,
    /// Consecutive, the first at `from_index`. Payload: their records, one entry after the other.
    pub entries: Vec<MetadataEntry>,
    /// The payload is a snapshot instead.
    pub snapshot: Option<MetadataSnapshot>,
    /// CRC-32 of the payload, which nothing else protects.
    pub payload_crc: u32,
}

impl FetchMetadataResponse {
    /// Takes note of the payload that it goes with.
    pub fn seal(&mut self, payload: &[u8]) {
        self.payload_crc = crc32fast::hash(payload);
    }

    /// Whether this is the payload that it was sent with.
    pub fn is_of(&self, payload: &[u8]) -> bool {
        self.payload_crc == crc32fast::hash(payload)
    }
}

/// One committed entry of the metadata log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataEntry {
    pub index: u64,
    pub term: u64,
    /// Length of its records in the payload, in bytes.
    pub record_bytes: u32,
}

/// The snapshot in a payload: everything up to `index` (exclusive), whose last entry had `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataSnapshot {
    pub index: u64,
    pub term: u64,
}

impl Request for FetchMetadataRequest {
    const API: Api = Api::FetchMetadata;
    type Response = FetchMetadataResponse;
}

//! What travels over connections: the messages of the real protocol as values. Nothing is encoded here; that has tests of
//! its own.

use bytes::Bytes;
use tidemark_controller::{Answer, Command};
use tidemark_coordinator::{
    groups::{CommitTransactionalOffsets, GroupRequest, GroupResponse},
    transactions::{Markers, TransactionRequest, TransactionResponse},
};
use tidemark_protocol::{
    BrokerEpoch, BrokerId, Failure, LeaderEpoch, NodeId, Offset, PartitionIndex, TopicId,
    TopicPartition,
    messages::{
        Acks, FetchMetadataRequest, FetchMetadataResponse, HeartbeatRequest, HeartbeatResponse,
        Isolation, ProduceReceipt, ProducerIdentity, ReplicaPosition, ReplicaPushHeader,
        StablePart, VoterId,
    },
};

/// Ties an answer to its request, within one connection.
pub type Correlation = u64;

/// One message.
#[derive(Clone, Debug)]
pub enum Message {
    /// Of the quorum; it has no answer.
    Quorum {
        from: VoterId,
        to: VoterId,
        message: Bytes,
    },
    Request(Correlation, Box<Request>),
    Answer(Correlation, Box<Result<Response, Failure>>),
    /// A follower's new positions, on its stream.
    Positions(Vec<ReplicaPosition>),
    /// A leader's answers, on the stream.
    Push {
        header: ReplicaPushHeader,
        payload: Vec<Bytes>,
    },
}

/// What somebody asks.
#[derive(Clone, Debug)]
pub enum Request {
    Command(Command),
    Heartbeat(HeartbeatRequest),
    FetchMetadata(FetchMetadataRequest),
    Replicate {
        broker_id: BrokerId,
        broker_epoch: BrokerEpoch,
        leader_id: BrokerId,
    },
    /// Where the partitions of all topics are, as far as the broker knows.
    Metadata,
    Produce {
        partition: TopicPartition,
        leader_epoch: Option<LeaderEpoch>,
        acks: Acks,
        timeout_ms: u64,
        batches: Bytes,
        /// Whose transaction the batches are part of.
        transactional_id: Option<String>,
    },
    Fetch {
        partition: TopicPartition,
        leader_epoch: Option<LeaderEpoch>,
        offset: Offset,
        max_bytes: usize,
        isolation: Isolation,
    },
    ListOffsets {
        partition: TopicPartition,
        earliest: bool,
    },
    /// An identity for a producer without transactions.
    InitProducer,
    Group(PartitionIndex, Box<GroupRequest>),
    /// Offsets of a group that count with a transaction. `commit` comes without a guard: the broker asks for one.
    OffsetsInTransaction {
        partition: PartitionIndex,
        transactional_id: String,
        commit: Box<CommitTransactionalOffsets>,
    },
    Transaction {
        partition: PartitionIndex,
        request: TransactionRequest,
        /// What the coordinator has to know of the metadata first.
        metadata_index: u64,
    },
    WriteMarkers {
        markers: Markers,
        partitions: Vec<TopicPartition>,
    },
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Response {
    Command(Committed),
    Heartbeat(HeartbeatResponse),
    FetchMetadata {
        response: FetchMetadataResponse,
        snapshot: Bytes,
    },
    Replicate,
    /// With the index of the metadata that says so.
    Metadata(u64, Vec<TopicView>),
    Produce(ProduceReceipt),
    Fetch(Fetched),
    ListOffsets {
        offset: Offset,
        leader_epoch: LeaderEpoch,
    },
    Producer(ProducerIdentity),
    Group(GroupResponse),
    Transaction(TransactionResponse),
    Markers(Vec<(TopicPartition, Result<(), Failure>)>),
}

/// A command that was carried out.
#[derive(Clone, Debug)]
pub struct Committed {
    pub answer: Answer,
    pub metadata_index: u64,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub bytes: Bytes,
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    pub leader_epoch: LeaderEpoch,
    pub next_offset: Offset,
    pub stable: Option<StablePart>,
}

/// A topic as a client sees it.
#[derive(Clone, Debug)]
pub struct TopicView {
    pub name: String,
    pub id: TopicId,
    /// Leader and leader epoch of each partition.
    pub partitions: Vec<(Option<NodeId>, LeaderEpoch)>,
}

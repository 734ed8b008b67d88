//! What an API is: a request type, its response type and its number. The table of all of them.

use serde::{Serialize, de::DeserializeOwned};

/// A request header and the response header that answers it.
pub trait Request: Serialize + DeserializeOwned + Send + 'static {
    /// Number of the API in the frame.
    const API: Api;
    /// What a successful response carries.
    type Response: Serialize + DeserializeOwned + Send + 'static;
}

macro_rules! apis {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// Every API of the native protocol. Numbers never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Api { $($(#[doc = $doc])+ $name,)+ }

        impl Api {
            /// Every API, in numeric order.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The number in the frame.
            pub const fn number(self) -> u16 { match self { $(Self::$name => $number,)+ } }

            /// The API of that number, if there is one.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// Name for logs, metrics labels and documents.
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $label,)+ } }
        }
    };
}

apis! {
    /// Append record batches: [`crate::messages::ProduceRequest`].
    Produce = 1, "produce";
    /// Read record batches, waiting if asked: [`crate::messages::FetchRequest`].
    Fetch = 2, "fetch";
    /// Be sent record batches as they become readable: [`crate::messages::SubscribeRequest`].
    Subscribe = 3, "subscribe";
    /// Find offsets by position or time: [`crate::messages::ListOffsetsRequest`].
    ListOffsets = 4, "list_offsets";
    /// Delete records below an offset: [`crate::messages::DeleteRecordsRequest`].
    DeleteRecords = 5, "delete_records";
    /// Brokers, topics, partitions and their leaders: [`crate::messages::MetadataRequest`].
    Metadata = 20, "metadata";
    /// Create one topic: [`crate::messages::CreateTopicRequest`].
    CreateTopic = 21, "create_topic";
    /// Delete one topic: [`crate::messages::DeleteTopicRequest`].
    DeleteTopic = 22, "delete_topic";
    /// Change a topic's settings: [`crate::messages::AlterTopicRequest`].
    AlterTopic = 23, "alter_topic";
    /// Raise a topic's partition count: [`crate::messages::AddPartitionsRequest`].
    AddPartitions = 24, "add_partitions";
    /// One topic in full, with offsets, sizes and settings: [`crate::messages::DescribeTopicRequest`].
    DescribeTopic = 25, "describe_topic";
    /// Who coordinates a group or transactional id: [`crate::messages::FindCoordinatorRequest`].
    FindCoordinator = 26, "find_coordinator";
    /// Join a group, stay, leave: [`crate::messages::GroupHeartbeatRequest`].
    GroupHeartbeat = 27, "group_heartbeat";
    /// Commit a group's offsets: [`crate::messages::CommitOffsetsRequest`].
    CommitOffsets = 28, "commit_offsets";
    /// Read a group's committed offsets: [`crate::messages::FetchOffsetsRequest`].
    FetchOffsets = 29, "fetch_offsets";
    /// Remove committed offsets: [`crate::messages::DeleteOffsetsRequest`].
    DeleteOffsets = 30, "delete_offsets";
    /// Set a group's offsets from outside: [`crate::messages::SeekGroupRequest`].
    SeekGroup = 31, "seek_group";
    /// Take such a change back: [`crate::messages::UndoSeekRequest`].
    UndoSeek = 32, "undo_seek";
    /// The changes that can be taken back: [`crate::messages::SeekHistoryRequest`].
    SeekHistory = 33, "seek_history";
    /// The groups that a broker coordinates: [`crate::messages::ListGroupsRequest`].
    ListGroups = 34, "list_groups";
    /// One group in full: [`crate::messages::DescribeGroupRequest`].
    DescribeGroup = 35, "describe_group";
    /// Forget a group: [`crate::messages::DeleteGroupRequest`].
    DeleteGroup = 36, "delete_group";
    /// Put a member out of its group: [`crate::messages::RemoveMemberRequest`].
    RemoveMember = 37, "remove_member";
    /// How far a group is behind: [`crate::messages::DescribeLagRequest`].
    DescribeLag = 38, "describe_lag";
    /// The broker that answers: identity, build, settings in force, state, data directories:
    /// [`crate::messages::DescribeBrokerRequest`].
    DescribeBroker = 40, "describe_broker";
    /// Sizes of the logs in each data directory: [`crate::messages::DescribeLogDirsRequest`].
    DescribeLogDirs = 41, "describe_log_dirs";
    /// The quorum of controllers: [`crate::messages::DescribeQuorumRequest`].
    DescribeQuorum = 42, "describe_quorum";
    /// Add a controller to the quorum, or remove one: [`crate::messages::ChangeQuorumRequest`].
    ChangeQuorum = 43, "change_quorum";
    /// Drain a broker, take that back, or forget it: [`crate::messages::ChangeBrokerRequest`].
    ChangeBroker = 44, "change_broker";
    /// Move replicas: [`crate::messages::ReassignPartitionsRequest`].
    ReassignPartitions = 45, "reassign_partitions";
    /// What would have to move: [`crate::messages::PlanMovesRequest`].
    PlanMoves = 46, "plan_moves";
    /// Elect leaders: [`crate::messages::ElectLeadersRequest`].
    ElectLeaders = 47, "elect_leaders";
    /// How far the replicas of partitions are: [`crate::messages::DescribeReplicasRequest`].
    DescribeReplicas = 48, "describe_replicas";
    /// The identity of a producer: [`crate::messages::InitProducerIdRequest`].
    InitProducerId = 50, "init_producer_id";
    /// A message of the controllers' quorum: [`crate::messages::QuorumMessageRequest`].
    QuorumMessage = 60, "quorum_message";
    /// Who a controller is, before a cluster has begun: [`crate::messages::QuorumHelloRequest`].
    QuorumHello = 61, "quorum_hello";
    /// A command for the active controller: [`crate::messages::ControllerCommandRequest`].
    ControllerCommand = 62, "controller_command";
    /// A broker is alive: [`crate::messages::HeartbeatRequest`].
    Heartbeat = 63, "heartbeat";
    /// Committed metadata, as it is committed: [`crate::messages::FetchMetadataRequest`].
    FetchMetadata = 64, "fetch_metadata";
    /// Opens a follower's stream: [`crate::messages::ReplicateRequest`].
    Replicate = 80, "replicate";
    /// Where a follower is: [`crate::messages::ReplicaPositionsRequest`].
    ReplicaPositions = 81, "replica_positions";
    /// How far offsets are behind, asked of their leader: [`crate::messages::MeasureLagRequest`].
    MeasureLag = 82, "measure_lag";
}

//! What can go wrong, one enum per family of operations, each telling the caller what to do next.
//!
//! Every error is `Clone`, because one failed request fails every record and every waiter that shared it.
//! Three questions have an answer on each: the broker's [`ErrorCode`] if it gave one, whether the same call
//! may succeed later (`is_retriable`), and whether the broker may have acted on it (`is_indeterminate`).

use std::{io, sync::Arc, time::Duration};

use tidemark_protocol::{BrokerId, ErrorCode, Failure, Offset, PartitionIndex};

/// No connection could be made. Nothing was asked of a broker.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("no bootstrap address given; name at least one broker as host:port")]
    NoBootstrap,
    #[error("{address:?} is not host:port")]
    BadAddress { address: String },
    #[error("cannot resolve {address}: {source}; check the name, or the network's name service")]
    Resolve { address: Arc<str>, source: Arc<io::Error> },
    #[error("cannot connect to {address}: {source}; is tidemarkd running there?")]
    Refused { address: Arc<str>, source: Arc<io::Error> },
    #[error("{address} did not accept a connection within {} ms", after.as_millis())]
    TimedOut { address: Arc<str>, after: Duration },
    #[error("{address} does not speak the Tidemark protocol; check the port")]
    NotTidemark { address: Arc<str> },
    #[error(
        "{address} speaks versions {min} to {max} of the protocol, none of which this client \
         knows; update the older of the two"
    )]
    Version { address: Arc<str>, min: u16, max: u16 },
    #[error("{address} accepted the connection but did not describe its cluster: {reason}")]
    Metadata { address: Arc<str>, reason: Arc<str> },
    #[error("broker {broker} is not in the cluster's metadata")]
    UnknownBroker { broker: BrokerId },
}

impl ConnectError {
    /// Whether trying again, with nothing changed on this side, can succeed.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::TimedOut { .. }
            | Self::Metadata { .. }
            | Self::UnknownBroker { .. } => true,
            Self::NoBootstrap
            | Self::BadAddress { .. }
            | Self::NotTidemark { .. }
            | Self::Version { .. } => false,
        }
    }
}

/// One request got no useful answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// `sent` says whether any of the request may have reached the broker.
    #[error("lost the connection to {address}: {reason}")]
    ConnectionLost { address: Arc<str>, reason: Arc<str>, sent: bool },
    /// `sent` as above: a request may run out of time while it waits for its turn.
    #[error("{address} did not answer {api} within {} ms", after.as_millis())]
    TimedOut { address: Arc<str>, api: &'static str, after: Duration, sent: bool },
    #[error("{0}")]
    Refused(Failure),
    #[error("{address} broke the protocol: {detail}")]
    Protocol { address: Arc<str>, detail: Arc<str> },
    #[error("the request cannot be sent: {detail}")]
    Unsendable { detail: Arc<str> },
}

impl RequestError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(failure) => Some(failure.code),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retriable(),
            Self::ConnectionLost { .. } | Self::TimedOut { .. } => true,
            Self::Refused(failure) => failure.code.is_retriable(),
            Self::Protocol { .. } | Self::Unsendable { .. } => false,
        }
    }

    /// Whether the broker may have acted on the request although it did not say so.
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Unsendable { .. } => false,
            Self::ConnectionLost { sent, .. } | Self::TimedOut { sent, .. } => *sent,
            Self::Protocol { .. } => true,
            Self::Refused(failure) => is_indeterminate_code(failure.code),
        }
    }
}

/// Whether a broker that answers this code may nevertheless have acted.
fn is_indeterminate_code(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Timeout
            | ErrorCode::NotEnoughReplicasAfterAppend
            | ErrorCode::NotLeaderAfterAppend
            | ErrorCode::Internal
            | ErrorCode::StorageFailed
    )
}

/// A record was not accepted, or not delivered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    #[error("no topic named {topic:?}; create it first")]
    UnknownTopic { topic: Arc<str> },
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}")]
    UnknownPartition { topic: Arc<str>, partition: PartitionIndex, partitions: u32 },
    #[error("the record takes {bytes} bytes, the most is {max}; split it or raise the limit")]
    RecordTooLarge { bytes: usize, max: usize },
    #[error("the batch cannot be built: {detail}")]
    InvalidBatch { detail: Arc<str> },
    /// Only from `try_send`: the buffer is full, or the topic's partitions are not known yet.
    #[error("the producer cannot take a record without waiting; use send().await or retry")]
    WouldBlock,
    #[error("the producer is closed")]
    Closed,
    #[error("cannot look up topic {topic:?}: {source}")]
    Lookup { topic: Arc<str>, source: RequestError },
    #[error("{topic}/{partition}: {source}")]
    /// `maybe_written`: an earlier attempt was not answered, whatever the last one was told.
    Request {
        topic: Arc<str>,
        partition: PartitionIndex,
        source: RequestError,
        maybe_written: bool,
    },
    /// `last` is the failure of the last attempt, if there was one.
    #[error(
        "{topic}/{partition}: not delivered within {} ms{}", after.as_millis(),
        because(last.as_deref(), *indeterminate)
    )]
    DeliveryTimedOut {
        topic: Arc<str>,
        partition: PartitionIndex,
        after: Duration,
        last: Option<Arc<RequestError>>,
        indeterminate: bool,
    },
}

impl ProduceError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Request { source, .. } | Self::Lookup { source, .. } => source.code(),
            Self::DeliveryTimedOut { last, .. } => last.as_ref().and_then(|last| last.code()),
            _ => None,
        }
    }

    /// Whether sending the record again may succeed. After an indeterminate failure it may also be written
    /// twice.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::WouldBlock | Self::DeliveryTimedOut { .. } => true,
            Self::Request { source, .. } | Self::Lookup { source, .. } => source.is_retriable(),
            _ => false,
        }
    }

    /// Whether the record may have been written, or may yet become readable.
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Request { source, maybe_written, .. } => {
                *maybe_written || source.is_indeterminate()
            }
            Self::DeliveryTimedOut { indeterminate, .. } => *indeterminate,
            _ => false,
        }
    }
}

/// A consumer cannot go on without a decision of its caller. Positions stay where they were.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    #[error("no topic named {topic:?}; create it first")]
    UnknownTopic { topic: Arc<str> },
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}")]
    UnknownPartition { topic: Arc<str>, partition: PartitionIndex, partitions: u32 },
    #[error("{topic}/{partition} has no leader at the moment; try again")]
    NoLeader { topic: Arc<str>, partition: PartitionIndex },
    #[error("{topic}/{partition} is not assigned to this consumer")]
    NotAssigned { topic: Arc<str>, partition: PartitionIndex },
    #[error("nothing is assigned; call assign() first")]
    NothingAssigned,
    #[error(
        "{topic}/{partition}: offset {offset} does not exist; seek, or choose what to do in \
         ConsumerConfig::out_of_range ({message})"
    )]
    OffsetOutOfRange { topic: Arc<str>, partition: PartitionIndex, offset: Offset, message: String },
    /// Received bytes are damaged. Polling again reads them again; seeking past them skips them.
    #[error(
        "{topic}/{partition}: damaged batch at offset {offset}: {detail}; seek past it to go on"
    )]
    Corrupt { topic: Arc<str>, partition: PartitionIndex, offset: Offset, detail: Arc<str> },
    #[error("{topic}/{partition}: {failure}")]
    Refused { topic: Arc<str>, partition: PartitionIndex, failure: Failure },
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl ConsumeError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { failure, .. } => Some(failure.code),
            Self::OffsetOutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            Self::NoLeader { .. } => Some(ErrorCode::NotLeader),
            Self::Request(error) => error.code(),
            _ => None,
        }
    }

    /// Whether polling again, with nothing changed, may succeed.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused { failure, .. } => failure.code.is_retriable(),
            Self::Request(error) => error.is_retriable(),
            Self::NoLeader { .. } => true,
            _ => false,
        }
    }
}

/// A member of a group cannot go on without a decision of its program.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The records were given to others meanwhile. Polling again joins again.
    #[error(
        "group {group:?}: more than max_poll_interval ({} ms) passed between two polls, so that this member left and others \
         got its partitions; poll more often, take fewer records at a time, or raise it", after.as_millis()
    )]
    MissedProcessingDeadline { group: String, after: Duration },
    /// With [`crate::StartAt::Error`].
    #[error(
        "group {group:?} has committed nothing for {topic}/{partition}; commit or seek, or choose another start_at"
    )]
    NothingCommitted { group: String, topic: Arc<str>, partition: PartitionIndex },
    /// This offset was not committed; others of the same commit may have been.
    #[error("not committed: {failure}")]
    CommitRefused { failure: Failure },
    #[error("{topic}/{partition} is not assigned to this member")]
    NotAssigned { topic: Arc<str>, partition: PartitionIndex },
    #[error("the member is closed")]
    Closed,
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl GroupError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::CommitRefused { failure } => Some(failure.code),
            Self::Consume(error) => error.code(),
            Self::Request(error) => error.code(),
            _ => None,
        }
    }

    /// Whether the same call, with nothing changed, may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::MissedProcessingDeadline { .. } => true,
            Self::CommitRefused { failure } => failure.code.is_retriable(),
            Self::Consume(error) => error.is_retriable(),
            Self::Request(error) => error.is_retriable(),
            _ => false,
        }
    }
}

/// An administrative call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    #[error("no topic named {topic:?}")]
    UnknownTopic { topic: Arc<str> },
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}")]
    UnknownPartition { topic: Arc<str>, partition: PartitionIndex, partitions: u32 },
    #[error("{topic}/{partition} has no leader at the moment; try again")]
    NoLeader { topic: Arc<str>, partition: PartitionIndex },
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl AdminError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Request(error) => error.code(),
            Self::UnknownTopic { .. } | Self::UnknownPartition { .. } => {
                Some(ErrorCode::UnknownTopicOrPartition)
            }
            Self::NoLeader { .. } => Some(ErrorCode::NotLeader),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Request(error) => error.is_retriable(),
            Self::NoLeader { .. } => true,
            Self::UnknownTopic { .. } | Self::UnknownPartition { .. } => false,
        }
    }

    /// Whether the change may have happened although the answer was lost: look before repeating it.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Request(error) if error.is_indeterminate())
    }
}

impl From<ConnectError> for AdminError {
    fn from(error: ConnectError) -> Self {
        Self::Request(error.into())
    }
}

impl From<ConnectError> for ConsumeError {
    fn from(error: ConnectError) -> Self {
        Self::Request(error.into())
    }
}

fn because(last: Option<&RequestError>, indeterminate: bool) -> String {
    match last {
        Some(last) => format!("; the last attempt failed: {last}"),
        None if indeterminate => {
            "; a leader has it and does not acknowledge it, as when it waits for other replicas"
                .to_owned()
        }
        None => String::new(),
    }
}

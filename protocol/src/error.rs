//! Error codes as they travel, whether trying again can help, and the failure a response carries.
//!
//! A code says what the caller can do; the message beside it says what happened, for a person.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $retriable:literal;)+) => {
        /// Why a request, or one partition of it, was not carried out. Codes never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
            /// A code this build does not know. Not retriable.
            Unknown(u16),
        }

        impl ErrorCode {
            /// Every code this build knows, in numeric order.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code on the wire.
            pub fn code(self) -> u16 {
                match self { $(Self::$name => $code,)+ Self::Unknown(code) => code }
            }

            /// The code's meaning; never fails, see [`ErrorCode::Unknown`].
            pub fn from_code(code: u16) -> Self {
                match code { $($code => Self::$name,)+ other => Self::Unknown(other) }
            }

            /// Whether the same request can succeed later without anybody changing it.
            pub fn is_retriable(self) -> bool {
                match self { $(Self::$name => $retriable,)+ Self::Unknown(_) => false }
            }

            /// Name for logs, metrics labels and documents.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ Self::Unknown(_) => "Unknown" }
            }
        }
    };
}

error_codes! {
    /// The broker met a state it does not understand; its log has the details.
    Internal = 1, false;
    /// The request could not be decoded, or contradicts itself.
    InvalidRequest = 2, false;
    /// The broker does not know this API.
    UnsupportedApi = 3, false;
    /// A frame, header or payload is over its limit.
    TooLarge = 4, false;
    /// The deadline in the request passed before the outcome was known; it may yet take effect.
    Timeout = 5, true;
    /// The broker is starting, stopping or catching up.
    NotReady = 6, true;
    /// A queue is full; try again after a pause.
    Overloaded = 7, true;
    /// The request or subscription was ended before it was done, as a rule by the client's cancel.
    Cancelled = 8, false;

    /// No topic of that name or id, or no such partition in it.
    UnknownTopicOrPartition = 20, true;
    /// A topic of that name exists already.
    TopicExists = 21, false;
    /// The name breaks the rules for topic names.
    InvalidTopicName = 22, false;
    /// Partition or replica count out of range, or fewer partitions than there are.
    InvalidPartitions = 23, false;
    /// Unknown setting, or a value outside its bounds.
    InvalidConfig = 24, false;

    /// This broker does not lead the partition; refresh the metadata.
    NotLeader = 40, true;
    /// The request names an older leader epoch than the broker's.
    FencedLeaderEpoch = 41, true;
    /// The request names a leader epoch the broker has not heard of yet.
    UnknownLeaderEpoch = 42, true;
    /// Fewer in-sync replicas than `min_insync_replicas`; nothing was appended.
    NotEnoughReplicas = 43, true;
    /// Appended, but the in-sync set shrank before it was safe; it may yet commit.
    NotEnoughReplicasAfterAppend = 44, true;
    /// This node is not the active controller.
    NotController = 45, true;

    /// A replica in the proposed in-sync set may not be in it now; nothing was changed.
    IneligibleReplica = 46, true;
    /// The request is based on an older state of the partition than the controller's.
    InvalidUpdateVersion = 47, false;
    /// The broker epoch is not the one the broker is registered with.
    StaleBrokerEpoch = 48, false;
    /// A run of this broker is registered and alive.
    DuplicateBroker = 49, true;
    /// There is no such broker or controller.
    UnknownBroker = 50, false;
    /// The node belongs to another cluster.
    WrongCluster = 51, false;
    /// Another change of the same kind is under way.
    ChangeInProgress = 52, true;
    /// Appended, but this broker stopped leading before it was safe; it may yet commit.
    NotLeaderAfterAppend = 53, true;

    /// The offset is below the log start or above the log end.
    OffsetOutOfRange = 60, false;
    /// A record batch is malformed, or breaks a rule of its topic.
    InvalidBatch = 61, false;
    /// The batch is larger than the topic's `max_batch_bytes`.
    BatchTooLarge = 62, false;
    /// The stored data at this offset is damaged; it was quarantined and will not be served.
    CorruptData = 63, false;
    /// The offset is not known yet: the leader is new and has not learned the high watermark.
    OffsetNotAvailable = 64, true;
    /// A record batch has a wrong CRC: it was damaged on its way. Nothing was appended.
    DamagedBatch = 65, true;

    /// The disk is full; produce is refused until space returns.
    DiskFull = 80, true;
    /// The data directory failed (I/O error, failed flush) and takes no writes until an operator acts.
    StorageFailed = 81, false;

    /// No member of that id in the group: it left, was removed, or never joined. Join again.
    UnknownMember = 100, false;
    /// The member's epoch is not one it can have: others hold its partitions now. Drop them and join again.
    FencedMemberEpoch = 101, false;
    /// The epoch is an older one of the member's; a heartbeat tells the present one.
    StaleMemberEpoch = 102, true;
    /// The request was overtaken by a later one of the same member, and changed nothing.
    StaleRequest = 103, false;
    /// There is no group of that name.
    UnknownGroup = 104, false;
    /// The group has members, and what was asked is only for groups without.
    GroupNotEmpty = 105, false;
    /// The name of a group, member, instance or client breaks the rules.
    InvalidGroup = 106, false;
    /// The group's members speak another group protocol, or have no assignor in common.
    GroupProtocolMismatch = 107, false;
    /// The group, or the broker, has as many members or groups as it takes.
    GroupFull = 108, false;
    /// Another process has taken over this static member's place.
    FencedInstance = 109, false;
    /// The static member's place is held by a process that has neither left nor timed out.
    UnreleasedInstance = 110, true;
    /// The subscription's regular expression cannot be used.
    InvalidRegex = 111, false;
    /// There is no assignor of that name.
    UnknownAssignor = 112, false;
    /// The member may not commit for this partition: it does not hold it.
    NotAssigned = 113, false;
    /// The metadata beside an offset is too long.
    OffsetMetadataTooLarge = 114, false;
    /// A transaction with an offset for this partition has not ended yet.
    UnstableOffset = 115, true;
    /// Classic groups: the generation is not the group's.
    IllegalGeneration = 116, false;
    /// Classic groups: the members are joining anew; join as well.
    RebalanceInProgress = 117, false;
    /// Classic groups: join again with the member id given.
    MemberIdRequired = 118, false;
    /// There is no such change of offsets to bring back.
    UnknownSeek = 119, false;
    /// This broker does not coordinate the group or transaction; look up the coordinator.
    NotCoordinator = 120, true;
    /// The coordinator is reading its log.
    CoordinatorLoading = 121, true;

    /// A newer process has taken over this producer's transactional id.
    ProducerFenced = 140, false;
    /// The producer epoch is older than one already seen; end the transaction and initialize again.
    InvalidProducerEpoch = 141, false;
    /// The transactional id does not belong to this producer id.
    InvalidProducerId = 142, false;
    /// The batch does not follow the last one of this producer.
    OutOfOrderSequence = 143, false;
    /// Not in this state of the transaction.
    InvalidTransactionState = 144, false;
    /// The transactional id's last transaction is still ending.
    ConcurrentTransactions = 145, true;
    /// The marker is from a coordinator that has been replaced.
    TransactionCoordinatorFenced = 146, false;
    /// The coordinator aborted the transaction: it timed out, or an operator ended it.
    TransactionAborted = 147, false;
    /// The timeout of transactions is out of range.
    InvalidTransactionTimeout = 148, false;
    /// The transactional id is unknown.
    UnknownTransaction = 149, false;
    /// The partition is not, or no longer, known to belong to the transaction; verify again.
    TransactionUnverified = 150, true;
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.code())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from_code)
    }
}

/// A code and a sentence. The sentence says what was wrong and, where one can say it, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({})", code.name())]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
}

/// Longest message of a failure, in bytes: a failure always fits a header, whatever it repeats of a request.
const MESSAGE_BYTES_MAX: usize = 4096;

impl Failure {
    /// A message of more than 4 KiB is cut off.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message: String = message.into();
        if message.len() <= MESSAGE_BYTES_MAX {
            return Self { code, message };
        }
        Self { code, message: shortened(&message, MESSAGE_BYTES_MAX) }
    }
}

/// `text`, or as much of its beginning as fits `bytes_max` with an ellipsis behind it.
pub(crate) fn shortened(text: &str, bytes_max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(ELLIPSIS.len()));
    format!("{}{ELLIPSIS}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_and_is_unique() {
        for pair in ErrorCode::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{pair:?} out of order");
        }
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_code(code.code()), *code);
        }
        assert!(!ErrorCode::from_code(65_535).is_retriable());
    }

    #[test]
    fn a_message_that_repeats_too_much_is_cut_off_between_characters() {
        let failure = Failure::new(ErrorCode::InvalidRequest, "ä".repeat(1 << 20));
        assert!((4000..=MESSAGE_BYTES_MAX).contains(&failure.message.len()));
        assert!(failure.message.ends_with("ä…"));
        let whole = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(Failure::new(ErrorCode::Internal, whole.clone()).message, whole);
    }
}

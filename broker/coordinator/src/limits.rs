//! Bounds on what clients can make a coordinator remember. Constants, not settings; each is checked before the
//! thing is stored.

/// Longest name of a group, member, instance, client, host or transactional id, in bytes.
pub const NAME_BYTES_MAX: usize = 249;
/// Most groups in one coordinator.
pub const GROUPS_MAX: usize = 100_000;
/// Most partitions with a committed offset in one group.
pub const GROUP_OFFSETS_MAX: usize = 100_000;
/// Longest metadata beside a committed offset, in bytes (Kafka's default).
pub const OFFSET_METADATA_BYTES_MAX: usize = 4096;
/// Most topics one member may name.
pub const SUBSCRIPTION_TOPICS_MAX: usize = 10_000;
/// Longest regular expression of a subscription, in bytes.
pub const REGEX_BYTES_MAX: usize = 1024;
/// Most memory a compiled regular expression may take, in bytes.
pub const REGEX_PROGRAM_BYTES_MAX: usize = 1 << 20;
/// Changes of offsets by an administrator that a group remembers.
pub const SEEKS_KEPT: usize = 10;
/// Removals of members that a group remembers, to tell an operator why.
pub const REMOVALS_KEPT: usize = 10;
/// Bytes a classic member may bring: its protocols' metadata, and what its leader assigns to it.
pub const CLASSIC_MEMBER_BYTES_MAX: usize = 1 << 20;
/// Bytes of all members of a classic group: one record holds them.
pub const CLASSIC_GROUP_BYTES_MAX: usize = 16 << 20;
/// Most protocols a classic member may offer.
pub const CLASSIC_PROTOCOLS_MAX: usize = 100;
/// Most transactional ids in one coordinator.
pub const TRANSACTIONS_MAX: usize = 100_000;
/// Most partitions in one transaction.
pub const TRANSACTION_PARTITIONS_MAX: usize = 10_000;
/// Most producers that one partition keeps state of.
pub const PARTITION_PRODUCERS_MAX: usize = 100_000;
/// Bytes of records after which timers and sweeps stop and go on in the next call: a decision has to fit one batch,
/// and what a single request leads to may come on top.
pub const DECISION_BYTES_MAX: usize = 4 << 20;
/// Bytes of metadata that go into one record or one decision.
pub const METADATA_BYTES_MAX: usize = 4 << 20;
/// Most offsets that one transaction may have in one coordinator.
pub const TRANSACTION_OFFSETS_MAX: usize = 10_000;
/// Most elements in a list of a record.
pub(crate) const LIST_ELEMENTS_MAX: usize = 200_000;

//! Metadata, topics and brokers: the messages of administration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionIndex, TimestampMs, TopicId,
    message::{Api, Request},
};

/// A topic's settings that differ from the defaults, by name. The names are those of the topic settings in `docs/operations.md`.
pub type TopicSettings = BTreeMap<String, String>;

/// Brokers, and the topics asked for with their partitions and leaders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataRequest {
    /// Topics by name; `None` asks for all. Unknown names are absent from the answer.
    pub topics: Option<Vec<String>>,
    /// Further topics by id.
    pub topic_ids: Vec<TopicId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataResponse {
    pub cluster_id: String,
    pub controller_id: Option<BrokerId>,
    /// The broker that answers.
    pub broker_id: BrokerId,
    /// Index in the metadata log up to which this answer is current.
    pub metadata_index: u64,
    pub brokers: Vec<BrokerMetadata>,
    /// Sorted by name.
    pub topics: Vec<TopicMetadata>,
}

/// A broker and where clients reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerMetadata {
    pub id: BrokerId,
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
    /// Fenced brokers serve nothing.
    pub fenced: bool,
    /// Index of the metadata entry that registered this run of the broker.
    #[serde(default)]
    pub epoch: BrokerEpoch,
    /// It is stopping in order and leads nothing any more.
    #[serde(default)]
    pub shutting_down: bool,
    /// It gets no new replicas, and those it has are being moved away.
    #[serde(default)]
    pub draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMetadata {
    pub name: String,
    pub id: TopicId,
    /// In order of index, without gaps.
    pub partitions: Vec<PartitionMetadata>,
    pub settings: TopicSettings,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMetadata {
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: u32,
    /// In order of preference.
    pub replicas: Vec<BrokerId>,
    pub isr: Vec<BrokerId>,
    /// Not in sync, but known to hold everything committed: may lead when nobody is in sync (KIP-966).
    #[serde(default)]
    pub elr: Vec<BrokerId>,
    /// Being moved here, as part of `replicas`.
    #[serde(default)]
    pub adding: Vec<BrokerId>,
    /// To go from `replicas` once `adding` is in sync.
    #[serde(default)]
    pub removing: Vec<BrokerId>,
}

impl Request for MetadataRequest {
    const API: Api = Api::Metadata;
    type Response = MetadataResponse;
}

/// Creates a topic. Answers when it can be produced to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopicRequest {
    pub name: String,
    /// `None`: the broker's default.
    pub partitions: Option<u32>,
    /// `None`: the broker's default.
    pub replication_factor: Option<u16>,
    pub settings: TopicSettings,
    /// Check everything, create nothing.
    pub validate_only: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopicResponse {
    /// [`TopicId::ZERO`] when only validated.
    pub id: TopicId,
    pub partitions: u32,
    pub replication_factor: u16,
    pub settings: TopicSettings,
}

impl Request for CreateTopicRequest {
    const API: Api = Api::CreateTopic;
    type Response = CreateTopicResponse;
}

/// Deletes a topic and its records, for good. By id when given, so that a topic created meanwhile under the
/// same name is not hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopicRequest {
    pub name: String,
    pub id: Option<TopicId>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopicResponse {
    pub id: TopicId,
}

impl Request for DeleteTopicRequest {
    const API: Api = Api::DeleteTopic;
    type Response = DeleteTopicResponse;
}

/// Changes settings of a topic, all or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterTopicRequest {
    pub name: String,
    pub set: TopicSettings,
    /// Settings that go back to their default.
    pub unset: Vec<String>,
    pub validate_only: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterTopicResponse {
    /// All settings that differ from the defaults, after the change.
    pub settings: TopicSettings,
}

impl Request for AlterTopicRequest {
    const API: Api = Api::AlterTopic;
    type Response = AlterTopicResponse;
}

/// Raises the partition count of a topic. Keys will map to other partitions from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPartitionsRequest {
    pub name: String,
    /// The new total.
    pub partitions: u32,
    pub validate_only: bool,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPartitionsResponse {
    pub partitions: u32,
}

impl Request for AddPartitionsRequest {
    const API: Api = Api::AddPartitions;
    type Response = AddPartitionsResponse;
}

/// One topic in full, as seen by the broker that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeTopicRequest {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeTopicResponse {
    pub topic: TopicMetadata,
    /// One entry per topic setting, defaults included.
    pub settings: Vec<SettingValue>,
    /// The logs this broker holds, in order of partition.
    pub logs: Vec<LogDescription>,
}

/// A setting in force and where its value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingValue {
    pub name: String,
    pub value: String,
    pub default: String,
    /// `default`, `file`, `environment`, `flag` or `topic`.
    pub source: String,
    pub doc: String,
}

/// The local log of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDescription {
    pub partition: PartitionIndex,
    pub log_start_offset: Offset,
    pub high_watermark: Offset,
    pub log_end_offset: Offset,
    /// Exclusive end of what is on stable storage.
    pub flushed_offset: Offset,
    pub size_bytes: u64,
    pub segments: u32,
    /// Largest timestamp in the log, `NO_TIMESTAMP` when it is empty.
    pub max_timestamp_ms: TimestampMs,
    /// Why the log is not fully served, if so: quarantined ranges, a failed directory.
    pub trouble: Option<String>,
}

impl Request for DescribeTopicRequest {
    const API: Api = Api::DescribeTopic;
    type Response = DescribeTopicResponse;
}

/// Asks a broker about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeBrokerRequest {
    /// Also list every setting.
    pub include_settings: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeBrokerResponse {
    pub id: BrokerId,
    pub cluster_id: String,
    pub version: String,
    pub uptime_ms: u64,
    /// Empty when the broker is ready.
    pub not_ready_reasons: Vec<String>,
    pub topics: u32,
    pub partitions: u32,
    pub connections: u32,
    pub settings: Vec<SettingValue>,
}

impl Request for DescribeBrokerRequest {
    const API: Api = Api::DescribeBroker;
    type Response = DescribeBrokerResponse;
}

/// Asks a broker about its data directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeLogDirsRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeLogDirsResponse {
    pub dirs: Vec<LogDirDescription>,
}

/// One data directory: its disk, its state and the topics in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDirDescription {
    pub path: String,
    /// `ok`, `full` or `failed`.
    pub state: String,
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    /// Sorted by name.
    pub topics: Vec<TopicSize>,
}

/// What one topic takes on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSize {
    pub name: String,
    pub partitions: u32,
    pub size_bytes: u64,
}

impl Request for DescribeLogDirsRequest {
    const API: Api = Api::DescribeLogDirs;
    type Response = DescribeLogDirsResponse;
}

//! The internal topics: what they are called, how they are made on first need, and which partition somebody belongs to.

use tidemark_controller::{Command, CreateTopic, Image, Topic};
use tidemark_protocol::{
    ErrorCode, Failure, PartitionIndex, TopicId, is_internal_topic, messages::TopicSettings,
    partitioner::partition_for_key,
};

use crate::{broker::Broker, service::change_metadata};

/// Groups, their members and their offsets.
pub(crate) const GROUPS: &str = "__groups";

/// Partitions of an internal topic. Never changed for one that exists: it decides who belongs where.
const PARTITIONS: u32 = 16;
/// Replicas, if there are as many brokers.
const REPLICAS: usize = 3;
/// In sync for a commit, when there are three replicas: no broker that dies takes the only copy with it.
const IN_SYNC_MIN: u32 = 2;
/// A decision and its consequences fit one batch.
const BATCH_BYTES_MAX: usize = tidemark_protocol::limits::BATCH_BYTES_MAX;
/// Small, so that compaction, which leaves the last segment alone, keeps the log short that a new leader has to read.
const SEGMENT_BYTES: usize = 64 << 20;

/// The partition of an internal topic that a group or transactional id belongs to.
pub(crate) fn partition_of(topic: &Topic, key: &str) -> PartitionIndex {
    partition_for_key(key.as_bytes(), topic.partition_count())
}

/// Refuses what users may not do to the cluster's own topics.
pub(crate) fn refuse_internal(name: &str, verb: &str) -> Result<(), Failure> {
    if !is_internal_topic(name) {
        return Ok(());
    }
    let message = format!(
        "{name:?} belongs to the cluster: topics whose names begin with two underscores cannot be {verb}"
    );
    Err(Failure::new(ErrorCode::InvalidTopicName, message))
}

/// The id of the topic, which is made if it is not there yet.
pub(crate) async fn ensure(
    broker: &Broker,
    name: &str,
    timeout_ms: u32,
) -> Result<TopicId, Failure> {
    if let Some(topic) = broker.image().topic(name) {
        return Ok(topic.id);
    }
    let replicas = replicas(&broker.image());
    let command = CreateTopic {
        name: name.to_owned(),
        id: TopicId(uuid::Uuid::new_v4().into_bytes()),
        partitions: PARTITIONS,
        replication_factor: u16::try_from(replicas).expect("at most three"),
        settings: settings(replicas),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        validate_only: false,
    };
    match change_metadata(broker, Command::CreateTopic(command), timeout_ms).await {
        Ok(_) => tracing::info!(topic = name, replicas, "made an internal topic"),
        // Somebody else was quicker.
        Err(failure) if failure.code == ErrorCode::TopicExists => {}
        Err(failure) => {
            let message = format!("{name} cannot be made yet: {}", failure.message);
            return Err(Failure::new(ErrorCode::NotReady, message));
        }
    }
    let mut images = broker.images.clone();
    let known = images.wait_for(|image| image.topic(name).is_some());
    let image = tokio::time::timeout(crate::service::timeout(timeout_ms), known).await;
    let known = image.ok().and_then(Result::ok).and_then(|image| Some(image.topic(name)?.id));
    known.ok_or_else(|| Failure::new(ErrorCode::NotReady, format!("{name} is not known here yet")))
}

/// As many as there are brokers to hold them, alive or not: one that is away for a moment must not cost a replica for good.
fn replicas(image: &Image) -> usize {
    image.brokers().filter(|broker| !broker.draining).count().clamp(1, REPLICAS)
}

fn settings(replicas: usize) -> TopicSettings {
    let in_sync_min = if replicas < REPLICAS { 1 } else { IN_SYNC_MIN };
    let settings = [
        ("cleanup_policy", "compact".to_owned()),
        ("durability", "disk".to_owned()),
        ("min_insync_replicas", in_sync_min.to_string()),
        ("max_batch_bytes", BATCH_BYTES_MAX.to_string()),
        ("segment_bytes", SEGMENT_BYTES.to_string()),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

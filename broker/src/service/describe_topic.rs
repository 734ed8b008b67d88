//! Describe topic: its metadata, settings and the logs that this broker holds of it.

use tidemark_controller::settings;
use tidemark_protocol::{
    Failure, TopicPartition,
    messages::{DescribeTopicRequest, DescribeTopicResponse, LogDescription},
};

use crate::{broker::Broker, partitions::PartitionView};

pub(crate) fn describe_topic(
    broker: &Broker,
    request: &DescribeTopicRequest,
) -> Result<DescribeTopicResponse, Failure> {
    let image = broker.image();
    let topic = image.require_topic(&request.name)?;
    let ids = (0..topic.partition_count())
        .map(|partition| TopicPartition { topic_id: topic.id, partition });
    let views = ids.filter_map(|id| broker.partitions.get(id));
    let logs = views.map(|view| describe(broker, &view)).collect();
    Ok(DescribeTopicResponse {
        topic: topic.metadata(),
        settings: settings::describe(&topic.settings),
        logs,
    })
}

fn describe(broker: &Broker, view: &PartitionView) -> LogDescription {
    let reader = &view.reader;
    LogDescription {
        partition: view.id.partition,
        log_start_offset: reader.log_start_offset(),
        high_watermark: view.high_watermark(),
        log_end_offset: reader.log_end_offset(),
        flushed_offset: reader.flushed_offset(),
        size_bytes: reader.size_bytes(),
        segments: u32::try_from(reader.segment_count()).unwrap_or(u32::MAX),
        max_timestamp_ms: reader.max_timestamp_ms(),
        trouble: trouble(broker, view),
    }
}

fn trouble(broker: &Broker, view: &PartitionView) -> Option<String> {
    let damaged: Vec<_> = view
        .reader
        .quarantined()
        .iter()
        .map(|range| format!("{} to {}", range.start, range.end))
        .collect();
    let damaged = (!damaged.is_empty())
        .then(|| format!("offsets {} are damaged and not served", damaged.join(", ")));
    damaged.or_else(|| broker.disk_watch.failure().map(str::to_owned))
}

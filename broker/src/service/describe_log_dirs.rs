//! Describe log directories: disk, state, and what each topic takes.

use std::collections::BTreeMap;

use tidemark_protocol::messages::{DescribeLogDirsResponse, LogDirDescription, TopicSize};

use crate::broker::Broker;

pub(crate) fn describe_log_dirs(broker: &Broker) -> DescribeLogDirsResponse {
    let mut topics: BTreeMap<String, TopicSize> = BTreeMap::new();
    for view in broker.partitions.all() {
        let name = view.topic.to_string();
        let topic =
            topics.entry(name.clone()).or_insert(TopicSize { name, partitions: 0, size_bytes: 0 });
        topic.partitions += 1;
        topic.size_bytes += view.reader.size_bytes();
    }
    let space = broker.disk_watch.space();
    let dir = LogDirDescription {
        path: broker.disk_watch.dir().display().to_string(),
        state: broker.disk_watch.state().name().to_owned(),
        disk_total_bytes: space.total_bytes,
        disk_free_bytes: space.free_bytes,
        topics: topics.into_values().collect(),
    };
    DescribeLogDirsResponse { dirs: vec![dir] }
}

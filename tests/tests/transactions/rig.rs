//! What the tests of transactions share: a runtime, and reading everything that there is.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use tidemark_client::{Client, ConsumerConfig, Isolation, Position};
use tidemark_protocol::PartitionIndex;
use tokio::runtime::Runtime;

/// How long a poll for what is left waits before it counts as the end.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Everything that can be read of a topic, by partition, until nothing has come for a while.
pub(crate) async fn read_all(
    client: &Client,
    topic: &str,
    isolation: Isolation,
) -> Result<BTreeMap<PartitionIndex, Vec<String>>> {
    let config = ConsumerConfig { isolation, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    consumer.assign_topic(topic, Position::Earliest).await?;
    let mut read: BTreeMap<PartitionIndex, Vec<String>> = BTreeMap::new();
    loop {
        let records = consumer.poll(QUIET).await?;
        if records.is_empty() {
            return Ok(read);
        }
        for record in records {
            let value = record.value.context("a value")?;
            read.entry(record.partition).or_default().push(String::from_utf8(value.to_vec())?);
        }
    }
}

//! Reads a topic, makes something of each record, and writes that to another topic, exactly once: a record and the position
//! behind it count together or not at all. Kill it at any moment, and start it again.
//!
//! ```sh
//! tidemark topic create words --partitions 1
//! tidemark topic create shouts --partitions 1
//! printf 'hello\nworld\n' | tidemark produce words
//! cargo run -p tidemark-client --example read_process_write
//! tidemark consume shouts --read-committed -e
//! ```

use std::{error::Error, time::Duration};

use tidemark_client::{
    Client, ClientConfig, ConsumerConfig, ErrorCode, Isolation, Position, ProducerRecord,
    TransactionalConfig,
};
use tidemark_protocol::TopicPartition;

const FROM: &str = "words";
const TO: &str = "shouts";
const GROUP: &str = "shouting";
/// How long nothing has to come before the example ends.
const QUIET: Duration = Duration::from_secs(3);

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::connect(ClientConfig::new("127.0.0.1:9092")).await?;
    // First of all: whoever ran under this id before is shut out from here on, and what it left open is aborted. So the
    // committed position is the last word.
    let config = TransactionalConfig::new("shouting-1");
    let mut producer = client.transactional_producer(config).await?;

    let admin = client.admin();
    let metadata = admin.metadata(Some(vec![FROM.to_owned()])).await?;
    let topic = metadata.topics.first().ok_or("there is no topic `words`; create it first")?;
    let first = TopicPartition { topic_id: topic.id, partition: 0 };
    let committed = match admin.fetch_offsets(GROUP, Some(vec![first])).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => None,
        found => match found?.pop() {
            Some(found) => found.outcome?.map(|committed| committed.offset),
            None => None,
        },
    };

    let config =
        ConsumerConfig { isolation: Isolation::ReadCommitted, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    let begin = committed.map_or(Position::Earliest, Position::Offset);
    consumer.assign([(FROM, 0, begin)]).await?;
    loop {
        let records = consumer.poll(QUIET).await?;
        if records.is_empty() {
            producer.close().await;
            return Ok(());
        }
        producer.begin()?;
        for record in &records {
            let word = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            // Its delivery is waited for by the commit.
            drop(producer.send(ProducerRecord::to(TO).value(word.to_uppercase())).await?);
        }
        let position = consumer.position(FROM, 0).ok_or("it is assigned")?;
        producer.send_offsets(GROUP, None, [(FROM, 0, position)]).await?;
        producer.commit().await?;
        println!("{} records", records.len());
    }
}

//! Writes records to a topic of a running broker and reads them back.
//!
//! `cargo run --release -p tidemark-client --example produce_consume -- [host:port] [records]`

use std::{
    env,
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use tidemark_client::{
    AdminError, Client, ClientConfig, ConsumerConfig, ErrorCode, NewTopic, Position,
    ProducerConfig, ProducerRecord,
};

const TOPIC: &str = "produce_consume";

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let count: u64 = arguments.next().map_or(Ok(100_000), |count| count.parse())?;

    let client = Client::connect(ClientConfig::new(address)).await?;
    create_topic(&client).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_topic(TOPIC, Position::Latest).await?;

    let producer = client.producer(ProducerConfig::default());
    let topic: Arc<str> = TOPIC.into();
    let begun = Instant::now();
    for number in 0..count {
        let record = ProducerRecord::to(topic.clone()).value(format!("record {number}"));
        // Waits only while the buffer is full. What became of each record is in the delivery; here the
        // flush at the end tells if any has failed.
        drop(producer.send(record).await?);
    }
    producer.close().await?;
    println!("wrote {count} records in {:?}", begun.elapsed());

    let begun = Instant::now();
    let mut read = 0;
    while read < count {
        let records = consumer.poll(Duration::from_secs(10)).await?;
        if records.is_empty() {
            return Err(format!("{read} of {count} records came").into());
        }
        read += records.len() as u64;
    }
    println!("read {read} records in {:?}", begun.elapsed());
    Ok(())
}

async fn create_topic(client: &Client) -> Result<(), AdminError> {
    match client.admin().create_topic(NewTopic::new(TOPIC).partitions(3)).await {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => Ok(()),
        created => created.map(drop),
    }
}

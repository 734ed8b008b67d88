//! A pool of workers that share a topic: start it in several terminals, kill one, and the others take over.
//!
//! `cargo run --release -p tidemark-client --example worker_pool -- [host:port] [name]`
//!
//! Each record is worked on by one of them. What a worker had finished and committed is not done again; what it had begun
//! when it died is done by another.

use std::{env, error::Error, time::Duration};

use tidemark_client::{
    AdminError, Client, ClientConfig, ErrorCode, GroupConfig, GroupError, NewTopic, Rebalance,
};

const TOPIC: &str = "jobs";

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let name = arguments.next().unwrap_or_else(|| "worker".to_owned());

    let config = ClientConfig { client_id: name.clone(), ..ClientConfig::new(address) };
    let client = Client::connect(config).await?;
    create_topic(&client).await?;

    let mut config = GroupConfig::new("workers").topic(TOPIC);
    // Commits are this program's business: only finished work counts.
    config.auto_commit = None;
    // Longer than the longest job takes. Who takes longer is put out, and its jobs go to others.
    config.max_poll_interval = Duration::from_secs(30);
    // A few at a time, so that not much is done again when a worker dies.
    config.consumer.poll_records_max = 10;
    let mut worker = client.group_consumer(config).on_rebalance(move |rebalance| match rebalance {
        Rebalance::Assigned(partitions) => println!("{name}: I have {partitions:?}"),
        Rebalance::Revoked(partitions) => println!("{name}: I give up {partitions:?}"),
        Rebalance::Lost(partitions) => println!("{name}: I lost {partitions:?}"),
    });

    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let jobs = tokio::select! {
            jobs = worker.poll(Duration::from_secs(1)) => match jobs {
                Ok(jobs) => jobs,
                Err(error @ GroupError::MissedProcessingDeadline { .. }) => {
                    println!("{error}");
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            _ = &mut interrupt => break,
        };
        for job in &jobs {
            let text = String::from_utf8_lossy(job.value.as_deref().unwrap_or_default());
            println!("{}/{}: {text}", job.partition, job.offset);
        }
        if !jobs.is_empty()
            && let Err(error) = worker.commit().await
        {
            // Others have these partitions by now, and do these jobs again: jobs must bear that.
            println!("not committed: {error}");
        }
    }
    worker.close().await?;
    Ok(())
}

async fn create_topic(client: &Client) -> Result<(), AdminError> {
    match client.admin().create_topic(NewTopic::new(TOPIC).partitions(6)).await {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => Ok(()),
        created => created.map(drop),
    }
}

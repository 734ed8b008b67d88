//! `copier`: a member of a group that copies one topic into another, exactly once, for `tests/tests/transactions/pipeline.rs`,
//! which kills it, stops it and lets it run again.
//!
//! It says on standard output what it does, a line each: `member`, `commit`, `abort`, `anew` with the reason, `fenced`. When
//! its standard input ends it leaves the group and ends. It refuses to judge what it has written.
#![expect(clippy::print_stdout, reason = "its output is how its owner knows what it does")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use clap::Parser;
use tidemark_client::{
    Client, ClientConfig, ConsumedRecord, GroupConfig, GroupConsumer, GroupError, Isolation,
    Position, ProducerRecord, TransactionError, TransactionalConfig, TransactionalProducer,
};
use tidemark_tests::random::Random;
use tokio::{sync::watch, time::sleep};

/// A transaction that is open for longer is aborted; who was stopped in one holds the others up for no longer than this.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(4);
/// Between an error and the next try.
const AFTER_ERROR: Duration = Duration::from_millis(50);
const POLL_WAIT: Duration = Duration::from_millis(200);
/// Records of a transaction at most.
const RECORDS_MAX: usize = 50;

#[derive(Parser)]
struct Arguments {
    #[arg(long, value_delimiter = ',')]
    brokers: Vec<String>,
    #[arg(long)]
    from: String,
    #[arg(long)]
    to: String,
    #[arg(long)]
    group: String,
    #[arg(long)]
    transactional_id: String,
    /// Of its choices.
    #[arg(long)]
    seed: u64,
    /// Commits offsets after the transaction and not in it: then it must be seen that things are copied twice.
    #[arg(long)]
    offsets_apart: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (stop, stopped) = watch::channel(false);
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        // Whatever comes: only the end counts.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        stop.send_replace(true);
    })?;
    let mut random = Random::new(arguments.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        loop {
            match live(&arguments, &mut random, stopped.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if is_fenced(&error) => {
                    say("fenced");
                    return Err(error);
                }
                Err(error) => say(&format!("anew {error:#}").replace('\n', " ")),
            }
            sleep(AFTER_ERROR).await;
        }
    })
}

fn say(what: &str) {
    println!("{what}");
    // Nobody listens any more: soon it ends.
    drop(std::io::stdout().flush());
}

fn is_fenced(error: &anyhow::Error) -> bool {
    error.downcast_ref::<TransactionError>().is_some_and(TransactionError::is_fenced)
}

/// One time as a member and as a producer: ends when it is told to, or with the first error.
async fn live(
    arguments: &Arguments,
    random: &mut Random,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let settings = ClientConfig {
        bootstrap: arguments.brokers.clone(),
        client_id: arguments.transactional_id.clone(),
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(5),
        ..ClientConfig::default()
    };
    let client = Client::connect(settings).await?;
    let config = TransactionalConfig {
        transaction_timeout: TRANSACTION_TIMEOUT,
        ..TransactionalConfig::new(arguments.transactional_id.as_str())
    };
    let mut producer = client.transactional_producer(config).await?;
    let mut config = GroupConfig::new(arguments.group.as_str()).topic(arguments.from.as_str());
    config.auto_commit = None;
    config.consumer.isolation = Isolation::ReadCommitted;
    config.consumer.poll_records_max = RECORDS_MAX;
    let mut member = client.group_consumer(config);
    say("member");
    loop {
        let polled = tokio::select! {
            polled = member.poll(POLL_WAIT) => polled,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let records = match polled {
            Ok(records) => records,
            Err(GroupError::MissedProcessingDeadline { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        if !records.is_empty()
            && let Err(error) = copy(arguments, random, &mut producer, &mut member, &records).await
        {
            // Whether somebody else goes on under the id is told at the latest by the abort: then this one must not begin anew.
            return match producer.abort().await {
                Err(fenced) if fenced.is_fenced() => Err(fenced.into()),
                _ => Err(error),
            };
        }
    }
    producer.close().await;
    Ok(member.close().await?)
}

/// One transaction.
async fn copy(
    arguments: &Arguments,
    random: &mut Random,
    producer: &mut TransactionalProducer,
    member: &mut GroupConsumer,
    records: &[ConsumedRecord],
) -> Result<()> {
    let (mut begins, mut ends) = (BTreeMap::new(), BTreeMap::new());
    let gives_up = random.one_in(12);
    producer.begin()?;
    for record in records {
        begins.entry(record.partition).or_insert(record.offset);
        ends.insert(record.partition, record.offset + 1);
        let value = record.value.clone().unwrap_or_default();
        // What is given up is told from what counts by anybody who sees it.
        let value = if gives_up { [b"never ", &value[..]].concat().into() } else { value };
        let copy = ProducerRecord::to(arguments.to.as_str()).partition(record.partition);
        drop(producer.send(copy.value(value)).await?);
    }
    let from = arguments.from.as_str();
    let offsets = ends.iter().map(|(partition, end)| (from, *partition, *end));
    if !arguments.offsets_apart {
        producer.send_offsets(&arguments.group, Some(member.member()), offsets.clone()).await?;
    }
    // Time for whoever kills.
    sleep(Duration::from_millis(random.between(0, 30))).await;
    if gives_up {
        producer.abort().await?;
        for (partition, begin) in begins {
            member.seek(from, partition, Position::Offset(begin)).await?;
        }
        say("abort");
        return Ok(());
    }
    commit(producer).await?;
    if arguments.offsets_apart {
        sleep(Duration::from_millis(random.between(0, 30))).await;
        member.commit_offsets(offsets.map(|(a, b, c)| (a, b, c, String::new()))).await?;
    }
    say(&format!("commit {}", records.len()));
    Ok(())
}

/// Commits, asking again as long as nobody knows.
async fn commit(producer: &mut TransactionalProducer) -> Result<()> {
    loop {
        match producer.commit().await {
            Err(error) if error.is_indeterminate() => sleep(AFTER_ERROR).await,
            Err(error) => return Err(anyhow!(error)),
            Ok(()) => return Ok(()),
        }
    }
}

//! Transactions over real brokers, one after the other: committed, aborted, fenced, timed out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidemark_client::{
    Client, ConsumerConfig, ErrorCode, GroupConfig, Isolation, NewTopic, Position, ProducerConfig,
    ProducerRecord, TransactionError, TransactionalConfig, TransactionalProducer,
};
use tidemark_tests::cluster::{self, ClusterConfig, PATIENCE};

use super::rig::{read_all, runtime};

fn config(id: &str) -> TransactionalConfig {
    TransactionalConfig { timeout: PATIENCE, ..TransactionalConfig::new(id) }
}

async fn flat(client: &Client, topic: &str, isolation: Isolation) -> Result<Vec<String>> {
    Ok(read_all(client, topic, isolation).await?.into_values().flatten().collect())
}

/// Writes a record, and waits until it is there.
async fn send(producer: &mut TransactionalProducer, topic: &str, value: &str) -> Result<()> {
    let record = ProducerRecord::to(topic).partition(0).value(value.to_owned());
    producer.send(record).await?.await?;
    Ok(())
}

#[test]
fn what_is_committed_is_read_and_what_is_aborted_is_not() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut producer = client.transactional_producer(config("one")).await?;
            for (value, commit) in [("a", true), ("b", false), ("c", true), ("d", false)] {
                producer.begin()?;
                send(&mut producer, "t", value).await?;
                send(&mut producer, "t", &format!("{value}{value}")).await?;
                if commit { producer.commit().await? } else { producer.abort().await? }
            }
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["a", "aa", "c", "cc"], "{committed:?}");
            let all = flat(&client, "t", Isolation::ReadUncommitted).await?;
            ensure!(all.len() == 8, "{all:?}");
            // What is open holds back what comes behind it, from whomever.
            producer.begin()?;
            send(&mut producer, "t", "open").await?;
            let other = client.producer(ProducerConfig::default());
            other.send(ProducerRecord::to("t").partition(0).value("behind")).await?.await?;
            producer.send(ProducerRecord::to("t").partition(0).value("open, too")).await?.await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["a", "aa", "c", "cc"], "{committed:?}");
            producer.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed.len() == 7, "{committed:?}");
            producer.close().await;
            Ok(())
        })
    })
}

#[test]
fn of_two_processes_with_one_id_the_first_is_over() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut first = client.transactional_producer(config("one")).await?;
            first.begin()?;
            send(&mut first, "t", "zombie").await?;
            let mut second = client.transactional_producer(config("one")).await?;
            let error = first.commit().await.err().context("it was fenced")?;
            let error = if error.is_fenced() {
                error
            } else {
                first.abort().await.err().context("it was fenced")?
            };
            ensure!(error.is_fenced(), "{error}");
            second.begin()?;
            send(&mut second, "t", "owner").await?;
            second.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["owner"], "{committed:?}");
            Ok(())
        })
    })
}

#[test]
fn a_transaction_that_is_open_for_too_long_is_aborted_and_its_producer_goes_on() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let slow = TransactionalConfig {
                transaction_timeout: Duration::from_millis(500),
                ..config("slow")
            };
            let mut producer = client.transactional_producer(slow).await?;
            producer.begin()?;
            send(&mut producer, "t", "late").await?;
            let other = client.producer(ProducerConfig::default());
            other.send(ProducerRecord::to("t").partition(0).value("next")).await?.await?;
            // It is read as soon as the transaction in front of it is over.
            let isolated =
                ConsumerConfig { isolation: Isolation::ReadCommitted, ..ConsumerConfig::default() };
            let mut consumer = client.consumer(isolated);
            consumer.assign_topic("t", Position::Earliest).await?;
            let records = consumer.poll(PATIENCE).await?;
            let values: Vec<_> = records.iter().filter_map(|it| it.value.as_deref()).collect();
            ensure!(values == [b"next"], "{records:?}");
            let error = producer.commit().await.err().context("it is over")?;
            ensure!(error.code() == Some(ErrorCode::TransactionAborted), "{error}");
            producer.abort().await?;
            producer.begin()?;
            send(&mut producer, "t", "again").await?;
            producer.commit().await?;
            let committed = flat(&client, "t", Isolation::ReadCommitted).await?;
            ensure!(committed == ["next", "again"], "{committed:?}");
            Ok(())
        })
    })
}

#[test]
fn the_command_line_shows_transactions_and_aborts_one() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("t").partitions(1))?;
        let cli = cluster.cli();
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let mut producer = client.transactional_producer(config("hanging")).await?;
            producer.begin()?;
            let record = ProducerRecord::to("t").partition(0).value("never");
            producer.send(record).await?.await?;
            let listed = cli.done(&["txn", "list"]);
            let listed = listed.text();
            ensure!(listed.contains("hanging") && listed.contains("ongoing"), "{listed}");
            let described = cli.done(&["txn", "describe", "hanging"]);
            ensure!(described.text().contains("t/0"), "{}", described.text());
            cli.done(&["txn", "abort", "hanging", "--yes"]);
            let error = producer.commit().await.err().context("it was aborted")?;
            ensure!(error.code() == Some(ErrorCode::TransactionAborted), "{error}");
            producer.abort().await?;
            let consumed = cli.done(&["consume", "t", "-e", "--read-committed"]);
            ensure!(consumed.bytes().is_empty(), "{}", consumed.text());
            let consumed = cli.done(&["consume", "t", "-e"]);
            ensure!(consumed.text() == "never\n", "{}", consumed.text());
            Ok(())
        })
    })
}

#[test]
fn without_its_offsets_a_transaction_does_not_count() -> Result<()> {
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        cluster.create_topic(NewTopic::new("from").partitions(1))?;
        cluster.create_topic(NewTopic::new("to").partitions(1))?;
        runtime()?.block_on(async {
            let client = Client::connect(cluster.client_config()).await?;
            let source = client.producer(ProducerConfig::default());
            source.send(ProducerRecord::to("from").partition(0).value("x")).await?.await?;
            let mut settings = GroupConfig::new("copy").topic("from");
            settings.auto_commit = None;
            let mut member = client.group_consumer(settings);
            ensure!(member.poll(PATIENCE).await?.len() == 1, "it is read");
            let mut producer = client.transactional_producer(config("one")).await?;

            producer.begin()?;
            send(&mut producer, "to", "nowhere").await?;
            let offsets = producer.send_offsets("copy", None, [("nowhere", 0, 1)]).await;
            let error = offsets.expect_err("there is no such topic");
            ensure!(matches!(error, TransactionError::UnknownTopic { .. }), "{error}");
            let error = producer.commit().await.expect_err("its offsets are missing");
            ensure!(matches!(error, TransactionError::State(_)), "{error}");
            producer.abort().await?;

            // Put out: what it has read goes to others.
            client.admin().remove_member("copy", member.member_id(), false).await?;
            producer.begin()?;
            send(&mut producer, "to", "put out").await?;
            let offsets = [("from", 0, 1)];
            let refused = producer.send_offsets("copy", Some(member.member()), offsets).await;
            let error = refused.expect_err("it is no member any more");
            ensure!(error.code() == Some(ErrorCode::UnknownMember), "{error}");
            ensure!(producer.commit().await.is_err(), "its offsets are missing");
            producer.abort().await?;

            // It comes back by itself, and nothing was committed.
            let before = member.member().epoch;
            while member.poll(PATIENCE).await?.is_empty() {}
            ensure!(member.member().epoch > before, "another epoch");
            producer.begin()?;
            send(&mut producer, "to", "once").await?;
            producer.send_offsets("copy", Some(member.member()), offsets).await?;
            producer.commit().await?;
            let read = flat(&client, "to", Isolation::ReadCommitted).await?;
            ensure!(read == ["once"], "{read:?}");
            member.close().await?;
            Ok(())
        })
    })
}

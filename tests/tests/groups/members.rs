//! Members share partitions: they come, leave and die, and whoever is not concerned reads on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tidemark_client::{GroupConfig, GroupError, Rebalance, StartAt};
use tidemark_tests::cluster::{self, ClusterConfig, PATIENCE};

use super::rig::{Worker, await_all, block_on, client, config, create, group, produce};

const PARTITIONS: u32 = 6;

#[test]
fn a_newcomer_takes_its_part_and_nobody_else_stops() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", PARTITIONS).await?;
            let first = Worker::start(&client, group("billing", "orders"));
            first.await_assigned(6).await?;
            let second = Worker::start(&client, group("billing", "orders"));
            let before = [first.await_assigned(3).await?, second.await_assigned(3).await?];
            let begun = Instant::now();
            let third = Worker::start(&client, group("billing", "orders"));
            third.await_assigned(2).await?;
            let took = begun.elapsed();
            ensure!(
                took < Duration::from_secs(2),
                "joining took {took:?}: it waited for heartbeats"
            );
            let after = [first.await_assigned(2).await?, second.await_assigned(2).await?];
            for (before, after) in before.iter().zip(&after) {
                // One partition less, and nothing that stayed was touched.
                let new = &after.rebalances[before.rebalances.len()..];
                ensure!(revoked(new).len() == 1 && assigned(new).is_empty(), "{new:?}");
            }
            let counts = produce(&client, "orders", PARTITIONS, 600).await?;
            await_all(&[&first, &second, &third], &counts).await?;
            third.close().await?;
            let first_now = first.await_assigned(3).await?;
            second.await_assigned(3).await?;
            ensure!(
                first_now.rebalances.iter().all(|it| !matches!(it, Rebalance::Lost(_))),
                "lost"
            );
            first.close().await?;
            second.await_assigned(6).await?;
            let records = second.seen().records;
            let distinct: BTreeSet<_> = records.iter().collect();
            ensure!(distinct.len() == records.len(), "the same member read something twice");
            second.close().await
        })
    })
}

fn revoked(rebalances: &[Rebalance]) -> Vec<u32> {
    let all = rebalances.iter().filter_map(|it| match it {
        Rebalance::Revoked(partitions) => Some(partitions),
        _ => None,
    });
    all.flatten().map(|(_, partition)| *partition).collect()
}

fn assigned(rebalances: &[Rebalance]) -> Vec<u32> {
    let all = rebalances.iter().filter_map(|it| match it {
        Rebalance::Assigned(partitions) => Some(partitions),
        _ => None,
    });
    all.flatten().map(|(_, partition)| *partition).collect()
}

#[test]
fn what_a_dead_member_had_goes_to_the_others_after_its_session() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", PARTITIONS).await?;
            let dying = Worker::start(&client, group("billing", "orders"));
            dying.await_assigned(6).await?;
            let survivor = Worker::start(&client, group("billing", "orders"));
            dying.await_assigned(3).await?;
            let before = survivor.await_assigned(3).await?;
            let seen_before = dying.seen();
            dying.kill();
            let counts = produce(&client, "orders", PARTITIONS, 300).await?;
            let after = survivor.await_assigned(6).await?;
            ensure!(before.assigned.is_subset(&after.assigned), "{before:?} {after:?}");
            ensure!(revoked(&after.rebalances).is_empty(), "a survivor was disturbed: {after:?}");
            await_all(&[&survivor], &counts).await?;
            ensure!(seen_before.records.is_empty(), "nothing was written before");
            let removals = client.admin().describe_group("billing").await?.removals;
            ensure!(removals.len() == 1, "{removals:?}");
            survivor.close().await
        })
    })
}

#[test]
fn a_group_goes_on_where_it_has_committed() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 2).await?;
            let counts = produce(&client, "orders", 2, 100).await?;
            let first = Worker::start(&client, group("billing", "orders"));
            await_all(&[&first], &counts).await?;
            first.close().await?;
            produce(&client, "orders", 2, 10).await?;
            let second = Worker::start(&client, group("billing", "orders"));
            let seen =
                second.await_seen("ten more are read", |seen| seen.records.len() >= 10).await?;
            ensure!(seen.records.iter().all(|(_, offset)| *offset >= 50), "{:?}", seen.records);
            second.close().await
        })
    })
}

#[test]
fn where_nothing_is_committed_a_member_begins_as_it_was_told() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            produce(&client, "orders", 1, 5).await?;
            let mut latest = group("late", "orders");
            latest.start_at = StartAt::Latest;
            let latest = Worker::start(&client, latest);
            latest.await_assigned(1).await?;
            produce(&client, "orders", 1, 1).await?;
            let seen = latest.await_seen("one is read", |seen| !seen.records.is_empty()).await?;
            ensure!(seen.records == [(0, 5)], "{:?}", seen.records);
            let mut none = group("none", "orders");
            none.start_at = StartAt::Error;
            let mut none = client.group_consumer(none);
            let error = loop {
                if let Err(error) = none.poll(Duration::from_millis(200)).await {
                    break error;
                }
            };
            ensure!(matches!(error, GroupError::NothingCommitted { partition: 0, .. }), "{error}");
            latest.close().await
        })
    })
}

#[test]
fn a_program_that_is_too_slow_is_told_and_its_partitions_go_to_others() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 2).await?;
            let mut slow = group("billing", "orders");
            slow.max_poll_interval = Duration::from_millis(500);
            let mut slow = client.group_consumer(slow);
            while slow.assignment().len() < 2 {
                slow.poll(Duration::from_millis(100)).await?;
            }
            // It does not poll while the other waits for what it holds.
            let other = Worker::start(&client, group("billing", "orders"));
            other.await_assigned(2).await?;
            let error =
                slow.poll(Duration::from_secs(1)).await.expect_err("it missed its deadline");
            ensure!(matches!(error, GroupError::MissedProcessingDeadline { .. }), "{error}");
            ensure!(error.to_string().contains("max_poll_interval"), "{error}");
            // Polling again joins again.
            let deadline = Instant::now() + PATIENCE;
            while slow.assignment().is_empty() {
                slow.poll(Duration::from_millis(100)).await?;
                ensure!(Instant::now() < deadline, "it does not come back");
            }
            slow.close().await?;
            other.close().await
        })
    })
}

#[test]
fn a_pattern_finds_topics_that_come_later_and_no_internal_one() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders-eu", 1).await?;
            let mut all = group("audit", "never-there");
            all.topics.clear();
            all.pattern = Some("(orders-|_).*".to_owned());
            let worker = Worker::start(&client, all);
            worker.await_assigned(1).await?;
            create(&client, "orders-us", 1).await?;
            let both = |seen: &super::rig::Seen| assigned(&seen.rebalances).len() == 2;
            worker.await_seen("the new topic is read, too", both).await?;
            worker.close().await
        })
    })
}

#[test]
fn a_paused_partition_stays_assigned_and_says_nothing() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 2).await?;
            let mut member = client.group_consumer(group("billing", "orders"));
            while member.assignment().len() < 2 {
                member.poll(Duration::from_millis(100)).await?;
            }
            member.pause("orders", 1)?;
            produce(&client, "orders", 2, 20).await?;
            let mut read = Vec::new();
            while read.len() < 10 {
                read.extend(member.poll(Duration::from_secs(5)).await?);
            }
            ensure!(read.iter().all(|record| record.partition == 0), "a paused partition was read");
            member.resume("orders", 1)?;
            while read.len() < 20 {
                read.extend(member.poll(Duration::from_secs(5)).await?);
            }
            let metadata = "where it came from".to_owned();
            member.commit_offsets([("orders", 1, 7, metadata.clone())]).await?;
            let committed = client.admin().fetch_offsets("billing", None).await?;
            let found = committed.into_iter().filter_map(|one| one.outcome.ok().flatten());
            ensure!(found.into_iter().any(|it| it.offset == 7 && it.metadata == metadata), "lost");
            member.close().await?;
            Ok(())
        })
    })
}

#[test]
fn a_static_member_that_comes_back_has_what_it_had_and_nobody_notices() -> Result<()> {
    // Sessions as in production: a restart takes less.
    cluster::with(ClusterConfig::nodes(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", PARTITIONS).await?;
            let named = |name: &str| GroupConfig {
                instance: Some(name.to_owned()),
                ..group("billing", "orders")
            };
            let first = Worker::start(&client, named("one"));
            first.await_assigned(6).await?;
            let second = Worker::start(&client, named("two"));
            let had = first.await_assigned(3).await?.assigned;
            let before = second.await_assigned(3).await?;
            // While it is there, whoever else comes under its name waits, and is given nothing.
            let mut double = client.group_consumer(named("one"));
            double.poll(Duration::from_secs(1)).await?;
            ensure!(double.assignment().is_empty(), "{:?}", double.assignment());
            let members = client.admin().describe_group("billing").await?.members;
            ensure!(members.len() == 2, "{members:?}");
            drop(double);
            first.close().await?;
            let again = Worker::start(&client, named("one"));
            let has = again.await_assigned(3).await?.assigned;
            ensure!(has == had, "{has:?} instead of {had:?}");
            let counts = produce(&client, "orders", PARTITIONS, 60).await?;
            await_all(&[&again, &second], &counts).await?;
            let noticed = second.seen().rebalances.split_off(before.rebalances.len());
            ensure!(noticed.is_empty(), "{noticed:?}");
            again.close().await?;
            second.close().await
        })
    })
}

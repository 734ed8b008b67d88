//! Coordinators are killed, and their logs damaged: no committed offset is lost, and members go on.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tidemark_client::{Client, ErrorCode};
use tidemark_protocol::{
    TopicPartition,
    messages::{CoordinatorKind, FindCoordinatorResponse, OffsetToCommit},
};
use tidemark_tests::{
    checker,
    cluster::{self, Cluster, PATIENCE},
    effort,
    history::{Action, History, Outcome, Partition},
    http,
};

use super::rig::{Worker, await_all, block_on, client, config, create, group, produce};

/// Kills in the ordinary run; `TIDEMARK_TEST_KILLS` asks for more.
const KILLS: u64 = 2;

fn coordinator(cluster: &Cluster, group: &str) -> Result<FindCoordinatorResponse> {
    cluster.await_coordinator(CoordinatorKind::Group, group)
}

#[test]
fn a_killed_coordinator_forgets_no_commit() -> Result<()> {
    let kills = effort::kills(KILLS)?;
    cluster::with(config(3), |cluster| {
        let history = Mutex::new(History::default());
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (client, id) = runtime.block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            let topic = client.admin().describe_topic("orders").await?.topic.id;
            anyhow::Ok((client, TopicPartition { topic_id: topic, partition: 0 }))
        })?;
        coordinator(cluster, "billing")?;
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let committing = scope
                .spawn(|| runtime.block_on(commit_and_ask(&client, id, &history, began, &stop)));
            let killing = (0..kills).try_for_each(|_| {
                let broker = coordinator(cluster, "billing")?.broker;
                let before = acknowledged(&history);
                await_commits(&history, before + 20)?;
                cluster.kill(broker)?;
                let before = acknowledged(&history);
                await_commits(&history, before + 20)?;
                cluster.heal()
            });
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            committing.join().expect("it does not panic")?;
            killing
        })?;
        let history = history.into_inner()?;
        let report = checker::check(&history);
        ensure!(report.is_clean(), "{report}");
        Ok(())
    })
}

/// Commits rising offsets and asks for them again, as one client and another.
async fn commit_and_ask(
    client: &Client,
    id: TopicPartition,
    history: &Mutex<History>,
    began: Instant,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<()> {
    let now_ns = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (group, partition): (std::sync::Arc<str>, _) =
        ("billing".into(), Partition::new("orders", 0));
    let admin = client.admin().with_timeout(Duration::from_secs(5));
    let mut offset = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        offset += 1;
        let action =
            Action::CommitOffset { group: group.clone(), partition: partition.clone(), offset };
        let op = locked(history).invoke(1, now_ns(), action);
        let commit =
            OffsetToCommit { partition: id, offset, leader_epoch: None, metadata: String::new() };
        let outcome = match admin.commit_offsets("billing", vec![commit]).await {
            Ok(outcomes) if outcomes.iter().all(Result::is_ok) => Outcome::Ok,
            // Whatever it was, an earlier attempt may have taken effect.
            _ => Outcome::Info,
        };
        locked(history).complete(op, now_ns(), outcome);
        let asked = Action::FetchOffset {
            group: group.clone(),
            partition: partition.clone(),
            offset: None,
        };
        let op = locked(history).invoke(2, now_ns(), asked);
        let Ok(found) = admin.fetch_offsets("billing", Some(vec![id])).await else {
            locked(history).complete(op, now_ns(), Outcome::Info);
            continue;
        };
        let told = found.into_iter().find_map(|one| one.outcome.ok().flatten());
        let mut history = locked(history);
        if let Action::FetchOffset { offset, .. } = &mut history.operations[op].action {
            *offset = told.map(|committed| committed.offset);
        }
        history.complete(op, now_ns(), Outcome::Ok);
    }
    Ok(())
}

fn locked(history: &Mutex<History>) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn acknowledged(history: &Mutex<History>) -> usize {
    let history = locked(history);
    let is_ok = |it: &&tidemark_tests::history::Operation| {
        it.outcome == Outcome::Ok && matches!(it.action, Action::CommitOffset { .. })
    };
    history.operations.iter().filter(is_ok).count()
}

fn await_commits(history: &Mutex<History>, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while acknowledged(history) < count {
        ensure!(Instant::now() < deadline, "no commits are acknowledged any more");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn members_survive_the_death_of_their_coordinator() -> Result<()> {
    cluster::with(config(3), |cluster| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let client = runtime.block_on(client(cluster))?;
        runtime.block_on(create(&client, "orders", 4))?;
        let (first, second) = {
            let _entered = runtime.enter();
            let member = || Worker::start(&client, group("billing", "orders"));
            (member(), member())
        };
        runtime.block_on(async {
            first.await_assigned(2).await?;
            second.await_assigned(2).await
        })?;
        let mut counts = runtime.block_on(produce(&client, "orders", 4, 200))?;
        runtime.block_on(await_all(&[&first, &second], &counts))?;
        cluster.kill(coordinator(cluster, "billing")?.broker)?;
        coordinator(cluster, "billing")?;
        for (partition, more) in runtime.block_on(produce(&client, "orders", 4, 200))? {
            *counts.entry(partition).or_default() += more;
        }
        runtime.block_on(await_all(&[&first, &second], &counts))?;
        for worker in [&first, &second] {
            let lost = worker
                .seen()
                .rebalances
                .iter()
                .any(|it| matches!(it, tidemark_client::Rebalance::Lost(_)));
            ensure!(!lost, "a member lost its partitions: {:?}", worker.seen().rebalances);
        }
        runtime.block_on(async {
            first.close().await?;
            second.close().await
        })
    })
}

#[test]
fn a_damaged_log_of_groups_is_not_served_and_everything_else_is() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            produce(&client, "orders", 1, 10).await?;
            let worker = Worker::start(&client, group("billing", "orders"));
            worker.await_seen("all are read", |seen| seen.records.len() == 10).await?;
            worker.close().await
        })?;
        let partition = coordinator(cluster, "billing")?.partition.partition;
        cluster.terminate(1)?;
        let log = cluster.files(1)?.join(format!("topics/__groups/{partition}"));
        let segment = fs::read_dir(&log)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|it| it == "log"))
            .context("the log has a segment")?;
        // In the middle of the first batch: its checksum does not hold any more.
        fs::OpenOptions::new().write(true).open(segment)?.write_all_at(b"damage", 70)?;
        cluster.start_all()?;
        block_on(async {
            let client = client(cluster).await?;
            let admin = client.admin().with_timeout(Duration::from_secs(5));
            let error = admin.describe_group("billing").await.expect_err("its log is damaged");
            ensure!(error.code() == Some(ErrorCode::CorruptData), "{error}");
            ensure!(error.to_string().contains("__groups"), "{error}");
            let mut reader = client.consumer(tidemark_client::ConsumerConfig::default());
            reader.assign_topic("orders", tidemark_client::Position::Earliest).await?;
            ensure!(
                reader.poll(Duration::from_secs(10)).await?.len() == 10,
                "other topics are read"
            );
            let list = admin.list_groups().await?;
            ensure!(list.unavailable.len() == 1, "{list:?}");
            Ok(())
        })?;
        let metrics = http::get(cluster.place(1)?.http_listen, "/metrics")?.body;
        let broken =
            http::metric(&metrics, "tidemark_coordinators{kind=\"groups\",state=\"broken\"}");
        ensure!(broken == Some(1.0), "{broken:?}");
        Ok(())
    })
}

//! `tidemark group` and `tidemark consume --group`, as a person types them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tidemark_client::{ProducerRecord, TransactionalConfig};
use tidemark_tests::{
    cluster::{self, Cluster, PATIENCE},
    process::program,
};

use super::rig::{block_on, client, config, create, produce};

/// A `tidemark consume --group` of its own, and its lines.
struct Consuming {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Consuming {
    fn start(cluster: &Cluster, group: &str, topic: &str) -> Result<Self> {
        let mut child = Command::new(program("tidemark"))
            .args(["consume", topic, "--group", group, "-f", "%p/%o\\n"])
            .env("TIDEMARK_BROKERS", cluster.bootstrap().join(","))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take().context("it was asked for")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next lines, as many as there are within the patience.
    fn take(&self, count: usize) -> Result<Vec<String>> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.lines.recv_timeout(PATIENCE).context("no more lines come")?);
        }
        Ok(taken)
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_killed_process_is_replaced_by_the_one_that_is_left() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 4).await?;
            produce(&client, "orders", 4, 40).await.map(drop)
        })?;
        let mut first = Consuming::start(cluster, "billing", "orders")?;
        let read = first.take(40)?;
        let distinct: std::collections::BTreeSet<_> = read.iter().collect();
        ensure!(distinct.len() == 40, "{read:?}");
        let second = Consuming::start(cluster, "billing", "orders")?;
        let cli = cluster.cli();
        await_members(cluster, 2)?;
        await_lag(cluster, 0)?;
        first.kill()?;
        block_on(async {
            let client = client(cluster).await?;
            produce(&client, "orders", 4, 40).await.map(drop)
        })?;
        // What the first had printed was committed: the second prints what came after, each once.
        let mut read = second.take(40)?;
        read.sort();
        read.dedup();
        let is_new = |line: &String| line.split_once('/').is_some_and(|(_, at)| at.len() > 1);
        ensure!(read.len() == 40 && read.iter().all(is_new), "{read:?}");
        let described = cli.done(&["group", "describe", "billing", "-o", "json"]).json();
        ensure!(described["removals"][0]["reason"] == "not heard of", "{described}");
        Ok(())
    })
}

fn await_lag(cluster: &Cluster, records: u64) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let lag = cluster.cli().done(&["group", "lag", "billing", "-o", "json"]).json();
        if lag["records"] == records {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "{lag}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn await_members(cluster: &Cluster, count: usize) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let described = cluster.cli().done(&["group", "describe", "billing", "-o", "json"]).json();
        let members = described["members"].as_array().map_or(0, Vec::len);
        if members == count && described["state"] == "stable" {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "{described}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn offsets_are_set_listed_and_brought_back() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 2).await?;
            produce(&client, "orders", 2, 20).await.map(drop)
        })?;
        let cli = cluster.cli();
        let read = cli.done(&["consume", "orders", "--group", "billing", "-e"]);
        ensure!(read.text().lines().count() == 20, "{}", read.text());
        let again = cli.done(&["consume", "orders", "--group", "billing", "-e"]);
        ensure!(again.text().is_empty(), "{}", again.text());
        let listed = cli.done(&["group", "list", "-o", "name"]);
        ensure!(listed.text() == "billing\n", "{}", listed.text());

        let lag = cli.done(&["group", "lag", "billing", "-o", "json"]).json();
        ensure!(lag["records"] == 0, "{lag}");
        let planned = cli.done(&[
            "group",
            "seek",
            "billing",
            "orders",
            "--to",
            "start",
            "--dry-run",
            "-o",
            "json",
        ]);
        let planned = planned.json();
        ensure!(
            planned["changes"][0]["before"] == 10 && planned["changes"][0]["after"] == 0,
            "{planned}"
        );
        let lag = cli.done(&["group", "lag", "billing", "-o", "json"]).json();
        ensure!(lag["records"] == 0, "a dry run changes nothing: {lag}");
        cli.run(&["group", "seek", "billing", "orders", "--to", "start"]).exits(4);

        cli.done(&["group", "seek", "billing", "orders", "--to", "start", "--yes"]);
        let lag = cli.done(&["group", "lag", "billing", "-o", "json"]).json();
        ensure!(lag["records"] == 20 && lag["bytes"].as_u64() > Some(0), "{lag}");
        ensure!(lag["partitions"][0]["deleted_in_ms"].as_u64() > Some(0), "{lag}");
        cli.done(&[
            "group",
            "seek",
            "billing",
            "orders",
            "--by",
            "+4",
            "--partition",
            "1",
            "--yes",
        ]);
        let history = cli.done(&["group", "history", "billing", "-o", "json"]).json();
        ensure!(history["changes"].as_array().map(Vec::len) == Some(2), "{history}");
        ensure!(history["changes"][1]["partitions"][0]["after"] == 4, "{history}");

        cli.done(&["group", "undo", "billing", "1", "--yes"]);
        let lag = cli.done(&["group", "lag", "billing", "-o", "json"]).json();
        ensure!(lag["records"] == 0, "what was committed is back: {lag}");
        cli.run(&["group", "undo", "billing", "77", "--yes"]).exits(3).says(&["history"]);

        cli.run(&["group", "seek", "nobody", "orders", "--by", "-1", "--yes"]).exits(3);
        cli.run(&["group", "describe", "nobody"]).exits(3).says(&["group list"]);
        cli.run(&["group", "delete", "billing", "--yes"]).exits(0);
        cli.run(&["group", "delete", "billing", "--yes"]).exits(3);
        let hidden = cli.done(&["topic", "list", "-o", "name"]);
        ensure!(hidden.text() == "orders\n", "{}", hidden.text());
        let shown = cli.done(&["topic", "list", "--internal", "-o", "name"]);
        ensure!(shown.text().contains("__groups"), "{}", shown.text());
        Ok(())
    })
}

#[test]
fn a_group_with_members_is_not_moved_and_a_member_can_be_put_out() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            produce(&client, "orders", 1, 3).await.map(drop)
        })?;
        let reading = Consuming::start(cluster, "billing", "orders")?;
        reading.take(3)?;
        let cli = cluster.cli();
        let refused = cli.run(&["group", "seek", "billing", "orders", "--to", "start", "--yes"]);
        refused.exits(4).says(&["stop"]);
        cli.run(&["group", "delete", "billing", "--yes"]).exits(4);
        let described = cli.done(&["group", "describe", "billing", "-o", "json"]).json();
        let member = described["members"][0]["id"].as_str().context("a member")?.to_owned();
        cli.run(&["group", "kick", "billing", "somebody", "--yes"]).exits(3);
        cli.done(&["group", "kick", "billing", &member, "--yes"]);
        let described = cli.done(&["group", "describe", "billing", "-o", "json"]).json();
        ensure!(described["removals"][0]["reason"] == "kicked", "{described}");
        // Its process is told, and joins again.
        await_members(cluster, 1)
    })
}

#[test]
fn a_member_that_reads_what_is_committed_passes_what_was_aborted_and_is_done() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            let mut producer =
                client.transactional_producer(TransactionalConfig::new("one")).await?;
            for (value, commit) in [("kept", true), ("gone", false)] {
                producer.begin()?;
                let record = ProducerRecord::to("orders").partition(0).value(value);
                producer.send(record).await?.await?;
                if commit { producer.commit().await? } else { producer.abort().await? }
            }
            producer.close().await;
            Ok(())
        })?;
        let cli = cluster.cli();
        let all = ["consume", "orders", "--group", "everything", "-e"];
        ensure!(cli.done(&all).text() == "kept\ngone\n");
        let committed = ["consume", "orders", "--group", "billing", "--read-committed", "-e"];
        ensure!(cli.done(&committed).text() == "kept\n");
        // The end of a transaction is no record, and nothing that is left to read.
        for group in ["everything", "billing"] {
            let lag = cli.done(&["group", "lag", group, "--wait", "10s", "-o", "json"]).json();
            ensure!(lag["partitions"][0]["committed"] == 4, "{lag}");
        }
        Ok(())
    })
}

#[test]
fn a_rate_holds_a_member_back_and_lag_can_be_waited_for() -> Result<()> {
    cluster::with(config(1), |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 1).await?;
            produce(&client, "orders", 1, 30).await.map(drop)
        })?;
        let cli = cluster.cli();
        let begun = std::time::Instant::now();
        cli.done(&["consume", "orders", "--group", "billing", "-n", "20", "--rate", "10"]);
        // The last poll is due when what came before it was: two seconds without that one.
        ensure!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
        cli.run(&["group", "lag", "billing", "--wait", "100ms"]).exits(5);
        cli.done(&["consume", "orders", "--group", "billing", "-e"]);
        cli.done(&["group", "lag", "billing", "--wait", "10s"]);
        cli.run(&["consume", "orders", "--rate", "0"]).exits(2);
        Ok(())
    })
}

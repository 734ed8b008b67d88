//! `tidemark up` for real: a cluster from one command, a node that dies, and nothing left behind.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidemark_tests::{cli::Cli, process::program};

/// How long anything may take that is over in a moment.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running `tidemark up`; killed when dropped.
struct Up {
    child: Child,
    /// What it says on standard error, line by line.
    said: Receiver<String>,
    report: Value,
}

impl Up {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program("tidemark"));
        command.args(["up", "--port", "0", "--http-port", "0", "-o", "json"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let said = lines(child.stderr.take().context("piped")?);
        let printed = lines(child.stdout.take().context("piped")?);
        let mut up = Self { child, said, report: Value::Null };
        let mut report = String::new();
        // The report is one object; its last line is its closing brace.
        while !report.ends_with("\n}\n") {
            report += &printed.recv_timeout(PATIENCE).context("a report")?;
            report += "\n";
        }
        up.report = serde_json::from_str(&report)?;
        Ok(up)
    }

    fn node(&self, at: usize, field: &str) -> String {
        let value = &self.report["nodes"][at][field];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    fn cli(&self) -> Cli {
        let nodes = self.report["nodes"].as_array().expect("a list of nodes").len();
        let addresses: Vec<String> = (0..nodes).map(|at| self.node(at, "address")).collect();
        Cli::at(addresses.join(","))
    }

    /// Returns when it has said this.
    fn says(&self, words: &str) -> Result<()> {
        while !self.said.recv_timeout(PATIENCE).with_context(|| words.to_owned())?.contains(words) {
        }
        Ok(())
    }

    fn interrupt(mut self) -> Result<ExitStatus> {
        signal("INT", &self.child.id().to_string())?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its nodes are in groups of their own, and die with it only when it is told.
        let _told = signal("TERM", &self.child.id().to_string());
        let _reaped = self.child.wait();
    }
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // Whoever does not listen any more has heard enough.
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn signal(name: &str, pid: &str) -> Result<()> {
    ensure!(Command::new("kill").args([&format!("-{name}"), pid]).status()?.success());
    Ok(())
}

#[test]
fn one_node_is_up_and_gone_again_with_its_data() -> Result<()> {
    let up = Up::start(&[])?;
    let dir = up.report["data_dir"].as_str().context("a directory")?.to_owned();
    assert!(Path::new(&dir).join("node-1").exists());
    let cli = up.cli();
    cli.done(&["topic", "create", "orders"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\nb\n").exits(0);
    assert_eq!(cli.done(&["consume", "orders", "-e"]).text(), "a\nb\n");
    assert_eq!(cli.done(&["broker", "list", "-o", "name"]).text(), "1\n");
    assert_eq!(up.interrupt()?.code(), Some(0));
    assert!(!Path::new(&dir).exists(), "{dir} is left behind");
    Ok(())
}

#[test]
fn a_directory_that_is_named_is_kept_and_brings_the_same_cluster_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("cluster");
    let data = data.to_str().context("UTF-8")?;
    let up = Up::start(&["--dir", data])?;
    let cli = up.cli();
    cli.done(&["topic", "create", "orders"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\n").exits(0);
    assert_eq!(up.interrupt()?.code(), Some(0));
    let up = Up::start(&["--dir", data])?;
    assert_eq!(up.cli().done(&["consume", "orders", "-e"]).text(), "a\n");
    Ok(())
}

#[test]
fn of_three_nodes_one_may_die_and_the_others_go_on() -> Result<()> {
    let up = Up::start(&["--nodes", "3"])?;
    let cli = up.cli();
    cli.done(&["cluster", "health", "--wait", "30s"]);
    cli.done(&["topic", "create", "orders", "--partitions", "3", "--replication-factor", "3"]);
    cli.pipe(&["produce", "orders", "--quiet"], b"a\nb\n").exits(0);
    signal("KILL", &up.node(0, "pid"))?;
    up.says("node 1")?;
    cli.pipe(&["produce", "orders", "--quiet"], b"c\n").exits(0);
    let read = cli.done(&["consume", "orders", "-e"]);
    let mut read: Vec<&str> = read.text().lines().collect();
    read.sort_unstable();
    assert_eq!(read, ["a", "b", "c"]);
    let health = cli.run(&["cluster", "health", "-o", "json"]);
    health.exits(6);
    assert!(health.json()["problems"].to_string().contains("broker 1"), "{:?}", health.json());
    assert_eq!(up.interrupt()?.code(), Some(0));
    Ok(())
}

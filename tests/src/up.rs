//! A running `tidemark up`: a cluster from one command, as a person starts it.

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

use crate::{
    cli::Cli,
    process::{Mount, program},
};

/// How long anything may take that is over in a moment.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A running `tidemark up`; told to stop when dropped.
#[derive(Debug)]
pub struct Up {
    child: Child,
    /// What it says on standard error, line by line.
    said: Receiver<String>,
    /// What it says is up, as JSON.
    pub report: Value,
}

impl Up {
    /// Starts it on free ports, and waits until it says that all is up.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::run(Command::new(program("tidemark")), arguments)
    }

    /// With its data in `dir`, where a file system in memory with these mount options lies for as long as it runs.
    pub fn start_in_memory(dir: &Path, options: &str, arguments: &[&str]) -> Result<Self> {
        let words = Mount::Memory(options.to_owned()).wrap(dir);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program("tidemark"));
        let dir = dir.to_str().context("UTF-8")?;
        Self::run(command, &[&["--dir", dir], arguments].concat())
    }

    fn run(mut command: Command, arguments: &[&str]) -> Result<Self> {
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

    /// What the report says of a node; they count from 0.
    pub fn node(&self, at: usize, field: &str) -> String {
        let value = &self.report["nodes"][at][field];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Where clients find the nodes, as `TIDEMARK_BROKERS` has it.
    pub fn addresses(&self) -> String {
        let nodes = self.report["nodes"].as_array().map_or(0, Vec::len);
        (0..nodes).map(|at| self.node(at, "address")).collect::<Vec<_>>().join(",")
    }

    pub fn cli(&self) -> Cli {
        Cli::at(self.addresses())
    }

    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Returns when it has said this.
    pub fn says(&self, words: &str) -> Result<()> {
        while !self.said.recv_timeout(PATIENCE).with_context(|| words.to_owned())?.contains(words) {
        }
        Ok(())
    }

    /// Ctrl-C, and how it ended.
    pub fn interrupt(mut self) -> Result<ExitStatus> {
        signal("INT", &self.pid())?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Told, it stops its nodes in order.
        let _told = signal("TERM", &self.pid());
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

/// Sends a signal by name.
pub fn signal(name: &str, pid: &str) -> Result<()> {
    ensure!(Command::new("kill").args([&format!("-{name}"), pid]).status()?.success());
    Ok(())
}

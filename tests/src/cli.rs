//! The command line as a script sees it: arguments and bytes in, exit code and bytes out.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Output, Stdio},
    thread,
};

use crate::process::{Broker, program};

/// Seconds after which a command counts as hanging; coreutils' `timeout` ends it then, with exit code 124.
const PATIENCE_SECONDS: &str = "60";

/// `tidemark` with a broker to talk to.
#[derive(Clone, Debug)]
pub struct Cli {
    brokers: String,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    command: String,
    output: Output,
}

impl Cli {
    pub fn new(broker: &Broker) -> Self {
        Self::at(broker.address())
    }

    /// For an address where no broker need be.
    pub fn at(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into() }
    }

    /// The command with its broker in the environment and nothing else set.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE_SECONDS).arg(program("tidemark")).args(arguments);
        command.env("TIDEMARK_BROKERS", &self.brokers).env_remove("TIDEMARK_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs with an empty standard input, which is not a terminal.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.pipe(arguments, b"")
    }

    /// Runs with an empty standard input what has to succeed.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        ran.exits(0);
        ran
    }

    /// Runs with `input` on standard input.
    pub fn pipe(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("`timeout` of coreutils starts");
        let mut stdin = child.stdin.take().expect("piped");
        let output = thread::scope(|scope| {
            // A command that refuses before it reads closes the pipe.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().expect("its output can be read")
        });
        Ran { command: format!("tidemark {}", arguments.join(" ")), output }
    }
}

impl Ran {
    /// Fails unless the command ended with this exit code.
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.output.status.code(), Some(code), "{}", self.describe());
        self
    }

    pub fn is_done(&self) -> bool {
        self.output.status.success()
    }

    /// Fails unless standard error has each of `words`.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        let stderr = String::from_utf8_lossy(&self.output.stderr);
        for word in words {
            assert!(stderr.contains(word), "no `{word}` in what was said.\n{}", self.describe());
        }
        self
    }

    /// Fails unless standard error is empty.
    #[track_caller]
    pub fn says_nothing(&self) -> &Self {
        assert!(self.output.stderr.is_empty(), "{}", self.describe());
        self
    }

    /// Standard output, byte for byte.
    pub fn bytes(&self) -> &[u8] {
        &self.output.stdout
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.output.stdout).expect("text")
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.describe()))
    }

    fn describe(&self) -> String {
        let Output { status, stdout, stderr } = &self.output;
        let mut text = format!("$ {}\n[{status}]\n", self.command);
        for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(4_000)]);
            writeln!(text, "{name}, {} bytes:\n{shown}", bytes.len()).expect("into memory");
        }
        text
    }
}

//! One `tidemarkd` process: how it is started, what it says, how it ends.

use std::{
    env,
    future::pending,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
};

use crate::{
    exit::{CliError, Exit},
    output,
};

/// The name of the program, here and in `PATH`.
const PROGRAM: &str = "tidemarkd";
/// How long the last lines of a process that has ended are waited for.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// Everything that begins like this is a setting of the broker's.
const ENVIRONMENT_PREFIX: &str = "TIDEMARK_";
/// Log filters are for the nodes, too.
const ENVIRONMENT_LOG: &str = "TIDEMARK_LOG";

/// Where `tidemarkd` is.
pub(super) struct Program(PathBuf);

impl Program {
    /// Next to this program, where an installation has it, or in `PATH`.
    pub(super) fn find() -> Result<Self, CliError> {
        let beside = env::current_exe().ok().and_then(|here| Some(here.parent()?.join(PROGRAM)));
        let paths = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&paths).map(|dir| dir.join(PROGRAM));
        let found = beside.into_iter().chain(in_path).find(|path| path.is_file());
        found.map(Self).ok_or_else(|| {
            CliError::new(Exit::NotFound, format!("cannot find `{PROGRAM}`"))
                .with_hint("put it into the folder of this program, or into one that is in PATH")
        })
    }

    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self(name.into())
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

/// All that a node is started with.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) id: u16,
    pub(super) port: u16,
    pub(super) http_port: u16,
    pub(super) data_dir: PathBuf,
    pub(super) controllers: Option<String>,
    pub(super) settings: Vec<(String, String)>,
}

impl Recipe {
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// Every setting as an environment variable: unlike a flag, one that this build of `tidemarkd` does not know is a
    /// warning.
    fn environment(&self) -> Vec<(String, String)> {
        let mut settings = vec![
            ("node_id".to_owned(), self.id.to_string()),
            ("listen".to_owned(), self.address()),
            ("http_listen".to_owned(), self.http_address()),
            ("data_dir".to_owned(), self.data_dir.display().to_string()),
        ];
        settings.extend(self.controllers.clone().map(|all| ("controllers".to_owned(), all)));
        settings.extend(self.settings.iter().cloned());
        let variable = |name: &str| format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase());
        settings.into_iter().map(|(name, value)| (variable(&name), value)).collect()
    }

    /// A line for a shell that starts the node.
    pub(super) fn shell_command(&self, program: &Program) -> String {
        let settings = self.environment();
        let settings = settings.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let program = quoted(&program.path().display().to_string());
        settings.chain([program]).collect::<Vec<_>>().join(" ")
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A process that was started. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) recipe: Recipe,
    pub(super) pid: u32,
    /// `None`: it has ended.
    child: Option<Child>,
    /// Copies its log lines, to the last one.
    log: Option<JoinHandle<()>>,
    /// Closed with this process: then the node stops.
    _lifeline: Option<ChildStdin>,
}

impl Node {
    pub(super) fn start(program: &Program, recipe: Recipe) -> Result<Self, CliError> {
        let mut command = Command::new(program.path());
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(ENVIRONMENT_PREFIX) && name != ENVIRONMENT_LOG {
                command.env_remove(name);
            }
        }
        command.envs(recipe.environment());
        // Holding the other end of its standard input, this program takes it along, even when it is killed itself.
        command.arg("--stop-with-stdin").stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        // Ctrl-C is for this program, which tells the nodes in its own order.
        command.process_group(0).kill_on_drop(true);
        let problem = |what: &str| {
            CliError::error(format!("cannot start {}: {what}", program.path().display()))
        };
        let mut child = command.spawn().map_err(|error| problem(&error.to_string()))?;
        let pid = child.id().ok_or_else(|| problem("it has ended already"))?;
        let log = child.stderr.take().map(|stderr| prefix_lines(recipe.id, stderr));
        let lifeline = child.stdin.take();
        Ok(Self { recipe, pid, child: Some(child), log, _lifeline: lifeline })
    }

    pub(super) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Asks it to stop in order.
    pub(super) fn terminate(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let (Some(pid), Some(_)) = (pid, &self.child) {
            // One that has ended meanwhile needs no telling, and is not reaped before `ended`, so its id is nobody else's.
            kill_process(pid, Signal::TERM).ok();
        }
    }

    pub(super) async fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // It has ended then, whatever came of it.
            drop(child.kill().await);
            self.ended().await;
        }
    }

    /// Returns how it ended, once all it said has been copied; at once when it had ended before. May be dropped and called
    /// again.
    pub(super) async fn ended(&mut self) -> String {
        let Some(child) = &mut self.child else { return "had ended".to_owned() };
        let status = child.wait().await;
        if let Some(log) = &mut self.log {
            // A process of its own that it left behind may hold the stream open.
            let _last_line = tokio::time::timeout(LAST_LINES_TIMEOUT, log).await;
            self.log = None;
        }
        self.child = None;
        status.map_or_else(|error| format!("was lost: {error}"), ending)
    }
}

/// Which node has ended, and how; never, when none runs.
pub(super) async fn any_ended(nodes: &mut [Node]) -> (usize, String) {
    let running = nodes.iter_mut().enumerate().filter(|(_, node)| node.is_running());
    let endings: Vec<_> =
        running.map(|(at, node)| Box::pin(async move { (at, node.ended().await) })).collect();
    if endings.is_empty() {
        return pending().await;
    }
    futures_util::future::select_all(endings).await.0
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(0), _) => "has stopped".to_owned(),
        (Some(code), _) => format!("has failed with exit code {code}"),
        (None, Some(9)) => "was killed".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "has ended".to_owned(),
    }
}

/// Copies lines to standard error, each with the number of its node in front.
#[expect(clippy::disallowed_methods, reason = "it ends with the process that it listens to")]
fn prefix_lines(id: u16, stream: impl AsyncRead + Unpin + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            output::note(format_args!("{id} | {}", String::from_utf8_lossy(&line)));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            id: 2,
            port: 9093,
            http_port: 9645,
            data_dir: "/tmp/my data/node-2".into(),
            controllers: Some("1@127.0.0.1:9092,2@127.0.0.1:9093".to_owned()),
            settings: vec![("log_level".to_owned(), "warn".to_owned())],
        }
    }

    #[test]
    fn a_node_can_be_started_again_by_a_line_for_a_shell() {
        assert_eq!(
            recipe().shell_command(&Program::named("/usr/bin/tidemarkd")),
            "TIDEMARK_NODE_ID=2 TIDEMARK_LISTEN=127.0.0.1:9093 TIDEMARK_HTTP_LISTEN=127.0.0.1:9645 \
             TIDEMARK_DATA_DIR='/tmp/my data/node-2' TIDEMARK_CONTROLLERS=1@127.0.0.1:9092,2@127.0.0.1:9093 \
             TIDEMARK_LOG_LEVEL=warn /usr/bin/tidemarkd"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[tokio::test]
    async fn a_node_that_dies_is_told_from_one_that_stops() {
        let dir = tempfile::tempdir().unwrap();
        let program = |script: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(script.replace(' ', "-"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            Program(path)
        };
        let start = |script| Node::start(&program(script), recipe()).unwrap();
        let mut nodes = vec![start("exec sleep 1000"), start("exit 3"), start("exec sleep 1001")];
        assert_eq!(any_ended(&mut nodes).await, (1, "has failed with exit code 3".to_owned()));
        assert!(!nodes[1].is_running());
        nodes[0].kill().await;
        nodes[2].terminate();
        assert_eq!(any_ended(&mut nodes).await, (2, "was ended by signal 15".to_owned()));
        assert_eq!(nodes[0].ended().await, "had ended");
    }
}

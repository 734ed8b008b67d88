//! `tidemark up`: a throwaway cluster of `tidemarkd` processes on this machine, for trying things out.
//!
//! It starts, watches and stops processes. It refuses to start again what has died, since watching a cluster without one of
//! its nodes is what it is for, and it is no way to run a cluster that matters.

mod node;
mod ready;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tempfile::TempDir;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use crate::{
    exit::{CliError, Exit},
    output::{self, Page, Report, Rows, Tone},
    session::Session,
};
use node::{Node, Program, Recipe};

/// How long the nodes may take to be ready when `--timeout` does not say.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long one node may take to stop before the next is told to, too.
const STOP_HEADSTART: Duration = Duration::from_secs(3);
/// How long all may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Start a throwaway cluster on this machine
///
/// Runs `tidemarkd` processes on loopback until Ctrl-C, with their logs on standard error. A node that dies is reported and
/// not started again: the others go on. The data is deleted at the end, unless --dir says where to keep it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemark up
  tidemark up --nodes 3
  tidemark up --nodes 3 --dir cluster --port 19092
  tidemark up --nodes 3 --set log_level=warn")]
pub(crate) struct UpArgs {
    /// How many nodes; each is a broker and a controller
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,

    /// Keep the data here, a folder for each node; the same folder brings the same cluster back
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Port of the first node, the others follow; 0 takes any that are free
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    port: u16,

    /// HTTP port of the first node, the others follow; 0 takes any that are free
    #[arg(long, value_name = "PORT", default_value_t = 9644)]
    http_port: u16,

    /// A setting of every node, as in its configuration file; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = crate::topic::parse_setting)]
    set: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Up {
    data_dir: PathBuf,
    /// Whether the data is deleted at the end.
    temporary: bool,
    nodes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: u16,
    address: String,
    http_address: String,
    pid: u32,
    data_dir: PathBuf,
    /// What starts it again after it has died.
    command: String,
}

impl Report for Up {
    const SCHEMA: &'static str = "tidemark/up/1";

    fn page(&self, page: &mut Page) {
        let what = if self.nodes.len() == 1 { "node is" } else { "nodes are" };
        page.title(&format!("{} {what} ready", self.nodes.len()));
        let mut rows = Rows::new(&[">NODE", "ADDRESS", "HTTP", ">PID", "DATA"]);
        for it in &self.nodes {
            rows.push(vec![
                it.id.to_string(),
                it.address.clone(),
                format!("http://{}", it.http_address),
                it.pid.to_string(),
                it.data_dir.display().to_string(),
            ]);
        }
        page.table(&rows);
        page.title("To try in another terminal");
        for line in self.suggestions() {
            page.line(&format!("  {line}"), Tone::Plain);
        }
        let data = if self.temporary { "and deletes their data" } else { "and keeps their data" };
        page.title(&format!("Ctrl-C stops all of them {data}"));
    }

    fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|it| it.address.clone()).collect()
    }
}

impl Up {
    fn suggestions(&self) -> Vec<String> {
        let addresses: Vec<&str> = self.nodes.iter().map(|it| it.address.as_str()).collect();
        let replicas = self.nodes.len().min(3);
        let mut lines = vec![
            format!("export TIDEMARK_BROKERS={}", addresses.join(",")),
            format!("tidemark topic create orders --partitions 3 --replication-factor {replicas}"),
            "seq 1000 | tidemark produce orders".to_owned(),
            "tidemark topic describe orders".to_owned(),
            "tidemark cluster health".to_owned(),
        ];
        if let ([first, ..], true) = (&self.nodes[..], self.nodes.len() > 2) {
            lines.push(format!("kill -9 {}    # node {}; the others go on", first.pid, first.id));
            lines.push(format!("{}    # bring it back", first.command));
        }
        lines
    }
}

/// Where the data is, and whether it goes away at the end.
enum Data {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Data {
    fn prepare(dir: Option<&Path>) -> Result<Self, CliError> {
        let problem = |error: std::io::Error| {
            CliError::error(format!("cannot create a directory for the data: {error}"))
        };
        let Some(dir) = dir else {
            let dir = tempfile::Builder::new().prefix("tidemark-up-").tempdir();
            return dir.map(Self::Temporary).map_err(problem);
        };
        fs::create_dir_all(dir).map_err(problem)?;
        dir.canonicalize().map(Self::Kept).map_err(problem)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

pub(crate) async fn run(session: &Session, args: UpArgs) -> Result<Exit, CliError> {
    let program = Program::find()?;
    let data = Data::prepare(args.dir.as_deref())?;
    let ports = free_ports(args.port, args.nodes)?;
    let http_ports = free_ports(args.http_port, args.nodes)?;
    let recipes = recipes(data.path(), &ports, &http_ports, &args.set);
    // Watched from before the first start, so that no signal leaves processes behind.
    let mut stop = Stop::new()?;
    let mut nodes = Vec::new();
    for recipe in recipes {
        match Node::start(&program, recipe) {
            Ok(node) => nodes.push(node),
            Err(error) => {
                stop_all(&mut nodes, &mut stop).await;
                return Err(error);
            }
        }
    }
    let timeout = session.timeout.unwrap_or(READY_TIMEOUT);
    let outcome = serve(session, &program, &data, &mut nodes, (&mut stop, timeout)).await;
    stop_all(&mut nodes, &mut stop).await;
    outcome
}

/// Waits until all are ready, says so, and then until somebody wants them to stop or none is left.
async fn serve(
    session: &Session,
    program: &Program,
    data: &Data,
    nodes: &mut [Node],
    (stop, timeout): (&mut Stop, Duration),
) -> Result<Exit, CliError> {
    tokio::select! {
        ready = all_ready(nodes, timeout) => ready?,
        () = stop.wanted() => return Ok(Exit::Interrupted),
    }
    let row = |node: &Node| Row {
        id: node.recipe.id,
        address: node.recipe.address(),
        http_address: node.recipe.http_address(),
        pid: node.pid,
        data_dir: node.recipe.data_dir.clone(),
        command: node.recipe.shell_command(program),
    };
    session.output.print(&Up {
        data_dir: data.path().to_owned(),
        temporary: matches!(data, Data::Temporary(_)),
        nodes: nodes.iter().map(row).collect(),
    })?;
    loop {
        tokio::select! {
            () = stop.wanted() => return Ok(Exit::Success),
            (at, how) = node::any_ended(nodes) => {
                let left = nodes.iter().filter(|node| node.is_running()).count();
                let node = &nodes[at];
                output::note(format_args!("node {} (pid {}) {how}", node.recipe.id, node.pid));
                if left == 0 {
                    return Err(CliError::error("no node is left"));
                }
                output::note(format_args!(
                    "{left} of {} go on; this starts it again:\n  {}",
                    nodes.len(),
                    node.recipe.shell_command(program)
                ));
            }
        }
    }
}

async fn all_ready(nodes: &mut [Node], timeout: Duration) -> Result<(), CliError> {
    let deadline = Instant::now() + timeout;
    let addresses: Vec<(u16, String)> =
        nodes.iter().map(|node| (node.recipe.id, node.recipe.http_address())).collect();
    tokio::select! {
        ready = ready::wait_for_all(&addresses, deadline) => ready,
        (at, how) = node::any_ended(nodes) => {
            let message = format!("node {} {how} before it was ready", nodes[at].recipe.id);
            Err(CliError::error(message).with_hint("its last lines above say why"))
        }
    }
}

/// Told one after the other, the last one first, so that each finds somebody to hand its partitions to; whoever is not done in
/// time is killed, and a second signal kills all.
async fn stop_all(nodes: &mut [Node], stop: &mut Stop) {
    if nodes.iter().any(Node::is_running) {
        output::note("stopping; Ctrl-C again stops at once");
    }
    let in_order = async {
        for at in (0..nodes.len()).rev() {
            nodes[at].terminate();
            // Whoever takes longer than that is waited for below.
            let _in_time = tokio::time::timeout(STOP_HEADSTART, nodes[at].ended()).await;
        }
        for node in &mut *nodes {
            node.ended().await;
        }
    };
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(STOP_TIMEOUT, in_order) => stopped.is_ok(),
        () = stop.wanted() => false,
    };
    if !stopped {
        for node in nodes {
            node.kill().await;
        }
    }
}

/// The wish that this should end: Ctrl-C, or a polite kill.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, CliError> {
        let watch = |kind| {
            signal(kind)
                .map_err(|error| CliError::error(format!("cannot watch for signals: {error}")))
        };
        let (interrupt, terminate) =
            (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate })
    }

    /// Returns when it is wanted once more.
    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// `count` ports from `first` on, or any, none of which anybody listens on.
fn free_ports(first: u16, count: u16) -> Result<Vec<u16>, CliError> {
    let mut held = Vec::new();
    for at in 0..count {
        let port = if first == 0 { 0 } else { first.saturating_add(at) };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            CliError::new(Exit::Conflict, format!("cannot listen on port {port}: {error}"))
                .with_hint("choose others with --port and --http-port, or 0 for any that are free")
        })?;
        held.push(listener);
    }
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    held.iter()
        .map(port)
        .collect::<std::io::Result<_>>()
        .map_err(|error| CliError::error(format!("cannot find free ports: {error}")))
}

/// How each node is started. A single one is told of no controllers: it is its own.
fn recipes(
    dir: &Path,
    ports: &[u16],
    http_ports: &[u16],
    settings: &[(String, String)],
) -> Vec<Recipe> {
    let numbered = || (1_u16..).zip(ports);
    let controllers: Vec<_> =
        numbered().map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect();
    let controllers = (ports.len() > 1).then(|| controllers.join(","));
    numbered()
        .zip(http_ports)
        .map(|((id, port), http_port)| Recipe {
            id,
            port: *port,
            http_port: *http_port,
            data_dir: dir.join(format!("node-{id}")),
            controllers: controllers.clone(),
            settings: settings.to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Color, Format, Output};

    fn nodes(count: u16) -> Vec<Recipe> {
        let ports: Vec<u16> = (9092..9092 + count).collect();
        let http: Vec<u16> = (9644..9644 + count).collect();
        recipes(Path::new("/data"), &ports, &http, &[])
    }

    #[test]
    fn every_node_knows_all_controllers_and_a_single_one_none() {
        let three = nodes(3);
        let all = "1@127.0.0.1:9092,2@127.0.0.1:9093,3@127.0.0.1:9094";
        assert!(three.iter().all(|node| node.controllers.as_deref() == Some(all)));
        assert_eq!((three[2].id, three[2].port, three[2].http_port), (3, 9094, 9646));
        assert_eq!(three[2].data_dir, Path::new("/data/node-3"));
        assert_eq!(nodes(1)[0].controllers, None);
    }

    #[test]
    fn a_port_that_is_taken_is_named_and_free_ones_differ() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = free_ports(port, 1).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        let mut free = free_ports(0, 5).unwrap();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), 5);
    }

    #[test]
    fn what_is_up_is_told_with_commands_that_can_be_pasted() {
        let program = Program::named("tidemarkd");
        let up = |count| Up {
            data_dir: "/data".into(),
            temporary: true,
            nodes: nodes(count)
                .into_iter()
                .map(|recipe| Row {
                    id: recipe.id,
                    address: recipe.address(),
                    http_address: recipe.http_address(),
                    pid: 4000 + u32::from(recipe.id),
                    command: recipe.shell_command(&program),
                    data_dir: recipe.data_dir,
                })
                .collect(),
        };
        let output = Output::new(Format::Table, true, Color::Never);
        let text = |count| String::from_utf8(output.render(&up(count)).unwrap()).unwrap();
        let three = text(3);
        for says in [
            "3 nodes are ready\n",
            "1  127.0.0.1:9092  http://127.0.0.1:9644  4001  /data/node-1\n",
            "export TIDEMARK_BROKERS=127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094\n",
            "--replication-factor 3\n",
            "kill -9 4001    # node 1",
            "Ctrl-C stops all of them and deletes their data\n",
        ] {
            assert!(three.contains(says), "{says:?} is missing in\n{three}");
        }
        assert!(text(1).starts_with("1 node is ready\n") && !text(1).contains("kill"));
    }
}

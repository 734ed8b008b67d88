//! Network namespaces: one for each node, and one between them in which the test itself lives.
//!
//! Each namespace is held by a `cat` that ends when its standard input does, which is when the test ends, however it
//! ends: nothing is left behind, and no two clusters share an address or a name. It needs root and `ip`, `nsenter` and
//! `unshare`.
//!
//! A link is cut one way by a neighbour entry with an address that no card has: packets leave and nobody takes them. The
//! sender learns nothing, which no blackhole route and no closed socket would do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tidemark_protocol::NodeId;

use super::End;

/// The last octet of the address of clients.
const CLIENTS: u8 = 254;
const NODES_MAX: NodeId = 200;
/// The card that nobody has.
const NOWHERE: &str = "02:00:00:00:00:ff";

/// Address of one end, the same in every world.
///
/// # Panics
/// For a node number above 200.
pub fn address(end: End) -> Ipv4Addr {
    let last = match end {
        End::Clients => CLIENTS,
        End::Node(node) => {
            assert!((1..=NODES_MAX).contains(&node), "nodes of a test have small numbers");
            u8::try_from(node).expect("checked")
        }
    };
    Ipv4Addr::new(10, 77, 0, last)
}

/// Whether namespaces can be made and entered here.
pub fn available() -> bool {
    rustix::process::geteuid().is_root() && Holder::new().is_ok_and(|holder| holder.ip(&[]).is_ok())
}

/// The namespaces of one cluster. The thread that entered is back where it was when this is dropped.
#[derive(Debug)]
pub struct World {
    hub: Holder,
    nodes: BTreeMap<NodeId, Holder>,
    cuts: BTreeSet<(End, End)>,
    isolated: BTreeSet<NodeId>,
    /// The namespace this thread came from.
    outside: File,
}

impl World {
    /// Makes a world without nodes and moves this thread into it.
    pub fn enter() -> Result<Self> {
        let outside = File::open("/proc/thread-self/ns/net")?;
        let hub = Holder::new()?;
        let clients = format!("{}/24", address(End::Clients));
        hub.ip(&["link set lo up", "link add hub type bridge", "link set hub up"])?;
        hub.ip(&[&format!("addr add {clients} dev hub")])?;
        let inside = File::open(hub.namespace())?;
        move_into(&inside)?;
        let (cuts, isolated) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { hub, nodes: BTreeMap::new(), cuts, isolated, outside })
    }

    /// Adds a node and returns its namespace.
    pub fn add(&mut self, node: NodeId) -> Result<PathBuf> {
        let holder = Holder::new()?;
        let (port, pid) = (port(node), holder.cat.id());
        self.hub.ip(&[
            &format!("link add {port} type veth peer name eth0 netns {pid}"),
            &format!("link set {port} master hub up"),
        ])?;
        let address = address(End::Node(node));
        holder.ip(&[
            "link set lo up",
            &format!("addr add {address}/24 dev eth0"),
            "link set eth0 up",
        ])?;
        let namespace = holder.namespace();
        self.nodes.insert(node, holder);
        Ok(namespace)
    }

    /// Loses what `from` sends to `to`.
    pub fn cut(&mut self, from: End, to: End) -> Result<()> {
        if from != to && self.cuts.insert((from, to)) {
            let (holder, device) = self.sender(from)?;
            let to = address(to);
            holder.ip(&[&format!(
                "neigh replace {to} lladdr {NOWHERE} dev {device} nud permanent"
            )])?;
        }
        Ok(())
    }

    /// Pulls the node's plug.
    pub fn isolate(&mut self, node: NodeId) -> Result<()> {
        self.isolated.insert(node);
        self.hub.ip(&[&format!("link set {} down", port(node))])
    }

    /// Mends everything.
    pub fn heal(&mut self) -> Result<()> {
        for node in std::mem::take(&mut self.isolated) {
            self.hub.ip(&[&format!("link set {} up", port(node))])?;
        }
        for (from, to) in std::mem::take(&mut self.cuts) {
            let (holder, device) = self.sender(from)?;
            holder.ip(&[&format!("neigh del {} dev {device}", address(to))])?;
        }
        Ok(())
    }

    fn sender(&self, end: End) -> Result<(&Holder, &'static str)> {
        match end {
            End::Clients => Ok((&self.hub, "hub")),
            End::Node(node) => Ok((self.nodes.get(&node).context("no such node")?, "eth0")),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A thread that cannot go back can still end.
        let _back = move_into(&self.outside);
    }
}

/// The bridge's end of a node's link.
fn port(node: NodeId) -> String {
    format!("node{node}")
}

fn move_into(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter a network namespace")
}

/// A namespace, for as long as this lives.
#[derive(Debug)]
struct Holder {
    cat: Child,
}

impl Holder {
    fn new() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo made && exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = Self { cat: command.spawn().context("start `unshare`")? };
        let stdout = holder.cat.stdout.take().expect("piped above");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "made\n", "`unshare -n` makes no namespace here");
        Ok(holder)
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.cat.id()).into()
    }

    /// Runs `ip` inside, once with each of these arguments.
    fn ip(&self, commands: &[&str]) -> Result<()> {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.namespace().display()));
        nsenter.args(["ip", "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut ip = nsenter.stdout(Stdio::null()).spawn().context("start `nsenter`")?;
        let mut stdin = ip.stdin.take().expect("piped above");
        std::io::Write::write_all(&mut stdin, commands.join("\n").as_bytes())?;
        drop(stdin);
        let output = ip.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {commands:?}: {said}");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.cat.kill();
        let _reaped = self.cat.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    /// How long a machine with other things to do may take to answer.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// How long silence has to last to be a cut.
    const SILENCE: Duration = Duration::from_millis(300);

    /// Connects to a port of the node that nobody listens on: refused if the packets went both ways.
    fn is_refused(node: NodeId, within: Duration) -> bool {
        let outcome = TcpStream::connect_timeout(&(address(End::Node(node)), 9).into(), within);
        match outcome.expect_err("nobody listens").kind() {
            ErrorKind::ConnectionRefused => true,
            ErrorKind::TimedOut => false,
            other => panic!("{other}"),
        }
    }

    fn reaches(node: NodeId) -> bool {
        is_refused(node, PATIENCE)
    }

    fn is_silent(node: NodeId) -> bool {
        !is_refused(node, SILENCE)
    }

    #[test]
    fn cuts_are_silent_one_way_and_mendable_and_the_thread_comes_back() {
        if !available() {
            return;
        }
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut world = World::enter().unwrap();
        for node in [1, 2] {
            world.add(node).unwrap();
        }
        assert!(reaches(1) && reaches(2));
        world.cut(End::Clients, End::Node(1)).unwrap();
        assert!(is_silent(1) && reaches(2));
        world.heal().unwrap();
        world.cut(End::Node(1), End::Clients).unwrap();
        assert!(is_silent(1), "answers are lost");
        world.cut(End::Node(1), End::Node(2)).unwrap();
        world.heal().unwrap();
        world.isolate(2).unwrap();
        assert!(reaches(1) && is_silent(2));
        world.heal().unwrap();
        assert!(reaches(1) && reaches(2));
        drop(world);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
    }

    #[test]
    fn a_cut_between_two_nodes_is_theirs_alone() {
        if !available() {
            return;
        }
        let mut world = World::enter().unwrap();
        let namespaces: Vec<_> = [1, 2].map(|node| world.add(node).unwrap()).into();
        let dial = |from: usize, to: NodeId, within| {
            let inside = File::open(&namespaces[from - 1]).unwrap();
            std::thread::spawn(move || {
                move_into(&inside).unwrap();
                is_refused(to, within)
            })
            .join()
            .unwrap()
        };
        assert!(dial(1, 2, PATIENCE));
        world.cut(End::Node(1), End::Node(2)).unwrap();
        assert!(!dial(1, 2, SILENCE) && !dial(2, 1, SILENCE), "a handshake needs both ways");
        assert!(reaches(1) && reaches(2), "clients are not concerned");
        drop(TcpListener::bind((address(End::Clients), 0)).unwrap());
    }
}

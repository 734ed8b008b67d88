//! A cluster of real brokers: killed, paused, cut off, filled up, wiped, restarted, and asked what they think.
//!
//! The calls block, and a test makes them from one thread; what produces and consumes meanwhile runs on threads of its own
//! (see [`crate::workload`]). It decides nothing: which fault comes next is for [`crate::faults`] or the test.

pub mod view;

use std::{
    collections::BTreeMap, fs, io::Write as _, path::PathBuf, sync::PoisonError, thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tidemark_client::{Admin, Client, ClientConfig, NewTopic};
use tidemark_protocol::NodeId;

use crate::{
    cli::Cli,
    image::{self, Image},
    network::{Kind, Network, Place},
    process::{Broker, BrokerConfig, Log, Mount, failure_dir},
};

/// How long a node may take to become ready, a command to be carried out, or the cluster to agree, before a test fails.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Lines of each node's log that are shown of a failure; all of them are kept in files.
const LOG_LINES_SHOWN: usize = 60;

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Nodes at the start, all of them controllers and brokers. Their ids count from 1.
    pub nodes: u32,
    pub network: Kind,
    /// Flags of every broker, as `("log-level", "debug")`.
    pub flags: Vec<(String, String)>,
    pub disk: Disk,
}

/// Where each node keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// In a folder of the machine's disk.
    Folder,
    /// In a file system in memory with these options, as `size=64m`: gone when its process is.
    Memory(String),
    /// In a file system of this many MiB that can lose power.
    Image(u64),
}

impl ClusterConfig {
    pub fn nodes(nodes: u32) -> Self {
        Self { nodes, network: Kind::Best, flags: Vec::new(), disk: Disk::Folder }
    }

    /// Adds a flag for every broker.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn network(mut self, network: Kind) -> Self {
        self.network = network;
        self
    }

    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = disk;
        self
    }
}

/// Runs `test` with a cluster. When it fails, the logs of all nodes are kept and their ends shown.
pub fn with<T>(config: ClusterConfig, test: impl FnOnce(&mut Cluster) -> Result<T>) -> Result<T> {
    let mut cluster = Cluster::start(config)?;
    let outcome = test(&mut cluster);
    if outcome.is_err() {
        cluster.show_logs();
    }
    outcome
}

#[derive(Debug)]
enum State {
    Down,
    Up(Broker),
    Paused(Broker),
}

#[derive(Debug)]
struct Node {
    config: BrokerConfig,
    place: Place,
    image: Option<Image>,
    /// Over all its runs.
    log: Log,
    state: State,
}

/// A running cluster; killed when dropped. See [`Network`] for what its making does to the thread.
#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    network: Network,
    nodes: BTreeMap<NodeId, Node>,
    /// The `controllers` setting of every node; none for a single node.
    controllers: Option<String>,
    dir: TempDir,
    images: Option<TempDir>,
}

impl Cluster {
    /// Starts the nodes and waits until they are ready and agree that they are there.
    pub fn start(config: ClusterConfig) -> Result<Self> {
        // Built before anything is in a namespace from which no registry can be reached.
        crate::process::program("tidemarkd");
        let mut network = Network::new(config.network)?;
        let ids = 1..=config.nodes;
        let places = ids.map(|id| Ok((id, network.add(id)?)));
        let places: BTreeMap<NodeId, Place> = places.collect::<Result<_>>()?;
        let voters = places.iter().map(|(id, place)| format!("{id}@{}", place.advertised));
        let controllers = (config.nodes > 1).then(|| voters.collect::<Vec<_>>().join(","));
        let (nodes, dir, images) = (BTreeMap::new(), tempfile::tempdir()?, None);
        let mut cluster = Self { config, network, nodes, controllers, dir, images };
        for (id, place) in places {
            cluster.insert(id, place)?;
        }
        let started = cluster.start_all();
        if started.is_err() {
            cluster.show_logs();
        }
        started.map(|()| cluster)
    }

    fn insert(&mut self, id: NodeId, place: Place) -> Result<()> {
        let data_dir = self.dir.path().join(format!("node-{id}"));
        fs::create_dir_all(&data_dir)?;
        let mut flags = self.config.flags.clone();
        let mut flag = |name: &str, value: String| flags.push((name.to_owned(), value));
        flag("node-id", id.to_string());
        flag("advertised-address", place.advertised.to_string());
        if let Some(controllers) = &self.controllers {
            flag("controllers", controllers.clone());
            // Who came later was not asked into the quorum, and as a controller would wait for that.
            flag("roles", if id > self.config.nodes { "broker" } else { "both" }.to_owned());
        }
        let mut config = BrokerConfig {
            data_dir,
            listen: place.listen,
            http_listen: place.http_listen,
            flags,
            mount: None,
            namespace: place.namespace.clone(),
        };
        let image = match self.config.disk.clone() {
            Disk::Image(mib) => {
                let stem = self.images()?.join(format!("node-{id}"));
                Some(Image::create(&stem, mib)?)
            }
            Disk::Memory(options) => {
                config.mount = Some(Mount::Memory(options));
                None
            }
            Disk::Folder => None,
        };
        let node = Node { config, place, image, log: Log::default(), state: State::Down };
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Starts every node that is down and waits until all are ready and nobody is fenced.
    pub fn start_all(&mut self) -> Result<()> {
        for id in self.ids() {
            if matches!(self.nodes[&id].state, State::Down) {
                self.spawn(id)?;
            }
        }
        for id in self.ids() {
            self.await_ready(id)?;
        }
        self.await_formed()
    }

    /// One more broker, which is no controller. Waits until it is ready.
    pub fn add_node(&mut self) -> Result<NodeId> {
        let id = self.nodes.keys().next_back().map_or(1, |last| last + 1);
        let place = self.network.add(id)?;
        self.insert(id, place)?;
        self.start_node(id)?;
        Ok(id)
    }

    /// Starts a node that is down and does not wait for it.
    pub fn spawn(&mut self, id: NodeId) -> Result<()> {
        let node = self.node_mut(id)?;
        ensure!(matches!(node.state, State::Down), "node {id} runs already");
        note(&node.log, "started");
        if let Some(image) = &node.image {
            // Mounted twice, it would be destroyed.
            image.await_released()?;
            node.config.mount = Some(Mount::Image(image.path().to_owned()));
        }
        let mut broker = node.config.spawn(node.log.clone())?;
        broker.keep_quiet();
        node.state = State::Up(broker);
        Ok(())
    }

    /// Starts a node that is down and waits until it says that it is ready.
    pub fn start_node(&mut self, id: NodeId) -> Result<()> {
        self.spawn(id)?;
        self.await_ready(id)
    }

    pub fn await_ready(&mut self, id: NodeId) -> Result<()> {
        match &mut self.node_mut(id)?.state {
            State::Up(broker) => broker.await_ready(PATIENCE).with_context(|| format!("node {id}")),
            other => bail!("node {id} cannot become ready: {other:?}"),
        }
    }

    /// `kill -9`; a paused node, too. Nothing for one that is down.
    pub fn kill(&mut self, id: NodeId) -> Result<()> {
        let node = self.node_mut(id)?;
        match std::mem::replace(&mut node.state, State::Down) {
            State::Down => {}
            State::Up(broker) | State::Paused(broker) => drop(broker.kill()?),
        }
        note(&node.log, "killed");
        Ok(())
    }

    /// SIGTERM, and waits for its end, which must be in order, unless the process was so young that it could not hear yet.
    pub fn terminate(&mut self, id: NodeId) -> Result<()> {
        let node = self.node_mut(id)?;
        let state = std::mem::replace(&mut node.state, State::Down);
        let State::Up(broker) = state else { bail!("node {id} does not run") };
        let could_hear = listens(&node.log);
        note(&node.log, "told to stop");
        let status = broker.terminate().with_context(|| format!("node {id}"))?;
        ensure!(status.success() || !could_hear, "node {id} ended with {status}");
        Ok(())
    }

    /// SIGSTOP: alive, and silent. Nothing for a node that is down.
    pub fn pause(&mut self, id: NodeId) -> Result<()> {
        let node = self.node_mut(id)?;
        node.state = match std::mem::replace(&mut node.state, State::Down) {
            State::Up(broker) => {
                broker.pause()?;
                note(&node.log, "paused");
                State::Paused(broker)
            }
            other => other,
        };
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: NodeId) -> Result<()> {
        let node = self.node_mut(id)?;
        node.state = match std::mem::replace(&mut node.state, State::Down) {
            State::Paused(broker) => {
                note(&node.log, "resumed");
                broker.resume()?;
                State::Up(broker)
            }
            other => other,
        };
        Ok(())
    }

    /// Empties the disk of a node that is down: a new disk under an old id.
    pub fn wipe(&mut self, id: NodeId) -> Result<()> {
        let disk = self.config.disk.clone();
        let node = self.node_mut(id)?;
        ensure!(matches!(node.state, State::Down), "node {id} runs");
        note(&node.log, "wiped");
        if let (Some(image), Disk::Image(mib)) = (&node.image, disk) {
            image.await_released()?;
            return image.format(mib);
        }
        fs::remove_dir_all(&node.config.data_dir)?;
        Ok(fs::create_dir(&node.config.data_dir)?)
    }

    /// Takes the power from these nodes, all at once: what they had not flushed is gone. Of use only with
    /// [`Disk::Image`].
    pub fn lose_power(&mut self, ids: &[NodeId]) -> Result<()> {
        for id in ids {
            self.pause(*id)?;
        }
        for id in ids {
            let node = self.node_mut(*id)?;
            let image = node.image.clone().context("its disk cannot lose power")?;
            node.image = Some(image.lose_power()?);
            note(&node.log, "without power");
            self.kill(*id)?;
            image.remove()?;
        }
        Ok(())
    }

    /// Takes every byte of the node's disk, and waits until the node knows; not for
    /// [`Disk::Folder`].
    pub fn fill_disk(&mut self, id: NodeId) -> Result<()> {
        ensure!(self.config.disk != Disk::Folder, "this would fill the machine's disk");
        let mut ballast = fs::File::create(self.ballast(id)?)?;
        while ballast.write_all(&[1; 4096]).is_ok() {}
        while ballast.write_all(&[1]).is_ok() {}
        note(&self.node_mut(id)?.log, "disk filled");
        self.await_disk(id, "full")
    }

    /// Undoes [`Cluster::fill_disk`], and waits until the node knows.
    pub fn empty_disk(&mut self, id: NodeId) -> Result<()> {
        note(&self.node_mut(id)?.log, "disk emptied");
        fs::remove_file(self.ballast(id)?)?;
        self.await_disk(id, "ok")
    }

    fn ballast(&self, id: NodeId) -> Result<PathBuf> {
        Ok(self.broker(id)?.data_dir().join("ballast"))
    }

    /// Mends links, wakes who sleeps and starts who is down, and waits for nobody.
    pub fn mend(&mut self) -> Result<()> {
        self.network.heal()?;
        for id in self.ids() {
            self.resume(id)?;
            if matches!(self.nodes[&id].state, State::Down) {
                self.spawn(id)?;
            }
        }
        Ok(())
    }

    /// Mends everything and waits until all nodes are back.
    pub fn heal(&mut self) -> Result<()> {
        self.mend()?;
        self.start_all()
    }

    /// Fails if a process has ended that nobody ended.
    pub fn check_processes(&mut self) -> Result<()> {
        for (id, node) in &mut self.nodes {
            if let State::Up(broker) | State::Paused(broker) = &mut node.state
                && let Some(status) = broker.ended()?
            {
                bail!("node {id} ended by itself: {status}");
            }
        }
        Ok(())
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Whether the node runs and is not paused.
    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| matches!(node.state, State::Up(_)))
    }

    /// The process of a node that is up.
    pub fn broker(&self, id: NodeId) -> Result<&Broker> {
        match &self.nodes.get(&id).context("no such node")?.state {
            State::Up(broker) => Ok(broker),
            _ => bail!("node {id} is not up"),
        }
    }

    /// The addresses of a node.
    pub fn place(&self, id: NodeId) -> Result<&Place> {
        Ok(&self.nodes.get(&id).context("no such node")?.place)
    }

    /// Where a node's files can be read: while its process exists, be it paused, and afterwards with [`Disk::Folder`].
    pub fn files(&self, id: NodeId) -> Result<PathBuf> {
        let node = self.nodes.get(&id).context("no such node")?;
        Ok(match &node.state {
            State::Up(broker) | State::Paused(broker) => broker.data_dir(),
            State::Down => node.config.data_dir.clone(),
        })
    }

    /// Where images are kept; made when the first one is.
    fn images(&mut self) -> Result<PathBuf> {
        if self.images.is_none() {
            self.images = Some(image::folder()?);
        }
        Ok(self.images.as_ref().context("just made")?.path().to_owned())
    }

    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What clients connect to first: every node, be it up or not.
    pub fn bootstrap(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.place.advertised.to_string()).collect()
    }

    /// A client's settings: those of production, but for patience with nodes that say nothing.
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig {
            bootstrap: self.bootstrap(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            ..ClientConfig::default()
        }
    }

    pub fn cli(&self) -> Cli {
        Cli::at(self.bootstrap().join(","))
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: NewTopic) -> Result<()> {
        self.ask(async |admin| Ok(admin.create_topic(topic).await.map(drop)?))
    }

    /// The controllers, by node.
    pub fn voters(&self) -> Result<Vec<NodeId>> {
        let quorum = self.ask(async |admin| Ok(admin.describe_quorum().await?))?;
        let voters = quorum.members.iter().filter(|member| member.is_voter);
        let mut voters: Vec<_> = voters.map(|member| member.id.node).collect();
        voters.sort_unstable();
        Ok(voters)
    }

    /// By way of a client, which finds out whom to ask.
    fn ask<T>(&self, question: impl AsyncFnOnce(Admin) -> Result<T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Client::connect(self.client_config()).await?;
            question(client.admin().with_timeout(PATIENCE)).await
        })
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).with_context(|| format!("no node {id}"))
    }

    /// Keeps the logs of all nodes below the build's folder and prints where, and how they end.
    #[expect(clippy::print_stderr, reason = "what a person who reads a failed test wants to see")]
    fn show_logs(&self) {
        let kept = failure_dir();
        for (id, node) in &self.nodes {
            let log = node.log.lock().map(|log| log.clone()).unwrap_or_default();
            let file = kept.as_ref().map(|kept| kept.join(format!("node-{id}.log")));
            let written = file.is_ok_and(|file| fs::write(file, &log).is_ok());
            let place = kept.as_ref().ok().filter(|_| written);
            let place = place.map_or("nowhere".to_owned(), |kept| kept.display().to_string());
            let lines: Vec<_> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("node {id}, all {} lines in {place}:\n{}", lines.len(), shown.join("\n"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_logs();
        }
    }
}

/// What the test did, between the lines of the broker.
fn note(log: &Log, what: &str) {
    if let Ok(mut log) = log.lock() {
        log.push_str("--- ");
        log.push_str(what);
        log.push('\n');
    }
}

/// Whether the last process started has come so far that it heeds signals.
fn listens(log: &Log) -> bool {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.rsplit("--- started").next().is_some_and(|last| last.contains(": listening"))
}

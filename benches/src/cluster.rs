//! Clusters of `tidemarkd` on loopback for measuring: started, killed, asked who leads.
//!
//! Default settings throughout, so that what is measured is what one gets. It injects no other faults: that is for the suites.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tidemark_protocol::{
    NodeId, TopicPartition,
    messages::{
        BrokerMetadata, ListOffsetsPartition, ListOffsetsRequest, MetadataRequest,
        MetadataResponse, OffsetQuery, TopicMetadata,
    },
};

use crate::broker::{Connection, NewTopic, Server};

/// How long the cluster may take to agree on anything.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks: nobody tells when metadata changes.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Nodes with ids from 1; killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    /// Data and HTTP address of each node.
    addresses: BTreeMap<NodeId, (SocketAddr, SocketAddr)>,
    up: BTreeMap<NodeId, Server>,
}

impl Cluster {
    /// Starts `nodes` brokers with their data below `dir` and waits until all are ready.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(program: &Path, dir: &Path, nodes: NodeId) -> io::Result<Self> {
        // Held together, so that all differ.
        let listeners = (0..nodes * 2).map(|_| TcpListener::bind("127.0.0.1:0"));
        let listeners: Vec<_> = listeners.collect::<Result<_, _>>()?;
        let mut addresses = BTreeMap::new();
        for (id, pair) in (1..).zip(listeners.chunks(2)) {
            addresses.insert(id, (pair[0].local_addr()?, pair[1].local_addr()?));
        }
        drop(listeners);
        let (program, dir) = (program.to_owned(), dir.to_owned());
        let mut cluster = Self { program, dir, addresses, up: BTreeMap::new() };
        let ids: Vec<_> = cluster.addresses.keys().copied().collect();
        let started: Vec<_> = thread::scope(|scope| {
            let spawned: Vec<_> =
                ids.iter().map(|id| scope.spawn(|| cluster.start_process(*id))).collect();
            spawned.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for (id, server) in ids.into_iter().zip(started) {
            cluster.up.insert(id, server?);
        }
        cluster.await_all_serving()?;
        Ok(cluster)
    }

    fn start_process(&self, id: NodeId) -> io::Result<Server> {
        let (listen, http_listen) = self.addresses[&id];
        let mut flags = vec![
            format!("--node-id={id}"),
            format!("--listen={listen}"),
            format!("--http-listen={http_listen}"),
            format!("--advertised-address={listen}"),
            // A kill is no news here.
            "--log-level=error".to_owned(),
        ];
        if self.addresses.len() > 1 {
            let voters = self.addresses.iter().map(|(id, (listen, _))| format!("{id}@{listen}"));
            flags.push(format!("--controllers={}", voters.collect::<Vec<_>>().join(",")));
        }
        Server::node(&self.program, &self.dir.join(format!("node-{id}")), &flags)
    }

    /// `kill -9`, and waits for its end. The moment before it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, id: NodeId) -> Instant {
        let server = self.up.remove(&id).expect("it runs");
        let before = Instant::now();
        drop(server);
        before
    }

    /// Starts a node that was killed and waits until it is ready and serves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_node(&mut self, id: NodeId) -> io::Result<()> {
        self.up.insert(id, self.start_process(id)?);
        self.await_all_serving()
    }

    pub fn bootstrap(&self) -> Vec<String> {
        self.addresses.values().map(|(listen, _)| listen.to_string()).collect()
    }

    /// What the best informed of those who run and answer knows.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn metadata(&self) -> io::Result<MetadataResponse> {
        let answers: Vec<_> = self.up.keys().map(|id| self.metadata_of(*id)).collect();
        let mut last = io::Error::other("no node runs");
        let mut best: Option<MetadataResponse> = None;
        for answer in answers {
            match answer {
                Ok(answer)
                    if best
                        .as_ref()
                        .is_none_or(|best| best.metadata_index < answer.metadata_index) =>
                {
                    best = Some(answer);
                }
                Ok(_older) => {}
                Err(error) => last = error,
            }
        }
        best.ok_or(last)
    }

    fn metadata_of(&self, id: NodeId) -> io::Result<MetadataResponse> {
        Connection::open(self.addresses[&id].0)?.call(&MetadataRequest::default())
    }

    /// Waits until what the cluster says of itself holds.
    ///
    /// # Errors
    /// After a minute, saying `what`.
    pub fn await_metadata(
        &self,
        what: &str,
        mut holds: impl FnMut(&MetadataResponse) -> bool,
    ) -> io::Result<MetadataResponse> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.metadata() {
                Ok(metadata) if holds(&metadata) => return Ok(metadata),
                seen if Instant::now() > deadline => {
                    return Err(io::Error::other(format!(
                        "not within {PATIENCE:?}: {what}: {seen:?}"
                    )));
                }
                _not_yet => thread::sleep(LOOK_AGAIN_AFTER),
            }
        }
    }

    fn await_all_serving(&self) -> io::Result<()> {
        let serves = |metadata: &MetadataResponse, id| {
            let serving = |broker: &BrokerMetadata| broker.id == id && !broker.fenced;
            metadata.brokers.iter().any(serving)
        };
        let all = |metadata: &MetadataResponse| {
            metadata.controller_id.is_some() && self.up.keys().all(|id| serves(metadata, *id))
        };
        self.await_metadata("every node serves", all).map(drop)
    }

    /// Creates a topic with a replica on every node (three at most) and waits until all are in sync and the leaders serve.
    ///
    /// # Errors
    /// Those of the active controller.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        durable: bool,
    ) -> io::Result<TopicMetadata> {
        let nodes = u16::try_from(self.addresses.len().min(3)).expect("three at most");
        let controller = self.metadata()?.controller_id.ok_or(io::ErrorKind::NotConnected)?;
        let mut admin = Connection::open(self.addresses[&controller].0)?;
        let min_insync_replicas = if nodes > 2 { 2 } else { 1 };
        let replication_factor = Some(nodes);
        admin.create(&NewTopic {
            name,
            partitions,
            durable,
            replication_factor,
            min_insync_replicas,
        })?;
        let topic = self.await_in_sync(name)?;
        for index in 0..partitions {
            self.await_served(&topic, index)?;
        }
        Ok(topic)
    }

    /// The metadata is the controller's: the leader may not have opened its log yet.
    fn await_served(&self, topic: &TopicMetadata, index: u32) -> io::Result<()> {
        let (leader, partition) = self.leader(topic, index)?;
        let mut leader = Connection::open(leader)?;
        let latest = ListOffsetsPartition {
            partition,
            leader_epoch: None,
            query: OffsetQuery::Latest,
            timestamp_ms: 0,
        };
        let question = ListOffsetsRequest { partitions: vec![latest] };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match leader.call(&question)?.partitions.pop() {
                Some(Ok(_)) => return Ok(()),
                Some(Err(failure)) if Instant::now() > deadline => {
                    return Err(io::Error::other(failure));
                }
                _not_yet => thread::sleep(LOOK_AGAIN_AFTER),
            }
        }
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// Those of the active controller.
    pub fn delete_topic(&self, name: &str) -> io::Result<()> {
        let controller = self.metadata()?.controller_id.ok_or(io::ErrorKind::NotConnected)?;
        Connection::open(self.addresses[&controller].0)?.delete_topic(name)
    }

    /// Waits until every replica of the topic is in sync and every partition has a leader.
    ///
    /// # Errors
    /// After a minute.
    pub fn await_in_sync(&self, name: &str) -> io::Result<TopicMetadata> {
        let in_sync = |topic: &TopicMetadata| {
            topic.partitions.iter().all(|partition| {
                partition.leader.is_some() && partition.isr.len() == partition.replicas.len()
            })
        };
        let metadata = self.await_metadata(&format!("{name} in sync"), |metadata| {
            metadata.topics.iter().any(|topic| topic.name == name && in_sync(topic))
        })?;
        let topic = metadata.topics.into_iter().find(|topic| topic.name == name);
        topic.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The address of the leader of a partition, and how requests name the partition.
    ///
    /// # Errors
    /// When it has none.
    pub fn leader(
        &self,
        topic: &TopicMetadata,
        index: u32,
    ) -> io::Result<(SocketAddr, TopicPartition)> {
        let partition = usize::try_from(index).ok().and_then(|index| topic.partitions.get(index));
        let leader = partition.and_then(|partition| partition.leader);
        let leader = leader.ok_or(io::ErrorKind::NotConnected)?;
        Ok((self.addresses[&leader].0, (topic.id, index).into()))
    }
}

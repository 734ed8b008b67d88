//! What the nodes of a cluster say of it, and waiting until they say something.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tidemark_controller::{Command, IncarnationId, RegisterBroker};
use tidemark_protocol::{
    DirectoryId, NodeId, PartitionIndex,
    messages::{
        ControllerCommandRequest, CoordinatorKind, DescribeLogDirsRequest, FindCoordinatorRequest,
        FindCoordinatorResponse, MetadataRequest, MetadataResponse, PartitionMetadata,
        TopicMetadata,
    },
};

use super::{Cluster, PATIENCE};
use crate::raw::Raw;

/// How long one node may take to answer before the next is asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks: nobody tells when metadata changes.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

impl Cluster {
    /// What this node knows. Asks it directly and not by the way of clients, which may be cut off.
    pub fn metadata_of(&self, id: NodeId) -> Result<MetadataResponse> {
        let mut raw = Raw::open_at(self.place(id)?.listen, ANSWER_PATIENCE)?;
        Ok(raw.call(&MetadataRequest::default(), &[])?.0?)
    }

    /// What the best informed of those who answer knows.
    pub fn metadata(&self) -> Result<MetadataResponse> {
        let up = self.ids().into_iter().filter(|id| self.is_up(*id));
        let mut last = None;
        let mut answers = Vec::new();
        for id in up {
            match self.metadata_of(id) {
                Ok(answer) => answers.push(answer),
                Err(error) => last = Some(error.context(format!("node {id}"))),
            }
        }
        let best = answers.into_iter().max_by_key(|answer| answer.metadata_index);
        best.ok_or_else(|| last.unwrap_or_else(|| anyhow::anyhow!("no node is up")))
    }

    /// Waits until what the cluster says of itself holds, and fails saying `what` when it takes too long.
    pub fn await_metadata(
        &self,
        what: &str,
        mut holds: impl FnMut(&MetadataResponse) -> bool,
    ) -> Result<MetadataResponse> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = match self.metadata() {
                Ok(metadata) if holds(&metadata) => return Ok(metadata),
                Ok(metadata) => format!("{metadata:#?}"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("not within {PATIENCE:?}: {what}. Last seen: {seen}");
            }
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    /// Waits for a controller, and for every node that is up to be known and not fenced.
    pub fn await_formed(&self) -> Result<()> {
        let up: BTreeSet<_> = self.ids().into_iter().filter(|id| self.is_up(*id)).collect();
        let formed = |metadata: &MetadataResponse| {
            let serving = metadata.brokers.iter().filter(|broker| !broker.fenced);
            let serving: BTreeSet<_> = serving.map(|broker| broker.id).collect();
            metadata.controller_id.is_some() && up.is_subset(&serving)
        };
        self.await_metadata("a controller, and every node registered", formed).map(drop)
    }

    /// Waits until somebody other than `not` is the active controller.
    pub fn await_controller(&self, not: Option<NodeId>) -> Result<NodeId> {
        let elected =
            |metadata: &MetadataResponse| metadata.controller_id.filter(|id| Some(*id) != not);
        let metadata = self.await_metadata("a controller", |m| elected(m).is_some())?;
        elected(&metadata).context("just seen")
    }

    /// Waits until somebody other than `not` leads the partition.
    pub fn await_leader(
        &self,
        topic: &str,
        index: PartitionIndex,
        not: Option<NodeId>,
    ) -> Result<NodeId> {
        let leader = |metadata: &MetadataResponse| {
            let leader = partition(metadata, topic, index)?.leader;
            leader.filter(|leader| Some(*leader) != not)
        };
        let what = format!("a leader of {topic}/{index}");
        let metadata = self.await_metadata(&what, |metadata| leader(metadata).is_some())?;
        leader(&metadata).context("just seen")
    }

    /// Waits until nodes that are up know a coordinator of the group or transactional id, and it is one of them.
    pub fn await_coordinator(
        &self,
        kind: CoordinatorKind,
        key: &str,
    ) -> Result<FindCoordinatorResponse> {
        let request = FindCoordinatorRequest { kind, key: key.to_owned(), timeout_ms: 10_000 };
        let deadline = Instant::now() + PATIENCE;
        loop {
            for id in self.ids().into_iter().filter(|id| self.is_up(*id)) {
                let mut raw = Raw::open_at(self.place(id)?.listen, PATIENCE)?;
                if let Ok(found) = raw.call(&request, &[])?.0
                    && self.is_up(found.broker)
                {
                    return Ok(found);
                }
            }
            ensure!(Instant::now() < deadline, "nobody coordinates {key}");
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    /// Registers a node that is silent as if by another run of it, as soon as the controller has given it up.
    pub fn register_over(&self, id: NodeId) -> Result<()> {
        let command = Command::RegisterBroker(RegisterBroker {
            broker_id: id,
            incarnation: IncarnationId([0xdd; 16]),
            directory: DirectoryId([0xdd; 16]),
            host: "localhost".to_owned(),
            port: 1,
            rack: None,
            previous_broker_epoch: None,
        });
        let request = ControllerCommandRequest { command: command.encode(), timeout_ms: 1_000 };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let controller = self.await_controller(Some(id))?;
            let mut raw = Raw::open_at(self.place(controller)?.listen, PATIENCE)?;
            match raw.call(&request, &[])?.0 {
                Ok(_) => return Ok(()),
                Err(failure) => {
                    ensure!(Instant::now() < deadline, "node {id} is not given up: {failure}");
                }
            }
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    /// Waits until every replica of every partition of the topic is in the ISR.
    pub fn await_in_sync(&self, topic: &str) -> Result<()> {
        let in_sync = |partition: &PartitionMetadata| {
            let sets = [&partition.isr, &partition.replicas]
                .map(|set| set.iter().collect::<BTreeSet<_>>());
            sets[0] == sets[1] && partition.leader.is_some()
        };
        let all = |metadata: &MetadataResponse| {
            let topic = find(metadata, topic);
            topic.is_some_and(|topic| topic.partitions.iter().all(in_sync))
        };
        self.await_metadata(&format!("every replica of {topic} in sync"), all).map(drop)
    }

    /// Waits until the node says that its disk is `ok`, `full` or `failed`.
    pub fn await_disk(&self, id: NodeId, state: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut raw = Raw::open_at(self.place(id)?.listen, PATIENCE)?;
        loop {
            let dirs = raw.call(&DescribeLogDirsRequest {}, &[])?.0?.dirs;
            if dirs.iter().all(|dir| dir.state == state) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "node {id}: the disk is not {state}: {dirs:?}");
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }
}

/// One topic of an answer.
pub fn find<'a>(metadata: &'a MetadataResponse, topic: &str) -> Option<&'a TopicMetadata> {
    metadata.topics.iter().find(|known| known.name == topic)
}

/// One partition of an answer.
pub fn partition<'a>(
    metadata: &'a MetadataResponse,
    topic: &str,
    index: PartitionIndex,
) -> Option<&'a PartitionMetadata> {
    find(metadata, topic)?.partitions.get(usize::try_from(index).ok()?)
}

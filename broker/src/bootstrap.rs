//! The first start of a node: which cluster it belongs to, and who its controllers are.
//!
//! A node that is a cluster of its own decides at once. Every other one asks the configured controllers: either a
//! cluster has begun, and this node joins it; or none has, and then it begins with exactly those controllers, once each of
//! them has been heard and all of them name the same. A controller whose disk was wiped finds a cluster that has begun
//! without it, and does not begin another.
//!
//! While it asks it answers others that ask, and nothing else.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::future::join_all;
use tidemark_protocol::{
    DirectoryId, ErrorCode, Failure, NodeId,
    frame::{Frame, FrameDecoder, FrameKind, encode_head},
    limits::FRAME_BYTES_MAX,
    message::Api,
    messages::{QuorumHelloRequest, QuorumHelloResponse, VoterId},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    config::Config,
    connection::{Begun, Connection, Door, Limits, PUSHES_QUEUED_MAX, Pending, Refusal, Reply},
    health::{Health, Reason},
    native::greet,
    peer::Peer,
    tasks::{Shutdown, Tasks},
};

/// Pause between two rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// How long a controller may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How long somebody who asks may take to do so.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// What the first start found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) cluster_id: String,
    /// The voters to begin with; `None`: a cluster has begun without this node.
    pub(crate) voters: Option<Vec<VoterId>>,
}

/// Who this node is, before it belongs to a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Newcomer {
    pub(crate) me: VoterId,
    /// The name this node would give a new cluster.
    pub(crate) cluster_id: String,
    pub(crate) controllers: BTreeMap<NodeId, String>,
}

impl Newcomer {
    /// A node that asks nobody.
    pub(crate) fn is_alone(&self) -> bool {
        self.controllers.keys().all(|node| *node == self.me.node)
    }

    fn response(&self) -> QuorumHelloResponse {
        QuorumHelloResponse {
            node: self.me.node,
            directory: self.me.directory,
            cluster_id: self.cluster_id.clone(),
            controllers: self.controllers.keys().copied().collect(),
            voters: None,
        }
    }

    fn request(&self) -> QuorumHelloRequest {
        QuorumHelloRequest {
            node: self.me.node,
            directory: self.me.directory,
            cluster_id: self.cluster_id.clone(),
            controllers: self.controllers.keys().copied().collect(),
        }
    }
}

/// Finds out where this node belongs, answering on `listener` meanwhile. `None`: told to stop.
pub(crate) async fn join(
    newcomer: &Newcomer,
    listener: &TcpListener,
    config: &Config,
    health: &Health,
    shutdown: &Shutdown,
) -> Option<Membership> {
    if newcomer.is_alone() {
        let voters = Some(vec![newcomer.me]);
        return Some(Membership { cluster_id: newcomer.cluster_id.clone(), voters });
    }
    // Connections of this stage end with it.
    let tasks = Tasks::new(shutdown.child());
    let joining = async {
        tokio::select! {
            membership = ask_around(newcomer, &tasks, health) => membership,
            never = answer_all(newcomer, listener, config, &tasks) => never,
        }
    };
    let membership = shutdown.or_stop(joining).await;
    tasks.shutdown().start();
    if let Err(error) = tasks.finished(config.shutdown_timeout).await {
        tracing::warn!(%error, "going on all the same");
    }
    membership
}

async fn ask_around(newcomer: &Newcomer, tasks: &Tasks, health: &Health) -> Membership {
    let mut said = String::new();
    loop {
        let others = newcomer.controllers.iter().filter(|(node, _)| **node != newcomer.me.node);
        let asked = others.map(|(node, address)| async move {
            (*node, ask(newcomer, tasks, *node, address).await)
        });
        let answers = join_all(asked).await;
        match conclude(newcomer, &answers) {
            Ok(membership) => return membership,
            Err(why) => {
                // Once, not ten times a second for as long as it lasts.
                if why != said {
                    tracing::info!("this node belongs to no cluster yet: {why}");
                    said.clone_from(&why);
                }
                health.raise(Reason::Joining, why);
            }
        }
        sleep(ROUND_PAUSE).await;
    }
}

async fn ask(
    newcomer: &Newcomer,
    tasks: &Tasks,
    node: NodeId,
    address: &str,
) -> Result<QuorumHelloResponse, String> {
    let unreachable = |why: String| format!("node {node} at {address}: {why}");
    let connected = Peer::connect(tasks, address).await;
    let (peer, _pushes) = connected.map_err(|error| unreachable(error.to_string()))?;
    let answered = peer.ask(&newcomer.request(), HELLO_TIMEOUT).await;
    let (response, _payload) = answered.map_err(|failure| unreachable(failure.message))?;
    if response.node != node {
        return Err(unreachable(format!("it is node {}", response.node)));
    }
    Ok(response)
}

/// What the answers come to, or what is still missing.
fn conclude(
    newcomer: &Newcomer,
    answers: &[(NodeId, Result<QuorumHelloResponse, String>)],
) -> Result<Membership, String> {
    let begun = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    if let Some((cluster_id, voters)) =
        begun.clone().find_map(|answer| Some((&answer.cluster_id, answer.voters.as_ref()?)))
    {
        let voters = voters.contains(&newcomer.me).then(|| voters.clone());
        return Ok(Membership { cluster_id: cluster_id.clone(), voters });
    }
    if let Some(problem) = answers.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        return Err(format!("waiting for all controllers: {problem}"));
    }
    let ours: Vec<NodeId> = newcomer.controllers.keys().copied().collect();
    if let Some(other) = begun.clone().find(|answer| answer.controllers != ours) {
        return Err(format!(
            "node {} is configured with controllers {:?}, this node with {ours:?}",
            other.node, other.controllers
        ));
    }
    if !newcomer.controllers.contains_key(&newcomer.me.node) {
        return Err("waiting for the controllers to begin".to_owned());
    }
    let mut members: BTreeMap<NodeId, (DirectoryId, &str)> =
        begun.map(|answer| (answer.node, (answer.directory, answer.cluster_id.as_str()))).collect();
    members.insert(newcomer.me.node, (newcomer.me.directory, &newcomer.cluster_id));
    let (_, (_, cluster_id)) = members.first_key_value().expect("this node is among them");
    let cluster_id = (*cluster_id).to_owned();
    let voters =
        members.into_iter().map(|(node, (directory, _))| VoterId { node, directory }).collect();
    Ok(Membership { cluster_id, voters: Some(voters) })
}

async fn answer_all<T>(
    newcomer: &Newcomer,
    listener: &TcpListener,
    config: &Config,
    tasks: &Tasks,
) -> T {
    let newcomer = Arc::new(newcomer.clone());
    let limits = Limits::of(config);
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let serve = serve(stream, Arc::clone(&newcomer), limits, tasks.shutdown().clone());
                tasks.spawn("hello", serve);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(ROUND_PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream, newcomer: Arc<Newcomer>, limits: Limits, shutdown: Shutdown) {
    let greeting = shutdown.or_stop(timeout(GREETING_TIMEOUT, greet(&mut stream))).await;
    let Some(Ok(Ok(received))) = greeting else { return };
    let (_pushes_in, pushes_out) = mpsc::channel(PUSHES_QUEUED_MAX);
    let door = HelloDoor { newcomer, decoder: FrameDecoder::new(FRAME_BYTES_MAX) };
    let connection = Connection::new(stream, received, door, pushes_out, limits);
    let closed = connection.run(shutdown.started()).await;
    tracing::debug!(reason = %closed, "connection closed before this node belonged to a cluster");
}

/// The door of a node that belongs to no cluster yet.
struct HelloDoor {
    newcomer: Arc<Newcomer>,
    decoder: FrameDecoder,
}

impl Door for HelloDoor {
    type Request = Frame;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Refusal> {
        loop {
            match self.decoder.decode(buffer).map_err(|error| Refusal(error.to_string()))? {
                Some(frame) if frame.kind != FrameKind::Request => {}
                other => return Ok(other),
            }
        }
    }

    async fn begin(&mut self, request: Frame) -> Begun {
        let api = Api::from_number(request.api);
        if let Some(Api::QuorumMessage | Api::ReplicaPositions) = api {
            return Begun::Silent;
        }
        let outcome = if api == Some(Api::QuorumHello) {
            Ok(self.newcomer.response())
        } else {
            let message = "this node does not belong to a cluster yet";
            Err(Failure::new(ErrorCode::NotReady, message))
        };
        let head = encode_head(FrameKind::Response, request.api, request.correlation, &outcome, 0);
        let head = head.expect("a handful of nodes is far below every limit");
        Begun::Reply { held_bytes: 0, pending: Pending::Ready(Reply::new(head, Vec::new())) }
    }

    fn has_subscriptions(&self) -> bool {
        false
    }

    fn owes_last_pushes(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(node: NodeId, directory: u8) -> VoterId {
        VoterId { node, directory: DirectoryId([directory; 16]) }
    }

    fn newcomer(node: NodeId) -> Newcomer {
        let directory = u8::try_from(node).unwrap();
        Newcomer {
            me: voter(node, directory),
            cluster_id: format!("cluster-of-{node}"),
            controllers: [1, 2, 3].map(|node| (node, format!("host-{node}:9092"))).into(),
        }
    }

    type Answers = Vec<(NodeId, Result<QuorumHelloResponse, String>)>;

    fn fresh(nodes: &[NodeId]) -> Answers {
        nodes.iter().map(|node| (*node, Ok(newcomer(*node).response()))).collect()
    }

    #[test]
    fn nodes_that_have_heard_all_others_begin_the_same_cluster() {
        let one = conclude(&newcomer(1), &fresh(&[2, 3])).unwrap();
        let three = conclude(&newcomer(3), &fresh(&[1, 2])).unwrap();
        assert_eq!(one, three);
        assert_eq!(one.cluster_id, "cluster-of-1");
        assert_eq!(one.voters, Some(vec![voter(1, 1), voter(2, 2), voter(3, 3)]));
    }

    #[test]
    fn a_node_that_has_not_heard_all_others_waits() {
        let mut answers = fresh(&[2]);
        answers.push((3, Err("node 3 at host-3:9092: connection refused".to_owned())));
        let why = conclude(&newcomer(1), &answers).unwrap_err();
        assert!(why.contains("node 3"), "{why}");
    }

    #[test]
    fn nodes_that_are_configured_differently_do_not_begin() {
        let mut answers = fresh(&[2, 3]);
        answers[1].1.as_mut().unwrap().controllers = vec![1, 3];
        let why = conclude(&newcomer(1), &answers).unwrap_err();
        assert!(why.contains("[1, 3]"), "{why}");
    }

    #[test]
    fn a_wiped_controller_joins_and_does_not_begin_again() {
        let mut answers = fresh(&[2]);
        let begun = answers[0].1.as_mut().unwrap();
        begun.cluster_id = "ours".to_owned();
        begun.voters = Some(vec![voter(1, 99), voter(2, 2), voter(3, 3)]);
        answers.push((3, Err("down".to_owned())));
        let joined = conclude(&newcomer(1), &answers).unwrap();
        assert_eq!(joined, Membership { cluster_id: "ours".to_owned(), voters: None });
    }

    #[test]
    fn a_controller_that_comes_late_to_the_beginning_has_its_place() {
        let mut answers = fresh(&[2, 3]);
        let begun = answers[1].1.as_mut().unwrap();
        begun.cluster_id = "ours".to_owned();
        begun.voters = Some(vec![voter(1, 1), voter(2, 2), voter(3, 3)]);
        let voters = begun.voters.clone();
        let joined = conclude(&newcomer(1), &answers).unwrap();
        assert_eq!(joined, Membership { cluster_id: "ours".to_owned(), voters });
    }
}

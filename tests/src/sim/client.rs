//! Clients: producers, consumers and an administrator, each a faithful model of what the shipped client does with the
//! same answers. What is safe to repeat is decided by the shipped client's own rule.

pub mod admin;
pub mod consumer;
pub mod copier;
pub mod member;
mod numbers;
pub mod producer;
pub mod reader;
pub mod transactor;

use std::{collections::BTreeMap, sync::Arc};

use tidemark_client::RequestError;
use tidemark_protocol::{
    Failure, LeaderEpoch, NodeId, PartitionIndex, TopicId, TopicPartition,
    partitioner::partition_for_key,
};

pub use self::numbers::Written;
use super::{
    core::{Core, Event, MS, Micros},
    message::{Correlation, Message, Request, Response, TopicView},
    network::{Address, ConnectionId, Delivery, Network, Parcel},
    shape::is_plain,
};
use crate::history::Partition;

/// Names a client; in a history, its process.
pub type ClientId = u32;

/// How long an answer is waited for.
const ANSWER_US: Micros = 1_500 * MS;
/// How old a client lets its knowledge of topics become.
const METADATA_AGE_US: Micros = 1_000 * MS;
/// How long a client waits before it looks for leaders again.
pub const REFRESH_US: Micros = 80 * MS;

/// How a question ended.
#[derive(Debug)]
pub enum Answer {
    Response(Response),
    Refused(Failure),
    /// Nobody knows whether it was carried out.
    Lost,
}

impl Answer {
    fn of(outcome: Result<Response, Failure>) -> Self {
        outcome.map_or_else(Self::Refused, Self::Response)
    }

    /// Whether the broker may have acted on the request although it did not say so: the shipped rule.
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Response(_) => false,
            Self::Lost => true,
            Self::Refused(failure) => refused(failure).is_indeterminate(),
        }
    }

    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Response(_) => false,
            Self::Lost => true,
            Self::Refused(failure) => refused(failure).is_retriable(),
        }
    }
}

fn refused(failure: &Failure) -> RequestError {
    RequestError::Refused(failure.clone())
}

#[derive(Debug)]
struct Link {
    connection: ConnectionId,
    is_open: bool,
    waiting: Vec<(Correlation, Request)>,
}

/// A client's connections, its questions, and what it knows of the cluster.
#[derive(Debug)]
pub struct Caller {
    pub id: ClientId,
    links: BTreeMap<NodeId, Link>,
    next: Correlation,
    /// Deadline and node of every question.
    asked: BTreeMap<Correlation, (Micros, ConnectionId)>,
    pub topics: Vec<TopicView>,
    learned_us: Micros,
    learned_index: u64,
    nodes: Vec<NodeId>,
}

/// What a client acts through.
pub struct Reach<'a> {
    pub core: &'a mut Core,
    pub net: &'a mut Network,
}

impl Caller {
    pub fn new(id: ClientId, nodes: Vec<NodeId>) -> Self {
        Self {
            id,
            links: BTreeMap::new(),
            next: 1,
            asked: BTreeMap::new(),
            topics: Vec::new(),
            learned_us: 0,
            learned_index: 0,
            nodes,
        }
    }

    /// Asks a node. The answer, or that there is none, comes under the number given back.
    pub fn ask(&mut self, to: NodeId, request: Request, reach: &mut Reach<'_>) -> Correlation {
        let correlation = self.next;
        self.next += 1;
        let from = Address::Client(self.id);
        let Reach { core, net } = reach;
        let link = self.links.entry(to).or_insert_with(|| Link {
            connection: net.dial(core, from, to),
            is_open: false,
            waiting: Vec::new(),
        });
        self.asked.insert(correlation, (core.now_us() + ANSWER_US, link.connection));
        if link.is_open {
            let message = Message::Request(correlation, Box::new(request));
            net.send(core, link.connection, from, message);
        } else {
            link.waiting.push((correlation, request));
        }
        core.after(ANSWER_US, Event::Client { client: self.id, timer: 0 });
        correlation
    }

    /// Asks any node where the leaders are.
    pub fn refresh(&mut self, reach: &mut Reach<'_>) -> Correlation {
        self.ask_anybody(Request::Metadata, reach)
    }

    /// Asks any node.
    pub fn ask_anybody(&mut self, request: Request, reach: &mut Reach<'_>) -> Correlation {
        let node = *reach.core.random.pick(&self.nodes);
        self.ask(node, request, reach)
    }

    /// Gives up the connection that a question went over, as the shipped client does when no answer comes.
    pub fn give_up(
        &mut self,
        correlation: Correlation,
        reach: &mut Reach<'_>,
    ) -> Vec<(Correlation, Answer)> {
        let Some((_, connection)) = self.asked.get(&correlation).copied() else {
            return Vec::new();
        };
        reach.net.close(reach.core, connection, Address::Client(self.id));
        self.lost(connection)
    }

    /// The connection that a question went over breaks: what was sent may arrive all the same, and late.
    pub fn break_off(&mut self, correlation: Correlation, reach: &mut Reach<'_>) {
        if let Some((_, connection)) = self.asked.get(&correlation) {
            reach.net.reset(reach.core, *connection);
        }
    }

    /// Takes in what a connection brings, and gives the answers that are in it.
    pub fn take_in(
        &mut self,
        delivery: Delivery,
        reach: &mut Reach<'_>,
    ) -> Vec<(Correlation, Answer)> {
        let connection = delivery.connection;
        match delivery.parcel {
            Parcel::Accepted => {
                let mut links = self.links.values_mut();
                if let Some(link) = links.find(|link| link.connection == connection) {
                    link.is_open = true;
                    for (correlation, request) in std::mem::take(&mut link.waiting) {
                        let message = Message::Request(correlation, Box::new(request));
                        let from = Address::Client(self.id);
                        reach.net.send(reach.core, connection, from, message);
                    }
                }
                Vec::new()
            }
            Parcel::Message(Message::Answer(correlation, outcome)) => {
                if self.asked.remove(&correlation).is_none() {
                    return Vec::new();
                }
                vec![(correlation, Answer::of(*outcome))]
            }
            Parcel::Closed => self.lost(connection),
            Parcel::Open | Parcel::Message(_) => Vec::new(),
        }
    }

    /// The connection is gone, and with it the answers to what was sent. What was not is known not to be carried out.
    fn lost(&mut self, connection: ConnectionId) -> Vec<(Correlation, Answer)> {
        let mut unsent = Vec::new();
        self.links.retain(|_, link| {
            if link.connection == connection {
                unsent.extend(link.waiting.iter().map(|(correlation, _)| *correlation));
            }
            link.connection != connection
        });
        let lost: Vec<_> = self
            .asked
            .iter()
            .filter(|(_, (_, its))| *its == connection)
            .map(|(correlation, _)| *correlation)
            .collect();
        lost.into_iter()
            .map(|correlation| {
                self.asked.remove(&correlation);
                let answer = if unsent.contains(&correlation) {
                    Answer::Refused(Failure::new(
                        tidemark_protocol::ErrorCode::NotReady,
                        "no connection",
                    ))
                } else {
                    Answer::Lost
                };
                (correlation, answer)
            })
            .collect()
    }

    /// Questions that have waited for too long. Their connections are given up, as the shipped client does.
    pub fn overdue(&mut self, reach: &mut Reach<'_>) -> Vec<(Correlation, Answer)> {
        let now_us = reach.core.now_us();
        let late = self.asked.values().filter(|(deadline_us, _)| *deadline_us <= now_us);
        let mut connections: Vec<_> = late.map(|(_, connection)| *connection).collect();
        connections.dedup();
        let mut answers = Vec::new();
        for connection in connections {
            reach.net.close(reach.core, connection, Address::Client(self.id));
            answers.extend(self.lost(connection));
        }
        answers
    }

    /// Remembers where topics are. An answer older than what is known changes nothing, as in the shipped client.
    pub fn learn(&mut self, index: u64, topics: Vec<TopicView>, reach: &Reach<'_>) {
        if index >= self.learned_index {
            self.learned_index = index;
            self.topics = topics;
            self.learned_us = reach.core.now_us();
        }
    }

    /// Whether what it knows of topics is old, or nothing.
    pub fn is_stale(&self, reach: &Reach<'_>) -> bool {
        self.topics.is_empty() || reach.core.now_us() - self.learned_us > METADATA_AGE_US
    }

    /// Leader and epoch of a partition, as far as is known.
    pub fn leader(&self, partition: TopicPartition) -> Option<(NodeId, LeaderEpoch)> {
        let topic = self.topics.iter().find(|topic| topic.id == partition.topic_id)?;
        let (leader, epoch) = topic.partitions.get(partition.partition as usize)?;
        Some(((*leader)?, *epoch))
    }

    /// Every partition of every topic known that is for those who know nothing of coordinators.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        let plain = self.topics.iter().filter(|topic| is_plain(&topic.name));
        plain.flat_map(partitions_of).collect()
    }

    /// Every partition of a topic.
    pub fn partitions_of(&self, name: &str) -> Vec<TopicPartition> {
        self.topics.iter().filter(|topic| topic.name == name).flat_map(partitions_of).collect()
    }

    /// Partition, leader and leader epoch of whoever coordinates this key.
    pub fn coordinator(&self, topic: &str, key: &str) -> Option<(PartitionIndex, NodeId)> {
        let topic = self.topics.iter().find(|it| it.name == topic)?;
        let count = u32::try_from(topic.partitions.len()).ok()?;
        let partition = partition_for_key(key.as_bytes(), count);
        let (leader, _) = topic.partitions.get(partition as usize)?;
        Some((partition, (*leader)?))
    }

    /// The metadata that it has learned last.
    pub fn metadata_index(&self) -> u64 {
        self.learned_index
    }
}

fn partitions_of(topic: &TopicView) -> impl Iterator<Item = TopicPartition> + use<> {
    let (topic_id, count) = (topic.id, topic.partitions.len());
    (0..).take(count).map(move |partition| TopicPartition { topic_id, partition })
}

/// A partition as a history names it: by the topic's id, since names come back.
pub fn named(partition: TopicPartition) -> Partition {
    Partition::new(topic_name(partition.topic_id), partition.partition)
}

fn topic_name(id: TopicId) -> Arc<str> {
    id.to_string()[..8].into()
}

//! A producer whose records count all or none.
//!
//! A transaction begins with its first record or offset, at whichever brokers lead the partitions, and ends by the word of its
//! coordinator. Every transaction has an epoch of its own, in which each partition counts from 0 on; so nothing that is late can
//! get into the next one. It refuses to go on after a failure before the transaction was aborted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidemark_protocol::{
    ErrorCode, Offset, PartitionIndex, TopicPartition,
    messages::{
        Acks, CommitTransactionalOffsetsRequest, CoordinatorKind, EndTransactionRequest,
        GroupMember, InitProducerIdRequest, OffsetToCommit, ProducerIdentity,
        TransactionalProducer as Transactional,
    },
};
use tokio::time::Instant;

use super::{Delivery, Producer, ProducerConfig};
use crate::{
    cluster::{Cluster, Repeat},
    coordinator::{Coordinator, Settled},
    error::{ProduceError, RequestError},
    record::ProducerRecord,
};

/// Settings of a [`TransactionalProducer`].
#[derive(Clone, Debug)]
pub struct TransactionalConfig {
    /// Who it is over restarts: of all processes with the same id only the last one may write.
    pub transactional_id: Arc<str>,
    /// A transaction that is open for longer is aborted by the cluster.
    pub transaction_timeout: Duration,
    /// How records are gathered and sent. They are always acknowledged by all, and written once.
    pub producer: ProducerConfig,
    /// How long the beginning and the end of a transaction may take.
    pub timeout: Duration,
}

impl TransactionalConfig {
    /// The defaults, under this id.
    pub fn new(transactional_id: impl Into<Arc<str>>) -> Self {
        Self {
            transactional_id: transactional_id.into(),
            transaction_timeout: Duration::from_mins(1),
            producer: ProducerConfig::default(),
            timeout: Duration::from_mins(1),
        }
    }
}

/// A transaction cannot go on, or did not end as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// A record was not delivered: abort.
    #[error("a record of the transaction was not delivered: {0}; abort the transaction")]
    Produce(#[from] ProduceError),
    #[error("{verb}: {source}")]
    Request { verb: &'static str, source: RequestError },
    #[error("no topic named {topic:?}")]
    UnknownTopic { topic: Arc<str> },
    /// Another process has taken over the transactional id: this one is over.
    #[error("another process has taken over the transactional id {id:?}")]
    Fenced { id: Arc<str> },
    /// The cluster aborted it: it was open for too long, or an operator ended it. Abort here, and begin anew.
    #[error("the transaction was aborted by the cluster; abort it here, too, and begin anew")]
    Aborted,
    /// Called out of turn.
    #[error("{0}")]
    State(&'static str),
}

impl TransactionError {
    /// The broker's code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Produce(error) => error.code(),
            Self::Request { source, .. } => source.code(),
            Self::Fenced { .. } => Some(ErrorCode::ProducerFenced),
            Self::Aborted => Some(ErrorCode::TransactionAborted),
            Self::UnknownTopic { .. } => Some(ErrorCode::UnknownTopicOrPartition),
            Self::State(_) => None,
        }
    }

    /// Whether this producer is over for good.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }

    /// Whether the end of the transaction is not known: calling `commit` again asks again.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Request { source, .. } if source.is_indeterminate() || source.is_retriable())
    }
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// None is open.
    Ready,
    Open,
    /// Its commit was asked for, and not answered.
    Committing,
    /// Something has failed.
    Broken,
    Fenced,
}

/// Writes records that `ReadCommitted` readers see all or none of, and commits offsets of groups with them.
///
/// ```no_run
/// # use tidemark_client::{Client, ClientConfig};
/// use tidemark_client::{ProducerRecord, TransactionalConfig};
/// # async fn transfer(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
/// let config = TransactionalConfig::new("bank-1");
/// let mut producer = client.transactional_producer(config).await?;
/// producer.begin()?;
/// producer.send(ProducerRecord::to("accounts").key("alice").value("-5")).await?;
/// producer.send(ProducerRecord::to("accounts").key("bob").value("+5")).await?;
/// if let Err(error) = producer.commit().await {
///     producer.abort().await?;
///     return Err(error.into());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TransactionalProducer {
    producer: Producer,
    coordinator: Coordinator,
    /// Of the group whose offsets were committed last.
    group: Option<Coordinator>,
    config: TransactionalConfig,
    identity: ProducerIdentity,
    state: State,
    /// Nothing was sent in the open transaction.
    is_empty: bool,
    /// Groups, and their partitions, for which offsets of the open transaction may come to the coordinator once more, later.
    unsettled: BTreeSet<(String, TopicPartition)>,
}

impl TransactionalProducer {
    pub(crate) async fn start(
        cluster: Arc<Cluster>,
        mut config: TransactionalConfig,
    ) -> Result<Self, TransactionError> {
        config.producer.idempotent = true;
        config.producer.acks = Acks::All;
        let id = config.transactional_id.clone();
        let coordinator =
            Coordinator::new(cluster.clone(), CoordinatorKind::Transaction, id.clone());
        let identity = init(&coordinator, &config, None).await?;
        let producer = Producer::start_as(cluster, config.producer.clone(), Some(id));
        producer.shared.begin_as(identity);
        Ok(Self {
            producer,
            coordinator,
            group: None,
            config,
            identity,
            state: State::Ready,
            is_empty: true,
            unsettled: BTreeSet::new(),
        })
    }

    /// Who this producer is at the moment: the epoch is the transaction's.
    pub fn identity(&self) -> ProducerIdentity {
        self.identity
    }

    /// Begins a transaction. Costs nothing: the cluster hears of it with the first record.
    pub fn begin(&mut self) -> Result<(), TransactionError> {
        match self.state {
            State::Ready => {
                (self.state, self.is_empty) = (State::Open, true);
                Ok(())
            }
            State::Fenced => Err(self.fenced()),
            _ => {
                Err(TransactionError::State("the last transaction has not ended: commit or abort"))
            }
        }
    }

    /// Accepts a record into the transaction, as [`Producer::send`] does. Its delivery says that it is written, not that it
    /// counts.
    pub async fn send(&mut self, mut record: ProducerRecord) -> Result<Delivery, TransactionError> {
        self.require_open()?;
        record.acks = None;
        self.is_empty = false;
        // What was not taken is missing from the transaction, whether or not the program notices.
        Ok(self.producer.send(record).await.inspect_err(|_| self.state = State::Broken)?)
    }

    /// Commits a group's offsets with the transaction: the next record to read, for each partition. `member`: who reads;
    /// `None` for a group without members. After an error, or when the future was dropped before its end, abort.
    ///
    /// A partition may be committed for again in the same transaction; that is an error if an answer about it was lost, because
    /// the request without an answer could arrive last.
    pub async fn send_offsets<T: AsRef<str>>(
        &mut self,
        group: &str,
        member: Option<GroupMember>,
        offsets: impl IntoIterator<Item = (T, PartitionIndex, Offset)>,
    ) -> Result<(), TransactionError> {
        self.require_open()?;
        self.is_empty = false;
        // Without its offsets the transaction must not count: not if this fails, and not if nobody waits for its end.
        self.state = State::Broken;
        let deadline = self.deadline();
        let committed = self.named(offsets, deadline).await?;
        let places: Vec<_> =
            committed.iter().map(|one| (group.to_owned(), one.partition)).collect();
        if places.iter().any(|place| self.unsettled.contains(place)) {
            return Err(TransactionError::State(UNSETTLED));
        }
        let request = CommitTransactionalOffsetsRequest {
            transactional_id: self.config.transactional_id.to_string(),
            producer: self.identity,
            group: group.to_owned(),
            member,
            offsets: committed,
            timeout_ms: self.timeout_ms(),
        };
        let known = self.group.take().filter(|known| known.key() == group);
        let coordinator = known.unwrap_or_else(|| {
            let cluster = self.coordinator.cluster().clone();
            Coordinator::new(cluster, CoordinatorKind::Group, group.into())
        });
        // Once more is the same as once: an offset of the same transaction replaces the one before. As long as that is the
        // same offset: a request that was given up must not be late for one that came after it.
        let answer = coordinator.ask_to_know(&request, Repeat::Always, deadline).await;
        self.group = Some(coordinator);
        let (answer, settled) =
            answer.map_err(|source| self.failed("committing offsets", source))?;
        if settled == Settled::No {
            self.unsettled.extend(places);
        }
        for outcome in answer.partitions {
            outcome.map_err(|failure| {
                self.failed("committing offsets", RequestError::Refused(failure))
            })?;
        }
        self.state = State::Open;
        Ok(())
    }

    /// The offsets, as they are sent: topics by their ids.
    async fn named<T: AsRef<str>>(
        &self,
        offsets: impl IntoIterator<Item = (T, PartitionIndex, Offset)>,
        deadline: Instant,
    ) -> Result<Vec<OffsetToCommit>, TransactionError> {
        let mut named = Vec::new();
        for (topic, partition, offset) in offsets {
            let name: Arc<str> = topic.as_ref().into();
            let known = self.coordinator.cluster().topic(&name, deadline).await;
            let known = known.map_err(|source| request_error("looking up a topic", source))?;
            let topic_id = known.ok_or(TransactionError::UnknownTopic { topic: name })?.id;
            let partition = TopicPartition { topic_id, partition };
            let metadata = String::new();
            named.push(OffsetToCommit { partition, offset, leader_epoch: None, metadata });
        }
        Ok(named)
    }

    /// Waits until everything sent is written, and commits. After an error that [`TransactionError::is_indeterminate`] call it
    /// again, to learn what became of it; after any other, abort.
    pub async fn commit(&mut self) -> Result<(), TransactionError> {
        match self.state {
            State::Open => {
                if let Err(error) = self.producer.flush().await {
                    return Err(self.not_delivered(error));
                }
                if self.is_empty {
                    self.state = State::Ready;
                    return Ok(());
                }
                self.state = State::Committing;
            }
            State::Committing => {}
            State::Fenced => return Err(self.fenced()),
            State::Ready => return Err(TransactionError::State("no transaction is open")),
            State::Broken => return Err(TransactionError::State(MUST_ABORT)),
        }
        match self.end(true).await {
            Ok(identity) => {
                self.next(identity);
                Ok(())
            }
            Err(source) if is_undecided(&source) => {
                Err(TransactionError::Request { verb: "committing", source })
            }
            Err(source) => Err(self.failed("committing", source)),
        }
    }

    /// Gives the transaction up: nothing of it will be seen by `ReadCommitted` readers. Afterwards the next one may begin.
    pub async fn abort(&mut self) -> Result<(), TransactionError> {
        match self.state {
            State::Open if self.is_empty => {
                self.state = State::Ready;
                return Ok(());
            }
            State::Open | State::Broken => {}
            State::Committing => {
                return Err(TransactionError::State(
                    "the commit may have happened: call commit again to learn it",
                ));
            }
            State::Fenced => return Err(self.fenced()),
            State::Ready => return Err(TransactionError::State("no transaction is open")),
        }
        self.state = State::Broken;
        self.producer.shared.abandon_queued(&ProduceError::Closed);
        // What is on its way has its outcome before the epoch is over; whether it failed does not matter any more.
        drop(self.producer.flush().await);
        let identity = match self.end(false).await {
            Ok(identity) => identity,
            Err(source) if source.code() == Some(ErrorCode::TransactionAborted) => {
                init(&self.coordinator, &self.config, Some(self.identity)).await.inspect_err(
                    |error| {
                        if error.is_fenced() {
                            self.state = State::Fenced;
                        }
                    },
                )?
            }
            Err(source) => return Err(self.failed("aborting", source)),
        };
        self.next(identity);
        Ok(())
    }

    /// Ends the producer. What is open is aborted when its time is over, or the next process begins.
    pub async fn close(self) {
        self.producer.shared.abandon_queued(&ProduceError::Closed);
        // Whatever was open is not going to count.
        drop(self.producer.close().await);
    }

    fn next(&mut self, identity: ProducerIdentity) {
        self.identity = identity;
        self.producer.shared.begin_as(identity);
        (self.state, self.is_empty) = (State::Ready, true);
        // What is late now has an epoch that is over.
        self.unsettled.clear();
    }

    async fn end(&self, commit: bool) -> Result<ProducerIdentity, RequestError> {
        let request = EndTransactionRequest {
            transactional_id: self.config.transactional_id.to_string(),
            producer: self.identity,
            commit,
            timeout_ms: self.timeout_ms(),
        };
        // The epoch makes it the same, however often it is asked for.
        let answer = self.coordinator.ask(&request, Repeat::Always, self.deadline()).await;
        answer.map(|answer| answer.producer)
    }

    fn require_open(&self) -> Result<(), TransactionError> {
        match self.state {
            State::Open => Ok(()),
            State::Fenced => Err(self.fenced()),
            State::Ready => Err(TransactionError::State("no transaction is open: call begin")),
            State::Committing | State::Broken => Err(TransactionError::State(MUST_ABORT)),
        }
    }

    fn not_delivered(&mut self, error: ProduceError) -> TransactionError {
        match error {
            ProduceError::Request { source, .. } if is_verdict(&source) => {
                self.failed("writing", source)
            }
            error => {
                self.state = State::Broken;
                TransactionError::Produce(error)
            }
        }
    }

    /// Notes what a failure means for the transaction.
    fn failed(&mut self, verb: &'static str, source: RequestError) -> TransactionError {
        let error = request_error(verb, source);
        self.state = State::Broken;
        match error.code() {
            Some(ErrorCode::ProducerFenced | ErrorCode::InvalidProducerId) => {
                self.state = State::Fenced;
                self.fenced()
            }
            // A partition knows of the end before the producer does. Whose doing that was, the abort will tell.
            Some(ErrorCode::TransactionAborted) => TransactionError::Aborted,
            _ => error,
        }
    }

    fn fenced(&self) -> TransactionError {
        TransactionError::Fenced { id: self.config.transactional_id.clone() }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.timeout
    }

    fn timeout_ms(&self) -> u32 {
        u32::try_from(self.config.timeout.as_millis()).unwrap_or(u32::MAX)
    }
}

const UNSETTLED: &str = "an answer about offsets of these partitions was lost, and the request may yet undo later ones: abort the \
                         transaction";
const MUST_ABORT: &str = "something of the transaction has failed: abort it";

/// The identity to begin with; `expected`: what the producer has had.
async fn init(
    coordinator: &Coordinator,
    config: &TransactionalConfig,
    expected: Option<ProducerIdentity>,
) -> Result<ProducerIdentity, TransactionError> {
    let timeout = config.transaction_timeout.as_millis();
    let transaction = Transactional {
        transactional_id: config.transactional_id.to_string(),
        transaction_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
        expected,
    };
    let request = InitProducerIdRequest {
        timeout_ms: u32::try_from(config.timeout.as_millis()).unwrap_or(u32::MAX),
        transaction: Some(transaction),
    };
    let deadline = Instant::now() + config.timeout;
    match coordinator.ask(&request, Repeat::Always, deadline).await {
        Ok(answer) => Ok(answer.producer),
        Err(source) if source.code() == Some(ErrorCode::ProducerFenced) => {
            Err(TransactionError::Fenced { id: config.transactional_id.clone() })
        }
        Err(source) => Err(request_error("taking over the transactional id", source)),
    }
}

fn request_error(verb: &'static str, source: RequestError) -> TransactionError {
    TransactionError::Request { verb, source }
}

/// Whether it is not known how the transaction has ended, or will.
fn is_undecided(error: &RequestError) -> bool {
    error.is_indeterminate() || error.is_retriable()
}

/// Whether a coordinator has spoken about the producer or its transaction.
fn is_verdict(error: &RequestError) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::ProducerFenced
                | ErrorCode::InvalidProducerEpoch
                | ErrorCode::InvalidProducerId
                | ErrorCode::TransactionAborted
        )
    )
}

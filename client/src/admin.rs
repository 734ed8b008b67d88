//! Administration: topics, their settings and offsets, and the brokers.
//!
//! Each method is one request and returns the message that answers it. It refuses to print, to guess names
//! and to repeat a change that may have happened: see [`AdminError::is_indeterminate`].

mod groups;
mod operations;
mod transactions;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tidemark_protocol::{
    BrokerId, ErrorCode, Offset, PartitionIndex, TimestampMs, TopicId, TopicPartition,
    message::Request,
    messages::{
        AddPartitionsRequest, AlterTopicRequest, AlterTopicResponse, CreateTopicRequest,
        CreateTopicResponse, DeleteRecordsPartition, DeleteRecordsRequest, DeleteTopicRequest,
        DescribeBrokerRequest, DescribeBrokerResponse, DescribeLogDirsRequest,
        DescribeLogDirsResponse, DescribeTopicRequest, DescribeTopicResponse, ListedOffset,
        MetadataRequest, MetadataResponse, TopicMetadata, TopicSettings,
    },
};
use tokio::time::Instant;

use crate::{
    cluster::{Cluster, Repeat, Target},
    coordinator::Coordinator,
    error::{AdminError, RequestError},
    partitions::{self, Asking},
};

pub use self::{groups::GroupList, operations::Reassignment, transactions::TransactionList};

/// A topic to be created.
#[derive(Clone, Debug, Default)]
pub struct NewTopic {
    pub name: String,
    /// `None`: the broker's default.
    pub partitions: Option<u32>,
    /// `None`: the broker's default.
    pub replication_factor: Option<u16>,
    /// Settings that differ from the defaults.
    pub settings: TopicSettings,
    /// Check everything, create nothing.
    pub validate_only: bool,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    #[must_use]
    pub fn replication_factor(mut self, replicas: u16) -> Self {
        self.replication_factor = Some(replicas);
        self
    }

    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    #[must_use]
    pub fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }
}

/// Changes to a topic's settings: all or none.
#[derive(Clone, Debug, Default)]
pub struct TopicChanges {
    pub set: TopicSettings,
    /// Settings that go back to their default.
    pub unset: Vec<String>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// Which offset of a partition is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first record that still exists.
    Earliest,
    /// Where the next readable record will be.
    Latest,
    /// The first record with this timestamp or a later one; the end when there is none.
    Timestamp(TimestampMs),
    /// The record with the largest timestamp.
    MaxTimestamp,
}

/// Administrative calls. Cheap to clone.
///
/// ```
/// # use tidemark_client::{Client, ClientConfig, NewTopic, testing::FakeBroker};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = FakeBroker::start().await?;
/// let client = Client::connect(ClientConfig::new(broker.address())).await?;
/// let admin = client.admin();
/// admin.create_topic(NewTopic::new("orders").partitions(3)).await?;
/// let topics = admin.list_topics().await?;
/// assert_eq!(topics[0].name, "orders");
/// assert_eq!(topics[0].partitions.len(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Arc<Cluster>,
    timeout: Duration,
    /// The coordinator of the group that was asked about last: who asks again does not look it up again.
    coordinator: Arc<Mutex<Option<Arc<Coordinator>>>>,
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        let timeout = cluster.config().request_timeout;
        Self { cluster, timeout, coordinator: Arc::default() }
    }

    /// Most time for each call from now on, repeated attempts included. The default is the client's request
    /// timeout.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Creates a topic; when this returns it can be produced to.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<CreateTopicResponse, AdminError> {
        let request = CreateTopicRequest {
            name: topic.name,
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            settings: topic.settings,
            validate_only: topic.validate_only,
            timeout_ms: self.timeout_ms(),
        };
        self.change(&request).await
    }

    /// Deletes a topic and its records, for good. With an `id`, only if the topic of that name is still the
    /// one of that id.
    pub async fn delete_topic(
        &self,
        name: &str,
        id: Option<TopicId>,
    ) -> Result<TopicId, AdminError> {
        let request =
            DeleteTopicRequest { name: name.to_owned(), id, timeout_ms: self.timeout_ms() };
        Ok(self.change(&request).await.map_err(|error| about_topic(error, name))?.id)
    }

    /// Changes settings of a topic; answers all that differ from the defaults afterwards.
    pub async fn alter_topic(
        &self,
        name: &str,
        changes: TopicChanges,
    ) -> Result<AlterTopicResponse, AdminError> {
        let request = AlterTopicRequest {
            name: name.to_owned(),
            set: changes.set,
            unset: changes.unset,
            validate_only: changes.validate_only,
            timeout_ms: self.timeout_ms(),
        };
        self.change(&request).await.map_err(|error| about_topic(error, name))
    }

    /// Raises a topic's partition count to `partitions`. Keys map to other partitions from then on.
    pub async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
        validate_only: bool,
    ) -> Result<u32, AdminError> {
        let timeout_ms = self.timeout_ms();
        let request =
            AddPartitionsRequest { name: name.to_owned(), partitions, validate_only, timeout_ms };
        let answer = self.change(&request).await.map_err(|error| about_topic(error, name))?;
        Ok(answer.partitions)
    }

    /// One topic in full: partitions, settings in force, and the logs on the broker that answers.
    pub async fn describe_topic(&self, name: &str) -> Result<DescribeTopicResponse, AdminError> {
        let request = DescribeTopicRequest { name: name.to_owned() };
        self.question(&Target::Any, &request).await.map_err(|error| about_topic(error, name))
    }

    /// A topic as one broker knows it, with the logs that it holds of it.
    pub async fn describe_topic_on(
        &self,
        broker: BrokerId,
        name: &str,
    ) -> Result<DescribeTopicResponse, AdminError> {
        let request = DescribeTopicRequest { name: name.to_owned() };
        let target = Target::Broker(broker);
        self.question(&target, &request).await.map_err(|error| about_topic(error, name))
    }

    /// Every topic, sorted by name.
    pub async fn list_topics(&self) -> Result<Vec<TopicMetadata>, AdminError> {
        Ok(self.metadata(None).await?.topics)
    }

    /// The cluster, its brokers and the named topics; `None` asks for all topics. Unknown names are absent
    /// from the answer.
    pub async fn metadata(
        &self,
        topics: Option<Vec<String>>,
    ) -> Result<MetadataResponse, AdminError> {
        let request = MetadataRequest { topics, topic_ids: Vec::new() };
        let answer = self.question(&Target::Any, &request).await?;
        self.cluster.learn(answer.clone(), &[]);
        Ok(answer)
    }

    /// One broker about itself; `None` asks any.
    pub async fn describe_broker(
        &self,
        broker: Option<BrokerId>,
        include_settings: bool,
    ) -> Result<DescribeBrokerResponse, AdminError> {
        let request = DescribeBrokerRequest { include_settings };
        self.question(&broker.map_or(Target::Any, Target::Broker), &request).await
    }

    /// The data directories of one broker; `None` asks any.
    pub async fn describe_log_dirs(
        &self,
        broker: Option<BrokerId>,
    ) -> Result<DescribeLogDirsResponse, AdminError> {
        let request = DescribeLogDirsRequest {};
        self.question(&broker.map_or(Target::Any, Target::Broker), &request).await
    }

    /// Offsets of partitions by position or time: one outcome for each question, in their order.
    ///
    /// `Err` outside when nothing could be asked, inside for a single partition.
    pub async fn list_offsets<T: AsRef<str>>(
        &self,
        questions: &[(T, PartitionIndex, OffsetSpec)],
    ) -> Result<Vec<Result<ListedOffset, AdminError>>, AdminError> {
        partitions::list_offsets(&self.cluster, questions, self.deadline()).await
    }

    /// Deletes the records of partitions below an offset (`None`: all that are readable), for good. One
    /// outcome each, in order: the log start offset afterwards.
    pub async fn delete_records<T: AsRef<str>>(
        &self,
        partitions: &[(T, PartitionIndex, Option<Offset>)],
    ) -> Result<Vec<Result<Offset, AdminError>>, AdminError> {
        let timeout_ms = self.timeout_ms();
        let named: Vec<_> = partitions.iter().map(|(topic, index, _)| (topic, *index)).collect();
        let request = |chosen: &[(usize, TopicPartition, u32)]| DeleteRecordsRequest {
            timeout_ms,
            partitions: chosen
                .iter()
                .map(|(at, partition, _)| DeleteRecordsPartition {
                    partition: *partition,
                    before_offset: partitions[*at].2,
                })
                .collect(),
        };
        let deadline = self.deadline();
        let asking = Asking { cluster: &self.cluster, repeat: Repeat::Always, deadline };
        asking.leaders(&named, request, |answer| answer.partitions).await
    }

    async fn question<R: Request>(
        &self,
        target: &Target,
        request: &R,
    ) -> Result<R::Response, AdminError> {
        Ok(self.cluster.ask(target, request, Repeat::Question, self.deadline()).await?)
    }

    async fn change<R: Request>(&self, request: &R) -> Result<R::Response, AdminError> {
        let target = Target::Controller;
        Ok(self.cluster.ask(&target, request, Repeat::IfNotDone, self.deadline()).await?)
    }

    /// A change that is the same done twice.
    async fn repeatable<R: Request>(&self, request: &R) -> Result<R::Response, AdminError> {
        let target = Target::Controller;
        Ok(self.cluster.ask(&target, request, Repeat::Always, self.deadline()).await?)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn timeout_ms(&self) -> u32 {
        u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX)
    }
}

/// Says which topic is unknown. That a topic is unknown is retriable on the wire, since a broker may learn of
/// it; an administrator wants to be told.
fn about_topic(error: AdminError, name: &str) -> AdminError {
    match error {
        AdminError::Request(RequestError::Refused(failure))
            if failure.code == ErrorCode::UnknownTopicOrPartition =>
        {
            AdminError::UnknownTopic { topic: name.into() }
        }
        other => other,
    }
}

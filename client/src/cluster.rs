//! The cluster as a client reaches it: what is known of it, and how a question finds a broker.
//!
//! Shared by everything one [`crate::Client`] makes. It refuses to know what producers and consumers are.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use tidemark_protocol::{
    BrokerId, ErrorCode,
    message::Request,
    messages::{MetadataRequest, MetadataResponse},
};
use tokio::time::{Instant, sleep};

use crate::{
    config::ClientConfig,
    error::{ConnectError, RequestError},
    metadata::{Metadata, Topic},
    pool::Pool,
    tasks::{self, Backoff},
};

/// Which broker a question is for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Whichever answers.
    Any,
    /// The active controller, or any broker while none is known.
    Controller,
    Broker(BrokerId),
    Address(Arc<str>),
}

/// What may be asked twice when nobody knows whether the first time had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Questions: the broker does not wait for anything.
    Question,
    /// Changes that are the same done twice.
    Always,
    /// Everything else.
    IfNotDone,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    config: ClientConfig,
    /// For metadata and administration.
    control: Pool,
    /// For produce requests, which must not queue behind a slow administrative one.
    produce: Pool,
    metadata: RwLock<Arc<Metadata>>,
    /// Drawn once, so that clients spread over the brokers and each stays where it is.
    spread: u64,
}

impl Cluster {
    /// Learns the cluster from the first bootstrap broker that answers.
    pub(crate) async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        if config.bootstrap.is_empty() {
            return Err(ConnectError::NoBootstrap);
        }
        let cluster = Self {
            control: Pool::new(config.clone()),
            produce: Pool::new(config.clone()),
            metadata: RwLock::default(),
            spread: tasks::random_u64(),
            config,
        };
        let deadline = cluster.deadline();
        match cluster.refresh(&[], deadline).await {
            Ok(_) => Ok(cluster),
            Err(RequestError::Connect(error)) => Err(error),
            Err(error) => Err(ConnectError::Metadata {
                address: cluster.config.bootstrap.join(",").into(),
                reason: error.to_string().into(),
            }),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(crate) fn produce_pool(&self) -> &Pool {
        &self.produce
    }

    /// The end of the time one request may take, counted from now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.request_timeout
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.config.retry_backoff, self.config.retry_backoff_max)
    }

    pub(crate) fn metadata(&self) -> Arc<Metadata> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The topic, asked for again when it is not known or known for too long. `None`: there is none.
    pub(crate) async fn topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<Topic>>, RequestError> {
        if let Some(topic) = self.metadata().topic(name)
            && topic.learned.elapsed() < self.config.metadata_max_age
        {
            return Ok(Some(topic.clone()));
        }
        let metadata = self.refresh(&[name.into()], deadline).await?;
        Ok(metadata.topic(name).cloned())
    }

    /// Asks for these topics (and the brokers) anew, once.
    pub(crate) async fn refresh(
        &self,
        topics: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Arc<Metadata>, RequestError> {
        let names = topics.iter().map(ToString::to_string).collect();
        let request = MetadataRequest { topics: Some(names), topic_ids: Vec::new() };
        let answer = self.ask_once(&Target::Any, &request, Duration::ZERO, deadline).await?;
        Ok(self.learn(answer, topics))
    }

    /// Works an answer into what is known.
    pub(crate) fn learn(&self, answer: MetadataResponse, asked: &[Arc<str>]) -> Arc<Metadata> {
        let mut metadata = self.metadata.write().unwrap_or_else(PoisonError::into_inner);
        *metadata = Arc::new(metadata.updated(answer, asked, Instant::now()));
        metadata.clone()
    }

    /// Asks until there is an answer, an error that repeating cannot mend, or `deadline` has passed.
    pub(crate) async fn ask<R: Request>(
        &self,
        target: &Target,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let mut backoff = self.backoff();
        loop {
            let broker_wait = match repeat {
                Repeat::Question => Duration::ZERO,
                Repeat::Always | Repeat::IfNotDone => {
                    deadline.saturating_duration_since(Instant::now())
                }
            };
            let error = match self.ask_once(target, request, broker_wait, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let safe = repeat != Repeat::IfNotDone || !error.is_indeterminate();
            let pause = backoff.after_failure();
            // Final although retriable, since a person at a terminal waits for this answer: no broker to
            // ask, and a name that nobody knows. Who must not give up asks again.
            let final_error = matches!(error, RequestError::Connect(_))
                || error.code() == Some(ErrorCode::UnknownTopicOrPartition);
            if !error.is_retriable() || !safe || final_error || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(api = R::API.name(), %error, ?pause, "asking again");
            sleep(pause).await;
            if error.code() == Some(ErrorCode::NotController) {
                self.refresh(&[], deadline).await?;
            }
        }
    }

    async fn ask_once<R: Request>(
        &self,
        target: &Target,
        request: &R,
        broker_wait: Duration,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let mut last = ConnectError::NoBootstrap;
        for address in self.candidates(target)? {
            match self.control.get(&address, deadline).await {
                Ok(connection) => {
                    let asked = connection.request(request, Vec::new(), broker_wait, deadline);
                    return asked.await.map(|(answer, _): (_, Bytes)| answer);
                }
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// Where to ask, in order.
    fn candidates(&self, target: &Target) -> Result<Vec<Arc<str>>, ConnectError> {
        let metadata = self.metadata();
        match target {
            Target::Address(address) => return Ok(vec![address.clone()]),
            Target::Broker(broker) => {
                let unknown = ConnectError::UnknownBroker { broker: *broker };
                return Ok(vec![metadata.broker(*broker).ok_or(unknown)?.clone()]);
            }
            Target::Controller => {
                if let Some(address) = metadata.controller.and_then(|id| metadata.broker(id)) {
                    return Ok(vec![address.clone()]);
                }
            }
            Target::Any => {}
        }
        let mut known: Vec<Arc<str>> = metadata.addresses().cloned().collect();
        if !known.is_empty() {
            let brokers = u64::try_from(known.len()).unwrap_or(u64::MAX);
            known.rotate_left(usize::try_from(self.spread % brokers).unwrap_or(0));
        }
        for address in &self.config.bootstrap {
            if !known.iter().any(|known| **known == **address) {
                known.push(address.as_str().into());
            }
        }
        known.sort_by_key(|address| self.control.failures(address));
        Ok(known)
    }
}

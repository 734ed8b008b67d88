//! The cluster as a client reaches it: what is known of it, and how a question finds a broker.
//!
//! Shared by everything one [`crate::Client`] makes. It refuses to know what producers and consumers are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tidemark_protocol::{
    BrokerId, ErrorCode,
    message::Request,
    messages::{MetadataRequest, MetadataResponse},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    config::ClientConfig,
    error::{ConnectError, RequestError},
    metadata::{Metadata, Topic},
    pool::Pool,
    tasks::{self, Backoff},
};

/// A broker that is silent for so long is not waited for alone: the next one is asked, too.
const ASK_ANOTHER_AFTER: Duration = Duration::from_millis(250);

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
    metadata: watch::Sender<Arc<Metadata>>,
    /// Which broker is asked first. Drawn at the start, so that clients spread over the brokers, and moved on when that one was
    /// of no help: each stays where it is while all is well.
    spread: AtomicU64,
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
            metadata: watch::Sender::default(),
            spread: AtomicU64::new(tasks::random_u64()),
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
        self.metadata.borrow().clone()
    }

    /// Tells of every change of what is known.
    pub(crate) fn watch_metadata(&self) -> watch::Receiver<Arc<Metadata>> {
        self.metadata.subscribe()
    }

    /// The broker that was asked first was of no help: begin with the next one from now on.
    pub(crate) fn move_on(&self) {
        self.spread.fetch_add(1, Ordering::Relaxed);
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
        let answer = self.ask_any(&request, deadline).await?;
        Ok(self.learn(answer, topics))
    }

    /// Works an answer into what is known.
    pub(crate) fn learn(&self, answer: MetadataResponse, asked: &[Arc<str>]) -> Arc<Metadata> {
        self.metadata.send_modify(|metadata| {
            *metadata = Arc::new(metadata.updated(answer, asked, Instant::now()));
        });
        self.metadata()
    }

    /// Asks until there is an answer, an error that repeating cannot mend, or `deadline` has passed.
    pub(crate) async fn ask<R: Request>(
        &self,
        target: &Target,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        if matches!(target, Target::Broker(id) if self.metadata().broker(*id).is_none()) {
            self.refresh(&[], deadline).await?;
        }
        let mut backoff = self.backoff();
        loop {
            let asked = match (target, repeat) {
                (Target::Any, Repeat::Question) => self.ask_any(request, deadline).await,
                _ => self.ask_one(target, request, repeat, deadline).await,
            };
            let error = match asked {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = backoff.after_failure();
            if !may_ask_again(target, &error, repeat) || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(api = R::API.name(), %error, ?pause, "asking again");
            sleep(pause).await;
            self.move_on();
            if matches!(target, Target::Controller) {
                let found = self.refresh(&[], deadline).await;
                // Who cannot say where the controller is now may know it after the next attempt; but without anybody left to
                // ask, a person at a terminal should not wait.
                if let Err(error @ RequestError::Connect(_)) = found {
                    return Err(error);
                }
            }
        }
    }

    /// Asks one broker: the first that can be connected to.
    async fn ask_one<R: Request>(
        &self,
        target: &Target,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let broker_wait = match repeat {
            Repeat::Question => Duration::ZERO,
            Repeat::Always | Repeat::IfNotDone => {
                deadline.saturating_duration_since(Instant::now())
            }
        };
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

    /// Puts a question to one broker after the other until one answers. Who is silent is not waited for alone, and who
    /// is lost or not ready is no loss as long as there is another.
    async fn ask_any<R: Request>(
        &self,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let mut candidates = self.candidates(&Target::Any)?.into_iter();
        let mut asking = FuturesUnordered::new();
        let mut last: Option<RequestError> = None;
        loop {
            if let Some(address) = candidates.next() {
                asking.push(self.ask_at(address, request, deadline));
            }
            let patience = sleep(ASK_ANOTHER_AFTER);
            tokio::select! {
                biased;
                answered = asking.next() => match answered {
                    Some(Ok(answer)) => return Ok(answer),
                    Some(Err(error)) if !error.is_retriable() => return Err(error),
                    Some(Err(error)) => last = Some(more_telling(last, error)),
                    None => return Err(last.unwrap_or(ConnectError::NoBootstrap.into())),
                },
                () = patience, if candidates.len() > 0 => self.move_on(),
            }
        }
    }

    async fn ask_at<R: Request>(
        &self,
        address: Arc<str>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let connection = self.control.get(&address, deadline).await?;
        let asked = connection.request(request, Vec::new(), Duration::ZERO, deadline);
        asked.await.map(|(answer, _): (_, Bytes)| answer)
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
            let spread = self.spread.load(Ordering::Relaxed);
            known.rotate_left(usize::try_from(spread % brokers).unwrap_or(0));
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

/// Whether the same may be asked again, and whether that can help.
fn may_ask_again(target: &Target, error: &RequestError, repeat: Repeat) -> bool {
    let safe = repeat != Repeat::IfNotDone || !error.is_indeterminate();
    // Although retriable, since a broker may yet learn of it: a person at a terminal wants to be told.
    let unknown = error.code() == Some(ErrorCode::UnknownTopicOrPartition);
    let helps = match target {
        // There may be another one by then.
        Target::Controller => true,
        // Whoever can be tried has been.
        Target::Any | Target::Broker(_) => !matches!(error, RequestError::Connect(_)),
        // Who asks a leader finds it anew first.
        Target::Address(_) => false,
    };
    error.is_retriable() && safe && !unknown && helps
}

/// What a broker has said says more than that another cannot be reached.
fn more_telling(before: Option<RequestError>, error: RequestError) -> RequestError {
    match before {
        Some(before) if matches!(error, RequestError::Connect(_)) => before,
        _ => error,
    }
}

//! The way to the broker that coordinates a group or a transactional id: found by asking, kept until it says or shows that
//! it is another.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidemark_protocol::{
    ErrorCode,
    message::Request,
    messages::{CoordinatorKind, FindCoordinatorRequest},
};
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Cluster, Repeat, Target},
    error::RequestError,
    pool::Pool,
};

/// How long one attempt waits for an answer, beyond the waiting that is asked for. Then it is asked who coordinates now.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether nothing of what was asked is on its way any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    No,
}

/// The coordinator of one group or transactional id, with a connection of its own.
#[derive(Debug)]
pub(crate) struct Coordinator {
    cluster: Arc<Cluster>,
    kind: CoordinatorKind,
    key: Arc<str>,
    found: Mutex<Found>,
}

/// Where it was last, and the connection there.
#[derive(Debug)]
struct Found {
    address: Option<Arc<str>>,
    pool: Arc<Pool>,
}

impl Coordinator {
    pub(crate) fn new(cluster: Arc<Cluster>, kind: CoordinatorKind, key: Arc<str>) -> Self {
        let pool = Arc::new(Pool::new(cluster.config().clone()));
        Self { cluster, kind, key, found: Mutex::new(Found { address: None, pool }) }
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Asks once. After a failure the coordinator is looked up anew.
    pub(crate) async fn try_ask<R: Request>(
        &self,
        request: &R,
        broker_wait: Duration,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        let asked = async {
            let address = self.address(deadline).await?;
            let pool = self.lock().pool.clone();
            let connection = pool.get(&address, deadline).await?;
            let asked = connection.request(request, Vec::new(), broker_wait, deadline);
            asked.await.map(|(answer, _)| answer)
        };
        let answer = asked.await;
        if let Err(error) = &answer
            && may_be_elsewhere(error)
        {
            self.forget(error);
        }
        answer
    }

    /// Asks until there is an answer, an error that repeating cannot mend, or `deadline` has passed.
    pub(crate) async fn ask<R: Request>(
        &self,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<R::Response, RequestError> {
        self.ask_to_know(request, repeat, deadline).await.map(|(answer, _)| answer)
    }

    /// Asks as [`Self::ask`] does, and says whether the answer is the only one: an attempt before it that nobody has heard of
    /// may be carried out later.
    pub(crate) async fn ask_to_know<R: Request>(
        &self,
        request: &R,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<(R::Response, Settled), RequestError> {
        let mut backoff = self.cluster.backoff();
        let mut settled = Settled::Yes;
        loop {
            let attempt = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let error = match self.try_ask(request, Duration::ZERO, attempt).await {
                Ok(answer) => return Ok((answer, settled)),
                Err(error) => error,
            };
            if error.is_indeterminate() {
                settled = Settled::No;
            }
            let may_repeat = repeat != Repeat::IfNotDone || !error.is_indeterminate();
            let pause = backoff.after_failure();
            if !error.is_retriable() || !may_repeat || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(api = R::API.name(), key = %self.key, %error, ?pause, "asking again");
            sleep(pause).await;
        }
    }

    async fn address(&self, deadline: Instant) -> Result<Arc<str>, RequestError> {
        if let Some(address) = self.lock().address.clone() {
            return Ok(address);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let request = FindCoordinatorRequest {
            kind: self.kind,
            key: self.key.to_string(),
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        };
        let found = self.cluster.ask(&Target::Any, &request, Repeat::Always, deadline).await?;
        let known = self.cluster.metadata().broker(found.broker).cloned();
        let address = if let Some(address) = known {
            address
        } else {
            let metadata = self.cluster.refresh(&[], deadline).await?;
            let unknown = crate::ConnectError::UnknownBroker { broker: found.broker };
            metadata.broker(found.broker).cloned().ok_or(unknown)?
        };
        self.lock().address = Some(address.clone());
        Ok(address)
    }

    /// Whoever answers like this, or not at all, is asked no more before it was looked up again. A connection that answers
    /// too late is given up: what is asked next would wait behind it.
    fn forget(&self, error: &RequestError) {
        let mut found = self.lock();
        found.address = None;
        if let RequestError::TimedOut { .. } = error {
            found.pool = Arc::new(Pool::new(self.cluster.config().clone()));
        }
        drop(found);
        self.cluster.move_on();
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether another broker may be the coordinator by now.
fn may_be_elsewhere(error: &RequestError) -> bool {
    match error.code() {
        Some(code) => matches!(code, ErrorCode::NotCoordinator | ErrorCode::NotReady),
        None => true,
    }
}

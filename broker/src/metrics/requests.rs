//! Requests by API: how many, how long by stage, and how they failed.
//!
//! Handles are registered when the broker starts or when they are first needed; counting a request or timing a
//! stage takes no lock and formats no label. Only errors, which are rare, look their series up.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::PrometheusRecorder;
use tidemark_protocol::{ErrorCode, message::Api};

use super::{scrape, table};

/// Different unknown API numbers that get a series of their own: a peer chooses them, so there is a bound.
const UNSUPPORTED_SERIES_MAX: usize = 32;

/// Where the time of a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From decoded to picked up by the shard.
    Queue,
    /// Validating and appending.
    Append,
    /// From appended to what is waited for: durable, and with acks=all committed.
    Flush,
    /// From answered to handed to the socket.
    Send,
    /// From decoded to handed to the socket.
    Total,
}

impl Stage {
    const COUNT: usize = 5;

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Append => "append",
            Self::Flush => "flush",
            Self::Send => "send",
            Self::Total => "total",
        }
    }
}

/// The handles of one API.
pub struct ApiMetrics {
    api: Api,
    recorder: Arc<PrometheusRecorder>,
    requests: Counter,
    // Most APIs never pass through most stages: a histogram is registered by its first value.
    stages: [OnceLock<Histogram>; Stage::COUNT],
}

impl fmt::Debug for ApiMetrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ApiMetrics").field("api", &self.api).finish_non_exhaustive()
    }
}

impl ApiMetrics {
    fn new(recorder: &Arc<PrometheusRecorder>, api: Api) -> Self {
        Self {
            api,
            recorder: Arc::clone(recorder),
            requests: scrape::counter(recorder, &table::REQUESTS, &[api.name()]),
            stages: Default::default(),
        }
    }

    /// Counts a request that was received.
    pub fn received(&self) {
        self.requests.increment(1);
    }

    /// Records how long a stage took.
    pub fn took(&self, stage: Stage, elapsed: Duration) {
        let register = || {
            let labels = [self.api.name(), stage.name()];
            scrape::histogram(&self.recorder, &table::REQUEST_SECONDS, &labels)
        };
        self.stages[stage as usize].get_or_init(register).record(elapsed);
    }

    /// Counts an error that was answered.
    pub fn failed(&self, error: ErrorCode) {
        let labels = [self.api.name(), error.name()];
        scrape::counter(&self.recorder, &table::REQUEST_ERRORS, &labels).increment(1);
    }
}

/// The handles of all APIs, and of requests that never became one.
#[derive(Debug)]
pub struct RequestMetrics {
    recorder: Arc<PrometheusRecorder>,
    apis: Vec<ApiMetrics>,
    unsupported: Mutex<BTreeSet<u16>>,
}

impl RequestMetrics {
    pub(super) fn new(recorder: &Arc<PrometheusRecorder>) -> Self {
        Self {
            recorder: Arc::clone(recorder),
            apis: Api::ALL.iter().map(|api| ApiMetrics::new(recorder, *api)).collect(),
            unsupported: Mutex::default(),
        }
    }

    /// The handles of one API.
    pub fn api(&self, api: Api) -> &ApiMetrics {
        let position = Api::ALL.iter().position(|known| *known == api);
        &self.apis[position.expect("`Api::ALL` has every API")]
    }

    /// Counts records refused at produce.
    pub fn records_rejected(&self, reason: ErrorCode, records: u64) {
        let labels = [reason.name()];
        scrape::counter(&self.recorder, &table::RECORDS_REJECTED, &labels).increment(records);
    }

    /// Counts a request for an API number that this broker does not know.
    pub fn unsupported(&self, number: u16) {
        let mut seen = self.unsupported.lock().unwrap_or_else(PoisonError::into_inner);
        let has_series =
            seen.contains(&number) || (seen.len() < UNSUPPORTED_SERIES_MAX && seen.insert(number));
        drop(seen);
        let label = if has_series { number.to_string() } else { "other".to_owned() };
        scrape::counter(&self.recorder, &table::API_UNSUPPORTED, &[&label]).increment(1);
    }
}

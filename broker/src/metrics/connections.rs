//! Connections on the data port: how many, how many were refused, and why they ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;

use super::{
    scrape::{self, Scrape},
    table,
};

/// Why a connection was closed before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There are `max_connections` already.
    Limit,
    /// The first bytes are not of a protocol we speak.
    Preface,
    /// No common version.
    Version,
}

impl Rejection {
    const ALL: [Self; 3] = [Self::Limit, Self::Preface, Self::Version];

    const fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Preface => "preface",
            Self::Version => "version",
        }
    }
}

/// Why a connection that was served has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client closed it.
    Client,
    /// No traffic for `idle_timeout`.
    Idle,
    /// The client took nothing it was sent for `send_timeout`.
    Stalled,
    /// A malformed frame.
    ProtocolError,
    /// The operating system reported an error.
    IoError,
    /// The broker is stopping.
    Shutdown,
}

impl Ending {
    const ALL: [Self; 6] = [
        Self::Client,
        Self::Idle,
        Self::Stalled,
        Self::ProtocolError,
        Self::IoError,
        Self::Shutdown,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::ProtocolError => "protocol_error",
            Self::IoError => "io_error",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The handles of all connections.
#[derive(Debug)]
pub struct ConnectionMetrics {
    open: Arc<AtomicU64>,
    opened: Counter,
    rejected: [Counter; Rejection::ALL.len()],
    ended: [Counter; Ending::ALL.len()],
}

impl ConnectionMetrics {
    pub(super) fn new(recorder: &PrometheusRecorder) -> Self {
        Self {
            open: Arc::default(),
            opened: scrape::counter(recorder, &table::CONNECTIONS_OPENED, &[]),
            rejected: Rejection::ALL.map(|reason| {
                scrape::counter(recorder, &table::CONNECTIONS_REJECTED, &[reason.name()])
            }),
            ended: Ending::ALL.map(|reason| {
                scrape::counter(recorder, &table::CONNECTIONS_ENDED, &[reason.name()])
            }),
        }
    }

    /// Counts a connection in; it is counted out when the value is dropped.
    pub fn opened(&self) -> OpenConnection {
        self.opened.increment(1);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection { open: Arc::clone(&self.open) }
    }

    /// Connections that are open now.
    pub fn open_count(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub fn rejected(&self, reason: Rejection) {
        self.rejected[reason as usize].increment(1);
    }

    pub fn ended(&self, reason: Ending) {
        self.ended[reason as usize].increment(1);
    }

    pub(super) fn scrape(&self, scrape: &Scrape) {
        scrape.gauge(&table::CONNECTIONS, &[], self.open_count());
    }
}

/// A connection that is open for as long as this value lives.
#[derive(Debug)]
pub struct OpenConnection {
    open: Arc<AtomicU64>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

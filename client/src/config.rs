//! How a client reaches its cluster. Plain values; nothing here does anything.

use std::time::Duration;

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Brokers to ask first, each `host:port`. Any one that answers is enough.
    pub bootstrap: Vec<String>,
    /// Name of this program in this client's own logs.
    pub client_id: String,
    /// Most time for one attempt to resolve, connect and agree on a version.
    pub connect_timeout: Duration,
    /// How long a broker may be silent about a request beyond the waiting that the request itself asks for.
    /// After it the connection counts as dead.
    pub request_timeout: Duration,
    /// First pause before trying again; grows by a quarter with each failure, and is drawn at random between half and
    /// all of its length. So new leaders are found soon after they are elected.
    pub retry_backoff: Duration,
    /// Longest pause before trying again.
    pub retry_backoff_max: Duration,
    /// Age at which the knowledge of topics and leaders is renewed without an error asking for it.
    pub metadata_max_age: Duration,
    /// Most unanswered requests on one connection. Further requests wait.
    pub max_in_flight: usize,
}

impl ClientConfig {
    /// The defaults, with this broker to ask first.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self { bootstrap: vec![bootstrap.into()], ..Self::default() }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            bootstrap: vec!["127.0.0.1:9092".to_owned()],
            client_id: "tidemark-client".to_owned(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(5),
            retry_backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_mins(5),
            max_in_flight: 64,
        }
    }
}

//! The HTTP port: metrics and health, for machines that watch. It changes nothing and needs no login.
//!
//! It listens before the logs are recovered, so that a broker that takes long to start can say so.

use std::{fmt::Write as _, io, net::SocketAddr};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    health::{Health, HealthState},
    metrics::{Metrics, ScrapeDetail},
    tasks::Shutdown,
};

/// What Prometheus' text format calls itself.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const INDEX: &str = "\
tidemarkd

  /metrics                         Prometheus metrics; add ?collect[]=partition for series per partition
  /health/live                     200 while the process runs
  /health/ready                    200 when it serves, 503 when not, with the reasons
";

/// Why the HTTP port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve HTTP on {address}: {source}")]
pub struct HttpError {
    pub address: String,
    pub source: io::Error,
}

/// The HTTP port, listening but not serving yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    state: Shared,
}

#[derive(Clone, Debug)]
struct Shared {
    health: Health,
    metrics: Metrics,
}

impl HttpServer {
    /// Listens on `address` (`host:port`) and tells `health` where that really is.
    pub async fn bind(address: &str, health: Health, metrics: Metrics) -> Result<Self, HttpError> {
        let refused = |source| HttpError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let local = listener.local_addr().map_err(refused)?;
        health.set_http_address(local);
        Ok(Self { listener, address: local, state: Shared { health, metrics } })
    }

    /// Serves until shutdown, then finishes the requests in progress.
    pub async fn run(self, shutdown: Shutdown) {
        let router = Router::new()
            .route("/", get(INDEX))
            .route("/metrics", get(metrics))
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .fallback(not_found)
            .with_state(self.state);
        let stop = async move { shutdown.started().await };
        if let Err(error) = axum::serve(self.listener, router).with_graceful_shutdown(stop).await {
            tracing::error!(address = %self.address, %error, "the HTTP port failed");
        }
    }
}

async fn metrics(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let detail = match query.as_deref().map_or(Ok(ScrapeDetail::default()), detail) {
        Ok(detail) => detail,
        Err(unknown) => {
            let message = format!("unknown `{unknown}`; the only collection is `collect[]=partition`\n");
            return (StatusCode::BAD_REQUEST, message).into_response();
        }
    };
    match tokio::task::spawn_blocking(move || shared.metrics.render(detail)).await {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Reads `collect[]=partition`; Prometheus escapes the brackets.
fn detail(query: &str) -> Result<ScrapeDetail, &str> {
    let mut detail = ScrapeDetail::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_collect =
            ["collect[]", "collect%5B%5D"].iter().any(|known| known.eq_ignore_ascii_case(name));
        if !is_collect || value != "partition" {
            return Err(pair);
        }
        detail.partitions = true;
    }
    Ok(detail)
}

async fn live() -> Response {
    json(StatusCode::OK, "{\"live\":true}".to_owned())
}

async fn ready(State(shared): State<Shared>) -> Response {
    let state = shared.health.state();
    let status = if state.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, ready_json(&state))
}

/// `{"ready":false,"reasons":[{"reason":"starting","blocks":true,"detail":"recovering logs 3 of 10"}]}`
fn ready_json(state: &HealthState) -> String {
    let mut out = format!("{{\"ready\":{},\"reasons\":[", state.is_ready());
    for (position, (reason, detail)) in state.reasons.iter().enumerate() {
        let separator = if position == 0 { "" } else { "," };
        let name = reason.name();
        let blocks = reason.blocks_readiness();
        write!(out, "{separator}{{\"reason\":\"{name}\",\"blocks\":{blocks},\"detail\":")
            .expect("writing to a string cannot fail");
        push_json_string(&mut out, detail);
        out.push('}');
    }
    out + "]}"
}

fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a string cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

async fn not_found(uri: Uri) -> Response {
    let message = format!("nothing at {}; `GET /` lists what there is\n", uri.path());
    (StatusCode::NOT_FOUND, message).into_response()
}

//! The HTTP port: metrics and health, for machines that watch. It changes nothing and needs no login.
//!
//! It listens before the logs are recovered, so that a broker that takes long to start can say so.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    health::{Health, HealthState, Reason},
    listen_error::ListenError,
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
    pub async fn bind(
        address: &str,
        health: Health,
        metrics: Metrics,
    ) -> Result<Self, ListenError> {
        let refused = |source| ListenError::new("http_listen", address, source);
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
            let message =
                format!("unknown `{unknown}`; the only collection is `collect[]=partition`\n");
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
    respond(StatusCode::OK, &json!({ "live": true }))
}

async fn ready(State(shared): State<Shared>) -> Response {
    let state = shared.health.state();
    let status = if state.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond(status, &ready_json(&state))
}

/// `{"ready":false,"reasons":[{"reason":"starting","blocks":true,"detail":"recovering logs 3 of 10"}]}`
fn ready_json(state: &HealthState) -> Value {
    let describe = |(reason, detail): (&Reason, &String)| json!({ "reason": reason.name(), "blocks": reason.blocks_readiness(), "detail": detail });
    json!({ "ready": state.is_ready(), "reasons": state.reasons.iter().map(describe).collect::<Vec<_>>() })
}

fn respond(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn not_found(uri: Uri) -> Response {
    let message = format!("nothing at {}; `GET /` lists what there is\n", uri.path());
    (StatusCode::NOT_FOUND, message).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{clock::Clock, tasks::Tasks};

    struct Served {
        address: SocketAddr,
        health: Health,
        tasks: Tasks,
    }

    async fn serve() -> Served {
        let health = Health::starting();
        let metrics = Metrics::new(Clock::start(), health.clone());
        let server = HttpServer::bind("127.0.0.1:0", health.clone(), metrics).await.unwrap();
        let address = server.address;
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("http", server.run(tasks.shutdown().clone()));
        Served { address, health, tasks }
    }

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_health_state_and_gives_the_reasons() {
        let served = serve().await;
        served.health.raise(Reason::Starting, "recovering \"logs\" 3 of 10");
        let (status, body) = get(served.address, "/health/ready").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["reasons"][0]["reason"], "starting");
        assert_eq!(body["reasons"][0]["detail"], "recovering \"logs\" 3 of 10");

        served.health.clear(Reason::Starting);
        served.health.raise(Reason::DiskFull, "1MiB left");
        let (status, body) = get(served.address, "/health/ready").await;
        assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
        assert!(body.contains("\"blocks\":false"), "{body}");
        assert_eq!(get(served.address, "/health/live").await.0, "HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn metrics_are_served_and_what_is_not_there_is_said_clearly() {
        let served = serve().await;
        let (status, body) = get(served.address, "/metrics?collect%5B%5D=partition").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(body.contains("\ntidemark_ready 0\n"), "{body}");
        let (status, body) = get(served.address, "/metrics?collect[]=topics").await;
        assert_eq!(
            (status.as_str(), body.contains("collect[]=topics")),
            ("HTTP/1.1 400 Bad Request", true)
        );
        let (status, body) = get(served.address, "/metric").await;
        assert_eq!((status.as_str(), body.contains("/metric;")), ("HTTP/1.1 404 Not Found", true));
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_with_its_address() {
        let served = serve().await;
        let metrics = Metrics::new(Clock::start(), served.health.clone());
        let address = served.address.to_string();
        let error = HttpServer::bind(&address, served.health, metrics).await.unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        assert!(error.to_string().contains("--http-listen"), "{error}");
    }

    #[tokio::test]
    async fn an_idle_watcher_does_not_hold_up_shutdown() {
        let served = serve().await;
        let _idle = TcpStream::connect(served.address).await.unwrap();
        served.tasks.shutdown().start();
        served.tasks.finished(Duration::from_secs(5)).await.unwrap();
    }
}

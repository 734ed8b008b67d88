//! Asking nodes over HTTP whether they are ready. As much of an HTTP client as that takes.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::exit::{CliError, Exit};

const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Readiness is told in a few lines; more is not read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Waits until each of the nodes (number and HTTP address) says that it is ready.
pub(super) async fn wait_for_all(
    nodes: &[(u16, String)],
    deadline: Instant,
) -> Result<(), CliError> {
    for (id, address) in nodes {
        loop {
            let state = ask(address).await;
            if state == State::Ready {
                break;
            }
            if Instant::now() >= deadline {
                let why = match state {
                    State::NotReady(why) => why,
                    _ => "it does not answer".to_owned(),
                };
                let message = format!("node {id} is not ready in time: {why}");
                return Err(CliError::new(Exit::Timeout, message)
                    .with_hint("its lines above may say more; --timeout waits longer"));
            }
            // Another process has to change; there is nothing here to be woken by.
            sleep(ASK_AGAIN_AFTER).await;
        }
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// The reasons, as it gives them.
    NotReady(String),
    Silent,
}

async fn ask(address: &str) -> State {
    match timeout(ANSWER_TIMEOUT, get_ready(address)).await {
        Ok(Ok(answer)) => understood(&answer),
        _ => State::Silent,
    }
}

async fn get_ready(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /health/ready HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn understood(answer: &str) -> State {
    let status = answer.split_whitespace().nth(1);
    match status {
        Some("200") => State::Ready,
        Some(_) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            State::NotReady(body.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        None => State::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_ready_not_ready_with_reasons_or_nothing() {
        assert_eq!(understood("HTTP/1.0 200 OK\r\n\r\nready\n"), State::Ready);
        let not_ready =
            "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nstarting\n  recovering logs\n";
        assert_eq!(understood(not_ready), State::NotReady("starting recovering logs".to_owned()));
        assert_eq!(understood(""), State::Silent);
    }
}

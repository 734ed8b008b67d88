//! `tidemarkd`: reads the configuration, starts logging, runs the broker and turns the outcome into an exit code.
//!
//! It decides nothing about data. Exit codes: 0 after a clean stop, 1 when the broker failed or was stopped by
//! force, 2 when the command line or the configuration is wrong.

use std::{
    env, future, io,
    io::Write,
    process::{self, ExitCode},
    time::Duration,
};

use anyhow::Context;
use tidemark_broker::{
    banner::{self, Banner},
    clock::Clock,
    config::{Config, ENVIRONMENT_LOG, Invocation, UsageError},
    health::{Health, HealthState, Reason},
    http::HttpServer,
    logging,
    metrics::Metrics,
    server::{self, ServerError},
    tasks::{Shutdown, Tasks},
};
use tidemark_storage::OpenError;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// How often recorded times are moved from their buffers into buckets, which bounds the buffers.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let environment = env::vars_os().map(|(name, value)| (lossy(name), lossy(value)));
    match Invocation::parse(env::args_os(), environment) {
        Ok(Invocation { check_config: true, config, .. }) => {
            for warning in &config.warnings {
                complain(warning);
            }
            say(&config.to_toml());
            ExitCode::SUCCESS
        }
        Ok(Invocation { config, stop_with_stdin, .. }) => run(&config, stop_with_stdin),
        Err(UsageError::Flags(error)) => {
            // `--help` and `--version` come this way too, with their own stream and exit code.
            error.print().ok();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE))
        }
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn run(config: &Config, stop_with_stdin: bool) -> ExitCode {
    let filter = env::var(ENVIRONMENT_LOG).ok();
    if let Err(error) = logging::start(config.log_level, config.log_format, filter.as_deref()) {
        complain(&error.to_string());
        return ExitCode::from(EXIT_USAGE);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let threads = usize::try_from(config.network_threads).expect("bounded by its setting");
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("network")
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(serve(config, stop_with_stdin));
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error).context("cannot start the network threads"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&explain(&error));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Runs the broker until a signal or a failure ends it.
async fn serve(config: &Config, stop_with_stdin: bool) -> anyhow::Result<()> {
    let health = Health::starting();
    let metrics = Metrics::new(Clock::start(), health.clone());
    let shutdown = Shutdown::new();
    watch_signals(&shutdown, &health)?;
    if stop_with_stdin {
        watch_stdin(&shutdown, &health)?;
    }

    // Watching must be possible for longer than what is watched: this part stops last.
    let outside = Tasks::new(Shutdown::new());
    let http = HttpServer::bind(&config.http_listen, health.clone(), metrics.clone()).await?;
    outside.spawn("http", http.run(outside.shutdown().clone()));
    outside.spawn("metrics", keep_metrics(metrics.clone(), outside.shutdown().clone()));

    let broker = server::run(config.clone(), metrics, health.clone(), shutdown.clone());
    let announce = async {
        let state = health.ready().await;
        say(&banner(config, &state).to_string());
        future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = broker => outcome.map_err(anyhow::Error::from),
        () = announce => unreachable!("the announcement never completes"),
    };
    outside.shutdown().start();
    if let Err(error) = outside.finished(config.shutdown_timeout).await {
        tracing::warn!(%error, "the HTTP port was closed with requests in progress");
    }
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

/// The first SIGTERM or SIGINT stops the broker in order; the second ends the process there and then, which
/// costs nothing that was acknowledged.
fn watch_signals(shutdown: &Shutdown, health: &Health) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let (shutdown, health) = (shutdown.clone(), health.clone());
    // Not waited for: it lives until the process ends.
    Tasks::new(shutdown.clone()).spawn("signals", async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.has_started() {
                complain(&format!("{name} again: stopping at once"));
                process::exit(EXIT_FAILED.into());
            }
            tracing::info!(signal = name, "stopping; once more stops at once");
            health.raise(Reason::Stopping, format!("received {name}"));
            shutdown.start();
        }
    });
    Ok(())
}

/// Whoever holds the other end of standard input keeps the broker running; it ends when that process does, however it ends.
fn watch_stdin(shutdown: &Shutdown, health: &Health) -> anyhow::Result<()> {
    let (shutdown, health) = (shutdown.clone(), health.clone());
    let watch = move || {
        // What cannot be read any more has ended, too.
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        tracing::info!("standard input has ended; stopping");
        health.raise(Reason::Stopping, "standard input has ended");
        shutdown.start();
    };
    // Not waited for: it reads until the process ends.
    let watching = Tasks::new(Shutdown::new()).spawn_thread("stdin", watch);
    watching.map(drop).context("cannot watch standard input")
}

async fn keep_metrics(metrics: Metrics, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.or_stop(ticks.tick()).await.is_some() {
        metrics.upkeep();
    }
}

fn banner(config: &Config, state: &HealthState) -> Banner {
    Banner {
        version: env!("CARGO_PKG_VERSION"),
        data_address: state.data_address,
        http_address: state.http_address,
        data_dir: config.data_dir.clone(),
        client: banner::client_command(),
        client_options: state.data_address.map(banner::client_options).unwrap_or_default(),
    }
}

/// The error, those causes that it does not mention itself, and what to do next.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if let Some(ServerError::DataDir(error)) = error.downcast_ref::<ServerError>() {
        text = format!("{text}\n{}", data_dir_advice(error));
    }
    text
}

fn data_dir_advice(error: &OpenError) -> &'static str {
    match error {
        OpenError::Locked { .. } => {
            "stop that process, or choose another directory with --data-dir DIR"
        }
        OpenError::Foreign { .. } => {
            "start it as the node it belongs to with --node-id N, or choose another directory with --data-dir DIR"
        }
        OpenError::NotEmpty { .. } => {
            "give it an empty directory, or one that does not exist yet, with --data-dir DIR"
        }
        OpenError::NewerFormat { .. } => {
            "run the version that wrote it, or choose another directory with --data-dir DIR"
        }
        OpenError::Damaged { .. } => {
            "nothing was changed; look at the disk, restore a copy, or choose another directory with --data-dir DIR"
        }
        OpenError::Disk(_) => {
            "the directory, or the one above it if it is to be created, must exist and be writable for this user; \
             choose another with --data-dir DIR"
        }
    }
}

/// Standard output. A closed one is no reason to stop serving.
fn say(text: &str) {
    writeln!(io::stdout(), "{}", text.trim_end()).ok();
}

/// Standard error, for what goes wrong before there is a log or after it.
fn complain(text: &str) {
    for line in text.lines() {
        writeln!(io::stderr(), "tidemarkd: {line}").ok();
    }
}

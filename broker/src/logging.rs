//! Log lines on standard error: text for people, JSON for collectors. Standard output carries none.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

use crate::config::value::{Kind, LogFormat, LogLevel};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("TIDEMARK_LOG is not a list of filters such as `info,tidemark_storage=debug`: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging was set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends events of `level` and above to standard error. `filter`, the content of `TIDEMARK_LOG`, overrides
/// the level. Once per process: this is what tracing itself keeps global.
pub fn start(level: LogLevel, format: LogFormat, filter: Option<&str>) -> Result<(), LoggingError> {
    let level = LogLevel::render(&level);
    let filter = EnvFilter::try_new(filter.unwrap_or(&level))?;
    // A line that cannot be written is lost. Complaining of it on standard error, which is where it was to go, would panic
    // whoever logs as soon as nobody reads that any more.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text if io::stderr().is_terminal() => {
            // Whoever reads along knows which program and which day it is.
            builder.compact().with_target(false).finish().try_init()?;
        }
        LogFormat::Text => builder.compact().with_ansi(false).finish().try_init()?,
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
